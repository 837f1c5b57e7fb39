# SPDX-License-Identifier: ISC
"""Fail-over: a primary, a synchronous standby, and an agent that knows both."""
import contextlib
import os
import time

from support import tap
from support.agent import ServerTest, wait_for
from support.postgres import AGENT_USER
from support.varlink import VarlinkError


class Standby(ServerTest):
    def setUp(self):
        self.primary = self.postgres(name="pg-a").migrate()
        self.standby = self.postgres(name="pg-b", scratch=self.primary.scratch, standby_of=self.primary)
        self.primary.wait_for_standby()

    def both(self):
        return f"host={self.primary.host},{self.standby.host} dbname=cbshm user={AGENT_USER}"

    def test_fails_over_and_back(self):
        agent = self.agent(self.primary, conninfo=self.both())
        agent.call("Disable", name="kept", reason="x")
        self.primary.kill9()
        self.standby.promote()
        tap.note(f"after a promotion: {agent.writes_again():.2f} s")
        self.assertTrue(agent.is_open("kept"))
        agent.call("Disable", name="since", reason="x")
        self.primary.follow(self.standby)
        self.standby.wait_for_standby()
        # Now the first host of the list is a standby: whoever starts anew must not be content with it.
        agent.restart()
        self.assertEqual(agent.outcome("Enable", name="kept")[0], "ok")
        self.standby.stop()
        self.primary.promote()
        tap.note(f"after a switch back: {agent.writes_again():.2f} s")
        self.assertTrue(agent.is_open("since"))

    def test_primary_that_is_silent(self):
        """It keeps its connections and answers nothing, while its standby is promoted: nobody waits for it to die."""
        agent = self.agent(self.primary, conninfo=self.both())
        agent.call("Enable", name="x")
        self.primary.sigstop()
        self.standby.promote()
        tap.note(f"after a promotion beside a silent primary: {agent.writes_again():.2f} s")
        self.assertIn("is silent, and another one takes writes", agent.log())
        # The third connection does not ask the silent one first.
        self.assertEqual(agent.outcome("SetPolicy", name="x", set={"failure_threshold": 2})[0], "ok")

    def test_promoted_while_the_agent_hangs_on_the_primary(self):
        """To ask the first host takes all the time that the administrator allows: the other is asked beside it, again and again."""
        agent = self.agent(self.primary, conninfo=self.both() + " connect_timeout=10")
        agent.call("Enable", name="x")
        self.primary.sigstop()
        agent.kill9()
        began = time.monotonic()
        agent.start(ready=False)
        self.standby.promote()
        wait_for(agent.is_ready, 8)
        agent.writes_again()
        # What still hangs on the other one has nothing to do with it any more.
        time.sleep(max(0, began + 12 - time.monotonic()))
        self.assertEqual(agent.log().split("event=started")[-1].count("event=database state=live"), 1)
        self.assertNotIn("database_unavailable", agent.log().split("event=database state=live")[-1])

    @contextlib.contextmanager
    def promoted_beside_a_commit(self, agent):
        """The standby is away, so that a commit of the primary does not end, and comes back as a primary; the client that waits."""
        agent.call("Enable", name="x")
        self.standby.stop()
        with agent.connect() as client:
            client.send("Disable", {"name": "x", "reason": "y", "timeout_ms": 20000})
            self.standby.options["primary_conninfo"] = ""
            self.standby.start()
            self.standby.promote()
            yield client

    def test_primary_that_is_cut_off_from_its_standby(self):
        """It answers, but no commit ends, and its standby is promoted."""
        agent = self.agent(self.primary, conninfo=self.both())
        with self.promoted_beside_a_commit(agent) as client:
            tap.note(f"after a promotion beside a primary that waits: {agent.writes_again():.2f} s")
            with self.assertRaises(VarlinkError) as caught:
                client.receive()
            self.assertEqual(caught.exception.name, "OutcomeUnknown")

    def test_only_a_standby_answers(self):
        """Reads of segment and mirror go on, writes say why, and the promotion is found."""
        agent = self.agent(self.primary, conninfo=self.both())
        agent.call("Disable", name="kept", reason="x")
        self.primary.kill9()
        wait_for(lambda: agent.outcome("Enable", name="x", timeout_ms=500)[0] == "DatabaseUnavailable", 10)
        self.assertTrue(agent.is_open("kept"))
        self.assertIn("read-only", agent.log())
        self.standby.promote()
        tap.note(f"after the promotion of the only one that answers: {agent.writes_again():.2f} s")

    def test_commit_waits_for_the_standby(self):
        """What waits for a standby is not visible, and not acknowledged; it is, when the standby is back."""
        agent = self.agent(self.primary, conninfo=self.both())
        agent.call("Enable", name="held")
        self.standby.sigstop()
        with agent.connect() as client:
            client.send("Disable", {"name": "held", "reason": "x", "timeout_ms": 20000})
            time.sleep(1)
            self.assertFalse(agent.is_open("held"))
            self.standby.sigcont()
            self.assertTrue(client.receive()["changed"])
        self.assertTrue(agent.is_open("held"))

    def other_way(self):
        """Another host of the primary."""
        other = self.primary.scratch.directory("pg-other", self.primary.user, 0o711)
        for name in (".s.PGSQL.5432", ".s.PGSQL.5432.lock"):
            os.symlink(os.path.join(self.primary.host, name), os.path.join(other, name))
        return other

    def test_another_way_before_another_server(self):
        """Two hosts of the list are the primary, of which nobody hears any more; the third is the standby that was promoted."""
        hosts = f"{self.primary.host},{self.other_way()},{self.standby.host}"
        agent = self.agent(self.primary, conninfo=f"host={hosts} dbname=cbshm user={AGENT_USER}")
        with self.promoted_beside_a_commit(agent):
            tap.note(f"after a promotion behind another way to the primary: {agent.writes_again():.2f} s")
        self.assertIn("is silent, and another one takes writes", agent.log())

    def test_two_ways_to_one_server(self):
        """Its commits wait for a standby: the other host of the list is the same server, and no way out."""
        other = self.other_way()
        agent = self.agent(self.primary, conninfo=f"host={self.primary.host},{other} dbname=cbshm user={AGENT_USER}")
        agent.call("Enable", name="held")
        self.standby.sigstop()
        with agent.connect() as client:
            client.send("Disable", {"name": "held", "reason": "x", "timeout_ms": 20000})
            time.sleep(4)
            waiting = self.primary.value("select count(*) from pg_stat_activity where wait_event = 'SyncRep'")
            self.standby.sigcont()
            self.assertTrue(client.receive()["changed"])
        self.assertEqual(waiting, "1")
        self.assertNotIn("another one takes writes", agent.log())

    def test_standby_that_is_away(self):
        """
        Nobody who need not wait for it does: no agent takes the server for dead, nor for lost because another one's commit
        keeps it from notifying, and alerts go on.
        """
        agent = self.agent(self.primary)
        agent.call("Disable", name="alerted", reason="x")
        self.standby.sigstop()
        with agent.connect() as client:
            client.send("Disable", {"name": "held", "reason": "x", "timeout_ms": 30000})
            wait_for(lambda: self.primary.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == "1")
            other = self.agent(self.primary, config={"agent": {"instance": "other"}})
            self.assertIn(other.outcome("Disable", name="x", reason="y", timeout_ms=1000)[0], ("Busy", "Timeout"))
            wait_for(lambda: "event=alerts_skipped" in agent.log() + other.log(), 20, "alerts that are skipped")
            time.sleep(5.5)
            self.standby.sigcont()
            self.assertTrue(client.receive()["changed"])
        self.assertEqual(other.outcome("Disable", name="x", reason="y")[0], "ok")
        for each in (agent, other):
            self.assertNotIn("database_unavailable", each.log())
            self.assertEqual(each.log().count("event=loaded"), 1)

    def test_read_only_for_a_while(self):
        """An administrator makes the running server read-only, and takes it back."""
        agent = self.agent(self.primary, conninfo=f"host={self.primary.host} dbname=cbshm user={AGENT_USER}")
        agent.call("Enable", name="x")
        self.primary.psql("ALTER SYSTEM SET default_transaction_read_only = on")
        self.primary.psql("SELECT pg_reload_conf()")
        wait_for(lambda: agent.outcome("Disable", name="x", reason="y", timeout_ms=500)[0]
                 == "DatabaseUnavailable", 10)
        self.primary.psql("ALTER SYSTEM RESET default_transaction_read_only")
        self.primary.psql("SELECT pg_reload_conf()")
        tap.note(f"after being read-only: {agent.writes_again():.2f} s")


if __name__ == "__main__":
    tap.main()
