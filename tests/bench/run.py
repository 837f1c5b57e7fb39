#!/usr/bin/env python3
# SPDX-License-Identifier: ISC
"""Measures what reads, and reports that nobody waits for, cost, beside what else could be done, with real servers; prints one table.

    run.py [--runs N] [--quick] [--reads N] [--json FILE] [--svg FILE]

Every ratio is taken within one program, from runs that follow each other directly: its median over the repetitions of a
run, and over the runs, whose spread is told too. What is not there to compare with is said and left out.
Nothing fails for being slow; only for not running, or for a torn read.
"""
import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

import picture  # noqa: E402  (beside this file)
from support import tap  # noqa: E402
from support.postgres import Postgres  # noqa: E402
from support.scratch import Scratch  # noqa: E402

# program, its rows, and for each what is wanted: the ratio at most, or at least where the peer is to be the slower one
PROGRAMS = [
    ("check", {"closed_inlined": "<= 1.10", "closed_called": "<= 1.10", "open": None, "open_ttl": "<= 1.15"}),
    ("peers", {"rwlock": ">= 5", "lmdb": ">= 5", "redis": ">= 5", "postgres": ">= 5"}),
    ("state", {"state_closed": "<= 1.5", "state_open": "<= 1.5", "state_long": "<= 1.5", "state_ttl": "<= 1.5",
               "state_open_memcpy": None}),
    ("report", {"report_loop": None, "report_loop_ring": None, "report_loop_p999": None, "report_details": None,
                "report_passing": None, "report_passing_p999": None, "report_timing": None}),
    ("flips", {"flips_check": "<= 3", "flips_state": "<= 3", "flips_bare": None, "flips_nothing": None}),
    ("many", {"hot_1e3": "<= 1.05", "hot_1e6": "<= 1.05", "resolve_1e3": None, "resolve_1e6": None,
              "resolve_drawn_1e3": None, "resolve_drawn_1e6": None}),
]
QUICK = {"check": 101, "peers": 21, "state": 101, "flips": 5, "many": 51, "report": 21}


