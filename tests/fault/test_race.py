# SPDX-License-Identifier: ISC
"""A TTL that ends under three agents, one of which is killed as it does: one recovery, one incident, one alert each."""
import unittest

from fault import race
from support import tap


class Race(unittest.TestCase):
    def test_short(self):
        """`make fault` does it a thousand times."""
        self.assertEqual(race.run(60), {race.ONCE: 60})


if __name__ == "__main__":
    tap.main()
