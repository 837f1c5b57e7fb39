# SPDX-License-Identifier: ISC
"""The database side of the agent: mirror, writes, recovery, reconnects, signals, against a real PostgreSQL."""
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
import unittest

from support import tap
from support.agent import Agent, program, wait_for
from support.postgres import Postgres
from support.probe import Probe
from support.proxy import Proxy
from support.varlink import Varlink, VarlinkError

STOPPED, DISCONNECTED, LIVE = 4, 3, 2


def listed(agent, name):
    """The breaker in the agent's mirror, or None."""
    after = ""
    while True:
        page = agent.call("List", **({"after": after} if after else {}))
        for breaker in page["breakers"]:
            if breaker["name"] == name:
                return breaker
        if page["complete"]:
            return None
        after = page["breakers"][-1]["name"]


def is_open(agent, name):
    breaker = listed(agent, name)
    return breaker and breaker["is_open"]


def error_of(call, *args, **kwargs):
    """The name of the error that a call ends with, and its parameters; ("ok", reply)."""
    try:
        return "ok", call(*args, **kwargs)
    except VarlinkError as error:
        return error.name, error.parameters


def write_pid(postgres):
    """The server process of the agent's write connection: the one that has applied something last."""
    return postgres.value("SELECT pid FROM pg_stat_activity WHERE application_name = 'cbagent' "
                          "AND query = 'COMMIT' ORDER BY query_start DESC LIMIT 1")


class Load:
    """Threads that report to breakers of their own, and count what they are told."""

    def __init__(self, agent, names, timeout_ms=3000):
        self.agent = agent
        self.counts = {name: {"ok": 0} for name in names}
        self.times = []
        self.running = True
        self.timeout_ms = timeout_ms
        self.threads = [threading.Thread(target=self._run, args=(name,)) for name in names]
        for thread in self.threads:
            thread.start()

    def _run(self, name):
        client = Varlink(self.agent.socket)
        counts = self.counts[name]
        while self.running:
            outcome, _ = error_of(client.call, "ReportDrift", name=name, drift_score=1.0, sample_count=1,
                                  timeout_ms=self.timeout_ms)
            counts[outcome] = counts.get(outcome, 0) + 1
            if outcome == "ok":
                self.times.append(time.monotonic())
            else:
                time.sleep(0.01)
        client.close()

    def stop(self):
        self.running = False
        for thread in self.threads:
            thread.join()

    def total(self, outcome):
        return sum(counts.get(outcome, 0) for counts in self.counts.values())

    def check(self, test, postgres):
        """Everything acknowledged is there, and nothing else but what was said to be unknown."""
        for name, counts in self.counts.items():
            applied = int(postgres.value("SELECT coalesce(max(consecutive_failures), 0) FROM cbshm.breaker "
                                         f"WHERE name = '{name}'"))
            unknown = counts.get("OutcomeUnknown", 0)
            tap.note(f"{name}: {counts}, applied {applied}")
            test.assertGreaterEqual(applied, counts["ok"], "an acknowledged report is lost")
            test.assertLessEqual(applied, counts["ok"] + unknown, "a report was applied that was said to have failed")


