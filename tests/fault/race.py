#!/usr/bin/env python3
# SPDX-License-Identifier: ISC
"""The end of a TTL under several agents, one of which is killed as it comes: it is recovered once, each time.

    race.py [--times N] [--agents N]
"""
import argparse
import os
import random
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from support.agent import Agent, wait_for  # noqa: E402
from support.postgres import Postgres  # noqa: E402

TTL = 0.3
WAVE = 20  # breakers that expire together
_CLOSED = "SELECT count(*) FROM cbshm.breaker WHERE name LIKE '{0}%' AND disabled"
# What must be there once for every breaker.
_COUNTS = """
SELECT (SELECT count(*) FROM cbshm.audit_log WHERE breaker = b.name AND action = 'recover'),
       (SELECT count(*) FROM cbshm.incident WHERE breaker = b.name),
       (SELECT count(*) FROM cbshm.incident WHERE breaker = b.name AND resolved AND resolved_by = 'system-auto-recover'),
       (SELECT count(*) FROM cbshm.alert_queue WHERE breaker = b.name AND kind = 'disable'),
       (SELECT count(*) FROM cbshm.alert_queue WHERE breaker = b.name AND kind = 'enable')
FROM cbshm.breaker b WHERE b.name LIKE 'race/%'
"""


def wave(postgres, agents, number):
    prefix = f"race/{number}-"
    with agents[number % len(agents)].connect() as client:
        for i in range(WAVE):
            client.send("Disable", {"name": f"{prefix}{i}", "reason": "x", "ttl_seconds": TTL})
        for i in range(WAVE):
            client.receive()
    victim = random.choice(agents)
    time.sleep(TTL + random.uniform(-0.02, 0.02))
    victim.kill9()
    victim.start()
    wait_for(lambda: postgres.value(_CLOSED.format(prefix)) == "0", 20, "the recovery")


def run(times, count=3):
    """How many breakers have which counts, see _COUNTS; all of them should have 1 of each."""
    with Postgres() as postgres:
        postgres.migrate()
        agents = [Agent(postgres, config={"segment": {"capacity": "16384"}}) for _ in range(count)]
        for number in range(0, times, WAVE):
            wave(postgres, agents, number)
        found = {}
        for row in postgres.rows(_COUNTS):
            found[row] = found.get(row, 0) + 1
        return found


ONCE = ("1",) * 5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--agents", type=int, default=3)
    args = parser.parse_args()
    found = run(args.times, args.agents)
    print("recoveries, incidents, resolved by it, alerts of opening, of closing: how many breakers")
    for counts, breakers in found.items():
        print(", ".join(counts) + f": {breakers}")
    sys.exit(set(found) != {ONCE})


if __name__ == "__main__":
    main()
