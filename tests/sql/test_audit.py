# SPDX-License-Identifier: ISC
"""The audit log, who is proven to have asked, and requests that are repeated."""
import json

import fixture
from fixture import quote
from support import tap
from support.postgres import AGENT_USER

PROOF = {"uid": 1000, "gid": 100, "pid": 4242, "user": "joe", "exe": "/usr/bin/engine", "host": "h1", "agent": "h1-a"}


class AuditTest(fixture.SqlTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.agent = fixture.server().session(AGENT_USER)

    @classmethod
    def tearDownClass(cls):
        cls.agent.close()
        super().tearDownClass()

    def by_agent(self, kind, actor=None, request_id=None, proof=PROOF, reason="why", session=None, **columns):
        columns = {"score": "NULL", "count": "NULL", **columns}
        text = proof if isinstance(proof, str) else json.dumps(proof)
        return self.row(
            f"SELECT * FROM cbshm.apply(ARRAY[{quote(kind)}], ARRAY[{quote(self.name)}], "
            f"ARRAY[{columns['score']}]::float8[], ARRAY[{columns['count']}]::bigint[], '{{NULL}}', "
            f"ARRAY[{quote(reason)}], ARRAY[{quote(actor)}]::text[], '{{NULL}}', '{{NULL}}', "
            f"ARRAY[{quote(request_id)}]::uuid[], ARRAY[{quote(text)}], true)", session or self.agent)


class Proof(AuditTest):
    def test_what_the_kernel_proves_stands_beside_what_is_claimed(self):
        self.by_agent("disable", actor="the pope")
        entry = self.audit()[-1]
        self.assertEqual((entry["action"], entry["actor"]), ("disable", "the pope"))
        self.assertEqual(entry["proof"], {**PROOF, "session_user": AGENT_USER})
        self.assertEqual(self.breaker()["disabled_by"], "the pope")

    def test_the_user_of_the_proof_if_nothing_is_claimed(self):
        self.by_agent("disable")
        self.assertEqual(self.breaker()["disabled_by"], "joe")
        self.by_agent("enable")
        self.assertEqual(self.audit()[-1]["actor"], "joe")
        self.assertEqual(self.incidents()[0]["resolved_by"], "joe")

    def test_trip(self):
        self.by_agent("report_schema_error", count="5")
        entry = self.audit()[-1]
        self.assertEqual((entry["action"], entry["actor"], entry["proof"]["exe"]),
                         ("trip", "circuit_breaker", "/usr/bin/engine"))

    def test_creation(self):
        self.by_agent("report_drift", score="0", count="1")
        self.assertEqual((self.audit()[0]["action"], self.audit()[0]["actor"], self.audit()[0]["proof"]["pid"]),
                         ("create", "joe", 4242))

    def test_policy(self):
        self.value(f"""cbshm.set_policy_json({quote(self.name)}, '{{"failure_threshold": 7}}', 'ann',
                   {quote(json.dumps(PROOF))})""", self.agent)
        self.assertEqual((self.audit()[-1]["actor"], self.audit()[-1]["proof"]["uid"]), ("ann", 1000))
        for _ in range(2):
            self.value(f"""cbshm.set_policy_json(NULL, '{{"failure_threshold": 3}}', 'ann',
                       {quote(json.dumps(PROOF))})""", self.agent)
            self.value(f"""cbshm.set_policy_json(NULL, '{{"failure_threshold": 4}}')""", self.agent)
        fleet = self.rows("SELECT * FROM cbshm.audit_log WHERE breaker IS NULL ORDER BY id DESC LIMIT 2")
        self.assertEqual([(each["actor"], each["proof"].get("uid")) for each in fleet],
                         [(AGENT_USER, None), ("ann", 1000)])
        self.run_sql("UPDATE cbshm.settings SET failure_threshold = 3")

    def test_alert_instance(self):
        self.by_agent("disable")
        self.assertEqual(self.alerts()[0]["payload"]["labels"]["instance"], "h1-a")
        self.enable()
        self.assertEqual(self.alerts()[1]["payload"]["labels"]["instance"], "h1-a")

    def test_proof_counts_from_agents_only(self):
        self.run_sql("DO $$ BEGIN CREATE ROLE plain LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$; "
                     "GRANT USAGE ON SCHEMA cbshm TO plain; GRANT EXECUTE ON FUNCTION cbshm.apply TO plain")
        plain = fixture.server().session("plain")
        self.by_agent("disable", session=plain)
        plain.close()
        proof = self.audit()[-1]["proof"]
        self.assertEqual(proof["session_user"], "plain")
        self.assertEqual(sorted(proof), ["application_name", "backend_pid", "session_user"])
        self.assertEqual(self.breaker()["disabled_by"], "plain")

    def test_forged_context_proves_nothing(self):
        self.run_sql("DO $$ BEGIN CREATE ROLE orm LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$; "
                     "GRANT USAGE ON SCHEMA cbshm TO orm; GRANT SELECT, INSERT, UPDATE ON cbshm.breaker TO orm")
        orm = fixture.server().session("orm")
        context = json.dumps({"name": self.name, "by": "root", "proof": PROOF})
        orm.execute(f"BEGIN; SET LOCAL cbshm.context = {quote(context)}; "
                    f"INSERT INTO cbshm.breaker (name, disabled) VALUES ({quote(self.name)}, true); COMMIT")
        orm.close()
        self.assertEqual(self.audit()[-1]["proof"]["session_user"], "orm")
        self.assertNotIn("uid", self.audit()[-1]["proof"])

    def test_no_proof(self):
        for proof in ("", "[", "5", "null"):
            with self.subTest(proof=proof):
                self.assertEqual(self.by_agent("disable", reason=proof + "x", proof=proof)["outcome"], "ok")
                self.assertEqual(self.audit()[-1]["proof"]["session_user"], AGENT_USER)
                self.assertEqual(self.breaker()["disabled_by"], AGENT_USER)


class Log(AuditTest):
    def test_counters_are_not_logged(self):
        for score in (0.9, 0.9, 0.1, 0.9):
            self.drift(score)
        self.assertEqual(self.actions(), ["create"])

    def test_only_changed_keys(self):
        self.disable(until="2999-01-01 00:00:00Z", by="x")
        entry = self.audit()[-1]
        row = self.breaker()
        self.assertEqual(entry["old_values"], {"disabled": False})
        self.assertEqual(entry["new_values"], {
            "disabled": True, "disabled_by": "x", "disabled_reason": "why", "disabled_until": row["disabled_until"],
            "opened_at": row["opened_at"], "incident_id": row["incident_id"]})
        self.disable(reason="other", until="2999-01-01 00:00:00Z", by="x")
        self.assertEqual(sorted(self.audit()[-1]["new_values"]), ["disabled_reason", "incident_id", "opened_at"])

    def test_rows_stay(self):
        self.disable()
        before = self.audit()
        for statement in ("UPDATE cbshm.audit_log SET actor = 'nobody'", "DELETE FROM cbshm.audit_log",
                          "TRUNCATE cbshm.audit_log"):
            self.assertIn("cbshm_owner", self.refused(statement, "42501").hint)
        self.run_sql("SET ROLE cbshm_owner")
        try:
            for statement in ("UPDATE cbshm.audit_log SET actor = 'nobody'", "TRUNCATE cbshm.audit_log"):
                self.refused(statement, "42501")
            self.assertEqual(self.audit(), before)
            self.run_sql("DELETE FROM cbshm.audit_log WHERE time < now() - interval '1 year'")
        finally:
            self.run_sql("RESET ROLE")
        self.assertEqual(self.audit(), before)

    def test_the_owner_may_remove_old_rows(self):
        self.enable()
        self.run_sql(f"SET ROLE cbshm_owner; DELETE FROM cbshm.audit_log WHERE breaker = '{self.name}'; RESET ROLE")
        self.assertEqual(self.audit(), [])


class Repeated(AuditTest):
    ID = "aaaaaaaa-0000-4000-8000-{:012}"
    used = 0

    def setUp(self):
        super().setUp()
        Repeated.used += 1
        self.request = self.ID.format(Repeated.used)

    def test_disable(self):
        first = self.disable("why", request_id=self.request, until="2999-01-01Z")
        before = self.traces()
        self.assertTrue(first[0])
        self.assertEqual(self.disable("why", request_id=self.request, until="2999-01-01Z"), first)
        self.assertEqual(self.traces(), before)
        self.assertEqual(self.audit()[-1]["request_id"], self.request)

    def test_answer_is_the_first_even_if_the_breaker_has_closed_since(self):
        first = self.disable("why", request_id=self.request)
        self.enable()
        before = self.traces()
        self.assertEqual(self.disable("why", request_id=self.request), first)
        self.assertEqual(self.traces(), before)

    def test_until_may_have_passed_since(self):
        until = self.value("clock_timestamp() + interval '50 ms'")
        first = self.disable("why", request_id=self.request, until=until)
        self.expire()
        self.recover()
        self.assertEqual(self.disable("why", request_id=self.request, until=until), first)
        self.assertFalse(self.breaker()["disabled"])

    def test_enable(self):
        self.disable()
        self.assertTrue(self.enable(request_id=self.request))
        self.disable()
        self.assertTrue(self.enable(request_id=self.request))
        self.assertTrue(self.breaker()["disabled"])

    def test_answer_not_changed(self):
        self.assertFalse(self.enable(request_id=self.request))
        self.disable()
        self.assertFalse(self.enable(request_id=self.request))
        self.assertTrue(self.breaker()["disabled"])

    def test_another_kind_or_name(self):
        self.disable("why", request_id=self.request)
        before = self.traces()
        for call in (f"enable('{self.name}', request_id => '{self.request}')",
                     f"disable('{self.name} b', 'why', request_id => '{self.request}')"):
            error = self.refused(f"SELECT cbshm.{call}")
            self.assertEqual(error.detail, "request_id")
            self.assertIn(f'disable of "{self.name}"', error.message)
        self.assertEqual(self.traces(), before)
        self.assertIsNone(self.breaker(self.name + " b"))

    def test_refused_request_does_not_use_up_its_id(self):
        self.refused(f"SELECT cbshm.disable('{self.name}', '', request_id => '{self.request}')")
        self.assertTrue(self.disable("why", request_id=self.request)[0])

    def test_rolled_back_request_does_not_use_up_its_id(self):
        self.run_sql("BEGIN")
        self.disable("why", request_id=self.request)
        self.run_sql("ROLLBACK")
        self.assertTrue(self.disable("why", request_id=self.request)[0])

    def test_twice_in_one_batch(self):
        two = f"ARRAY['{self.request}', '{self.request}']::uuid[]"
        none = "'{NULL,NULL}'"
        done = self.rows(
            f"SELECT * FROM cbshm.apply('{{disable,disable}}', ARRAY['{self.name}', '{self.name}'], {none}, {none}, "
            f"{none}, '{{why,other}}', {none}, {none}, {none}, {two}, {none}, true) ORDER BY position")
        self.assertEqual([each["changed"] for each in done], [True, True])
        self.assertEqual(done[0]["incident"], done[1]["incident"])
        self.assertEqual(len(self.incidents()), 1)

    def test_two_sessions(self):
        self.agent.execute("BEGIN")
        first = self.by_agent("disable", request_id=self.request)
        other = fixture.server().session()
        other.send(f"SELECT incident->>'id' FROM cbshm.disable('{self.name}', 'other', "
                   f"request_id => '{self.request}')")
        other.blocked(0.2)
        self.agent.execute("COMMIT")
        self.assertEqual(other.wait(), first["incident"]["id"])
        other.close()
        self.assertEqual(len(self.incidents()), 1)

    def test_first_session_rolls_back(self):
        self.enable()
        self.agent.execute("BEGIN")
        self.by_agent("disable", request_id=self.request)
        other = fixture.server().session()
        other.send(f"SELECT changed FROM cbshm.disable('{self.name}', 'other', request_id => '{self.request}')")
        other.blocked(0.2)
        self.agent.execute("ROLLBACK")
        self.assertEqual(other.wait(), "t")
        other.close()
        self.assertEqual(self.breaker()["disabled_reason"], "other")

    def test_old_ones_are_forgotten(self):
        self.run_sql("INSERT INTO cbshm.request (request_id, kind, name, time) "
                     "SELECT gen_random_uuid(), 'enable', 'x', now() - interval '25 h' FROM generate_series(1, 15)")
        old = "(SELECT count(*) FROM cbshm.request WHERE time < now() - interval '24 h')"
        self.enable(request_id=self.request)
        self.assertEqual(self.value(old), 5)
        self.enable(request_id=self.request)
        self.assertEqual(self.value(old), 0)
        self.assertEqual(self.value(f"(SELECT count(*) FROM cbshm.request WHERE request_id = '{self.request}')"), 1)


if __name__ == "__main__":
    tap.main()