class Mirror(unittest.TestCase):
    """What the database says stands in the segment."""

    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()
        cls.postgres.psql("INSERT INTO cbshm.breaker (name, disabled, disabled_reason, disabled_by) "
                          "VALUES ('before', true, 'old', 'anna')")
        cls.agent = Agent(cls.postgres, config={"segment": {"capacity": "8192"}})

    @classmethod
    def tearDownClass(cls):
        cls.agent.close()
        cls.postgres.close()

    def test_first_load(self):
        breaker = listed(self.agent, "before")
        self.assertEqual((breaker["is_open"], breaker["reason"], breaker["disabled_by"]), (True, "old", "anna"))

    def test_plain_sql(self):
        sql = self.postgres.psql
        sql("INSERT INTO cbshm.breaker (name) VALUES ('sql')")
        wait_for(lambda: listed(self.agent, "sql"), 1)
        sql("UPDATE cbshm.breaker SET disabled = true, disabled_reason = 'why' WHERE name = 'sql'")
        wait_for(lambda: is_open(self.agent, "sql"), 1)
        version = listed(self.agent, "sql")["version"]
        sql("DELETE FROM cbshm.breaker WHERE name = 'sql'")
        wait_for(lambda: listed(self.agent, "sql") is None, 1)
        sql("INSERT INTO cbshm.breaker (name) VALUES ('sql')")
        wait_for(lambda: listed(self.agent, "sql"), 1)
        self.assertGreater(listed(self.agent, "sql")["version"], version)
        self.assertFalse(is_open(self.agent, "sql"))

    def brought(self, name):
        """True if the agent shows a decision that it may not ask for."""
        def enabled():
            try:
                return self.agent.call("Enable", name=name)
            except VarlinkError:
                return None

        wait_for(enabled, 10)
        self.postgres.psql("REVOKE SELECT ON cbshm.mirror FROM cbshm_agent")
        try:
            self.postgres.psql(f"SELECT cbshm.disable('{name}', E'ta\\tb, ß', 'anna', now() + interval '1 day')")
            wait_for(lambda: is_open(self.agent, name), 2)
            return True
        except AssertionError:
            return False
        finally:
            self.postgres.psql("GRANT SELECT ON cbshm.mirror TO cbshm_agent")

    def test_notification_brings_the_row(self):
        """It works even if nothing may be asked for; unless the agent asks for counters just then, and has to connect anew."""
        name = next((each for each in (f"brought/{i}" for i in range(5)) if self.brought(each)), None)
        self.assertIsNotNone(name)
        ours, truth = listed(self.agent, name), self.agent.call("GetState", name=name)["state"]
        self.assertEqual(ours, truth)

    def test_forged_notification(self):
        """Anybody who may connect may notify: what is not sealed by the database is asked for, not believed."""
        self.agent.call("Enable", name="forged")
        heard = self.postgres.session()
        heard.execute("LISTEN cbshm")
        self.postgres.psql("SELECT cbshm.disable('forged', 'x')")
        wait_for(lambda: is_open(self.agent, "forged"), 5)
        payload = re.search(r'payload "(c \d+ forged\x01.*)" received', heard.execute("SELECT 1"), re.S).group(1)
        version, rest = payload.split(" ")[1], payload.split("\x01", 1)[1]
        closed = re.sub("^(\\d+)\x011", "\\1\x010", rest)  # the same with another decision, the seal of the true one
        self.assertNotEqual(closed, rest)
        for forged in (closed, closed.rsplit("\x01", 1)[0], closed[:-1] + "g", "1", "\x01" * 16, rest + "\x01"):
            self.postgres.psql(f"SELECT pg_notify('cbshm', 'c {int(version) + 5} forged' || E'\\x01' || '{forged}')",
                               user="cbagent")
        self.agent.call("Enable", name="other")
        time.sleep(0.3)
        self.assertTrue(is_open(self.agent, "forged"))
        self.assertEqual(listed(self.agent, "forged")["version"], int(version))
        heard.close()

    def test_forged_barrier(self):
        """Nor is a number acknowledged that was never handed out."""
        for forged in (str(2 ** 62), f"{2 ** 62}\x01", f"{2 ** 62}\x01" + "0" * 64):
            self.postgres.psql(f"SELECT pg_notify('cbshm', 'b {forged}')", user="cbagent")
        self.agent.call("Enable", name="other")
        time.sleep(0.3)
        self.assertEqual(self.postgres.rows("SELECT a.acknowledged FROM cbshm.agent a, cbshm.barrier b"
                                            " WHERE a.acknowledged > b.last_value"), [])
        self.assertEqual(self.agent.call("WaitFleet")["fleet"]["in_force"], 1)

    def test_policy_of_other_settings_is_asked_for(self):
        """A change that was made under the old settings, and commits after the new ones."""
        self.agent.call("Enable", name="older")
        session = self.postgres.session()
        session.execute("BEGIN")
        session.execute("SELECT cbshm.disable('older', 'x')")
        self.postgres.psql("UPDATE cbshm.settings SET failure_threshold = 77")
        wait_for(lambda: listed(self.agent, "older")["policy"]["failure_threshold"] == 77, 5)
        session.execute("COMMIT")
        wait_for(lambda: is_open(self.agent, "older"), 5)
        self.assertEqual(listed(self.agent, "older")["policy"]["failure_threshold"], 77)
        self.postgres.psql("UPDATE cbshm.settings SET failure_threshold = 3")
        wait_for(lambda: listed(self.agent, "older")["policy"]["failure_threshold"] == 3, 5)

    def test_own_write_then_foreign_delete(self):
        self.agent.call("Disable", name="mine", reason="x")
        self.postgres.psql("DELETE FROM cbshm.breaker WHERE name = 'mine'")
        wait_for(lambda: listed(self.agent, "mine") is None, 1)

    def test_rolled_back_is_not_seen(self):
        session = self.postgres.session()
        session.execute("BEGIN")
        session.execute("INSERT INTO cbshm.breaker (name, disabled, disabled_reason) VALUES ('never', true, 'x')")
        session.execute("ROLLBACK")
        self.postgres.psql("INSERT INTO cbshm.breaker (name) VALUES ('after-never')")
        wait_for(lambda: listed(self.agent, "after-never"), 1)
        self.assertIsNone(listed(self.agent, "never"))

    def test_many_rows_at_once(self):
        self.postgres.psql("INSERT INTO cbshm.breaker (name) SELECT 'many/' || i FROM generate_series(1, 5000) i")
        wait_for(lambda: self.agent.header()[2] >= 5000, 10)
        self.postgres.psql("DELETE FROM cbshm.breaker WHERE name LIKE 'many/%'")
        wait_for(lambda: self.agent.header()[2] < 100, 10)

    def test_counters_of_another_agent(self):
        """No transaction of its reports notifies; it does so itself, once a second."""
        with Agent(self.postgres) as other:
            for _ in range(2):
                other.call("ReportDrift", name="counted elsewhere", drift_score=1.0, sample_count=1)
            wait_for(lambda: (listed(self.agent, "counted elsewhere") or {}).get("consecutive_failures") == 2, 10)

    def test_reports_that_change_nothing_are_told_to_nobody(self):
        """Most reports are good ones on breakers without failures: they must not cost every host a message."""
        def report(score):
            self.agent.call("ReportDrift", name="healthy", drift_score=score, sample_count=1)

        heard = self.postgres.session()
        heard.execute("LISTEN cbshm")
        report(0.9)
        version = listed(self.agent, "healthy")["version"]
        said = []
        wait_for(lambda: said.append(heard.execute("SELECT 1")) or f"n {version} healthy" in "".join(said), 5)
        report(0.0)
        version = listed(self.agent, "healthy")["version"]
        end = time.monotonic() + 3.5
        while time.monotonic() < end:
            report(0.0)
            time.sleep(0.1)
        heard_of = re.findall(r'payload "(n \d+ healthy)"', heard.execute("SELECT 1"))
        self.assertEqual(heard_of, [f"n {version} healthy"])
        heard.close()

    def test_counters_of_others_within_two_seconds(self):
        self.postgres.psql("INSERT INTO cbshm.breaker (name) VALUES ('counter')")
        wait_for(lambda: listed(self.agent, "counter"), 1)
        self.postgres.psql("SELECT cbshm.report_drift('counter', 1.0, 1, NULL)")
        wait_for(lambda: listed(self.agent, "counter")["consecutive_failures"] == 1, 2.5)

    def test_fleet_settings_change_without_a_version(self):
        self.postgres.psql("INSERT INTO cbshm.breaker (name) VALUES ('fleet')")
        wait_for(lambda: listed(self.agent, "fleet"), 1)
        self.postgres.psql("UPDATE cbshm.settings SET failure_threshold = 17")
        wait_for(lambda: listed(self.agent, "fleet")["policy"]["failure_threshold"] == 17, 1)
        self.postgres.psql("UPDATE cbshm.settings SET failure_threshold = 3")
        wait_for(lambda: listed(self.agent, "fleet")["policy"]["failure_threshold"] == 3, 1)

    def test_agent_row_and_heartbeat(self):
        seen = wait_for(lambda: self.postgres.rows("SELECT last_seen_at, version FROM cbshm.agent"), 5)
        wait_for(lambda: self.postgres.rows("SELECT last_seen_at, version FROM cbshm.agent") != seen, 5)

    def test_a_client_that_comes_as_the_database_goes(self):
        """It may get the number of the socket that libpq has closed, and is heard all the same."""
        for i in range(20):
            self.agent.sigstop()
            self.postgres.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cbagent'")
            self.agent.sigcont()
            self.assertIn("breakers", self.agent.call("List"))
            wait_for(lambda: "ok" == error_of(self.agent.call, "Enable", name=f"back/{i}")[0], 5)

    def test_reconnect_loads_what_was_missed(self):
        self.postgres.psql("INSERT INTO cbshm.breaker (name) VALUES ('gone-meanwhile')")
        wait_for(lambda: listed(self.agent, "gone-meanwhile"), 1)
        self.agent.sigstop()
        self.postgres.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cbagent'")
        self.postgres.psql("DELETE FROM cbshm.breaker WHERE name = 'gone-meanwhile'")
        self.postgres.psql("INSERT INTO cbshm.breaker (name, disabled, disabled_reason) "
                           "VALUES ('come-meanwhile', true, 'x')")
        self.agent.sigcont()
        wait_for(lambda: is_open(self.agent, "come-meanwhile"), 3)
        wait_for(lambda: listed(self.agent, "gone-meanwhile") is None, 3)


