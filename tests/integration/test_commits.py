# SPDX-License-Identifier: ISC
"""Commits whose outcome the agent does not hear: each client is told the truth, or that it cannot be known."""
import json
import os
import signal
import subprocess
import time
import uuid

from support import tap
from support.agent import ServerTest, wait_for
from support.postgres import AGENT_USER, Postgres
from support.proxy import Proxy
from support.scratch import identity
from support.varlink import VarlinkError

REPORT = {"drift_score": 1.0, "sample_count": 1}
LOOK_UP = b"pg_catalog.pg_xact_status($1::pg_catalog.xid8)"
COMMITTING = f"SELECT pid FROM pg_stat_activity WHERE usename = '{AGENT_USER}' AND query = 'COMMIT' AND wait_event = '{{}}'"
FAILURES = "SELECT consecutive_failures FROM cbshm.breaker WHERE name = '{}'"


def answer(client):
    """The next answer: ("ok", parameters), or the error's name and its message."""
    try:
        return "ok", client.receive()
    except VarlinkError as error:
        return error.name, error.parameters["message"]


def is_committed(kind, body):
    return kind == b"C" and body.startswith(b"COMMIT")


class CommitTest(ServerTest):
    def committing(self, postgres, wait_event):
        """The server process of the agent that has got so far with its commit."""
        return int(wait_for(lambda: postgres.psql(COMMITTING.format(wait_event)), 10, "the commit"))

    @staticmethod
    def commits_take(postgres, seconds):
        """What changes a breaker sleeps in its commit."""
        postgres.psql(f"""
            CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END';
            CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON cbshm.breaker DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION public.slow()""")


