# SPDX-License-Identifier: ISC
"""cbshm.apply(): many requests in one transaction come to the same as each by itself."""
import os
import random

import fixture
from fixture import array, quote
from support import tap
from support.postgres import AGENT_USER

COLUMNS = [("kind", "text"), ("name", "text"), ("score", "float8"), ("count", "bigint"), ("details", "text"),
           ("reason", "text"), ("actor", "text"), ("until", "timestamptz"), ("ttl", "interval"),
           ("request_id", "uuid"), ("proof", "text")]


def call(requests, wait=True):
    """The statement that applies requests, given as dictionaries; its results in the order of the requests."""
    arrays = ", ".join(array([request.get(column) for request in requests], kind) for column, kind in COLUMNS)
    return f'SELECT * FROM cbshm.apply({arrays}, {quote(wait)}) ORDER BY "position"'


def report(requests, wait=True):
    """The same for reports alone, through cbshm.report()."""
    names = sorted({request["name"] for request in requests}, key=str.encode)
    order = [i for name in names for i, request in enumerate(requests) if request["name"] == name]
    proofs = sorted({request.get("proof") or "{}" for request in requests})
    last = [sum(request["name"] <= name for request in requests) for name in names]
    details = [requests[i].get("details") for i in order]
    arrays = [array(names, "text"), array(last, "int"),
              array([requests[i].get("score") for i in order], "float8"),
              array([requests[i].get("count") for i in order], "bigint"),
              array(details, "text") if any(text is not None for text in details) else "NULL",
              array([1 + proofs.index(requests[i].get("proof") or "{}") for i in order], "int"), array(proofs, "text")]
    return f'SELECT * FROM cbshm.report({", ".join(arrays)}, {quote(wait)})', order


def drift(name, score, **more):
    return {"kind": "report_drift", "name": name, "score": float(score), "count": 10, **more}


def schema_error(name, count, **more):
    return {"kind": "report_schema_error", "name": name, "count": count, **more}


def disable(name, reason="why", **more):
    return {"kind": "disable", "name": name, "reason": reason, **more}


def enable(name, **more):
    return {"kind": "enable", "name": name, **more}


class ApplyTest(fixture.SqlTest):
    def apply(self, requests, wait=True, session=None):
        return self.rows(call(requests, wait), session)

    def report(self, requests, wait=True, session=None):
        """The answers to reports, those about which cbshm.report() says nothing included."""
        statement, order = report(requests, wait)
        answers = [{"position": i + 1, "outcome": "ok", "field": None, "message": None, "changed": False,
                    "incident": None} for i in range(len(requests))]
        for done in self.rows(statement, session):
            row = done.pop("is_now")
            if row is None:
                answers[order[done["position"] - 1]] = done
            else:
                self.assertIsNone(done["position"])
                self.assertEqual(row, self.row(f"SELECT * FROM cbshm.mirror WHERE name = {quote(row['name'])}", session))
        return answers

    def outcomes(self, requests, wait=True, session=None):
        return [done["outcome"] for done in self.apply(requests, wait, session)]


