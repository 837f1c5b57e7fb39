# SPDX-License-Identifier: ISC
"""Each operation on a breaker, by the book: what it changes, what it returns, and what it leaves alone."""
import fixture
from support import tap


class Drift(fixture.SqlTest):
    def test_threshold_itself_is_good(self):
        self.assertIsNone(self.drift(0.2))
        self.assertEqual(self.breaker()["consecutive_failures"], 0)
        self.assertIsNone(self.breaker()["last_failure_at"])

    def test_just_above_threshold_is_bad(self):
        self.assertIsNone(self.drift(0.20000000000000004))
        self.assertEqual(self.breaker()["consecutive_failures"], 1)
        self.assertIsNotNone(self.breaker()["last_failure_at"])

    def test_the_ends_of_the_range(self):
        self.policy(drift_threshold=1)
        self.drift(1)
        self.drift(0)
        self.assertEqual(self.breaker()["consecutive_failures"], 0)
        self.policy(drift_threshold=0)
        self.drift(5e-324)
        self.assertEqual(self.breaker()["consecutive_failures"], 1)

    def test_only_failures_in_a_row_count(self):
        for score in (0.9, 0.9, 0.1, 0.9, 0.9):
            self.assertIsNone(self.drift(score))
        self.assertFalse(self.breaker()["disabled"])
        self.assertEqual(self.breaker()["consecutive_failures"], 2)

    def test_good_report_on_a_quiet_breaker_changes_nothing(self):
        self.drift(0.1)
        before = self.traces()
        self.drift(0.1)
        self.assertEqual(self.traces(), before)

    def test_last_failure_at_is_that_of_the_last(self):
        self.drift(0.9)
        first = self.breaker()["last_failure_at"]
        self.drift(0.9)
        last = self.breaker()["last_failure_at"]
        self.assertGreater(last, first)
        self.drift(0.1)
        self.assertEqual(self.breaker()["last_failure_at"], last)

    def test_third_in_a_row_trips(self):
        self.assertIsNone(self.drift(0.9))
        self.assertIsNone(self.drift(0.9))
        self.assertFalse(self.breaker()["disabled"])
        incident = self.drift(0.25, 1234, {"field": "price"})
        row = self.breaker()
        self.assertTrue(row["disabled"])
        self.assertEqual(row["disabled_by"], "circuit_breaker")
        self.assertEqual(row["disabled_reason"], "Drift exceeded threshold: 0.2500 > 0.2")
        self.assertEqual(row["incident_id"], incident["id"])
        self.assertEqual(row["consecutive_failures"], 3)
        self.assertSeconds("disabled_until - opened_at", 24 * 3600)
        self.assertSeconds("opened_at - clock_timestamp()", 0)
        self.assertEqual(
            {key: value for key, value in incident.items() if key not in ("id", "timestamp")},
            {"breaker": self.name, "reason": "Drift exceeded threshold: 0.2500 > 0.2", "severity": "P1",
             "drift_score": 0.25, "sample_count": 1234, "details": {"field": "price"}, "resolved": False,
             "resolved_at": None, "resolved_by": None, "resolution_notes": None, "alert_sent": False,
             "alert_sent_at": None})
        self.assertEqual(self.actions(), ["create", "trip"])
        self.assertEqual(self.audit()[1]["actor"], "circuit_breaker")
        self.assertEqual(self.audit()[1]["version"], row["version"])

    def test_score_and_threshold_in_the_reason(self):
        self.policy(failure_threshold=1, drift_threshold=0.125)
        self.assertEqual(self.drift(1)["reason"], "Drift exceeded threshold: 1.0000 > 0.125")

    def test_own_policy_counts(self):
        self.policy(drift_threshold=0.5, failure_threshold=1)
        self.assertIsNone(self.drift(0.5))
        self.assertIsNotNone(self.drift(0.51))

    def test_open_breaker_counts_and_nothing_else(self):
        for _ in range(3):
            self.drift(0.9)
        before = self.breaker()
        for _ in range(4):
            self.assertIsNone(self.drift(0.9))
        row = self.breaker()
        self.assertEqual(row["consecutive_failures"], 7)
        for field in ("incident_id", "opened_at", "disabled_until", "disabled_reason", "disabled_by"):
            self.assertEqual(row[field], before[field])
        self.assertEqual(len(self.incidents()), 1)
        self.assertEqual(len(self.alerts()), 1)
        self.assertEqual(self.actions(), ["create", "trip"])
        self.drift(0)
        self.assertEqual(self.breaker()["consecutive_failures"], 0)
        self.assertTrue(self.breaker()["disabled"])

    def test_lowered_threshold_takes_effect_with_the_next_bad_report(self):
        self.drift(0.9)
        self.drift(0.9)
        self.policy(failure_threshold=1)
        self.assertFalse(self.breaker()["disabled"])
        self.assertEqual(self.breaker()["consecutive_failures"], 2)
        self.assertIsNotNone(self.drift(0.9))

    def test_counter_does_not_overflow(self):
        self.run_sql(f"INSERT INTO cbshm.breaker (name, failure_threshold, consecutive_failures) "
                     f"VALUES ('{self.name}', 2147483647, 2147483646)")
        self.assertIsNotNone(self.drift(0.9))
        self.assertIsNone(self.drift(0.9))
        self.assertEqual(self.breaker()["consecutive_failures"], 2147483647)

    def test_ttl_of_zero_never_ends(self):
        self.policy(default_ttl="'0'", failure_threshold=1)
        self.drift(0.9)
        self.assertIsNone(self.breaker()["disabled_until"])

    def test_counter_is_gone_after_closing(self):
        for _ in range(5):
            self.drift(0.9)
        self.enable()
        self.assertIsNone(self.drift(0.9))
        self.assertEqual(self.breaker()["consecutive_failures"], 1)