class LookedUp(CommitTest):
    """The server is the same and answers."""

    @classmethod
    def setUpClass(cls):
        cls.server = Postgres(options={"deadlock_timeout": "10ms"}).migrate()
        cls.addClassCleanup(cls.server.close)

    def setUp(self):
        self.name = self.id().rsplit(".", 1)[1]
        self.addCleanup(self.server.psql, "DROP FUNCTION IF EXISTS public.slow CASCADE")
        self.proxy = Proxy(self.server, self.server.scratch.directory(self.name, None, 0o711))
        self.addCleanup(self.proxy.close)
        self.questions = 0
        self.question = LOOK_UP

    def connect(self):
        """An agent whose questions after a transaction are counted, and may be made others."""
        def count(data):
            self.questions += LOOK_UP in data
            return data.replace(LOOK_UP, self.question.ljust(len(LOOK_UP)))
        agent = self.agent(self.server, conninfo=self.proxy.conninfo())
        agent.call("Enable", name=self.name)
        self.proxy.client_filter = count
        return agent

    def failures(self):
        return self.server.value(FAILURES.format(self.name))

    def cut_after_commit(self):
        """The next transaction is committed, and the agent does not hear of it."""
        cut = []

        def judge(kind, body):
            if cut or not is_committed(kind, body):
                return True
            cut.append(True)
            return None
        self.proxy.filter = judge

    def test_still_in_progress(self):
        """The old server process is still at it: the agent asks until it is over, and does nothing of it again."""
        agent = self.connect()
        self.commits_take(self.server, 1)
        with agent.connect() as client:
            client.send("ReportDrift", {"name": self.name, "timeout_ms": 20000, **REPORT})
            self.committing(self.server, "PgSleep")
            self.proxy.cut_all()
            self.assertEqual(answer(client), ("ok", {"incident": None}))
        self.assertGreater(self.questions, 1)
        self.assertEqual(self.failures(), "1")
        self.assertIn("requests=1 outcome=committed", agent.log())

    def test_in_progress_beyond_the_deadline(self):
        """A server process that does not move: the client is told in time, and the truth shows later."""
        agent = self.connect()
        agent.call("Enable", name="other")
        self.commits_take(self.server, 0.2)
        with agent.connect() as client:
            started = time.monotonic()
            client.send("ReportDrift", {"name": self.name, "timeout_ms": 1500, **REPORT})
            pid = self.committing(self.server, "PgSleep")
            os.kill(pid, signal.SIGSTOP)
            try:
                self.proxy.cut_all()
                self.assertEqual(answer(client)[0], "OutcomeUnknown")
                tap.note(f"told after {time.monotonic() - started:.2f} s, {self.questions} questions")
                # Only what depends on it has to wait.
                self.assertEqual(agent.outcome("ReportDrift", name="other", **REPORT)[0], "ok")
                self.assertEqual(agent.outcome("ReportDrift", name=self.name, timeout_ms=300, **REPORT)[0], "Busy")
            finally:
                os.kill(pid, signal.SIGCONT)
        wait_for(lambda: "requests=1 outcome=committed" in agent.log(), 10)
        self.assertEqual(self.failures(), "1")
        self.assertEqual(agent.outcome("ReportDrift", name=self.name, **REPORT)[0], "ok")
        self.assertEqual(self.failures(), "2")

    def test_ids_beyond_32_bits(self):
        self.server.stop()
        subprocess.run([os.path.join(self.server.bin, "pg_resetwal"), "--epoch=3", "-D", self.server.data], check=True,
                       stdout=subprocess.DEVNULL, cwd="/", **identity(self.server.user))
        self.server.start()
        agent = self.connect()
        self.assertGreater(int(self.server.value("SELECT pg_current_xact_id()")), 3 << 32)
        self.cut_after_commit()
        self.assertEqual(agent.outcome("ReportDrift", name=self.name, **REPORT)[0], "ok")
        self.assertIn("requests=1 outcome=committed", agent.log())
        self.assertEqual(self.failures(), "1")

    def told(self, question):
        """What a report and a decision are told when the server says something else of their transactions."""
        agent = self.connect()
        self.question = question
        self.cut_after_commit()
        report = agent.outcome("ReportDrift", name=self.name, **REPORT)
        self.cut_after_commit()
        decision = agent.outcome("Disable", name=self.name, reason="y", request_id=str(uuid.uuid4()))
        self.assertGreaterEqual(self.questions, 2)
        self.assertEqual(self.failures(), "1")
        self.assertEqual(self.server.value(f"SELECT count(*) FROM cbshm.incident WHERE breaker = '{self.name}'"), "1")
        return report[0], decision[0]

    def test_too_old_to_be_known(self):
        """As after 2^31 transactions: null. A decision that carries an id is found under it."""
        self.assertEqual(self.told(b"nullif($1::text, $1)"), ("OutcomeUnknown", "ok"))

    def test_question_that_fails(self):
        self.assertEqual(self.told(b"1 / (length($1::text) * 0)"), ("OutcomeUnknown", "ok"))

    def test_not_given_out_yet(self):
        """After a crash, of a transaction of which nothing was on disk: it is carried out again."""
        agent = self.connect()
        self.question = b"pg_xact_status(('9' || $1)::xid8)"
        count, never = self.proxy.client_filter, []

        def never_commit(data):
            if never or b"COMMIT\0" not in data:
                return count(data)
            never.append(True)
            return data.replace(b"COMMIT\0", b"SELECT\0")
        self.proxy.client_filter = never_commit
        cut = []

        def judge(kind, body):  # the row of that SELECT
            if cut or kind != b"T" or body != b"\0\0":
                return True
            cut.append(True)
            return None
        self.proxy.filter = judge
        self.assertEqual(agent.outcome("ReportDrift", name=self.name, **REPORT)[0], "ok")
        self.assertTrue(cut)
        self.assertGreater(self.questions, 0)
        self.assertIn("requests=1 outcome=aborted", agent.log())
        self.assertEqual(self.failures(), "1")

    def test_deadlock(self):
        """The server ends the agent's transaction for it: it is carried out again, within the deadline."""
        agent = self.connect()
        agent.call("Disable", name=self.name, reason="y")
        self.server.psql("""
            CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN PERFORM pg_sleep(0.5); RETURN NEW; END';
            CREATE TRIGGER slow BEFORE UPDATE ON cbshm.breaker FOR EACH ROW WHEN (NOT NEW.disabled)
                EXECUTE FUNCTION public.slow()""")
        session = self.server.session()
        session.execute("SET deadlock_timeout = '1min'")
        session.execute("BEGIN")
        session.execute(f"SELECT FROM cbshm.incident WHERE breaker = '{self.name}' FOR UPDATE")
        with agent.connect() as client:
            client.send("Enable", {"name": self.name, "timeout_ms": 20000})
            wait_for(lambda: self.server.psql(f"SELECT 1 FROM pg_stat_activity WHERE usename = '{AGENT_USER}' "
                                              "AND wait_event = 'PgSleep'"), 10)
            # It has the breaker's row and will want the incident's; now this session wants the breaker's.
            session.execute(f"SELECT FROM cbshm.breaker WHERE name = '{self.name}' FOR UPDATE")
            session.execute("COMMIT")
            self.assertEqual(answer(client), ("ok", {"changed": True}))
        self.assertIn("deadlock detected", self.server.log())
        self.assertEqual(self.server.value("SELECT count(*) FROM cbshm.audit_log WHERE action = 'enable' "
                                           f"AND breaker = '{self.name}'"), "1")


