# SPDX-License-Identifier: ISC
"""Agents killed at random moments under load: nothing acknowledged is lost, nothing is applied twice. The short form."""
import unittest

from fault import run
from support import tap


class Kills(unittest.TestCase):
    def test_short(self):
        """`make fault-kills` is the long form."""
        broken, told = run.run(0, seed="kills", faults=4, only=["kill_agents"])
        tap.note("\n".join(run.summary(broken, told)))
        self.assertEqual(broken, [])
        self.assertEqual(told["agents_killed"], 12)
        self.assertGreater(told["acknowledged"], 100)


if __name__ == "__main__":
    tap.main()