class SchemaErrors(fixture.SqlTest):
    def test_one_below_the_threshold(self):
        self.assertIsNone(self.schema_error(4))
        self.assertFalse(self.breaker()["disabled"])

    def test_threshold_itself_trips(self):
        incident = self.schema_error(5, {"table": "t"})
        self.assertEqual(incident["reason"], "Schema error threshold exceeded: 5 >= 5")
        self.assertEqual((incident["severity"], incident["drift_score"], incident["sample_count"]), ("P3", 1, 5))
        self.assertEqual(incident["details"], {"table": "t"})
        self.assertEqual(self.breaker()["disabled_by"], "circuit_breaker")
        self.assertSeconds("disabled_until - opened_at", 24 * 3600)

    def test_reason(self):
        self.assertEqual(self.schema_error(7)["reason"], "Schema error threshold exceeded: 7 >= 5")

    def test_reports_do_not_add_up(self):
        for _ in range(5):
            self.schema_error(4)
        self.assertFalse(self.breaker()["disabled"])

    def test_zero(self):
        self.policy(schema_error_threshold=1)
        self.assertIsNone(self.schema_error(0))
        self.assertIsNotNone(self.schema_error(1))

    def test_open_breaker_stays_as_it_is(self):
        self.schema_error(5)
        before = self.traces()
        self.assertIsNone(self.schema_error(500))
        self.assertEqual(self.traces(), before)

    def test_drift_counter_is_left_alone(self):
        self.drift(0.9)
        self.schema_error(0)
        self.assertEqual(self.breaker()["consecutive_failures"], 1)


