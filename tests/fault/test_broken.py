# SPDX-License-Identifier: ISC
"""Systems broken on purpose: the judge of a run notices each of them."""
import re
import time
import unittest

from fault import sabotage, verdict
from fault.system import System
from support import tap


TRIES = 5  # for what breaks something only now and then, on a machine that may be busy


class Broken(unittest.TestCase):
    def remarks(self, system, break_it):
        """What is said of the rounds in which something was broken."""
        first = len(system.rounds) - 1
        with break_it(system):
            time.sleep(0.6)
        system.next_round()
        time.sleep(0.3)
        breakers = set().union(*system.rounds[first:-1])
        records = [each for each in system.records() if each.breaker in breakers]
        broken, told = verdict.anomalies(records, system.primary)
        tap.note(f"{break_it.__name__}: {told['records']} records, {len(broken)} remarks, such as {broken[:1]}"[:300])
        system.next_round()
        return broken

    def test_is_noticed(self):
        with System("broken") as system:
            for break_it, remark in sabotage.REMARKS.items():
                with self.subTest(break_it.__name__):
                    self.assertTrue(any(re.search(remark, each) for _ in range(TRIES)
                                        for each in self.remarks(system, break_it)))
            breakers = system.names
            time.sleep(0.5)
            system.stop_clients()
            records = [each for each in system.records() if each.breaker in breakers]
            self.assertEqual(verdict.anomalies(records, system.primary)[0], [], "whole again")


if __name__ == "__main__":
    tap.main()