class Batch(ApplyTest):
    def test_each_gets_its_answer(self):
        a, b = self.name + " a", self.name + " b"
        done = self.apply([disable(b), drift(a, 0.9), drift(a, 0.9), enable(b), drift(a, 0.3, details='{"x": 1}'),
                           drift(a, 0.9), schema_error(b, 5), enable(a), enable(a)])
        self.assertEqual([each["position"] for each in done], list(range(1, 10)))
        self.assertEqual([each["outcome"] for each in done], ["ok"] * 9)
        self.assertEqual([each["changed"] for each in done],
                         [True, False, False, True, True, False, True, True, False])
        self.assertEqual([each["incident"]["reason"] if each["incident"] else None for each in done],
                         ["why", None, None, None, "Drift exceeded threshold: 0.3000 > 0.2", None,
                          "Schema error threshold exceeded: 5 >= 5", None, None])
        self.assertEqual(done[4]["incident"]["details"], {"x": 1})
        self.assertEqual(done[4]["incident"]["breaker"], a)

    def test_nothing_at_all(self):
        self.assertEqual(self.apply([]), [])

    def test_counting_writes_the_row_once(self):
        self.enable()
        self.apply([drift(self.name, 0.9) for _ in range(2)] + [drift(self.name, 0.1)] + [drift(self.name, 0.9)] * 2)
        self.assertEqual(self.breaker()["consecutive_failures"], 2)
        self.assertEqual(self.version(), 2)

    def test_counting_after_a_trip(self):
        self.apply([drift(self.name, 0.9) for _ in range(7)])
        self.assertEqual(self.breaker()["consecutive_failures"], 7)
        self.assertEqual(len(self.incidents()), 1)

    def test_enable_after_counting(self):
        done = self.apply([drift(self.name, 0.9), enable(self.name), drift(self.name, 0.9)])
        self.assertEqual([each["changed"] for each in done], [False] * 3)
        self.assertEqual(self.breaker()["consecutive_failures"], 2)

    def test_disable_keeps_what_was_counted(self):
        self.apply([drift(self.name, 0.9), disable(self.name), disable(self.name), drift(self.name, 0.9)])
        self.assertEqual(self.breaker()["consecutive_failures"], 2)
        self.assertEqual(len(self.incidents()), 1)

    def test_bad_request_fails_alone(self):
        bad = [drift(self.name, float("nan")), drift(self.name, 2), drift(self.name, 0.9, count=0),
               drift(self.name, 0.9, details="{"), drift(self.name, 0.9, details="[]"),
               drift(self.name, 0.9, details='{"a": "\\u0000"}'), drift(self.name, 0.9, details="[" * 60000),
               drift(self.name, 0.9, details=""), drift("a\nb", 0.9), drift("", 0.9), drift(None, 0.9),
               disable(self.name, None), disable(self.name, until="2001-01-01"), disable(self.name, ttl="-1 s"),
               {"kind": "nonsense", "name": self.name}, {"kind": None, "name": self.name}]
        fields = ["drift_score", "drift_score", "sample_count", "details", "details", "details", "details", "details",
                  "name", "name", "name", "reason", "until", "ttl_seconds", "kind", "kind"]
        requests = [request for each in bad for request in (each, drift(self.name, 0.9))]
        done = self.apply(requests)
        self.assertEqual([each["outcome"] for each in done], ["invalid", "ok"] * len(bad))
        self.assertEqual([each["field"] for each in done[::2]], fields)
        for each in done[::2]:
            self.assertIn(each["field"] if each["field"] not in ("kind", "ttl_seconds") else "", each["message"])
            self.assertEqual((each["changed"], each["incident"]), (None, None))
        self.assertEqual(self.breaker()["consecutive_failures"], len(bad))
        self.assertEqual(len(self.incidents()), 1)

    def test_bad_requests_create_nothing(self):
        self.assertEqual(self.outcomes([drift(self.name, 2), disable(self.name, "")]), ["invalid"] * 2)
        self.assertIsNone(self.breaker())

    def test_bad_requests_take_no_subtransaction(self):
        self.run_sql("BEGIN")
        self.apply([drift(self.name, 0.9, details="{"), drift(self.name, 0.9, details="{}")])
        written = self.row("SELECT backend_xid::text AS top, (SELECT xmin::text FROM cbshm.breaker "
                           f"WHERE name = '{self.name}') AS row FROM pg_stat_activity WHERE pid = pg_backend_pid()")
        self.run_sql("COMMIT")
        self.assertEqual(written["top"], written["row"])

    def test_lengths(self):
        arrays = [array(["report_drift"], "text")] + [array([None], kind) for _, kind in COLUMNS[1:]]
        for broken in ("NULL", "'{}'", "'{NULL,NULL}'"):
            for number in range(len(arrays)):
                given = arrays[:number] + [broken] + arrays[number + 1:]
                self.refused(f"SELECT * FROM cbshm.apply({', '.join(given)}, true)")

    def test_policy_changes_between_batches(self):
        self.apply([drift(self.name, 0.9)])
        self.policy(failure_threshold=2)
        self.assertIsNotNone(self.apply([drift(self.name, 0.9)])[0]["incident"])