class Disable(fixture.SqlTest):
    def test_opens(self):
        changed, incident = self.disable("maintenance", by="alice")
        row = self.breaker()
        self.assertTrue(changed)
        self.assertEqual((row["disabled"], row["disabled_by"], row["disabled_reason"], row["incident_id"]),
                         (True, "alice", "maintenance", incident["id"]))
        self.assertEqual(incident["severity"], "P2")
        self.assertEqual(incident["details"], {"manual_disable": True})
        self.assertIsNone(incident["drift_score"])
        self.assertSeconds("disabled_until - opened_at", 24 * 3600)

    def test_by_is_the_database_user_if_not_said(self):
        self.disable()
        self.assertEqual(self.breaker()["disabled_by"], "postgres")

    def unchanged(self, **again):
        before = self.traces()
        self.assertEqual(self.disable(**again), (False, None))
        self.assertEqual(self.traces(), before)

    def superseded(self, **again):
        old = self.incidents()[-1]
        changed, incident = self.disable(**again)
        self.assertTrue(changed)
        self.assertEqual(self.breaker()["incident_id"], incident["id"])
        self.assertNotEqual(old["id"], incident["id"])
        resolved = [each for each in self.incidents() if each["id"] == old["id"]][0]
        self.assertTrue(resolved["resolved"])
        self.assertEqual(resolved["resolution_notes"], f"Superseded by incident {incident['id']}")
        self.assertEqual(resolved["resolved_by"], self.breaker()["disabled_by"])
        self.assertEqual(self.breaker()["opened_at"], self.incidents()[-1]["timestamp"])

    def test_same_again_is_no_change(self):
        self.disable()
        self.unchanged()
        self.unchanged(by="somebody else")

    def test_same_default_after_the_policy_has_changed(self):
        self.disable()
        self.policy(default_ttl="'1 hour'")
        self.unchanged()

    def test_same_until(self):
        self.disable(until="2999-01-01 00:00:00Z")
        self.unchanged(until="2999-01-01 01:00:00+01")
        self.superseded()

    def test_same_never(self):
        self.disable(until="infinity")
        self.assertIsNone(self.breaker()["disabled_until"])
        self.unchanged(until="infinity")
        self.superseded()
        self.assertIsNotNone(self.breaker()["disabled_until"])
        self.superseded(until="infinity")

    def test_never_and_a_default_that_never_ends_are_the_same(self):
        self.policy(default_ttl="'0'")
        self.disable()
        self.unchanged(until="infinity")
        self.unchanged()

    def test_until_that_is_what_the_default_came_to(self):
        self.disable()
        self.unchanged(until=self.breaker()["disabled_until"])

    def test_other_reason_supersedes(self):
        self.disable()
        self.superseded(reason="another")

    def test_other_until_supersedes(self):
        self.disable()
        self.superseded(until="2999-01-01 00:00:00Z")
        self.superseded(until="2999-01-02 00:00:00Z")
        self.assertEqual(len(self.incidents()), 3)

    def test_ttl(self):
        self.disable(ttl="90 s")
        self.assertSeconds("disabled_until - opened_at", 90)
        self.superseded(ttl="60 s")
        self.assertSeconds("disabled_until - opened_at", 60)

    def test_over_a_trip(self):
        incident = self.schema_error(5)
        self.superseded(reason="by hand")
        self.enable()
        self.schema_error(5)
        self.unchanged(reason=incident["reason"])

    def test_counter_stays(self):
        self.drift(0.9)
        self.disable()
        self.assertEqual(self.breaker()["consecutive_failures"], 1)

    def test_reason_may_be_long_and_have_lines(self):
        reason = "é" * 511 + "\n\t"
        self.disable(reason)
        self.assertEqual(self.breaker()["disabled_reason"], reason)


class Enable(fixture.SqlTest):
    def test_closes(self):
        self.drift(0.9)
        self.disable()
        failed = self.breaker()["last_failure_at"]
        self.assertTrue(self.enable(by="bob", reason="all fine"))
        row = self.breaker()
        self.assertFalse(row["disabled"])
        for field in ("disabled_by", "disabled_reason", "opened_at", "disabled_until", "incident_id"):
            self.assertIsNone(row[field], field)
        self.assertEqual(row["consecutive_failures"], 0)
        self.assertEqual(row["last_failure_at"], failed)
        incident = self.incidents()[0]
        self.assertEqual((incident["resolved"], incident["resolved_by"], incident["resolution_notes"]),
                         (True, "bob", "all fine"))
        self.assertIsNotNone(incident["resolved_at"])

    def test_notes_if_no_reason_is_given(self):
        self.disable()
        self.enable()
        self.assertEqual(self.incidents()[0]["resolution_notes"], "Manual reset")
        self.assertEqual(self.incidents()[0]["resolved_by"], "postgres")

    def test_closed_stays_as_it_is(self):
        self.drift(0.9)
        before = self.traces()
        self.assertFalse(self.enable())
        self.assertEqual(self.traces(), before)

    def test_reset_is_another_name(self):
        self.disable()
        self.assertTrue(self.value(f"cbshm.reset('{self.name}', 'eve', 'done')"))
        self.assertFalse(self.value(f"cbshm.reset('{self.name}')"))
        self.assertEqual(self.incidents()[0]["resolution_notes"], "done")

    def test_closes_what_has_expired_too(self):
        self.disable(ttl="1 ms")
        self.expire()
        self.assertTrue(self.enable(by="bob"))
        self.assertEqual(self.incidents()[0]["resolved_by"], "bob")