class Writes(unittest.TestCase):
    """Requests become transactions."""

    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()
        cls.postgres.psql("UPDATE cbshm.settings SET failure_threshold = 1000000")
        cls.agent = Agent(cls.postgres)

    @classmethod
    def tearDownClass(cls):
        cls.agent.close()
        cls.postgres.close()

    def value(self, column, name):
        return self.postgres.value(f"SELECT {column} FROM cbshm.breaker WHERE name = '{name}'")

    def test_group_commit(self):
        first = int(self.postgres.value("SELECT pg_current_xact_id()"))
        with self.agent.connect() as client:
            sent = 0
            for _ in range(20):
                for _ in range(30):
                    client.send("ReportDrift", {"name": "hot", "drift_score": 1.0, "sample_count": 1})
                    sent += 1
                for _ in range(30):
                    client.receive()
        self.assertEqual(self.value("consecutive_failures", "hot"), str(sent))
        self.assertEqual(listed(self.agent, "hot")["consecutive_failures"], sent, "own writes are read")
        commits = int(self.postgres.value("SELECT pg_current_xact_id()")) - first
        tap.note(f"{sent} reports, {commits} transactions")
        self.assertLess(commits, sent / 2)

    def test_one_bad_request_fails_alone(self):
        # The size of a column's value is the server's own limit: the function cannot know of this constraint.
        self.postgres.psql("ALTER TABLE cbshm.breaker ADD CONSTRAINT no_poison CHECK (name <> 'poison') NOT VALID")
        try:
            with self.agent.connect() as client:
                names = [f"pack/{i}" for i in range(20)]
                names.insert(7, "poison")
                for name in names:
                    client.send("Disable", {"name": name, "reason": "x"})
                outcomes = [error_of(client.receive) for _ in names]
        finally:
            self.postgres.psql("ALTER TABLE cbshm.breaker DROP CONSTRAINT no_poison")
        for name, (outcome, reply) in zip(names, outcomes):
            if name == "poison":
                self.assertEqual((outcome, reply["sqlstate"]), ("DatabaseError", "23514"))
            else:
                self.assertEqual((outcome, name, reply), ("ok", name, reply))
        self.assertEqual(self.postgres.value("SELECT count(*) FROM cbshm.breaker WHERE name LIKE 'pack/%' AND disabled"),
                         "20")

    def test_invalid_request_fails_alone(self):
        outcome, reply = error_of(self.agent.call, "Disable", name="past", reason="x", until="2001-01-01T00:00:00Z")
        self.assertEqual((outcome, reply["field"]), ("InvalidArgument", "until"))
        self.assertTrue(reply["message"])

    def test_locked_row_is_busy_and_delays_nobody(self):
        self.agent.call("Enable", name="locked")
        session = self.postgres.session()
        session.execute("BEGIN")
        session.execute("SELECT 1 FROM cbshm.breaker WHERE name = 'locked' FOR UPDATE")
        with self.agent.connect() as waiting, self.agent.connect() as other:
            started = time.monotonic()
            waiting.send("Disable", {"name": "locked", "reason": "x", "timeout_ms": 700})
            for _ in range(20):
                before = time.monotonic()
                other.call("ReportDrift", name="free", drift_score=0.0, sample_count=1)
                self.assertLess(time.monotonic() - before, 0.25)
            outcome, reply = error_of(waiting.receive)
            self.assertEqual((outcome, reply.get("name")), ("Busy", "locked"), reply)
            self.assertTrue(0.65 < time.monotonic() - started < 1.5)
        session.execute("COMMIT")
        self.assertEqual(self.value("disabled", "locked"), "f")
        self.assertTrue(self.agent.call("Disable", name="locked", reason="x")["changed"])

    def test_order_in_the_lane(self):
        self.agent.call("Enable", name="ordered")
        session = self.postgres.session()
        session.execute("BEGIN")
        session.execute("SELECT 1 FROM cbshm.breaker WHERE name = 'ordered' FOR UPDATE")
        with self.agent.connect() as client:
            for i in range(10):
                client.send("Disable", {"name": "ordered", "reason": str(i), "timeout_ms": 10000})
                client.send("Enable", {"name": "ordered", "timeout_ms": 10000})
                time.sleep(0.02)
            client.send("Disable", {"name": "ordered", "reason": "last", "timeout_ms": 10000})
            time.sleep(0.3)
            session.execute("COMMIT")
            self.assertEqual([client.receive()["changed"] for _ in range(21)], [True] * 21)
        self.assertEqual(self.value("disabled_reason", "ordered"), "last")
        self.assertEqual(listed(self.agent, "ordered")["reason"], "last")

    def test_row_being_created_by_somebody_else(self):
        session = self.postgres.session()
        session.execute("BEGIN")
        session.execute("INSERT INTO cbshm.breaker (name) VALUES ('newborn')")
        with self.agent.connect() as waiting:
            waiting.send("Disable", {"name": "newborn", "reason": "x", "timeout_ms": 10000})
            time.sleep(0.5)
            before = time.monotonic()
            self.agent.call("ReportDrift", name="free", drift_score=0.0, sample_count=1)
            self.assertLess(time.monotonic() - before, 0.5)
            session.execute("COMMIT")
            self.assertTrue(waiting.receive()["changed"])

    def test_many_locked_rows(self):
        names = [f"lane/{i}" for i in range(30)]
        self.postgres.psql("INSERT INTO cbshm.breaker (name) SELECT 'lane/' || i FROM generate_series(0, 29) i")
        session = self.postgres.session()
        session.execute("BEGIN")
        session.execute("SELECT 1 FROM cbshm.breaker WHERE name LIKE 'lane/%' FOR UPDATE")
        clients = [self.agent.connect() for _ in names]
        for client, name in zip(clients, names):
            client.send("Disable", {"name": name, "reason": "x", "timeout_ms": 10000})
        time.sleep(0.5)
        session.execute("COMMIT")
        started = time.monotonic()
        self.assertEqual([client.receive()["changed"] for client in clients], [True] * 30)
        self.assertLess(time.monotonic() - started, 3)
        for client in clients:
            client.close()

    def test_policy(self):
        self.agent.call("Enable", name="policy")
        policy = self.agent.call("SetPolicy", name="policy", set={"drift_threshold": 0.75, "default_ttl_seconds": 1.5})
        self.assertEqual((policy["policy"]["drift_threshold"], policy["policy"]["default_ttl_seconds"]), (0.75, 1.5))
        self.assertEqual(listed(self.agent, "policy")["policy"], policy["policy"])
        self.agent.call("SetPolicy", set={"schema_error_threshold": 9})
        self.assertEqual(listed(self.agent, "policy")["policy"]["schema_error_threshold"], 9)
        cleared = self.agent.call("SetPolicy", name="policy", clear=["drift_threshold"])
        self.assertEqual(cleared["policy"]["drift_threshold"], 0.2)
        self.assertEqual(error_of(self.agent.call, "SetPolicy", name="policy", set={"drift_threshold": 7})[0],
                         "InvalidArgument")
        self.assertEqual(error_of(self.agent.call, "SetPolicy", name="no-such-breaker")[0], "NotFound")
        self.agent.call("SetPolicy", set={"schema_error_threshold": 5})

    def test_policy_of_a_locked_row(self):
        self.agent.call("Enable", name="policy-locked")
        session = self.postgres.session()
        session.execute("BEGIN")
        session.execute("SELECT 1 FROM cbshm.breaker WHERE name = 'policy-locked' FOR UPDATE")
        self.assertEqual(error_of(self.agent.call, "SetPolicy", name="policy-locked", set={"drift_threshold": 0.5},
                                  timeout_ms=300)[0], "Busy")
        session.execute("COMMIT")

    def test_reads_ask_the_database(self):
        self.assertEqual(error_of(self.agent.call, "GetState", name="no-such-breaker")[0], "NotFound")
        self.agent.call("Disable", name="read", reason="x")
        self.assertEqual(self.agent.call("GetState", name="read")["state"]["reason"], "x")
        incidents = self.agent.call("GetIncidents", name="read")["incidents"]
        self.assertEqual([incident["reason"] for incident in incidents], ["x"])
        self.assertEqual(self.agent.call("GetIncidents", name="nothing")["incidents"], [])

    def test_proof_in_the_audit_log(self):
        self.agent.call("Disable", name="proven", reason="x", by="somebody else")
        rows = self.postgres.rows("SELECT to_jsonb(a)::text FROM cbshm.audit_log a WHERE a.breaker = 'proven'")
        self.assertIn("somebody else", str(rows))
        self.assertIn(f'"pid": {os.getpid()}', str(rows))
        self.assertIn("python", str(rows))

    def test_text_of_any_kind(self):
        reason = "quote \" backslash \\ brace {} comma , NULL \u00e9\u4e16\U0001f600 'single'"
        self.agent.call("Disable", name='odd "name" {\\}', reason=reason, by="NULL")
        breaker = listed(self.agent, 'odd "name" {\\}')
        self.assertEqual((breaker["reason"], breaker["disabled_by"]), (reason, "NULL"))