class AnotherServer(CommitTest):
    """After the loss, another one has its place."""

    def in_flight(self, agent, primary, wait_event):
        """A client whose report and whose decision are being committed, when that gets no further."""
        client = agent.connect()
        self.addCleanup(client.close)
        calls = [("ReportDrift", {"name": "report", "timeout_ms": 30000, **REPORT}),
                 ("Disable", {"name": "decision", "reason": "x", "timeout_ms": 30000, "request_id": str(uuid.uuid4())})]
        client.send_raw(b"".join(json.dumps({"method": f"io.cbshm.{method}", "parameters": parameters}).encode() + b"\0"
                                 for method, parameters in calls))  # in one piece: they go into one transaction
        self.committing(primary, wait_event)
        return client

    def ends_well(self, client, server, agent):
        self.assertEqual(answer(client)[0], "OutcomeUnknown")
        outcome, told = answer(client)
        self.assertEqual((outcome, told and told["changed"]), ("ok", True))
        self.assertEqual(server.rows("SELECT id, version FROM cbshm.incident"), [(told["incident"]["id"], "2")])
        self.assertTrue(agent.is_open("decision"))
        self.assertIn("requests=2 outcome=unknown repeated=1", agent.log())

    def cluster(self):
        primary = self.postgres(name="pg-a").migrate()
        standby = self.postgres(name="pg-b", scratch=primary.scratch, standby_of=primary)
        primary.wait_for_standby()
        agent = self.agent(primary, conninfo=f"host={primary.host},{standby.host} dbname=cbshm user={AGENT_USER}")
        for name in ("report", "decision"):
            agent.call("Enable", name=name)
        return primary, standby, agent

    def test_standby_that_has_it(self):
        primary, standby, agent = self.cluster()
        standby.sigstop()
        client = self.in_flight(agent, primary, "SyncRep")
        primary.kill9()
        standby.sigcont()
        standby.promote()
        self.ends_well(client, standby, agent)
        self.assertEqual(standby.value(FAILURES.format("report")), "1")

    def test_standby_that_has_it_not(self):
        primary, standby, agent = self.cluster()
        standby.stop()
        client = self.in_flight(agent, primary, "SyncRep")
        primary.kill9()
        standby.start()
        standby.promote()
        self.ends_well(client, standby, agent)
        self.assertEqual(standby.value(FAILURES.format("report")), "0")

    def test_another_system(self):
        """Not a copy at all: no id of a transaction says anything there."""
        first = self.postgres(name="pg-a").migrate()
        second = self.postgres(name="pg-b", scratch=first.scratch).migrate()
        for server in (first, second):
            server.psql("SELECT cbshm.enable('report'), cbshm.enable('decision')")
        agent = self.agent(first, conninfo=f"host={first.host},{second.host} dbname=cbshm user={AGENT_USER}")
        self.commits_take(first, 30)
        client = self.in_flight(agent, first, "PgSleep")
        first.kill9()
        self.ends_well(client, second, agent)