class Recover(fixture.SqlTest):
    def nothing(self):
        before = self.traces()
        self.assertFalse(self.recover())
        self.assertEqual(self.traces(), before)

    def test_after_the_ttl(self):
        self.drift(0.9)
        self.disable(ttl="1 ms")
        self.expire()
        self.assertTrue(self.recover())
        self.assertFalse(self.breaker()["disabled"])
        self.assertEqual(self.breaker()["consecutive_failures"], 0)
        incident = self.incidents()[0]
        self.assertEqual((incident["resolved_by"], incident["resolution_notes"]),
                         ("system-auto-recover", "Auto-recovered after TTL expired"))
        self.assertEqual(self.actions(), ["create", "disable", "recover"])
        self.assertEqual(self.audit()[2]["actor"], "system-auto-recover")
        self.nothing()

    def test_before_the_ttl(self):
        self.disable(ttl="1 hour")
        self.nothing()

    def test_without_a_ttl(self):
        self.disable(until="infinity")
        self.nothing()

    def test_with_auto_recover_off(self):
        self.policy(auto_recover="false")
        self.disable(ttl="1 ms")
        self.expire()
        self.nothing()
        self.policy(auto_recover="true")
        self.assertTrue(self.recover())

    def test_with_the_fleets_auto_recover_off(self):
        self.disable(ttl="1 ms")
        self.expire()
        self.run_sql("UPDATE cbshm.settings SET auto_recover = false")
        try:
            self.nothing()
        finally:
            self.run_sql("UPDATE cbshm.settings SET auto_recover = true")

    def test_closed(self):
        self.enable()
        self.nothing()

    def test_unknown_is_not_created(self):
        self.nothing()
        self.assertIsNone(self.breaker())
        self.assertFalse(self.value("cbshm.recover(NULL)"))


class Expired(fixture.SqlTest):
    """The TTL has passed, so every reader says "enabled", but no agent has committed the recovery yet."""

    def expired(self):
        self.disable(ttl="1 ms")
        self.expire()

    def test_report_that_only_counts(self):
        self.expired()
        self.assertIsNone(self.drift(0.9))
        self.assertFalse(self.breaker()["disabled"])
        self.assertEqual(self.breaker()["consecutive_failures"], 1)
        self.assertEqual(self.incidents()[0]["resolved_by"], "system-auto-recover")

    def test_report_that_trips(self):
        self.expired()
        self.assertIsNotNone(self.schema_error(5))
        self.assertEqual([each["resolved"] for each in self.incidents()], [True, False])
        self.assertEqual(self.incidents()[0]["resolution_notes"], "Auto-recovered after TTL expired")

    def test_disable_opens_anew(self):
        self.expired()
        changed, incident = self.disable()
        self.assertTrue(changed)
        self.assertEqual(self.breaker()["incident_id"], incident["id"])
        self.assertEqual(self.actions(), ["create", "disable", "recover", "disable"])

    def test_not_with_auto_recover_off(self):
        self.policy(auto_recover="false")
        self.expired()
        self.assertIsNone(self.schema_error(5))
        self.assertTrue(self.breaker()["disabled"])
        self.assertEqual(len(self.incidents()), 1)


class Creation(fixture.SqlTest):
    def created(self):
        row = self.breaker()
        self.assertIsNotNone(row)
        self.assertEqual(row["version"], 1)
        self.assertFalse(row["disabled"])
        self.assertEqual(self.actions(), ["create"])

    def test_by_a_good_report(self):
        self.drift(0.1)
        self.created()

    def test_by_a_schema_report(self):
        self.schema_error(0)
        self.created()

    def test_by_enable(self):
        self.assertFalse(self.enable())
        self.created()

    def test_by_disable(self):
        self.disable()
        self.assertEqual(self.version(), 2)

    def test_not_by_asking(self):
        self.rows(f"SELECT * FROM cbshm.get_state('{self.name}')")
        self.rows(f"SELECT * FROM cbshm.get_incidents('{self.name}')")
        self.assertIsNone(self.value(f"cbshm.state_json('{self.name}')"))
        self.assertEqual(self.value(f"cbshm.incidents_json('{self.name}', true, 10)"), [])
        self.assertIsNone(self.value(f"cbshm.set_policy_json('{self.name}', '{{}}', NULL, NULL)"))
        self.assertIsNone(self.breaker())