class Full(unittest.TestCase):
    def test_no_room_in_the_segment(self):
        with Postgres().migrate() as postgres:
            with Agent(postgres, config={"segment": {"capacity": "16"}}) as agent:
                with agent.connect() as client:
                    for i in range(20):
                        client.send("Enable", {"name": f"b{i}"})
                    outcomes = [error_of(client.receive)[0] for _ in range(20)]
                self.assertEqual(outcomes, ["ok"] * 16 + ["LimitExceeded"] * 4)
                self.assertEqual(postgres.value("SELECT count(*) FROM cbshm.breaker"), "16")
                self.assertEqual(error_of(agent.call, "Disable", name="b3", reason="x")[0], "ok")

    def test_no_room_in_the_file_system(self):
        # The limit of a file's size fails like a full file system.
        ignore = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"]
        with Postgres().migrate() as postgres:
            with Agent(postgres, config={"segment": {"capacity": "2048"}}, prefix=ignore) as agent:
                postgres.psql("INSERT INTO cbshm.breaker (name) SELECT 'b' || i FROM generate_series(1, 1024) i")
                wait_for(lambda: agent.header()[2] == 1024, 5)
                unlimited = resource.prlimit(agent.pid, resource.RLIMIT_FSIZE)
                resource.prlimit(agent.pid, resource.RLIMIT_FSIZE,
                                 (os.stat("/dev/shm" + agent.segment).st_size, unlimited[1]))
                error, parameters = error_of(agent.call, "Disable", name="one more", reason="x")
                self.assertEqual(error, "LimitExceeded")
                self.assertIn("the file system of the segment is full", parameters["message"])
                self.assertEqual(postgres.value("SELECT count(*) FROM cbshm.breaker"), "1024")
                self.assertEqual(error_of(agent.call, "Disable", name="b3", reason="x")[0], "ok")
                resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, unlimited)
                agent.call("Disable", name="one more", reason="x")
                self.assertTrue(is_open(agent, "one more"))

    def test_room_that_comes(self):
        with Postgres().migrate() as postgres:
            with Agent(postgres, config={"segment": {"capacity": "16"}}) as agent:
                postgres.psql("INSERT INTO cbshm.breaker (name, disabled) SELECT 'b' || i, true "
                              "FROM generate_series(0, 15) i")
                wait_for(lambda: is_open(agent, "b15"), 3)
                # For a moment, the segment has to hold both names.
                postgres.psql("UPDATE cbshm.breaker SET name = 'renamed' || name")
                wait_for(lambda: all(is_open(agent, f"renamedb{i}") for i in range(16)), 5)
                # One that did not fit comes when another goes.
                postgres.psql("INSERT INTO cbshm.breaker (name, disabled) VALUES ('late', true)")
                time.sleep(0.3)
                self.assertIsNone(listed(agent, "late"))
                postgres.psql("DELETE FROM cbshm.breaker WHERE name = 'renamedb7'")
                wait_for(lambda: is_open(agent, "late"), 5)
                # So it is with what has changed while the agent was away.
                agent.stop()
                postgres.psql("UPDATE cbshm.breaker SET name = 'again' || name")
                agent.start()
                wait_for(lambda: is_open(agent, "againlate"), 5)


class Unchecked(unittest.TestCase):
    def test_rows_that_no_trigger_has_seen(self):
        """As from logical replication: what can be no breaker is left out, and the log says so; the rest is served."""
        with Postgres().migrate() as postgres:
            postgres.psql(r"""
                SET session_replication_role = replica;
                INSERT INTO cbshm.breaker (name, disabled, version) VALUES ('before all', true, -1);
                INSERT INTO cbshm.breaker (name, disabled)
                    VALUES ('', true), (E'a\tb', true), (repeat('x', 129), true), ('b', true);
                INSERT INTO cbshm.breaker (name, disabled, disabled_by, disabled_reason, opened_at, disabled_until,
                    last_failure_at, consecutive_failures, drift_threshold, failure_threshold, default_ttl) VALUES
                    ('wild', true, repeat('y', 5000), repeat('ß', 5000), '-infinity', '294276-12-31', 'infinity', -1, 'NaN',
                     -1, '-1 s');
                INSERT INTO cbshm.breaker (name, disabled, default_ttl) VALUES
                    ('ages', false, '100000000 years'), ('past', false, '-100000000 years');
                """)
            with Agent(postgres) as agent:
                self.assertEqual(agent.header()[2], 4)
                self.assertEqual([is_open(agent, name) for name in ("b", "wild")], [True, True])
                # Counting looks at none of that.
                for name in ("ages", "past"):
                    self.assertEqual(error_of(agent.call, "ReportDrift", name=name, drift_score=1.0, sample_count=1)[0], "ok")
                self.assertEqual([listed(agent, name)["policy"]["default_ttl_seconds"] for name in ("ages", "past")],
                                 [8640000000, 1e-6])
                self.assertIn("event=mirror_incomplete", agent.log())
                self.assertIn("mend the row", agent.log())
                self.assertEqual(error_of(agent.call, "Enable", name="b")[0], "ok")
                # What is written again passes the triggers.
                self.assertEqual(error_of(agent.call, "Enable", name="wild")[1]["sqlstate"], "23514")
                postgres.psql("DELETE FROM cbshm.breaker WHERE name = 'wild'")
                wait_for(lambda: agent.header()[2] == 3, 5)


