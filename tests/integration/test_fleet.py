# SPDX-License-Identifier: ISC
"""Several agents on one PostgreSQL: whether all of them have what one has decided, and which have not."""
import unittest

from support import tap
from support.agent import Agent
from support.postgres import Postgres


def start(postgres, instance, **more):
    return Agent(postgres, config={"agent": {"instance": instance}}, **more)


class Fleet(unittest.TestCase):
    """Three agents, alive at the beginning and the end of each test."""

    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()
        cls.addClassCleanup(cls.postgres.close)
        cls.agents = [start(cls.postgres, f"agent-{i}") for i in range(3)]
        for agent in cls.agents:
            cls.addClassCleanup(agent.close)
        cls.first, cls.second, cls.third = cls.agents

    def wait_fleet(self, timeout_ms=10000, agent=None):
        return (agent or self.first).call("WaitFleet", timeout_ms=timeout_ms)["fleet"]

    def is_disabled(self, agent, name):
        return agent.cbctl("check", name).status == 1

    def tearDown(self):
        fleet = self.wait_fleet()
        self.assertEqual((fleet["hosts"], fleet["in_force"], fleet["behind"], fleet["silent"]), (3, 3, [], []))

    def test_in_force_means_in_every_segment(self):
        """Whatever was committed before the question is in all segments when it is answered."""
        for i in range(30):
            name = f"round-{i % 5}"
            self.first.call("Disable", name=name, reason=f"round {i}")
            fleet = self.wait_fleet()
            self.assertEqual((fleet["hosts"], fleet["in_force"]), (3, 3))
            self.assertGreater(fleet["slowest_ms"], 0)
            for agent in self.agents:
                with agent.connect() as client:
                    listed = {each["name"]: each for each in client.call("List")["breakers"]}
                    self.assertEqual(listed[name]["reason"], f"round {i}")
            self.first.call("Enable", name=name)


if __name__ == "__main__":
    tap.main()