class Reports(ApplyTest):
    """cbshm.report(), which must come to the same as apply(), only sooner."""

    def test_nothing_at_all(self):
        self.assertEqual(self.report([]), [])

    def test_counting_writes_the_row_once_and_says_nothing(self):
        self.enable()
        statement, _ = report([drift(self.name, 0.9), drift(self.name, 0.1)] + [drift(self.name, 0.9)] * 2)
        self.assertEqual([(done["position"], done["is_now"]["version"]) for done in self.rows(statement)], [(None, 2)])
        self.assertEqual(self.breaker()["consecutive_failures"], 2)
        self.assertEqual(self.version(), 2)

    def test_what_changes_nothing_is_not_written(self):
        self.enable()
        before = self.traces()
        self.report([drift(self.name, 0.1), schema_error(self.name, 4)])
        self.assertEqual(self.traces(), before)

    def test_the_report_that_trips_is_told(self):
        other = self.name + " other"
        done = self.report([drift(other, 0.9), drift(self.name, 0.9), drift(self.name, 0.9, details='{"x": 1}'),
                            drift(self.name, 0.25, count=77, details='{"x": 2}'), drift(self.name, 0.9),
                            schema_error(other, 9, details='{"x": 3}'), schema_error(other, 9)])
        self.assertEqual([each["changed"] for each in done], [False, False, False, True, False, True, False])
        for number, reason, severity, samples, details in (
                (3, "Drift exceeded threshold: 0.2500 > 0.2", "P1", 77, {"x": 2}),
                (5, "Schema error threshold exceeded: 9 >= 5", "P3", 9, {"x": 3})):
            incident = done[number]["incident"]
            self.assertEqual((incident["reason"], incident["severity"], incident["sample_count"],
                              incident["details"]), (reason, severity, samples, details))
        self.assertEqual(self.breaker()["consecutive_failures"], 4)
        self.assertEqual(self.breaker(other)["consecutive_failures"], 1)
        self.assertEqual(len(self.incidents()), 1)

    def test_each_report_has_its_own_proof(self):
        agent = fixture.server().session(AGENT_USER)
        self.report([drift(self.name, 0.9, proof='{"uid": 1}'), drift(self.name, 0.9, proof='{"uid": 2}'),
                     drift(self.name, 0.9, proof='{"uid": 3}')], session=agent)
        agent.close()
        self.assertEqual([entry["proof"]["uid"] for entry in self.audit()], [1, 3])  # created it, tripped it

    def test_the_counter_does_not_run_over(self):
        self.disable()
        self.run_sql(f"UPDATE cbshm.breaker SET consecutive_failures = 2147483646 WHERE name = '{self.name}'")
        self.report([drift(self.name, 0.9)] * 3)
        self.assertEqual(self.breaker()["consecutive_failures"], 2147483647)

    def test_a_ttl_that_has_passed(self):
        self.disable(ttl="1 ms")
        self.expire()
        self.report([drift(self.name, 0.9)])
        self.assertEqual(self.actions()[-1], "recover")
        self.assertEqual((self.breaker()["disabled"], self.breaker()["consecutive_failures"]), (False, 1))

    def test_bad_reports_fail_alone(self):
        bad = [drift(self.name, float("nan")), drift(self.name, -0.1), drift(self.name, 2),
               drift(self.name, 1, count=0),
               drift(self.name, 0.9, count=1 << 53), drift(self.name, 0.9, count=None),
               drift(self.name, 0.9, details="{"), drift(self.name, 0.9, details="[]"),
               drift(self.name, 0.9, details='{"a": "\\u0000"}'), drift(self.name, 0.9, details=""),
               schema_error(self.name, -1), schema_error(self.name, None), drift("a\nb", 0.9), drift("", 0.9)]
        for one in bad:
            done = self.report([drift(self.name, 0.1), drift(self.name, 0.9), one, schema_error(self.name, 0)])
            self.assertEqual([each["outcome"] for each in done], ["ok", "ok", "invalid", "ok"], one)
            self.assertIn(done[2]["field"], done[2]["message"])
            self.assertEqual(self.breaker()["consecutive_failures"], 1)

    def test_locked_rows(self):
        a, b = self.name + " a", self.name + " b"
        for name in (a, b):
            self.enable(name)
        other = fixture.server().session()
        other.execute("BEGIN")
        other.execute(f"SELECT FROM cbshm.breaker WHERE name = '{a}' FOR UPDATE")
        requests = [drift(name, 0.9) for name in (a, b, a, self.name)]
        self.assertEqual([each["outcome"] for each in self.report(requests, wait=False)],
                         ["locked", "ok", "locked", "ok"])
        self.assertEqual([self.breaker(name)["consecutive_failures"] for name in (a, b, self.name)], [0, 1, 1])
        waiter = fixture.server().session()
        waiter.send(report(requests[:3])[0])
        waiter.blocked(0.2)
        other.execute("COMMIT")
        waiter.wait()
        for session in (other, waiter):
            session.close()
        self.assertEqual([self.breaker(name)["consecutive_failures"] for name in (a, b)], [2, 2])

    def test_what_changes_nothing_needs_no_lock(self):
        """Nor a transaction id, so that nobody waits for a disk."""
        self.enable()
        other = fixture.server().session()
        self.addCleanup(other.close)
        other.execute(f"BEGIN; SELECT FROM cbshm.breaker WHERE name = '{self.name}' FOR UPDATE")
        good, bad = drift(self.name, 0.1), drift(self.name, 0.9)
        error, many = schema_error(self.name, 4), schema_error(self.name, 5)
        for requests, wanted in (([good], "ok"), ([good, error] * 3, "ok"), ([error], "ok"), ([good, bad], "locked"),
                                 ([bad], "locked"), ([many], "locked")):
            self.assertEqual({done["outcome"] for done in self.report(requests, False)}, {wanted}, requests)
        other.execute("ROLLBACK")
        self.run_sql("BEGIN")
        self.report([good, error])
        self.assertIsNone(self.value("pg_current_xact_id_if_assigned()::text"))
        self.run_sql("COMMIT")
        self.assertEqual(self.version(), 1)

    def test_rows_are_found_by_their_names(self):
        """However few the planner takes them for: a plan may be made before the table has a million."""
        self.enable()
        session = fixture.server().session()
        self.addCleanup(session.close)
        session.execute("BEGIN")
        for score in (0.1, 0.9):
            session.execute(report([drift(self.name, score)])[0])
        scans = self.row("SELECT seq_scan, idx_scan FROM pg_stat_xact_user_tables WHERE relid = 'cbshm.breaker'::regclass", session)
        session.execute("COMMIT")
        self.assertEqual(scans["seq_scan"], 0)
        self.assertGreater(scans["idx_scan"], 0)

    def test_a_snapshot_that_is_older(self):
        """What has failed since is not passed over, as it would be by a report that was applied to the row of then."""
        self.enable()
        other = fixture.server().session()
        self.addCleanup(other.close)
        other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        self.report([drift(self.name, 0.9)])
        self.refused(report([drift(self.name, 0.1)])[0], "40001", other)

    def test_thresholds_of_its_own(self):
        """What is bad for the fleet is good here, and the other way round."""
        self.policy(drift_threshold=0.95)
        self.report([drift(self.name, 0.9)] * 3)
        self.assertEqual(self.breaker()["consecutive_failures"], 0)
        self.policy(drift_threshold=0.05)
        self.assertEqual([done["changed"] for done in self.report([drift(self.name, 0.1)] * 4)], [False, False, True, False])
        self.assertEqual(self.breaker()["consecutive_failures"], 4)

    def test_a_failure_that_is_made_good_at_once(self):
        """Leaves the count as it was, and is a change all the same; bad only here, so that all looks good to the fleet."""
        self.policy(drift_threshold=0.05)
        self.report([drift(self.name, 0.1), drift(self.name, 0.01)])
        self.assertEqual(self.breaker()["consecutive_failures"], 0)
        self.assertIsNotNone(self.breaker()["last_failure_at"])

    def test_arrays_that_do_not_fit(self):
        good = ["'{a}'", "'{1}'", "'{0.5}'", "'{1}'", "NULL", "'{1}'", "'{\"{}\"}'", "true"]
        for number, broken in ((0, "'{}'"), (0, "NULL"), (1, "'{2}'"), (1, "'{}'"), (2, "'{}'"), (3, "'{1,1}'"),
                               (4, "'{}'"), (5, "NULL")):
            self.refused(f"SELECT * FROM cbshm.report({', '.join(good[:number] + [broken] + good[number + 1:])})")