def machine():
    """In general terms: what matters for the figures."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        virtual = " hypervisor" in file.read()
    return f"{os.cpu_count()} cores, {platform.machine().replace('_', '-')}{' VM' if virtual else ''}"


class Redis:
    """A server of its own on a Unix socket; nothing is saved, unless the options say so."""

    def __init__(self, scratch, options=("--appendonly", "no")):
        directory = scratch.directory("redis")
        self.socket = os.path.join(directory, "socket")
        self.process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", self.socket, "--save", "", *options],
            cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while not os.path.exists(self.socket):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("redis-server did not start")
            time.sleep(0.01)


def start_servers(scratch, skipped):
    """The options for `peers`."""
    options = []
    if shutil.which("redis-server"):
        options += ["--redis", Redis(scratch).socket]
    else:
        skipped.append("Redis: redis-server is not installed")
    try:
        postgres = Postgres(scratch).migrate()
        postgres.psql("SELECT cbshm.enable('closed', 'bench', NULL); ANALYZE cbshm.breaker")
        postgres.value("SELECT name FROM cbshm.breaker WHERE name = 'closed'")
        options += ["--postgres", postgres.conninfo()]
    except tap.SkipTest as reason:
        skipped.append(f"PostgreSQL: {reason}")
    return options


def run_program(program, options, path, skipped):
    """Its JSON; what it left out goes to `skipped`."""
    done = subprocess.run([os.path.join(tap.build_dir(), "tests", "bench", program), "--json", path, *options],
                          stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\ntests/bench/{program} failed ({done.returncode})")
    for line in done.stdout.splitlines():
        if line.startswith("SKIP ") and "no --" not in line and line[5:] not in skipped:
            skipped.append(line[5:])
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def run_all(args, scratch, peers, skipped):
    """One run of every program: {program: JSON}"""
    results = {}
    for program, _ in PROGRAMS:
        options = list(peers) if program == "peers" else []
        if program == "flips" and args.reads:
            options += ["--reads", str(args.reads)]
        if args.quick:
            options += ["--repetitions", str(QUICK[program])]
        results[program] = run_program(program, options, os.path.join(scratch.path, "json"), skipped)
    return results


def make_row(key, runs, wanted):
    """One line of the table. Where the peer is to be the slower one, the ratio is turned round."""
    turned = bool(wanted) and wanted.startswith(">=")
    medians = [run["ratio"]["median"] for run in runs]
    lows, highs = [run["ratio"]["p10"] for run in runs], [run["ratio"]["p90"] for run in runs]
    if len(runs) > 1:  # the spread of the runs' medians
        lows = highs = medians
    ratios = [statistics.median(medians), min(lows), max(highs)]
    if turned:
        ratio, high, low = (1 / value for value in ratios)
    else:
        ratio, low, high = ratios
    row = {"key": key, "title": runs[0]["title"], "beside": runs[0]["beside"],
           "ns": statistics.median(run["ns"]["median"] for run in runs),
           "beside_ns": statistics.median(run["beside_ns"]["median"] for run in runs),
           "ratio": ratio, "low": low, "high": high, "wanted": wanted}
    if turned:  # of the medians: single checks are too short for the ratio of a ratio
        row["ratio"] = row["beside_ns"] / row["ns"]
    if wanted:
        limit = float(wanted.split()[1])
        row["reached"] = row["ratio"] >= limit if turned else row["ratio"] <= limit
    return row


def summarize(all_runs, skipped):
    rows = [make_row(key, [run[program]["results"][key] for run in all_runs], wanted)
            for program, keys in PROGRAMS for key, wanted in keys.items()
            if key in all_runs[0][program]["results"]]
    flips = [run["flips"] for run in all_runs]
    return {"machine": machine(), "compiler": all_runs[0]["check"]["compiler"],
            "version": all_runs[0]["check"]["version"], "runs": len(all_runs), "rows": rows,
            "torn": {"reads": sum(run["reads"] for run in flips), "torn": sum(run["torn"] for run in flips),
                     "busy": sum(run["busy"] for run in flips),
                     "flips_per_second": statistics.median(run["flips_per_second"] for run in flips)},
            "skipped": skipped}


def print_table(results):
    print(f"{results['machine']}; {results['runs']} run(s); medians\n")
    print(f"{'':28} {'ns':>9}  {'beside':28} {'ns':>9}  {'ratio':>7}  {'spread':17}  wanted")
    for row in results["rows"]:
        spread = f"{row['low']:.3g} to {row['high']:.3g}"
        wanted = f"{row['wanted']}{'' if row['reached'] else '  MISSED'}" if row["wanted"] else ""
        print(f"{row['title']:28} {row['ns']:9.2f}  {row['beside']:28} {row['beside_ns']:9.2f}  "
              f"{row['ratio']:7.{2 if row['ratio'] < 1000 else 0}f}  {spread:17}  {wanted}")
    torn = results["torn"]
    print(f"\n{torn['reads']} reads under {torn['flips_per_second']:.0f} flips a second: {torn['torn']} torn, "
          f"{torn['busy']} busy")
    for what in results["skipped"]:
        print(f"SKIP {what}")


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, help="how often everything is run")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: seconds, and more noise")
    parser.add_argument("--reads", type=int, help="how many reads are looked at for torn ones, in each run")
    parser.add_argument("--json", default="bench.json", help="where the results go")
    parser.add_argument("--svg", help="where their picture goes")
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("--runs: at least 1")
    skipped = []
    scratch = Scratch()
    try:
        peers = start_servers(scratch, skipped)
        all_runs = [run_all(args, scratch, peers, skipped) for _ in range(args.runs)]
    finally:
        scratch.cleanup()
    results = summarize(all_runs, skipped)
    print_table(results)
    write(args.json, json.dumps(results, indent=1) + "\n")
    if args.svg:
        write(args.svg, picture.draw(results))


if __name__ == "__main__":
    main()
