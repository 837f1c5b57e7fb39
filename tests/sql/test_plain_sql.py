# SPDX-License-Identifier: ISC
"""Writes with plain SQL, as psql or another service's ORM makes them: they obey the same rules."""
import re

import fixture
from support import tap


class Writes(fixture.SqlTest):
    def insert(self, columns="", values=""):
        self.run_sql(f"INSERT INTO cbshm.breaker (name{columns}) VALUES ('{self.name}'{values})")

    def update(self, assignments, name=None):
        self.run_sql(f"UPDATE cbshm.breaker SET {assignments} WHERE name = '{name or self.name}'")

    def delete(self):
        self.run_sql(f"DELETE FROM cbshm.breaker WHERE name = '{self.name}'")

    def test_insert_closed(self):
        self.insert()
        self.assertEqual(self.version(), 1)
        self.assertEqual(self.actions(), ["create"])
        self.assertEqual(self.incidents(), [])

    def test_insert_open(self):
        self.insert(", disabled, disabled_reason, disabled_until", ", true, 'broken', '2999-01-01Z'")
        row = self.breaker()
        incident = self.incidents()[0]
        self.assertEqual((row["version"], row["disabled_by"], row["incident_id"], row["opened_at"]),
                         (1, "postgres", incident["id"], incident["timestamp"]))
        self.assertEqual((incident["severity"], incident["reason"], incident["details"]),
                         ("P2", "broken", {"manual_disable": True}))
        self.assertEqual(self.actions(), ["disable"])

    def test_update_opens_and_closes(self):
        self.insert()
        self.drift(0.9)
        self.update("disabled = true")
        row = self.breaker()
        self.assertEqual((row["disabled_by"], row["disabled_reason"], row["disabled_until"]),
                         ("postgres", "No reason given", None))
        self.assertEqual(len(self.incidents()), 1)
        self.update("disabled = false")
        row = self.breaker()
        for field in ("disabled_by", "disabled_reason", "opened_at", "disabled_until", "incident_id"):
            self.assertIsNone(row[field], field)
        self.assertEqual(row["consecutive_failures"], 0)
        incident = self.incidents()[0]
        self.assertEqual((incident["resolved_by"], incident["resolution_notes"]), ("postgres", "Manual reset"))
        self.assertEqual(self.actions(), ["create", "disable", "enable"])
        self.assertEqual([entry["version"] for entry in self.audit()], [1, 3, 4])

    def test_by_as_written(self):
        self.insert(", disabled, disabled_by", ", true, 'ops-bot'")
        self.assertEqual(self.incidents()[0]["opened_by"], "ops-bot")
        self.assertEqual(self.audit()[0]["actor"], "ops-bot")
        self.assertEqual(self.audit()[0]["proof"]["session_user"], "postgres")
        self.assertEqual(self.audit()[0]["proof"]["application_name"], "psql")

    def test_new_reason_supersedes(self):
        self.disable("one")
        self.update("disabled_reason = 'two'")
        old, new = self.incidents()
        self.assertEqual((old["resolved"], new["resolved"], new["reason"]), (True, False, "two"))
        self.assertEqual(old["resolution_notes"], f"Superseded by incident {new['id']}")
        self.assertEqual(self.breaker()["incident_id"], new["id"])

    def test_new_end_supersedes(self):
        self.disable()
        self.update("disabled_until = '2999-01-01Z'")
        self.assertEqual([each["resolved"] for each in self.incidents()], [True, False])
        self.assertEqual(self.disable(until="2999-01-01Z"), (False, None))
        self.assertTrue(self.disable()[0])

    def test_never(self):
        self.insert(", disabled, disabled_until", ", true, 'infinity'")
        self.assertIsNone(self.breaker()["disabled_until"])

    def test_opened_without_an_end_is_not_the_default(self):
        self.insert(", disabled, disabled_reason", ", true, 'why'")
        self.assertTrue(self.disable("why")[0])

    def test_new_actor_alone_is_a_change_but_no_new_incident(self):
        self.disable()
        version = self.version()
        self.update("disabled_by = 'someone else'")
        self.assertEqual(self.version(), version + 1)
        self.assertEqual(len(self.incidents()), 1)
        self.assertEqual(self.audit()[-1]["new_values"], {"disabled_by": "someone else"})

    def test_update_that_changes_nothing(self):
        for prepare in (lambda: self.insert(), lambda: self.disable(ttl="1 hour")):
            prepare()
            before = self.traces()
            self.update("disabled = disabled, drift_threshold = drift_threshold, disabled_until = disabled_until")
            self.assertEqual(self.traces(), before)

    def test_reason_of_a_closed_breaker_does_not_stick(self):
        self.insert()
        before = self.traces()
        self.update("disabled_reason = 'x', disabled_until = now(), disabled_by = 'y'")
        self.assertEqual(self.traces(), before)

    def test_what_the_database_sets_is_not_taken(self):
        """An ORM writes back all columns, some of them long out of date."""
        self.disable()
        before = self.traces()
        self.update("version = 1, opened_at = now() - interval '1 y', incident_id = gen_random_uuid(), "
                    "updated_at = '2000-01-01', created_at = '2000-01-01'")
        self.assertEqual(self.traces(), before)
        self.update("version = 1000, drift_threshold = 0.7")
        self.assertEqual(self.version(), before[0]["version"] + 1)

    def test_closing_while_writing_other_columns(self):
        self.disable()
        self.update("disabled = false, disabled_reason = 'stale', drift_threshold = 0.4")
        self.assertIsNone(self.breaker()["disabled_reason"])
        self.assertEqual(self.actions()[-1], "enable")
        self.assertEqual(self.audit()[-1]["new_values"], {"disabled": False, "drift_threshold": 0.4})

    def test_upsert(self):
        for _ in range(2):
            self.run_sql(f"INSERT INTO cbshm.breaker (name, disabled, disabled_reason) VALUES ('{self.name}', true, "
                         "'declared') ON CONFLICT (name) DO UPDATE SET disabled = excluded.disabled, "
                         "disabled_reason = excluded.disabled_reason")
        self.assertEqual(self.version(), 1)
        self.assertEqual(len(self.incidents()), 1)

    def test_several_rows_at_once(self):
        names = [f"{self.name} {number}" for number in range(3)]
        self.run_sql("INSERT INTO cbshm.breaker (name) SELECT unnest(" + fixture.array(names, "text") + ")")
        self.run_sql(f"UPDATE cbshm.breaker SET disabled = true WHERE name LIKE '{self.name} %'")
        for name in names:
            self.assertEqual(len(self.incidents(name)), 1)
            self.assertEqual(self.version(name), 2)

    def test_counter_is_not_audited(self):
        self.insert()
        self.update("consecutive_failures = 2, last_failure_at = now()")
        self.assertEqual(self.version(), 2)
        self.assertEqual(self.actions(), ["create"])

    def test_delete(self):
        self.disable()
        version = self.version()
        self.delete()
        incident = self.incidents()[0]
        self.assertEqual((incident["resolved"], incident["resolution_notes"]), (True, "Breaker deleted"))
        self.assertEqual([each["kind"] for each in self.alerts()], ["disable", "enable"])
        entry = self.audit()[-1]
        self.assertEqual((entry["action"], entry["version"], entry["new_values"]), ("delete", version, {}))
        self.assertEqual(entry["old_values"]["disabled_reason"], "why")

    def test_versions_go_on_after_deletion(self):
        self.insert()
        self.update("drift_threshold = 0.5")
        self.update("drift_threshold = 0.6")
        self.delete()
        again = self.run_sql(f"INSERT INTO cbshm.breaker (name) VALUES ('{self.name}') RETURNING version")
        self.assertEqual(again, "4")
        self.assertEqual(self.version(), 4)
        self.delete()
        self.drift(0.1)
        self.assertEqual(self.version(), 5)
        self.delete()
        self.run_sql(f"BEGIN ISOLATION LEVEL REPEATABLE READ; "
                     f"INSERT INTO cbshm.breaker (name) VALUES ('{self.name}'); COMMIT")
        self.assertEqual(self.version(), 6)

    def test_delete_and_create_in_one_transaction(self):
        self.disable()
        version = self.version()
        self.run_sql("BEGIN")
        self.delete()
        self.insert()
        self.run_sql("COMMIT")
        self.assertEqual(self.version(), version + 1)
        self.assertFalse(self.breaker()["disabled"])

    def test_rename_closed(self):
        other = self.name + " renamed"
        self.insert()
        self.update(f"name = '{other}'")
        self.assertIsNone(self.breaker())
        self.assertEqual(self.version(other), 2)
        self.assertEqual(self.actions(), ["create", "rename"])
        self.assertEqual(self.actions(other), ["rename"])
        self.insert()
        self.assertEqual(self.version(), 2)

    def test_rename_open(self):
        other = self.name + " renamed"
        self.disable()
        self.update(f"name = '{other}'")
        self.assertEqual(self.incidents()[0]["resolution_notes"], "Breaker renamed")
        self.assertEqual(self.incidents(other)[0]["id"], self.breaker(other)["incident_id"])
        self.assertEqual(self.alerts()[1]["payload"]["labels"]["circuit_breaker"], self.name)
        self.assertEqual(self.alerts(other)[0]["payload"]["labels"]["circuit_breaker"], other)

    def test_rename_to_a_name_that_was_used(self):
        other = self.name + " renamed"
        self.run_sql(f"INSERT INTO cbshm.breaker (name) VALUES ('{other}')")
        for threshold in (0.3, 0.4, 0.5):
            self.update(f"drift_threshold = {threshold}", other)
        self.run_sql(f"DELETE FROM cbshm.breaker WHERE name = '{other}'")
        self.insert()
        self.update(f"name = '{other}'")
        self.assertEqual(self.version(other), 5)

    def test_truncate_is_refused(self):
        self.assertIn("DELETE", self.refused("TRUNCATE cbshm.breaker", "42501").hint)
        self.assertIn("UPDATE", self.refused("TRUNCATE cbshm.settings", "42501").hint)
        self.refused("TRUNCATE cbshm.audit_log", "42501")

    def test_settings_are_one_row(self):
        self.refused("DELETE FROM cbshm.settings", "42501")
        self.refused("INSERT INTO cbshm.settings DEFAULT VALUES", "23505")
        self.refused("INSERT INTO cbshm.settings (id) VALUES (false)", "23514")

    def test_settings_are_audited(self):
        last = "SELECT * FROM cbshm.audit_log WHERE breaker IS NULL ORDER BY id DESC LIMIT 1"
        self.run_sql("UPDATE cbshm.settings SET failure_threshold = 4")
        entry = self.row(last)
        self.assertEqual((entry["action"], entry["old_values"], entry["new_values"], entry["actor"]),
                         ("policy", {"failure_threshold": 3}, {"failure_threshold": 4}, "postgres"))
        self.run_sql("UPDATE cbshm.settings SET failure_threshold = 4, version = 7")
        self.assertEqual(self.row(last), entry)
        self.run_sql("UPDATE cbshm.settings SET failure_threshold = 3")


