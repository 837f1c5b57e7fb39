#!/usr/bin/env python3
# SPDX-License-Identifier: ISC
"""Lets things go wrong for a while, and judges what the clients were told.

    run.py [--seconds N | --faults N] [--only FAULT,...] [--seed S] [--json FILE]

Three agents, eight clients, a primary and a synchronous standby; one fault after another, drawn from the seed. Exits with
1 if a rule was broken, and says which; see verdict.py for the rules. The last lines sum up what was done and found.
"""
import argparse
import json
import os
import random
import statistics
import sys
import time
from collections import Counter, defaultdict

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from fault import verdict  # noqa: E402
from fault.system import AGENTS, System  # noqa: E402

WRITES = ("disable", "enable", "report")


def resumption(system, records):
    """By fault: how long each host took to write again once a server took writes, in seconds."""
    ends = defaultdict(list)
    for record in records:
        if record.kind in WRITES and record.outcome == "ok":
            ends[record.host].append(record.returned)
    for each in ends.values():
        each.sort()
    seconds = defaultdict(list)
    for moment, fault in system.writable:
        for host in range(AGENTS):
            later = [end for end in ends[host] if end > moment]
            if later:
                seconds[fault].append(later[0] - moment)
    return {fault: {"count": len(each), "median": round(statistics.median(each), 3), "max": round(max(each), 3)}
            for fault, each in sorted(seconds.items())}


def wreck(system, seconds, first=(), faults=None, only=None):
    """Faults until the time is up, or so many, each followed by a while of health; how many of which."""
    happened, end, first = Counter(), time.monotonic() + seconds, list(first)
    while happened.total() < faults if faults else time.monotonic() < end:
        time.sleep(system.random.uniform(0.1, 0.6))
        happened[system.fault(first.pop(0) if first else None, only)] += 1
        system.wait_for_writes()
        system.next_round()
    return dict(happened)


def run(seconds, seed, first=(), sabotage=None, faults=None, only=None, **options):
    """(broken rules, what was done and measured). sabotage(system) breaks something before the faults begin."""
    with System(seed, **options) as system:
        if sabotage:
            sabotage(system)
        started = time.monotonic()
        happened = wreck(system, seconds, first, faults, only)
        seconds = round(time.monotonic() - started)
        system.stop_clients()
        records = system.records()
        broken, counts = verdict.anomalies(records, system.primary)
        return broken, {"seed": seed, "seconds": seconds, "faults": happened, "agents_killed": system.agents_killed, **counts,
                        "writes_resumed_after": resumption(system, records),
                        "reads": {"checks": sum(reader.checks for reader in system.readers),
                                  "slowest_us": max(reader.slowest for reader in system.readers)}}


def summary(broken, told):
    """A few lines, fit to be quoted."""
    resumed = {fault: each for fault, each in told["writes_resumed_after"].items() if each["count"]}
    kinds = ", ".join(f"{count} {fault}" for fault, count in sorted(told["faults"].items(), key=lambda each: -each[1]))
    yield (f"{told['seconds']} s, {sum(told['faults'].values())} faults ({kinds}), {told['agents_killed']} agents killed")
    yield (f"{told['records']} records: {told['operations']} operations on {told['breakers']} breakers, "
           f"{told['acknowledged']} writes acknowledged, {told['failed']} calls failed, {told['unknown']} unknown; "
           f"{told['segment_reads']} segment reads compared")
    yield f"{told['reads']['checks']} checks beside it, the slowest took {told['reads']['slowest_us']} us"
    if resumed:
        worst = max(resumed, key=lambda fault: resumed[fault]["max"])
        yield (f"writes resumed {sum(each['count'] for each in resumed.values())} times after a server took them: median / max s "
               + ", ".join(f"{fault} {each['median']} / {each['max']}" for fault, each in resumed.items())
               + f"; longest {resumed[worst]['max']}")
    yield f"{len(broken)} rules broken"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--faults", type=int, help="so many, however long they take")
    parser.add_argument("--only", type=lambda text: text.split(","), help="these faults, from " + ", ".join(System.FAULTS))
    parser.add_argument("--seed", default=str(random.randrange(1 << 32)))
    parser.add_argument("--json", help="where what was done and measured goes")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    broken, told = run(args.seconds, args.seed, faults=args.faults, only=args.only)
    print(json.dumps(told, indent=1))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(told, file, indent=1)
    for each in broken[:50]:
        print("BROKEN:", each)
    print(*summary(broken, told), sep="\n")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