class Locks(ApplyTest):
    def setUp(self):
        super().setUp()
        self.other = fixture.server().session()
        self.a, self.b = self.name + " a", self.name + " b"
        for name in (self.a, self.b):
            self.enable(name)
        self.other.execute("BEGIN")
        self.other.execute(f"SELECT FROM cbshm.breaker WHERE name = '{self.a}' FOR UPDATE")

    def tearDown(self):
        self.other.execute("ROLLBACK")
        self.other.close()
        super().tearDown()

    def test_without_waiting(self):
        requests = [drift(self.a, 0.9), drift(self.b, 0.9), disable(self.a), disable(self.b), drift(self.a, 2)]
        done = self.apply(requests, wait=False)
        self.assertEqual([each["outcome"] for each in done], ["locked", "ok", "locked", "ok", "invalid"])
        self.assertEqual((done[0]["changed"], done[0]["incident"]), (None, None))
        self.assertEqual(self.version(self.a), 1)
        self.assertTrue(self.breaker(self.b)["disabled"])
        self.other.execute("ROLLBACK")
        self.assertEqual(self.outcomes(requests[:1], wait=False), ["ok"])

    def test_locked_request_id_is_not_used_up(self):
        request = disable(self.a, request_id="11111111-0000-4000-8000-000000000001")
        self.assertEqual(self.outcomes([request], wait=False), ["locked"])
        self.other.execute("ROLLBACK")
        self.assertEqual([each["changed"] for each in self.apply([request])], [True])

    def test_waiting(self):
        waiter = fixture.server().session()
        waiter.send(call([drift(self.a, 0.9), drift(self.b, 0.9)]))
        waiter.blocked(0.2)
        self.other.execute("COMMIT")
        waiter.wait()
        waiter.close()
        self.assertEqual(self.breaker(self.a)["consecutive_failures"], 1)

    def test_rows_are_locked_in_the_order_of_their_names(self):
        first, last = "!" + self.name, "~" + self.name
        for name in (first, last):
            self.enable(name)
        waiter = fixture.server().session()
        waiter.send(call([drift(name, 0.9) for name in (last, self.a, first)]))
        waiter.blocked(0.2)
        free = self.rows("SELECT name FROM cbshm.breaker WHERE name = ANY ("
                         + array([first, last], "text") + ") FOR UPDATE SKIP LOCKED")
        self.assertEqual([each["name"] for each in free], [last])
        self.other.execute("COMMIT")
        waiter.wait()
        waiter.close()

    def test_waiting_for_so_long(self):
        self.run_sql("SET lock_timeout = '100 ms'")
        try:
            self.refused(call([drift(self.a, 0.9)]), "55P03")
        finally:
            self.run_sql("RESET lock_timeout")

    def test_until_passes_while_waiting(self):
        waiter = fixture.server().session()
        waiter.send("SELECT outcome, field FROM (" + call([{
            **disable(self.a), "until": self.value("(clock_timestamp() + interval '150 ms')::text")}]) + ") t")
        waiter.blocked(0.25)
        self.other.execute("COMMIT")
        self.assertEqual(waiter.wait(), "invalid|until")
        waiter.close()
        self.assertFalse(self.breaker(self.a)["disabled"])

    def test_row_deleted_while_waiting(self):
        waiter = fixture.server().session()
        self.other.execute(f"DELETE FROM cbshm.breaker WHERE name = '{self.a}'")
        waiter.send("SELECT outcome, changed FROM (" + call([disable(self.a)]) + ") t")
        waiter.blocked(0.2)
        self.other.execute("COMMIT")
        self.assertEqual(waiter.wait(), "ok|t")
        waiter.close()
        self.assertEqual(self.version(self.a), 3)