class Faults(unittest.TestCase):
    """The database goes away, in every way."""

    def setUp(self):
        self.postgres = Postgres(fsync=True).migrate()
        self.addCleanup(self.postgres.close)
        self.postgres.psql("UPDATE cbshm.settings SET failure_threshold = 1000000")
        self.names = [f"load/{i}" for i in range(4)]

    def agent(self, **options):
        agent = Agent(self.postgres, **options)
        self.addCleanup(agent.close)
        return agent

    def proxy(self):
        proxy = Proxy(self.postgres, self.postgres.scratch.directory("proxy", None, 0o711))
        self.addCleanup(proxy.close)
        return proxy

    def resumes(self, load, within=2.0):
        back = time.monotonic()
        wait_for(lambda: load.times and load.times[-1] > back, 10)
        seconds = next(t for t in load.times if t > back) - back
        tap.note(f"writes resumed after {seconds:.2f} s")
        self.assertLess(seconds, within)

    def test_restart_under_load(self):
        agent = self.agent()
        load = Load(agent, self.names)
        for mode in ("fast", "immediate"):
            time.sleep(0.5)
            self.postgres.restart(mode)
            self.resumes(load)
        load.stop()
        load.check(self, self.postgres)
        self.assertTrue(agent.alive())

    def test_sigkill_under_load(self):
        agent = self.agent()
        load = Load(agent, self.names)
        for _ in range(3):
            time.sleep(0.3)
            self.postgres.kill9()
            self.postgres.start()
            self.resumes(load)
        load.stop()
        load.check(self, self.postgres)

    def test_backends_killed_in_mid_batch(self):
        agent = self.agent()
        load = Load(agent, self.names)
        for _ in range(20):
            time.sleep(0.05)
            self.postgres.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                               "WHERE application_name = 'cbagent' ORDER BY random() LIMIT 1")
        self.resumes(load)
        load.stop()
        load.check(self, self.postgres)
        self.assertEqual(load.total("OutcomeUnknown"), 0, "every lost commit can be looked up")
        self.assertEqual(load.total("DatabaseUnavailable"), 0, "a short loss is waited out")

    def test_connection_given_up_in_mid_batch(self):
        """What the agent itself breaks off is known not to have been applied, and is applied once after all."""
        agent = self.agent()
        agent.call("Enable", name="slow")
        self.postgres.psql("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
                           "'BEGIN PERFORM pg_sleep(1); RETURN NEW; END'")
        self.postgres.psql("CREATE TRIGGER a_slow BEFORE UPDATE ON cbshm.breaker FOR EACH ROW "
                           "WHEN (NEW.name = 'slow') EXECUTE FUNCTION slow()")
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cbagent' AND wait_event = 'PgSleep'"
        with agent.connect() as client:
            client.send("ReportDrift", {"name": "slow", "drift_score": 1.0, "sample_count": 1, "timeout_ms": 20000})
            wait_for(lambda: self.postgres.value(asleep) == "1", 5)
            agent.config["postgres"]["conninfo"] = self.postgres.conninfo("cbagent") + " application_name=renamed"
            agent.write_config()
            agent.sighup()
            client.receive()
        wait_for(lambda: self.postgres.value("SELECT count(*) FROM pg_stat_activity "
                                             "WHERE application_name = 'cbagent'") == "0", 5)
        self.assertIn("event=lost_commit requests=1 outcome=aborted", agent.log())
        self.assertEqual(self.postgres.value("SELECT consecutive_failures FROM cbshm.breaker WHERE name = 'slow'"), "1")

    def test_fleet_settings_change_during_a_commit(self):
        """The rows of the transaction were read before the change, and are shown after it."""
        agent = self.agent()
        agent.call("Enable", name="other")
        self.postgres.psql("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
                           "'BEGIN PERFORM pg_sleep(2); RETURN NEW; END'")
        self.postgres.psql("CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON cbshm.breaker DEFERRABLE INITIALLY DEFERRED "
                           "FOR EACH ROW EXECUTE FUNCTION slow()")
        with agent.connect() as client:
            client.send("Disable", {"name": "late", "reason": "x", "timeout_ms": 20000})
            wait_for(lambda: self.postgres.value("SELECT count(*) FROM pg_stat_activity "
                                                 "WHERE query = 'COMMIT' AND wait_event = 'PgSleep'") == "1", 5)
            self.postgres.psql("UPDATE cbshm.settings SET auto_recover = false")
            wait_for(lambda: not listed(agent, "other")["policy"]["auto_recover"], 5)
            self.assertIsNone(listed(agent, "late"))
            self.assertTrue(client.receive()["changed"])
        wait_for(lambda: not listed(agent, "late")["policy"]["auto_recover"], 5)

    def cut_once(self, proxy, condition):
        """Cuts the connection once, at the first message that meets the condition."""
        cut = []

        def judge(*message):
            if not cut and condition(*message):
                cut.append(time.monotonic())
                return None
            return True
        if condition.__code__.co_argcount == 1:
            proxy.client_filter = judge
        else:
            proxy.filter = judge
        return cut

    def test_connection_cut_after_commit(self):
        proxy = self.proxy()
        agent = self.agent(conninfo=proxy.conninfo())
        agent.call("Enable", name="cut")
        cut = self.cut_once(proxy, lambda kind, body: kind == b"C" and body.startswith(b"COMMIT"))
        self.assertEqual(error_of(agent.call, "ReportDrift", name="cut", drift_score=1.0, sample_count=1)[0], "ok")
        self.assertTrue(cut)
        self.assertRegex(agent.log(), "event=lost_commit requests=1 outcome=committed")
        self.assertEqual(listed(agent, "cut")["consecutive_failures"], 1)

    def test_connection_cut_behind_the_commit(self):
        """The server has said that it has committed: nothing is left to be looked up."""
        proxy = self.proxy()
        agent = self.agent(conninfo=proxy.conninfo())
        agent.call("Enable", name="cut")
        said = []

        def after_commit(kind, body):
            if kind == b"C" and body.startswith(b"COMMIT"):
                said.append(True)
            return said and kind == b"Z"
        cut = self.cut_once(proxy, after_commit)
        self.assertEqual(error_of(agent.call, "ReportDrift", name="cut", drift_score=1.0, sample_count=1)[0], "ok")
        self.assertTrue(cut)
        self.assertNotIn("lost_commit", agent.log())
        self.assertEqual(listed(agent, "cut")["consecutive_failures"], 1)

    def test_server_process_ended_behind_the_commit(self):
        """Its last words are an error, and not about the commit, which it has said to be done."""
        proxy = self.proxy()
        agent = self.agent(conninfo=proxy.conninfo())
        agent.call("Enable", name="cut")
        fields = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
        said = []

        def end_after_commit(kind, body):
            if kind == b"C" and body.startswith(b"COMMIT"):
                said.append(kind)
            if kind != b"Z" or len(said) != 1:
                return True
            said.append(kind)
            threading.Timer(0.05, proxy.cut_all).start()
            return b"E" + struct.pack("!I", len(fields) + 4) + fields
        proxy.filter = end_after_commit
        self.assertEqual(error_of(agent.call, "ReportDrift", name="cut", drift_score=1.0, sample_count=1)[0], "ok")
        self.assertGreater(len(said), 1)
        self.assertEqual(self.postgres.value("SELECT consecutive_failures FROM cbshm.breaker WHERE name = 'cut'"), "1")

    def test_connection_cut_before_commit(self):
        proxy = self.proxy()
        agent = self.agent(conninfo=proxy.conninfo())
        agent.call("Enable", name="cut")
        # The agent's whole pipeline is dropped on its way.
        cut = self.cut_once(proxy, lambda data: b"COMMIT" in data)
        outcome = error_of(agent.call, "ReportDrift", name="cut", drift_score=1.0, sample_count=1)[0]
        self.assertTrue(cut)
        self.assertEqual(outcome, "OutcomeUnknown", "through a proxy nobody knows how far it came")
        self.assertEqual(self.postgres.value("SELECT consecutive_failures FROM cbshm.breaker WHERE name = 'cut'"), "0")

    def test_order_behind_a_lost_transaction(self):
        """What was aborted with its connection is done again, and before what the client has sent since."""
        proxy = self.proxy()
        agent = self.agent(conninfo=proxy.conninfo())
        agent.call("Enable", name="order")
        under_way = threading.Event()

        def never_commit(data):
            if under_way.is_set() or b"COMMIT\0" not in data:
                return True
            under_way.set()
            time.sleep(0.2)  # the next calls reach the agent meanwhile
            return data.replace(b"COMMIT\0", b"SELECT\0")
        proxy.client_filter = never_commit
        cut = self.cut_once(proxy, lambda kind, body: kind == b"T" and body == b"\0\0")  # the row of that SELECT
        with agent.connect() as client:
            client.send("Disable", {"name": "order", "reason": "first"})
            self.assertTrue(under_way.wait(5))
            client.send("Enable", {"name": "order"})
            client.send("Disable", {"name": "order", "reason": "last"})
            self.assertEqual([client.receive()["changed"] for _ in range(3)], [True] * 3)
        self.assertTrue(cut)
        self.assertRegex(agent.log(), "event=lost_commit .*requests=1 outcome=aborted")
        self.assertEqual(agent.call("GetState", name="order")["state"]["reason"], "last")

    def test_order_behind_a_locked_row(self):
        """What has found its row locked comes before what the client has sent since, though that is sent at once."""
        proxy = self.proxy()
        agent = self.agent(conninfo=proxy.conninfo())
        agent.call("Enable", name="order")
        committed, go_on = threading.Event(), threading.Event()

        def hold(kind, body):
            if kind == b"C" and body.startswith(b"COMMIT") and not committed.is_set():
                committed.set()
                go_on.wait(10)
            return True
        session = self.postgres.session()
        self.addCleanup(session.close)
        session.execute("BEGIN")
        session.execute("SELECT FROM cbshm.breaker WHERE name = 'order' FOR UPDATE")
        proxy.filter = hold
        with agent.connect() as client:
            client.send("Disable", {"name": "order", "reason": "first"})
            self.assertTrue(committed.wait(5))
            client.send("Enable", {"name": "order"})
            time.sleep(0.2)  # it reaches the agent meanwhile
            session.execute("COMMIT")
            go_on.set()
            self.assertEqual([client.receive()["changed"] for _ in range(2)], [True] * 2)

    def test_clashes(self):
        """A serialization failure is tried again after a pause, within the deadline; others go on."""
        agent = self.agent()
        for name in ("clash", "other"):
            agent.call("Enable", name=name)
        self.postgres.psql("""
            CREATE SEQUENCE public.tries;
            GRANT USAGE ON SEQUENCE public.tries TO PUBLIC;
            CREATE FUNCTION public.clash() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('public.tries') < 5 THEN
                    RAISE EXCEPTION 'clash' USING ERRCODE = 'serialization_failure';
                END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER clash BEFORE UPDATE ON cbshm.breaker FOR EACH ROW WHEN (NEW.name = 'clash')
                EXECUTE FUNCTION public.clash()""")
        report = {"drift_score": 1.0, "sample_count": 1}
        with agent.connect() as client, agent.connect() as others:
            for _ in range(2):
                for name in ("clash", "other"):
                    client.send("ReportDrift", {"name": name, **report})
            for _ in range(4):
                self.assertIsNone(client.receive()["incident"])
            self.postgres.psql("ALTER SEQUENCE public.tries INCREMENT -1 MINVALUE -1000000 RESTART 0")
            client.send("ReportDrift", {"name": "clash", "timeout_ms": 1000, **report})
            client.send("ReportDrift", {"name": "other", **report})
            for _ in range(50):
                others.call("ReportDrift", name="other", **report)
            with self.assertRaises(VarlinkError) as caught:
                client.receive()
            self.assertEqual(caught.exception.name, "Busy")
            self.assertIn("clashed with", caught.exception.parameters["message"])
            self.assertIsNone(client.receive()["incident"])
        self.assertGreater(int(self.postgres.value("SELECT last_value FROM public.tries")), -60)
        self.assertEqual(dict(self.postgres.rows("SELECT name, consecutive_failures FROM cbshm.breaker")),
                         {"clash": "2", "other": "53"})

    def test_a_held_row_delays_only_its_breaker(self):
        """What others wait for a report while a session holds a row, and before; told, not demanded."""
        agent = self.agent()
        for name in ("held", "free"):
            agent.call("Enable", name=name)
        report = {"drift_score": 1.0, "sample_count": 1}

        def latencies(client):
            times = []
            for _ in range(100):
                started = time.monotonic()
                client.call("ReportDrift", name="free", **report)
                times.append((time.monotonic() - started) * 1000)
            times.sort()
            return f"median {times[50]:.2f} ms, 90 % {times[90]:.2f} ms, longest {times[99]:.2f} ms"
        session = self.postgres.session()
        with agent.connect() as client, agent.connect() as waiting:
            before = latencies(client)
            session.execute("BEGIN")
            session.execute("SELECT FROM cbshm.breaker WHERE name = 'held' FOR UPDATE")
            for _ in range(3):
                waiting.send("ReportDrift", {"name": "held", "timeout_ms": 60000, **report})
            during = latencies(client)
            waiting.socket.settimeout(0.05)
            with self.assertRaises(TimeoutError):
                waiting.socket.recv(1)
            waiting.socket.settimeout(20)
            session.execute("COMMIT")
            for _ in range(3):
                self.assertIsNone(waiting.receive()["incident"])
        tap.note(f"a report on another breaker: {before}; while a row is held: {during}")
        self.assertEqual(dict(self.postgres.rows("SELECT name, consecutive_failures FROM cbshm.breaker")),
                         {"held": "3", "free": "200"})

    def test_frozen_server(self):
        agent = self.agent()
        agent.call("Disable", name="frozen", reason="x")
        self.postgres.sigstop()
        try:
            started = time.monotonic()
            outcome = error_of(agent.call, "Enable", name="frozen", timeout_ms=1000)[0]
            self.assertIn(outcome, ("OutcomeUnknown", "Timeout"))
            self.assertLess(time.monotonic() - started, 3)
            wait_for(lambda: agent.header()[0] == DISCONNECTED, 8)
            self.assertTrue(is_open(agent, "frozen"))
            wait_for(lambda: error_of(agent.call, "Enable", name="frozen", timeout_ms=1000)[0]
                     == "DatabaseUnavailable", 5)
        finally:
            self.postgres.sigcont()
        wait_for(lambda: agent.header()[0] == LIVE, 5)
        self.assertEqual(error_of(agent.call, "Enable", name="frozen")[0], "ok")

    def test_frozen_lane(self):
        agent = self.agent()
        agent.call("SetPolicy", name="frozen", set={"failure_threshold": 2})
        pid = int(self.postgres.value("SELECT pid FROM pg_stat_activity WHERE application_name = 'cbagent' "
                                      "ORDER BY backend_start DESC LIMIT 1"))
        os.kill(pid, signal.SIGSTOP)
        try:
            agent.call("Disable", name="frozen", reason="x", ttl_seconds=0.1)
            open_ones = "SELECT count(*) FROM cbshm.breaker WHERE disabled"
            wait_for(lambda: self.postgres.value(open_ones) == "0", 20, "the recovery over another connection")
            self.assertEqual(error_of(agent.call, "SetPolicy", name="frozen", set={"failure_threshold": 3})[0], "ok")
            self.assertIn("event=database_lane_lost", agent.log())
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_for(lambda: self.postgres.value(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}") == "0", 5)
        self.assertEqual(self.postgres.value("SELECT count(*) FROM cbshm.audit_log WHERE action = 'recover'"), "1")
        self.assertEqual(agent.call("GetState", name="frozen")["state"]["policy"]["failure_threshold"], 3)

    def test_lane_that_cannot_be_had(self):
        self.postgres.psql("ALTER ROLE cbagent CONNECTION LIMIT 2")
        agent = self.agent()
        error, parameters = error_of(agent.call, "SetPolicy", name="few", set={"failure_threshold": 2}, timeout_ms=800)
        self.assertEqual(error, "DatabaseUnavailable")
        self.assertIn("too many connections for role", parameters["message"])
        self.postgres.psql("ALTER ROLE cbagent CONNECTION LIMIT -1")
        self.assertEqual(error_of(agent.call, "SetPolicy", name="few", set={"failure_threshold": 2})[0], "ok")

    def test_lane_whose_settings_fail(self):
        proxy = self.proxy()
        heard, spoilt = [], []

        def spoil(data):
            # Until it has heard its own notification, the agent makes the settings again before each statement.
            if b"UNLISTEN" in data:
                heard.append(True)
            if spoilt or not heard or b"'TimeZone', 'UTC'" not in data:
                return True
            spoilt.append(True)
            return data.replace(b"'TimeZone', 'UTC'", b"'TimeZone', 'no!'")
        proxy.client_filter = spoil
        agent = self.agent(conninfo=proxy.conninfo())
        wait_for(lambda: heard)
        self.assertEqual(error_of(agent.call, "SetPolicy", name="x", set={"failure_threshold": 2})[0], "ok")
        self.assertTrue(spoilt)

    def test_database_down_at_start(self):
        first = self.agent()
        first.call("Disable", name="down", reason="x")
        config = {"segment": {"name": first.segment}}
        first.stop()
        self.postgres.stop()
        agent = self.agent(config=config, ready=False)
        wait_for(lambda: os.path.exists(agent.socket), 5)
        self.assertTrue(is_open(agent, "down"), "the last agent's segment is taken over")
        wait_for(lambda: "database_unavailable" in agent.log(), 5)
        time.sleep(0.2)
        started = time.monotonic()
        outcome, reply = error_of(agent.call, "Enable", name="down")
        self.assertEqual(outcome, "DatabaseUnavailable")
        self.assertLess(time.monotonic() - started, 1.2)
        self.assertIn("No such file or directory", reply["message"])
        self.assertEqual(error_of(agent.call, "GetState", name="down")[0], "DatabaseUnavailable")
        self.postgres.start()
        back = time.monotonic()
        wait_for(lambda: error_of(agent.call, "Enable", name="down")[0] == "ok", 5)
        self.assertLess(time.monotonic() - back, 2)

    def test_writes_fail_at_once_after_a_moment(self):
        agent = self.agent()
        agent.call("Enable", name="away")
        self.postgres.stop()
        time.sleep(1.5)
        started = time.monotonic()
        self.assertEqual(error_of(agent.call, "Disable", name="away", reason="x")[0], "DatabaseUnavailable")
        self.assertLess(time.monotonic() - started, 0.2)

    def test_no_schema(self):
        self.postgres.psql("CREATE DATABASE empty", db="postgres")
        agent = self.agent(conninfo=self.postgres.conninfo("cbagent", "empty"), ready=False)
        wait_for(lambda: "cbctl migrate" in agent.log(), 5)
        self.assertIn("cbctl migrate", wait_for(lambda: error_of(agent.call, "Enable", name="x")[1], 5)["message"])

    def test_wrong_schema_version(self):
        self.postgres.psql("INSERT INTO cbshm.schema_version (version, file) VALUES (999, 'x')")
        agent = self.agent(ready=False)
        wait_for(lambda: "version 999" in agent.log(), 5)

    def test_notifications_that_do_not_arrive(self):
        proxy = self.proxy()
        proxy.filter = lambda kind, body: kind != b"A"
        agent = self.agent(conninfo=proxy.conninfo())
        wait_for(lambda: "listen_does_not_work" in agent.log(), 6)
        self.postgres.psql("INSERT INTO cbshm.breaker (name, disabled, disabled_reason) VALUES ('deaf', true, 'x')")
        wait_for(lambda: is_open(agent, "deaf"), 2.5)
        self.postgres.psql("UPDATE cbshm.settings SET failure_threshold = 17")
        wait_for(lambda: listed(agent, "deaf")["policy"]["failure_threshold"] == 17, 2.5)
        self.postgres.psql("DELETE FROM cbshm.breaker WHERE name = 'deaf'")
        wait_for(lambda: listed(agent, "deaf") is None, 2.5)

    def test_a_notification_that_arrives_by_luck(self):
        """A pooler says another process id than the server has, and passes one notification on, but no other."""
        for lucky, ends in ((1, "listen_does_not_work"), (3, "UNLISTEN cbshm_probe")):
            proxy = Proxy(self.postgres, self.postgres.scratch.directory(f"pooler-{lucky}", None, 0o711))
            self.addCleanup(proxy.close)
            seen, sent = [], []

            def pooled(kind, body):
                if kind == b"A":
                    seen.append(body)
                return b"K" + struct.pack("!III", 12, 1, 2) if kind == b"K" else kind != b"A" or len(seen) <= lucky

            proxy.filter = pooled
            proxy.client_filter = lambda data: sent.append(data) or True
            agent = self.agent(conninfo=proxy.conninfo())
            wait_for(lambda: ends in agent.log() or ends.encode() in b"".join(sent), 10)
            self.assertEqual("listen_does_not_work" in agent.log(), lucky == 1)
            agent.stop()

    def test_host_name_over_tcp(self):
        proxy = Proxy(self.postgres)
        self.addCleanup(proxy.close)
        agent = self.agent(conninfo=proxy.conninfo())
        self.assertEqual(error_of(agent.call, "Enable", name="x")[0], "ok")

    def test_host_name_that_is_unknown(self):
        agent = self.agent(conninfo="host=no-such-host.invalid dbname=cbshm", ready=False)
        wait_for(lambda: "cannot look up the host no-such-host.invalid" in agent.log(), 10)
        self.assertIn("no-such-host.invalid", error_of(agent.call, "Enable", name="x")[1]["message"])

    def test_one_of_two_hosts_is_unknown(self):
        agent = self.agent(conninfo=f"host=no-such-host.invalid,{self.postgres.host} dbname=cbshm user=cbagent")
        self.assertEqual(error_of(agent.call, "Enable", name="x")[0], "ok")

    def test_first_host_hangs(self):
        directory = self.postgres.scratch.directory("hangs", None, 0o711)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
            silent.bind(os.path.join(directory, ".s.PGSQL.5432"))
            os.chmod(os.path.join(directory, ".s.PGSQL.5432"), 0o777)
            silent.listen(16)
            agent = self.agent(conninfo=f"host={directory},{self.postgres.host} dbname=cbshm user=cbagent")
            self.assertEqual(error_of(agent.call, "Enable", name="x")[0], "ok")


class Recovery(unittest.TestCase):
    """TTLs end."""

    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()

    @classmethod
    def tearDownClass(cls):
        cls.postgres.close()

    def agent(self, **options):
        agent = Agent(self.postgres, **options)
        self.addCleanup(agent.close)
        return agent

    def closed_at(self, name):
        """Seconds from the end of the TTL to the recovery, by the database's clock; None while open."""
        rows = self.postgres.rows("SELECT extract(epoch FROM i.resolved_at - i.timestamp) "
                                  f"FROM cbshm.incident i WHERE i.breaker = '{name}' AND i.resolved")
        return float(rows[0][0]) if rows else None

    def test_at_the_instant(self):
        agent = self.agent()
        agent.call("Disable", name="ttl", reason="x", ttl_seconds=1.0)
        self.assertTrue(is_open(agent, "ttl"))
        late = wait_for(lambda: self.closed_at("ttl"), 5) - 1.0
        tap.note(f"{late * 1000:.1f} ms late")
        # The TTL is counted from the statement's beginning, opened_at is a little later.
        self.assertGreater(late, -0.05)
        wait_for(lambda: is_open(agent, "ttl") is False)
        self.assertEqual(self.postgres.row("SELECT resolved_by, resolution_notes FROM cbshm.incident "
                                           "WHERE breaker = 'ttl'"),
                         ("system-auto-recover", "Auto-recovered after TTL expired"))

    def test_several_agents(self):
        agents = [self.agent() for _ in range(3)]
        for i in range(50):
            agents[0].call("Disable", name=f"race/{i}", reason="x", ttl_seconds=1.0)
        count = "SELECT count(*) FROM cbshm.breaker WHERE name LIKE 'race/%' AND disabled"
        wait_for(lambda: self.postgres.value(count) == "0", 5)
        self.assertEqual(self.postgres.value("SELECT count(*) FROM cbshm.incident WHERE breaker LIKE 'race/%'"), "50")
        self.assertEqual(sum(agent.log().count("event=recovered breaker=race/") for agent in agents), 50)
        for agent in agents:
            wait_for(lambda: not any(is_open(agent, f"race/{i}") for i in (0, 25, 49)), 2)

    def test_overdue_after_a_start(self):
        agent = self.agent()
        for i in range(600):
            agent.call("Disable", name=f"overdue/{i}", reason="x", ttl_seconds=3.0)
        agent.stop()
        time.sleep(3)
        agent.start()
        count = "SELECT count(*) FROM cbshm.breaker WHERE name LIKE 'overdue/%' AND disabled"
        wait_for(lambda: self.postgres.value(count) == "0", 5)

    def test_a_locked_row_delays_nobody(self):
        agent = self.agent()
        for i in range(20):
            agent.call("Disable", name=f"held/{i:02}", reason="x", ttl_seconds=1.0)
        session = self.postgres.session()
        session.execute("BEGIN")
        session.execute("SELECT 1 FROM cbshm.breaker WHERE name = 'held/03' FOR UPDATE")
        count = "SELECT count(*) FROM cbshm.breaker WHERE name LIKE 'held/%' AND disabled"
        wait_for(lambda: self.postgres.value(count) == "1", 4)
        session.execute("COMMIT")
        wait_for(lambda: self.postgres.value(count) == "0", 4)

    def test_no_auto_recover(self):
        agent = self.agent()
        agent.call("SetPolicy", name="manual", set={"auto_recover": False})
        agent.call("Disable", name="manual", reason="x", ttl_seconds=0.2)
        time.sleep(1)
        self.assertTrue(is_open(agent, "manual"))
        agent.call("SetPolicy", name="manual", set={"auto_recover": True})
        wait_for(lambda: not is_open(agent, "manual"), 3)

    def test_ttl_that_is_changed(self):
        agent = self.agent()
        agent.call("Disable", name="changed", reason="x", ttl_seconds=3600)
        self.postgres.psql("UPDATE cbshm.breaker SET disabled_until = now() + interval '0.3 s' WHERE name = 'changed'")
        wait_for(lambda: not is_open(agent, "changed"), 3)


class Process(unittest.TestCase):
    """Command line and signals."""

    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()

    @classmethod
    def tearDownClass(cls):
        cls.postgres.close()

    def agent(self, **options):
        agent = Agent(self.postgres, **options)
        self.addCleanup(agent.close)
        return agent

    def run_agent(self, *args):
        return subprocess.run([program("agent/cbagent"), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, timeout=20, check=False)

    def test_command_line(self):
        done = self.run_agent("--version")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"^cbagent \d+\.\d+\.\d+\n$")
        self.assertIn("--config", self.run_agent("--help").stdout)
        self.assertEqual(self.run_agent("--nonsense").returncode, 2)
        self.assertEqual(self.run_agent("argument").returncode, 2)

    def test_check(self):
        path = self.postgres.scratch.path + "/check.conf"
        with open(path, "w", encoding="utf-8") as file:
            file.write("[segment]\nname = /x\n")
        done = self.run_agent("--check", "--config", path)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        with open(path, "w", encoding="utf-8") as file:
            file.write("[segment]\ncapacity = lots\n")
        done = self.run_agent("--check", "--config", path)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"{path}:2: capacity = lots", done.stderr)
        for data, line in (b"\0" * 512, 1), (b"[segment]\nname = /x\0y\n", 2):
            with open(path, "wb") as file:
                file.write(data)
            done = self.run_agent("--check", "--config", path)
            self.assertEqual((done.returncode, done.stderr), (1, f"{path}:{line}: a NUL byte: this is no text\n"))
        self.assertEqual(self.run_agent("--config", "/nonexistent").returncode, 1)

    def test_a_second_agent_on_the_same_segment(self):
        agent = self.agent()
        done = self.run_agent("--config", agent.config_path)
        self.assertEqual(done.returncode, 1)
        self.assertIn("start_failed", done.stderr)
        self.assertTrue(agent.is_ready())

    def test_segment_and_lock_are_removed(self):
        """As systemd-logind does with RemoveIPC=yes, when a user who runs an agent logs out."""
        agent = self.agent()
        with Probe(agent) as probe:
            agent.call("Disable", name="removed", reason="x")
            self.assertTrue(probe.disabled("removed"))
            for suffix in ("", ".lock"):
                os.unlink("/dev/shm" + agent.segment + suffix)
            for suffix in ("", ".lock"):
                wait_for(lambda: os.path.exists("/dev/shm" + agent.segment + suffix), 5)
            agent.config["socket"]["path"] += "-other"
            agent.write_config()
            done = self.run_agent("--config", agent.config_path)
            self.assertEqual(done.returncode, 1)
            self.assertIn("another cbagent is running on this segment", done.stderr)
            agent.call("Enable", name="removed")
            self.assertFalse(probe.disabled("removed"))

    def test_sigterm(self):
        agent = self.agent()
        agent.call("Disable", name="term", reason="x")
        self.assertEqual(agent.stop(), 0)
        self.assertEqual(agent.header()[0], STOPPED)
        self.assertFalse(os.path.exists(agent.socket))
        agent.start()
        self.assertTrue(is_open(agent, "term"))

    def test_sigterm_answers_what_is_under_way(self):
        agent = self.agent()
        agent.call("Enable", name="last")
        session = self.postgres.session()
        session.execute("BEGIN")
        session.execute("SELECT 1 FROM cbshm.breaker WHERE name = 'last' FOR UPDATE")
        with agent.connect() as client:
            client.send("Disable", {"name": "last", "reason": "x", "timeout_ms": 20000})
            time.sleep(0.3)
            agent.process.terminate()
            time.sleep(0.3)
            agent.config["postgres"]["conninfo"] += " application_name=renamed"
            agent.write_config()
            agent.sighup()  # too late: nothing begins anew
            time.sleep(0.1)
            session.execute("COMMIT")
            self.assertTrue(client.receive()["changed"])
        self.assertEqual(agent.process.wait(10), 0)
        self.assertNotIn("event=reloaded", agent.log())

    def test_sigterm_does_not_wait_for_ever(self):
        agent = self.agent()
        agent.call("Enable", name="stuck")
        session = self.postgres.session()
        session.execute("BEGIN")
        session.execute("SELECT 1 FROM cbshm.breaker WHERE name = 'stuck' FOR UPDATE")
        with agent.connect() as client:
            client.send("Disable", {"name": "stuck", "reason": "x", "timeout_ms": 60000})
            time.sleep(0.3)
            started = time.monotonic()
            self.assertEqual(agent.stop(), 0, agent.log())
            self.assertLess(time.monotonic() - started, 7)
            outcome, reply = error_of(client.receive)
            self.assertEqual(outcome, "DatabaseUnavailable", reply)
        session.execute("COMMIT")

    def test_sighup(self):
        agent = self.agent()
        agent.config["agent"]["log_level"] = "debug"
        agent.config["segment"]["capacity"] = "2048"
        agent.config["postgres"]["conninfo"] = self.postgres.conninfo("cbagent") + " application_name=renamed"
        agent.write_config()
        agent.sighup()
        wait_for(lambda: "event=reloaded conninfo=changed" in agent.log(), 5)
        self.assertIn("restart_needed key=segment.capacity", agent.log())
        wait_for(lambda: self.postgres.value("SELECT count(*) FROM pg_stat_activity "
                                             "WHERE application_name = 'renamed'") >= "2", 5)
        agent.wait_ready()
        self.assertIn("level=debug", agent.log())
        agent.config["agent"]["log_level"] = "loud"
        agent.write_config()
        agent.sighup()
        wait_for(lambda: re.search(r"reload_failed reason=.*:\d+: log_level = loud", agent.log()), 5)
        self.assertEqual(error_of(agent.call, "Enable", name="still-there")[0], "ok")

    def test_killed_and_started_again(self):
        agent = self.agent()
        agent.call("Disable", name="killed", reason="x")
        epoch = agent.header()[1]
        agent.process.send_signal(signal.SIGKILL)
        agent.process.wait()
        agent.start()
        self.assertEqual(agent.header()[1], epoch + 1)
        self.assertTrue(is_open(agent, "killed"))

    def test_idle_costs_next_to_nothing(self):
        agent = self.agent()
        self.postgres.psql("INSERT INTO cbshm.breaker (name) SELECT 'idle/' || i FROM generate_series(1, 1000) i "
                           "ON CONFLICT DO NOTHING")
        time.sleep(3)

        def used():
            with open(f"/proc/{agent.pid}/schedstat", encoding="ascii") as file:
                return int(file.read().split()[0]) / 1e9
        before, started = used(), time.monotonic()
        time.sleep(6)
        share = (used() - before) / (time.monotonic() - started)
        tap.note(f"{share * 100:.3f} % of a core")
        self.assertLess(share, 0.01)  # loose: a benchmark judges, this finds a loop that spins


if __name__ == "__main__":
    tap.main()