class Constraints(fixture.SqlTest):
    """What a breaker cannot be: the name of the constraint says it."""

    def test_names(self):
        for name, constraint in (("''", "name_of_1_to_128_bytes"),
                                 ("repeat('é', 64) || 'x'", "name_of_1_to_128_bytes"),
                                 (r"E'a\tb'", "name_without_control_characters"),
                                 (r"E'a\nb'", "name_without_control_characters"),
                                 (r"E'\x01'", "name_without_control_characters"),
                                 ("chr(127)", "name_without_control_characters"),
                                 ("chr(128)", "name_without_control_characters"),
                                 ("chr(159)", "name_without_control_characters")):
            with self.subTest(name=name):
                error = self.refused(f"INSERT INTO cbshm.breaker (name) VALUES ({name})", "23514")
                self.assertIn(f'"{constraint}"', error.message)
        self.refused(r"INSERT INTO cbshm.breaker (name) VALUES (E'\xff')", "22021")
        self.refused("INSERT INTO cbshm.breaker (name) VALUES (NULL)", "23502")
        self.run_sql("INSERT INTO cbshm.breaker (name) VALUES (repeat('é', 64)), (chr(160)), ('tenant-42/search'), "
                     "('日本 🚦')")
        self.assertEqual(len(self.rows("SELECT 1 FROM cbshm.breaker WHERE octet_length(name) = 128")), 1)

    def test_columns(self):
        self.run_sql(f"INSERT INTO cbshm.breaker (name, disabled) VALUES ('{self.name}', true)")
        before = self.traces()
        for assignment, constraint in (
                ("drift_threshold = 1.01", "drift_threshold_from_0_to_1"),
                ("drift_threshold = -0.1", "drift_threshold_from_0_to_1"),
                ("drift_threshold = 'NaN'", "drift_threshold_from_0_to_1"),
                ("drift_threshold = 'Infinity'", "drift_threshold_from_0_to_1"),
                ("failure_threshold = 0", "failure_threshold_at_least_1"),
                ("schema_error_threshold = 0", "schema_error_threshold_at_least_1"),
                ("default_ttl = '-1 s'", "default_ttl_from_0_to_3650_days"),
                ("default_ttl = '3651 days'", "default_ttl_from_0_to_3650_days"),
                ("consecutive_failures = -1", "consecutive_failures_at_least_0"),
                ("disabled_until = '-infinity'", "disabled_until_before_year_10000"),
                ("disabled_until = '10000-01-01Z'", "disabled_until_before_year_10000"),
                ("last_failure_at = 'infinity'", "last_failure_at_before_year_10000"),
                ("disabled_by = ''", "disabled_by_of_1_to_128_bytes"),
                (r"disabled_by = E'a\nb'", "disabled_by_without_control_characters"),
                ("disabled_reason = ''", "disabled_reason_of_1_to_1024_bytes"),
                ("disabled_reason = repeat('x', 1025)", "disabled_reason_of_1_to_1024_bytes"),
                (r"disabled_reason = E'\x07'", "disabled_reason_without_control_characters")):
            with self.subTest(assignment=assignment):
                error = self.refused(f"UPDATE cbshm.breaker SET {assignment} WHERE name = '{self.name}'", "23514")
                self.assertIn(f'"{constraint}"', error.message)
        self.refused(f"UPDATE cbshm.breaker SET disabled = NULL WHERE name = '{self.name}'", "23502")
        self.assertEqual(self.traces(), before)

    def test_settings(self):
        for assignment in ("drift_threshold = 2", "failure_threshold = 0", "schema_error_threshold = 0",
                           "default_ttl = '-1 s'"):
            self.refused(f"UPDATE cbshm.settings SET {assignment}", "23514")
        self.refused("UPDATE cbshm.settings SET auto_recover = NULL", "23502")

    def test_past_end_is_taken(self):
        """Plain SQL may write it: it has expired, and recovery closes it."""
        self.run_sql(f"INSERT INTO cbshm.breaker (name, disabled, disabled_until) "
                     f"VALUES ('{self.name}', true, '2001-01-01')")
        self.assertTrue(self.recover())