class OneByOne(ApplyTest):
    """Random requests: in batches of any size, and each by itself."""

    def requests(self, chance, names):
        name = chance.choice(names)
        return chance.choice([
            lambda: drift(name, chance.choice([0, 0.1, 0.2, 0.21, 0.5, 1]), details=chance.choice([None, '{"a": 1}'])),
            lambda: drift(name, chance.choice([0.3, 0.9])),
            lambda: drift(name, 0.9),
            lambda: schema_error(name, chance.choice([0, 4, 5, 100])),
            lambda: disable(name, chance.choice(["one", "two"]), actor=chance.choice([None, "me"]),
                            until=chance.choice([None, None, "infinity", "2999-01-01Z", "2001-01-01Z"])),
            lambda: enable(name, reason=chance.choice([None, "fixed"])),
            lambda: chance.choice([drift(name, 7), disable(name, ""), schema_error(name, -1)]),
        ])()

    def result(self, prefix):
        """All that is left of a run, without what two runs cannot have in common (ids, times, versions)."""
        return self.rows(f"""
            SELECT substr(b.name, {len(prefix) + 1}) AS name, b.disabled, b.disabled_by, b.disabled_reason,
                b.disabled_until IS NULL AS never, b.consecutive_failures, b.last_failure_at IS NULL AS never_failed,
                b.drift_threshold, b.failure_threshold,
                (SELECT jsonb_agg(jsonb_build_array(i.reason, i.severity, i.drift_score, i.sample_count, i.details,
                    i.opened_by, i.resolved, i.resolved_by, left(i.resolution_notes, 10)) ORDER BY i.timestamp)
                 FROM cbshm.incident i WHERE i.breaker = b.name) AS incidents,
                (SELECT jsonb_agg(q.kind ORDER BY q.id) FROM cbshm.alert_queue q WHERE q.breaker = b.name) AS alerts,
                (SELECT jsonb_agg(jsonb_build_array(l.action, l.actor) ORDER BY l.id)
                 FROM cbshm.audit_log l WHERE l.breaker = b.name) AS audit
            FROM cbshm.breaker b WHERE b.name LIKE '{prefix}%' ORDER BY 1""")

    def answers(self, done):
        def essence(incident):
            return incident and {key: value for key, value in incident.items()
                                 if key not in ("id", "breaker", "timestamp")}
        return [(each["outcome"], each["field"], each["changed"], essence(each["incident"])) for each in done]

    def test_equality(self):
        seed = int(os.environ.get("CBSHM_TEST_SEED", random.randrange(1 << 30)))
        tap.note(f"CBSHM_TEST_SEED={seed}")
        chance = random.Random(seed)
        for run in range(25):
            prefixes = [f"{self.name} {run} {kind} " for kind in ("batch", "single")]
            requests = [self.requests(chance, ["a", "b", "c"]) for _ in range(chance.randrange(1, 60))]
            answers = {}
            for prefix in prefixes:
                self.run_sql(f"INSERT INTO cbshm.breaker (name, drift_threshold, failure_threshold) "
                             f"VALUES ('{prefix}a', 0.4, 2)")
                named = [{**request, "name": prefix + request["name"]} for request in requests]
                size = 1 if prefix.endswith("single ") else chance.randrange(2, 30)
                answers[prefix] = self.answers(
                    [done for start in range(0, len(named), size) for done in self.apply(named[start:start + size])])
            with self.subTest(seed=seed, run=run):
                self.assertEqual(answers[prefixes[0]], answers[prefixes[1]])
                self.assertEqual(self.result(prefixes[0]), self.result(prefixes[1]))

    def reports(self, chance, names):
        name = chance.choice(names)
        return chance.choice([
            lambda: drift(name, chance.choice([0, 0.1, 0.2, 0.21, 0.4, 0.5, 1])),
            lambda: drift(name, chance.choice([0.3, 0.9]), details=chance.choice([None, '{"a": 1}', '{"b": [2]}'])),
            lambda: drift(name, chance.choice([0.1, 0.9]), count=chance.choice([1, 500, (1 << 53) - 1])),
            lambda: drift(name, 0.9),
            lambda: schema_error(name, chance.choice([0, 4, 5, 100]), details=chance.choice([None, '{"c": "d"}'])),
        ])()

    def test_equality_of_reports(self):
        """Through report() in batches, between them decisions and plain SQL; and through apply() one by one."""
        seed = int(os.environ.get("CBSHM_TEST_SEED", random.randrange(1 << 30)))
        tap.note(f"CBSHM_TEST_SEED={seed}")
        chance = random.Random(seed)
        for run in range(8):
            batch, single = (f"{self.name} {run} {kind} " for kind in ("batch", "single"))
            for prefix in (batch, single):
                self.run_sql(f"INSERT INTO cbshm.breaker (name, drift_threshold, failure_threshold) VALUES "
                             f"('{prefix}a', 0.4, 2), ('{prefix}b', NULL, 20), ('{prefix}e', 0.05, 4)")
            for step in range(chance.randrange(1, 5)):
                requests = [self.reports(chance, ["a", "b", "c", "e"]) for _ in range(chance.randrange(1, 20))]
                if chance.random() < 0.2:
                    requests.insert(chance.randrange(len(requests)), chance.choice([
                        drift("a", 7), drift("b", 0.9, details="[]"), drift("c", 0.9, count=0), schema_error("a", -1)]))
                decision = chance.choice([None, disable("a"), enable("b"), enable("a"), disable("d", "other")])
                answers = []
                for prefix in (batch, single):
                    named = [{**request, "name": prefix + request["name"]} for request in requests]
                    answers.append(self.answers(self.report(named) if prefix == batch else
                                                [done for request in named for done in self.apply([request])]))
                    if decision:
                        self.apply([{**decision, "name": prefix + decision["name"]}])
                with self.subTest(seed=seed, run=run, step=step):
                    self.assertEqual(*answers)
                    self.assertEqual(self.result(batch), self.result(single))
                    self.assertVersions(batch)

    def assertVersions(self, prefix):
        """A version is one more than the changes that it stands for: never less than the audited ones."""
        self.assertEqual(self.rows(f"""
            SELECT b.name, b.version, count(*) FROM cbshm.breaker b JOIN cbshm.audit_log l ON l.breaker = b.name
            WHERE b.name LIKE '{prefix}%' GROUP BY b.name, b.version
            HAVING b.version < count(*) OR b.version < max(l.version)"""), [])


if __name__ == "__main__":
    tap.main()
