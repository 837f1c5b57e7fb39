# SPDX-License-Identifier: ISC
"""Many sessions at once: one of them does it, and nobody sees it half done."""
import collections

import fixture
from support import tap

SESSIONS = 8
ROUNDS = 20


class Race(fixture.SqlTest):
    def setUp(self):
        super().setUp()
        self.sessions = [fixture.server().session() for _ in range(SESSIONS)]
        self.gate = fixture.server().session()

    def tearDown(self):
        for session in self.sessions + [self.gate]:
            session.close()
        super().tearDown()

    def together(self, *statements, timeout=30):
        """
        Runs statements at once, each in a session of its own: all wait at a gate that opens when the last has
        come there. Returns what they print.
        """
        self.gate.execute("SELECT pg_advisory_lock(1)")
        for session, sql in zip(self.sessions, statements):
            session.send(f"SELECT pg_advisory_lock_shared(1); SELECT pg_advisory_unlock_shared(1); {sql}")
        while int(self.value("(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)")) \
                < len(statements):
            pass
        self.gate.execute("SELECT pg_advisory_unlock(1)")
        return [session.wait(timeout).splitlines()[-1] for session, _ in zip(self.sessions, statements)]

    def rounds(self):
        for number in range(ROUNDS):
            self.name = f"{self.id().split('.')[-1]} {number}"
            yield number

    def test_recovery(self):
        for _ in self.rounds():
            self.disable(ttl="1 ms")
            self.expire()
            done = self.together(*[f"SELECT cbshm.recover('{self.name}')"] * SESSIONS)
            self.assertEqual(sorted(done), ["f"] * (SESSIONS - 1) + ["t"])
            self.assertEqual(self.version(), 3)
            self.assertEqual(self.actions(), ["create", "disable", "recover"])
            self.assertEqual(len(self.alerts()), 2)

    def test_creation(self):
        for _ in self.rounds():
            self.together(*[f"SELECT 1 FROM cbshm.report_drift('{self.name}', 0.9, 1)"] * SESSIONS)
            row = self.breaker()
            self.assertEqual(row["consecutive_failures"], SESSIONS)
            self.assertEqual(row["version"], 1 + SESSIONS)
            self.assertTrue(row["disabled"])
            self.assertEqual(len(self.incidents()), 1)
            self.assertEqual(self.actions(), ["create", "trip"])

    def test_trip(self):
        for _ in self.rounds():
            self.enable()
            done = self.together(*[f"SELECT cbshm.report_schema_error('{self.name}', 5) IS NOT NULL"] * SESSIONS)
            self.assertEqual(sorted(done), ["f"] * (SESSIONS - 1) + ["t"])
            self.assertEqual(len(self.incidents()), 1)

    def test_disable(self):
        for _ in self.rounds():
            done = self.together(*[f"SELECT changed FROM cbshm.disable('{self.name}', 'why')"] * SESSIONS)
            self.assertEqual(sorted(done), ["f"] * (SESSIONS - 1) + ["t"])

    def test_disable_with_other_reasons(self):
        for _ in self.rounds():
            self.together(*[f"SELECT changed FROM cbshm.disable('{self.name}', 'reason {number}')"
                            for number in range(SESSIONS)])
            incidents = self.incidents()
            self.assertEqual(len(incidents), SESSIONS)
            self.assertEqual([each["resolved"] for each in incidents], [True] * (SESSIONS - 1) + [False])

    def test_enable(self):
        for _ in self.rounds():
            self.disable()
            done = self.together(*[f"SELECT cbshm.enable('{self.name}')"] * SESSIONS)
            self.assertEqual(sorted(done), ["f"] * (SESSIONS - 1) + ["t"])

    def test_same_request_id(self):
        for number in self.rounds():
            request = f"22222222-0000-4000-8000-{number:012}"
            done = self.together(*[f"SELECT changed, incident->>'id' FROM cbshm.disable('{self.name}', 'why', "
                                   f"request_id => '{request}')"] * SESSIONS)
            self.assertEqual(set(done), {f"t|{self.breaker()['incident_id']}"})
            self.assertEqual(self.version(), 2)

    def test_same_request_id_for_other_breakers(self):
        """The rows differ, so nothing but the id itself keeps them apart."""
        for number in self.rounds():
            request = f"33333333-0000-4000-8000-{number:012}"
            self.gate.execute("SELECT pg_advisory_lock(1)")
            for index, session in enumerate(self.sessions):
                session.send("SELECT pg_advisory_lock_shared(1); SELECT pg_advisory_unlock_shared(1); "
                             f"SELECT changed FROM cbshm.disable('{self.name} {index}', 'why', "
                             f"request_id => '{request}')")
            self.gate.execute("SELECT pg_advisory_unlock(1)")
            outcomes = collections.Counter()
            for session in self.sessions:
                try:
                    outcomes[session.wait().splitlines()[-1]] += 1
                except fixture.PostgresError as error:
                    outcomes[error.detail] += 1
            self.assertEqual(outcomes, {"t": 1, "request_id": SESSIONS - 1})
            opened = self.rows(f"SELECT 1 FROM cbshm.breaker WHERE disabled AND name LIKE '{self.name} %'")
            self.assertEqual(len(opened), 1)

    def test_deletion_and_creation(self):
        """However they fall, the versions of the name go up."""
        for _ in self.rounds():
            self.enable()
            delete = f"DELETE FROM cbshm.breaker WHERE name = '{self.name}'; SELECT 1"
            insert = f"SELECT 1 FROM cbshm.report_drift('{self.name}', 0.9, 1)"
            self.together(*[delete, insert] * (SESSIONS // 2))
            self.enable()
            versions = [(entry["action"], entry["version"]) for entry in self.audit()
                        if entry["action"] in ("create", "delete")]
            self.assertEqual([action for action, _ in versions],
                             [("create", "delete")[index % 2] for index in range(len(versions))])
            for before, after in zip(versions, versions[1:]):
                (self.assertGreater if after[0] == "create" else self.assertGreaterEqual)(after[1], before[1])

    def test_plain_insert_waits_for_deletion(self):
        self.enable()
        self.gate.execute(f"BEGIN; DELETE FROM cbshm.breaker WHERE name = '{self.name}'")
        self.sessions[0].send(f"INSERT INTO cbshm.breaker (name) VALUES ('{self.name}')")
        self.sessions[0].blocked(0.2)
        self.gate.execute("COMMIT")
        self.sessions[0].wait()
        self.assertEqual(self.version(), 2)

    def test_stale_snapshot_cannot_take_a_version_twice(self):
        self.gate.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        self.enable()
        self.run_sql(f"DELETE FROM cbshm.breaker WHERE name = '{self.name}'")
        self.refused(f"INSERT INTO cbshm.breaker (name) VALUES ('{self.name}')", "40001", self.gate)
        self.gate.execute("ROLLBACK")

    def test_batches_do_not_deadlock(self):
        """Existing rows and new ones, named in any order, by functions, batches and agents that recover."""
        for number in self.rounds():
            names = [f"{self.name} {letter}" for letter in "abcdef"]
            for name in names[::2]:
                self.enable(name)
            statements = []
            for index in range(SESSIONS):
                order = names[index % 6:] + names[:index % 6]
                if index % 3 == 2:
                    order.reverse()
                null = f"array_fill(NULL::text, '{{{len(order)}}}')"
                statements.append(
                    f"SELECT count(*) FROM cbshm.apply(array_fill('report_schema_error'::text, '{{{len(order)}}}'), "
                    f"{fixture.array(order, 'text')}, {null}::float8[], array_fill(5::bigint, '{{{len(order)}}}'), "
                    f"{null}, {null}, {null}, {null}::timestamptz[], {null}::interval[], {null}::uuid[], {null}, "
                    f"{fixture.quote(index % 2 == 0)}) WHERE outcome = 'ok'")
            done = self.together(*statements)
            self.assertEqual([count for count, _ in zip(done[::2], done)], ["6"] * (SESSIONS // 2))
            for name in names:
                self.assertEqual(len(self.incidents(name)), 1)


if __name__ == "__main__":
    tap.main()
