# SPDX-License-Identifier: ISC
"""Readers of a real agent: waiting for changes, and what they answer when the news stop."""
import unittest

from support import tap
from support.agent import Agent, wait_for
from support.postgres import Postgres
from support.probe import Probe

SEGMENT, STALE = "0", "3"  # enum cbshm_basis


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