class Questions(fixture.SqlTest):
    def test_get_state(self):
        self.drift(0.9)
        self.disable(by="carol")
        row = self.breaker()
        state = self.row(f"SELECT * FROM cbshm.get_state('{self.name}')")
        self.assertEqual(state, {
            "is_open": True, "opened_at": row["opened_at"], "reason": "why", "incident_id": row["incident_id"],
            "consecutive_failures": 1, "last_failure_at": row["last_failure_at"],
            "disabled_until": row["disabled_until"], "disabled_by": "carol", "version": row["version"]})
        self.assertEqual(self.rows("SELECT * FROM cbshm.get_state('nobody knows it')"), [])

    def test_state_json(self):
        self.policy(drift_threshold=0.5)
        state = self.value(f"cbshm.state_json('{self.name}')")
        self.assertEqual(state.pop("updated_at")[-1], "Z")
        self.assertEqual(state, {
            "name": self.name, "is_open": False, "opened_at": None, "reason": None, "incident_id": None,
            "consecutive_failures": 0, "last_failure_at": None, "disabled_until": None, "disabled_by": None,
            "version": 2, "policy": {"drift_threshold": 0.5, "failure_threshold": 3, "schema_error_threshold": 5,
                                     "default_ttl_seconds": 86400, "auto_recover": True}})

    def test_times_do_not_depend_on_the_session(self):
        self.disable(until="2999-06-01 12:00:00.25Z")
        with_zone = fixture.server().session()
        with_zone.execute("SET timezone = 'Asia/Kathmandu'; SET datestyle = 'German'")
        state = self.value(f"cbshm.state_json('{self.name}')", with_zone)
        with_zone.close()
        self.assertEqual(state["disabled_until"], "2999-06-01T12:00:00.250000Z")

    def test_get_incidents(self):
        for reason in ("first", "second", "third"):
            self.disable(reason)
        query = "SELECT * FROM cbshm.get_incidents('{}'{})"
        self.assertEqual([each["reason"] for each in self.rows(query.format(self.name, ""))], ["third"])
        found = self.rows(query.format(self.name, ", include_resolved => true"))
        self.assertEqual([each["reason"] for each in found], ["third", "second", "first"])
        self.assertEqual(sorted(found[0]), sorted(
            ["id", "breaker", "timestamp", "reason", "severity", "drift_score", "sample_count", "details", "resolved",
             "resolved_at", "resolved_by", "resolution_notes", "alert_sent", "alert_sent_at"]))
        self.assertEqual(len(self.rows(query.format(self.name, ", true, 2"))), 2)
        newest = self.row('SELECT * FROM cbshm.get_incidents("limit" => 1)')
        self.assertEqual((newest["breaker"], newest["reason"]), (self.name, "third"))
        as_json = self.value(f"cbshm.incidents_json('{self.name}', true, 2)")
        self.assertEqual([each["reason"] for each in as_json], ["third", "second"])
        self.assertEqual(sorted(as_json[0]), sorted(found[0]))

    def test_ten_incidents_unless_said_otherwise(self):
        for number in range(12):
            self.disable(str(number))
        self.assertEqual(len(self.rows(f"SELECT * FROM cbshm.get_incidents('{self.name}', true)")), 10)

    def test_mirror(self):
        columns = self.rows("SELECT column_name || ' ' || udt_name AS c FROM information_schema.columns "
                            "WHERE table_schema = 'cbshm' AND table_name = 'mirror' ORDER BY ordinal_position")
        self.assertEqual([each["c"] for each in columns], [
            "name text", "version int8", "disabled bool", "disabled_by text", "disabled_reason text",
            "opened_at timestamptz", "disabled_until timestamptz", "incident_id uuid", "consecutive_failures int4",
            "last_failure_at timestamptz", "updated_at timestamptz", "drift_threshold float8",
            "failure_threshold int4", "schema_error_threshold int4", "default_ttl_us int8", "auto_recover bool"])
        self.policy(default_ttl="'1.5 seconds'")
        mirrored = self.row(f"SELECT * FROM cbshm.mirror WHERE name = '{self.name}'")
        self.assertEqual((mirrored["default_ttl_us"], mirrored["drift_threshold"]), (1500000, 0.2))


