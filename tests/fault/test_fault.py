# SPDX-License-Identifier: ISC
"""Servers, agents, clients and connections that die under load: the short form."""
import unittest

from fault import run
from support import tap


class Fault(unittest.TestCase):
    def test_short(self):
        """`make fault` is the long form."""
        broken, told = run.run(0, seed="short", first=("fail_over", "cut_connection", "kill_agent", "kill_client"), faults=4)
        tap.note("\n".join(run.summary(broken, told)))
        self.assertEqual(broken, [])
        self.assertGreater(told["operations"], 100)


if __name__ == "__main__":
    tap.main()
