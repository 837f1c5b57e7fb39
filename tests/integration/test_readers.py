# SPDX-License-Identifier: ISC
"""Readers of a real agent: waiting for changes, and what they answer when the news stop."""
import itertools
import subprocess
import threading
import time
import unittest
from random import Random

from support import tap
from support.agent import Agent, program, wait_for
from support.postgres import Postgres
from support.probe import Probe

SEGMENT, STALE = "0", "3"  # enum cbshm_basis
ROUNDS = 20


class Readers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()
        cls.addClassCleanup(cls.postgres.close)

    def setUp(self):
        self.postgres.psql("DELETE FROM cbshm.breaker")
        self.agent = Agent(self.postgres)
        self.addCleanup(self.agent.close)
        self.probe = Probe(self.agent)
        self.addCleanup(self.probe.close)

    def engine(self):
        """An engine with a breaker that is open and one that is closed, and a handle of each policy on each."""
        self.agent.cbctl("disable", "open", "--reason", "r", check=0)
        self.agent.cbctl("policy", "closed", "failure_threshold=3", check=0)
        engines = {}
        for policy in ("static", "open", "closed"):
            engines[policy] = Probe(self.agent)
            self.addCleanup(engines[policy].close)
            for name in ("open", "closed"):
                self.assertEqual(engines[policy].ask(f"policy {name} {policy} 3000000"), "ok")
        return engines

    def answers(self, engines):
        """What each engine says of the open and the closed breaker: (disabled?, basis) of both."""
        found = {}
        for policy, probe in engines.items():
            found[policy] = []
            for name in ("open", "closed"):
                answer, _, basis = probe.ask(f"check {name}").split()
                found[policy].append((answer == "disabled", basis))
        return found

    def assert_fresh(self, engines):
        fresh = [(True, SEGMENT), (False, SEGMENT)]
        wait_for(lambda: self.answers(engines) == {"static": fresh, "open": fresh, "closed": fresh},
                 what="news for everybody")

    def assert_stale(self, engines):
        wait_for(lambda: self.answers(engines) == {"static": [(True, SEGMENT), (False, SEGMENT)],
                                                   "open": [(False, STALE), (False, STALE)],
                                                   "closed": [(True, STALE), (True, STALE)]},
                 what="every policy")

    def test_a_commit_ends_a_wait(self):
        other = Probe(self.agent)
        self.addCleanup(other.close)
        for probe, what in ((self.probe, "w"), (other, "*")):
            while probe.ask(f"wait {what} 0") == "changed":
                pass
            probe.send(f"wait {what} 20000")
        self.agent.cbctl("disable", "w", "--reason", "r", check=0)
        self.assertEqual(self.probe.receive(), "changed")
        self.assertEqual(other.receive(), "changed")
        self.assertTrue(self.probe.disabled("w"))

    def test_agent_killed(self):
        engines = self.engine()
        self.assert_fresh(engines)
        self.agent.kill9()
        self.assertEqual(self.probe.ask("wait * 20000"), "changed")
        self.assertEqual(self.probe.fields("health")["agent"], "0")
        self.assert_stale(engines)
        self.agent.start()
        self.assert_fresh(engines)

    def test_agent_stopped(self):
        engines = self.engine()
        self.assert_fresh(engines)
        self.agent.sigstop()
        self.assert_stale(engines)
        wait_for(lambda: self.probe.fields("health")["hung"] == "1", what="a hanging agent")
        health = self.probe.fields("health")
        self.assertEqual((health["agent"], health["database"]), ("1", "0"))
        self.agent.sigcont()
        self.assert_fresh(engines)
        self.assertEqual(self.probe.fields("health")["hung"], "0")

    def busy(self):
        """The record that a writer is changing, which must be one that it has made."""
        state = self.probe.fields("state busy")
        if state["row"] == "1":
            self.assertEqual(state["reason"], f"reason_{state['by']}")
        return state

    def test_agent_stopped_under_writers(self):
        """Stopped at any moment: what is read is whole and stays, nobody takes over, and it goes on where it was."""
        self.agent.cbctl("disable", "busy", "--reason", "reason_0", "--by", "0", check=0)
        answered = 0
        stop = threading.Event()

        def write():
            nonlocal answered
            with self.agent.connect() as client:
                for i in itertools.count(1):
                    if stop.is_set():
                        break
                    client.call("io.cbshm.Disable", name="busy", reason=f"reason_{i}", by=str(i))
                    client.call("io.cbshm.Enable", name="busy")
                    answered += 1

        writer = threading.Thread(target=write)
        writer.start()
        self.addCleanup(writer.join)
        self.addCleanup(stop.set)
        random = Random(1)
        for _ in range(ROUNDS):
            before, version = answered, int(self.busy()["version"])
            time.sleep(random.uniform(0, 0.02))
            self.agent.sigstop()
            time.sleep(0.01)  # until it has really stopped
            stopped = self.busy()
            self.assertGreaterEqual(int(stopped["version"]), version)
            for _ in range(100):
                self.assertEqual(self.busy(), stopped)
            self.assertEqual(self.probe.fields("health")["agent"], "1")
            self.agent.sigcont()
            wait_for(lambda: answered > before + 1, what="writes that go on")
            self.assertGreaterEqual(int(self.busy()["version"]), int(stopped["version"]))
        self.agent.sigstop()
        epoch = self.agent.header()
        second = self.agent.popen([program("agent/cbagent"), "--config", self.agent.config_path], stderr=subprocess.PIPE)
        said = second.communicate(timeout=20)[1]
        self.assertNotEqual(second.returncode, 0)
        self.assertRegex(said, "another cbagent is running|is running already|in use")
        self.assertEqual(self.agent.header(), epoch)
        self.agent.sigcont()
        last = answered
        wait_for(lambda: answered > last, what="writes that go on")

    def test_database_away(self):
        engines = self.engine()
        self.assert_fresh(engines)
        self.postgres.stop()
        wait_for(lambda: self.probe.fields("health")["database"] == "0", what="the loss")
        self.assertEqual(self.probe.fields("health")["agent"], "1")
        self.assert_stale(engines)
        self.postgres.start()
        self.assert_fresh(engines)


if __name__ == "__main__":
    tap.main()