class Policy(fixture.SqlTest):
    def tearDown(self):
        self.run_sql("UPDATE cbshm.settings SET drift_threshold = 0.2, failure_threshold = 3, "
                     "schema_error_threshold = 5, default_ttl = '24 hours', auto_recover = true")
        super().tearDown()

    def test_state_and_counters_stay(self):
        self.drift(0.9)
        self.disable()
        before = self.breaker()
        policy = self.policy(failure_threshold=9, default_ttl="'2 minutes'")
        self.assertEqual(policy, {"drift_threshold": 0.2, "failure_threshold": 9, "schema_error_threshold": 5,
                                  "default_ttl_seconds": 120, "auto_recover": True})
        after = self.breaker()
        self.assertEqual(after["version"], before["version"] + 1)
        changed = {key for key in after if after[key] != before[key]}
        self.assertEqual(changed, {"version", "updated_at", "failure_threshold", "default_ttl"})
        entry = self.audit()[-1]
        self.assertEqual((entry["action"], entry["old_values"], entry["new_values"]),
                         ("policy", {}, {"failure_threshold": 9, "default_ttl": "00:02:00"}))

    def test_old_and_new_values(self):
        self.policy(drift_threshold=0.3)
        self.policy(drift_threshold=0.4, by="'dave'")
        entry = self.audit()[-1]
        self.assertEqual((entry["old_values"], entry["new_values"], entry["actor"]),
                         ({"drift_threshold": 0.3}, {"drift_threshold": 0.4}, "dave"))

    def test_same_again_changes_nothing(self):
        self.policy(drift_threshold=0.3)
        before = self.traces()
        self.policy(drift_threshold=0.3)
        self.assertEqual(self.traces(), before)

    def test_follow_the_fleet_again(self):
        self.policy(drift_threshold=0.3, default_ttl="'1 hour'")
        policy = self.policy(follow_fleet="'{drift_threshold,default_ttl}'")
        self.assertEqual((policy["drift_threshold"], policy["default_ttl_seconds"]), (0.2, 86400))
        self.assertIsNone(self.breaker()["drift_threshold"])

    def test_fleet(self):
        version = self.row("SELECT version FROM cbshm.settings")["version"]
        policy = self.value("cbshm.set_policy(NULL, schema_error_threshold => 2, by => 'root')")
        self.assertEqual(policy["schema_error_threshold"], 2)
        self.assertIsNotNone(self.schema_error(2))
        entry = self.row("SELECT * FROM cbshm.audit_log WHERE breaker IS NULL ORDER BY id DESC LIMIT 1")
        self.assertEqual((entry["old_values"], entry["new_values"], entry["actor"], entry["version"]),
                         ({"schema_error_threshold": 5}, {"schema_error_threshold": 2}, "root", version + 1))

    def test_json(self):
        policy = self.value(f"cbshm.set_policy_json('{self.name}', "
                            """'{"drift_threshold": 0.3, "auto_recover": false, "default_ttl_seconds": 0.5}')""")
        self.assertEqual(policy, {"drift_threshold": 0.3, "failure_threshold": 3, "schema_error_threshold": 5,
                                  "default_ttl_seconds": 0.5, "auto_recover": False})
        policy = self.value(f"""cbshm.set_policy_json('{self.name}', '{{"drift_threshold": null}}', NULL, NULL)""")
        self.assertEqual(policy["drift_threshold"], 0.2)
        self.assertFalse(policy["auto_recover"])
        self.assertEqual(self.value(f"cbshm.set_policy_json('{self.name}', '{{}}')"), policy)
        self.assertEqual(self.value("cbshm.set_policy_json(NULL, '{}')")["drift_threshold"], 0.2)