class Triggers(fixture.SqlTest):
    def test_every_column_is_looked_at(self):
        """What the triggers' conditions do not name could change without a version."""
        counters = {"consecutive_failures", "last_failure_at"}
        columns = {each["column_name"] for each in self.rows(
            "SELECT column_name FROM information_schema.columns "
            "WHERE table_schema = 'cbshm' AND table_name = 'breaker'")}
        made = {"version", "created_at", "updated_at"}  # by the triggers themselves
        decision = columns - counters - made
        for trigger, assigned, compared in (
                ("breaker_before_update", columns - counters - {"version", "updated_at"}, columns - counters),
                ("breaker_before_version", {"version", "updated_at"}, set()),
                ("breaker_counts", counters, counters | {"version"}),
                ("breaker_after_update", decision, decision),
                ("breaker_counted", counters | {"version", "updated_at"}, decision | {"version"})):
            text = self.value(f"(SELECT pg_get_triggerdef(t.oid) || p.prosrc FROM pg_trigger t "
                              f"JOIN pg_proc p ON p.oid = t.tgfoid WHERE tgname = '{trigger}')").lower()
            self.assertEqual(set(re.search(r"update of ([\w, ]+) on", text).group(1).split(", ")), assigned, trigger)
            if not trigger.startswith("breaker_count"):
                text = text.split("execute function")[0]  # the condition is the trigger's own
            for row in ("old", "new"):
                found = set(re.findall(rf"\b{row}\.(\w+)", text))
                self.assertEqual(found - {"updated_at"} if trigger == "breaker_counts" else found, compared, trigger)
        self.assertEqual(self.value("(SELECT count(*) FROM pg_trigger WHERE tgrelid = 'cbshm.breaker'::regclass "
                                    "AND tgtype & 16 <> 0 AND tgattr = '')"), 0)