class SynchronousStandby(CommitTest):
    def setUp(self):
        self.primary = self.postgres(name="pg-a").migrate()
        self.standby = self.postgres(name="pg-b", scratch=self.primary.scratch, standby_of=self.primary)
        self.primary.wait_for_standby()
        self.writer = self.agent(self.primary)
        self.writer.call("Enable", name="x")

    def test_ended_while_waiting(self):
        """
        A server process that is ended while it waits for the standby has committed, but only here: nobody is told before
        the standby has it.
        """
        with self.writer.connect() as client:
            self.standby.sigstop()
            client.send("Disable", {"name": "x", "reason": "y", "timeout_ms": 30000})
            pid = self.committing(self.primary, "SyncRep")
            self.primary.psql(f"SELECT pg_terminate_backend({pid})")
            wait_for(lambda: self.writer.is_open("x"), 10, "what the server shows")
            client.socket.settimeout(1)
            with self.assertRaises(TimeoutError):
                client.socket.recv(1)
            client.socket.settimeout(20)
            self.standby.sigcont()
            self.assertTrue(answer(client)[1]["changed"])
        self.assertIn("requests=1 outcome=committed", self.writer.log())

    def test_cut_while_waiting(self):
        """
        The server process that was left holds all that commits with a notification up. Who connects meanwhile goes without
        one; and does not take that for a connection that is broken.
        """
        proxy = Proxy(self.primary, self.primary.scratch.directory("cut", self.primary.user, 0o711))
        agent = self.agent(self.primary, conninfo=proxy.conninfo())
        with agent.connect() as client:
            self.standby.sigstop()
            client.send("Disable", {"name": "x", "reason": "y", "timeout_ms": 30000})
            self.committing(self.primary, "SyncRep")
            proxy.cut_all()
            fresh = self.agent(self.primary)
            time.sleep(3)
            self.standby.sigcont()
            self.assertTrue(answer(client)[1]["changed"])
        wait_for(lambda: fresh.is_open("x"), 10, "what was committed")
        for each in (agent, fresh):
            self.assertNotIn("lock timeout", each.log())
            self.assertNotIn("listen_does_not_work", each.log())
        # Once before it was cut, and once after: an attempt that was cut as well is none.
        self.assertEqual(agent.log().count("event=database state=live"), 2)

    def test_what_rests_on_one_that_was_ended(self):
        """A report that changes nothing, but would have if the standby were asked: it is acknowledged when that has the same."""
        good = {"name": "x", "drift_score": 0.0, "sample_count": 1, "timeout_ms": 30000}
        other = self.agent(self.primary)
        self.writer.call("ReportDrift", name="x", **REPORT)
        with self.writer.connect() as first, other.connect() as second:
            self.standby.sigstop()
            first.send("ReportDrift", good)
            pid = self.committing(self.primary, "SyncRep")
            self.primary.psql(f"SELECT pg_terminate_backend({pid})")
            wait_for(lambda: self.primary.value(FAILURES.format("x")) == "0", 10)
            second.send("ReportDrift", good)
            second.socket.settimeout(1)
            with self.assertRaises(TimeoutError):
                second.socket.recv(1)
            second.socket.settimeout(20)
            self.standby.sigcont()
            self.assertEqual([answer(client)[0] for client in (first, second)], ["ok", "ok"])

    def test_long_wait(self):
        """The server answers, but no commit ends: nothing is gained by more and more connections that wait."""
        connections = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{AGENT_USER}'"
        self.standby.sigstop()
        try:
            before = self.primary.value(connections)
            with self.writer.connect() as client:
                client.send("Disable", {"name": "x", "reason": "y", "timeout_ms": 30000})
                wait_for(lambda: "event=commit_waits_for_standby" in self.writer.log(), 15)
                time.sleep(1.5)
                self.assertEqual(self.primary.value(connections), before)
                self.standby.sigcont()
                self.assertTrue(answer(client)[1]["changed"])
        finally:
            self.standby.sigcont()
        self.assertNotIn("database_unavailable", self.writer.log())


if __name__ == "__main__":
    tap.main()