class Alerts(fixture.SqlTest):
    def test_both_ends_in_the_queue(self):
        self.policy(failure_threshold=1)
        incident = self.drift(0.25, 77)
        self.enable(by="bob", reason="fixed")
        opening, closing = self.alerts()
        for alert in (opening, closing):
            self.assertEqual((alert["status"], alert["attempts"], alert["leased_by"], alert["incident_id"]),
                             ("pending", 0, None, incident["id"]))
        self.assertEqual((opening["kind"], closing["kind"]), ("disable", "enable"))
        labels = opening["payload"]["labels"]
        self.assertEqual(labels, {
            "alertname": "CircuitBreakerOpen", "severity": "p1", "component": "cbshm", "circuit_breaker": self.name,
            "instance": "cbshm", "incident_id": incident["id"]})
        self.assertEqual(closing["payload"]["labels"], labels)
        self.assertEqual(opening["payload"]["startsAt"], incident["timestamp"])
        self.assertEqual(closing["payload"]["startsAt"], incident["timestamp"])
        self.assertNotIn("endsAt", opening["payload"])
        self.assertGreater(closing["payload"]["endsAt"], incident["timestamp"])
        description = opening["payload"]["annotations"]["description"]
        for part in ("Drift exceeded threshold: 0.2500 > 0.2", "0.25", "77", "until 20"):
            self.assertIn(part, description)
        self.assertIn("fixed", closing["payload"]["annotations"]["description"])

    def test_severities(self):
        self.disable()
        self.assertEqual(self.alerts()[0]["payload"]["labels"]["severity"], "p2")
        self.enable()
        self.schema_error(5)
        self.assertEqual(self.alerts()[2]["payload"]["labels"]["severity"], "p3")

    def test_superseding_resolves_and_fires(self):
        self.disable("one")
        self.disable("two")
        self.assertEqual([each["kind"] for each in self.alerts()], ["disable", "enable", "disable"])


class Atomicity(fixture.SqlTest):
    """State, incident, alert and audit row come together or not at all."""

    def broken(self, table):
        self.run_sql(f"ALTER TABLE cbshm.{table} ADD CONSTRAINT broken CHECK (false) NOT VALID")
        try:
            self.refused(f"SELECT cbshm.disable('{self.name}', 'why')", "23514")
        finally:
            self.run_sql(f"ALTER TABLE cbshm.{table} DROP CONSTRAINT broken")
        self.assertEqual(self.traces(), (None, [], [], []))

    def test_without_incident(self):
        self.broken("incident")

    def test_without_alert(self):
        self.broken("alert_queue")

    def test_without_audit(self):
        self.broken("audit_log")

    def test_rollback(self):
        self.run_sql("BEGIN")
        self.schema_error(5)
        self.run_sql("ROLLBACK")
        self.assertEqual(self.traces(), (None, [], [], []))

    def test_operation_leaves_no_context(self):
        """What a function told the triggers does not colour a later plain write of the transaction."""
        self.run_sql("BEGIN")
        self.schema_error(5)
        self.run_sql(f"UPDATE cbshm.breaker SET disabled_reason = 'x', disabled_by = 'y' WHERE name = '{self.name}'")
        self.run_sql("COMMIT")
        self.assertEqual([(each["severity"], each["opened_by"]) for each in self.incidents()],
                         [("P3", "circuit_breaker"), ("P2", "y")])
        self.assertEqual((self.audit()[-1]["action"], self.audit()[-1]["actor"]), ("disable", "y"))

    def test_failed_operation_leaves_no_context(self):
        self.run_sql("BEGIN; SAVEPOINT s")
        self.run_sql("ALTER TABLE cbshm.alert_queue ADD CONSTRAINT broken CHECK (false) NOT VALID")
        self.refused(f"SELECT cbshm.report_schema_error('{self.name}', 5)", "23514")
        self.run_sql("ROLLBACK TO s")
        self.run_sql(f"INSERT INTO cbshm.breaker (name, disabled) VALUES ('{self.name}', true)")
        self.run_sql("COMMIT")
        self.assertEqual(self.incidents()[0]["severity"], "P2")
        self.assertEqual(self.breaker()["disabled_by"], "postgres")


if __name__ == "__main__":
    tap.main()