class Notifications(fixture.SqlTest):
    def setUp(self):
        super().setUp()
        self.listener = fixture.Listener()

    def tearDown(self):
        self.listener.session.close()
        super().tearDown()

    def heard(self, *payloads):
        self.assertEqual(self.listener.hear(len(payloads)), [each.format(self.name) for each in payloads])

    def test_functions(self):
        self.drift(0.1)
        self.heard("c 1 {}")
        self.drift(0.9)
        self.heard("n 2 {}")
        self.drift(0.9)
        self.heard("n 3 {}")
        self.drift(0.9)
        self.heard("c 4 {}")
        self.drift(0.9)
        self.heard("n 5 {}")
        self.enable()
        self.heard("c 6 {}")
        self.disable(ttl="1 ms")
        self.heard("c 7 {}")
        self.expire()
        self.recover()
        self.heard("c 8 {}")
        self.policy(drift_threshold=0.3)
        self.heard("c 9 {}")

    def test_plain_sql(self):
        for sql, payloads in (
                (f"INSERT INTO cbshm.breaker (name) VALUES ('{self.name}')", ["c 1 {}"]),
                ("UPDATE cbshm.breaker SET disabled = true", ["c 2 {}"]),
                ("UPDATE cbshm.breaker SET disabled_reason = 'other'", ["c 3 {}"]),
                ("UPDATE cbshm.breaker SET disabled_until = '2999-01-01'", ["c 4 {}"]),
                ("UPDATE cbshm.breaker SET consecutive_failures = 5", ["n 5 {}"]),
                ("UPDATE cbshm.breaker SET consecutive_failures = 6, failure_threshold = 7", ["c 6 {}"]),
                ("UPDATE cbshm.breaker SET name = name || ' b'", ["d 6 {}", "c 7 {} b"]),
                ("DELETE FROM cbshm.breaker", ["d 7 {} b"])):
            with self.subTest(sql=sql):
                where = "" if sql.startswith("INSERT") else f" WHERE name LIKE '{self.name}%'"
                self.run_sql(sql + where)
                self.heard(*payloads)

    def test_reports_of_agents(self):
        """Their agent tells of what they count; of all else the triggers do."""
        self.enable()
        self.heard("c 1 {}")
        report = f"SELECT cbshm.report('{{{self.name}}}', '{{1}}', '{{0.9}}', '{{1}}', NULL, '{{1}}', '{{NULL}}', true)"
        self.run_sql(f"BEGIN; {report}; UPDATE cbshm.breaker SET last_failure_at = now() WHERE name = '{self.name}'; "
                     "COMMIT")
        self.heard("n 3 {}")
        for _ in range(2):
            self.run_sql(report)
        self.heard("c 5 {}")
        self.assertEqual(self.version(), 5)

    def test_no_change_is_silent(self):
        self.disable()
        self.heard("c 1 {}", "c 2 {}")
        self.disable()
        self.recover()
        self.run_sql(f"UPDATE cbshm.breaker SET disabled = true WHERE name = '{self.name}'")
        self.run_sql("UPDATE cbshm.settings SET failure_threshold = failure_threshold")
        self.heard()

    def test_fleet(self):
        self.run_sql("UPDATE cbshm.settings SET failure_threshold = 5")
        self.heard("s")
        self.value("cbshm.set_policy(NULL, failure_threshold => 3)")
        self.heard("s")

    def test_row_comes_along(self):
        """A decision's notification says what the view says, whatever the writer's session is like."""
        columns = ("disabled::int, coalesce(disabled_by, ''), coalesce(disabled_reason, ''), "
                   + ", ".join(f"coalesce((extract(epoch FROM {column}) * 1000000)::bigint::text, '')"
                               for column in ("opened_at", "disabled_until"))
                   + ", coalesce(incident_id::text, ''), consecutive_failures, "
                   + ", ".join(f"coalesce((extract(epoch FROM {column}) * 1000000)::bigint::text, '')"
                               for column in ("last_failure_at", "updated_at"))
                   + ", drift_threshold, failure_threshold, schema_error_threshold, default_ttl_us, auto_recover::int")
        strange = "SET extra_float_digits = -5; SET timezone = 'Asia/Kathmandu'; SET datestyle = 'German'; "
        for sql in (f"SELECT cbshm.disable('{self.name}', E'why\\tßo', 'who', now() + interval '1 day')",
                    f"SELECT cbshm.set_policy('{self.name}', drift_threshold => 0.123456789012345)",
                    f"SELECT cbshm.enable('{self.name}')"):
            with self.subTest(sql=sql):
                self.run_sql(strange + sql)
                payload = self.listener.hear_whole(1)[-1]
                row = self.row(f"SELECT version, concat_ws(E'\\x01', (SELECT version FROM cbshm.settings), {columns}) AS rest "
                               f"FROM cbshm.mirror WHERE name = '{self.name}'")
                said, seal = payload.rsplit("\x01", 1)
                self.assertEqual(said, f"c {row['version']} {self.name}\x01{row['rest']}")
                self.assertRegex(seal, "^[0-9a-f]{64}$")

    def test_rolled_back(self):
        self.run_sql(f"BEGIN; SELECT cbshm.disable('{self.name}', 'why'); ROLLBACK")
        self.heard()

    def test_longest_name(self):
        name = "ß" * 64
        self.enable(name)
        self.assertEqual(self.listener.hear(1), [f"c 1 {name}"])


if __name__ == "__main__":
    tap.main()
