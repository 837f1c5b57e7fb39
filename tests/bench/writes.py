#!/usr/bin/env python3
# SPDX-License-Identifier: ISC
"""Measures what writes cost, beside real peers with the same fsync on the same disk; prints one table.

    writes.py [--runs N] [--seconds S] [--only WHAT,...] [--breakers N] [--json FILE]

Every report counts on one hot breaker (or on as many as a row says), and every reply comes after its commit is on disk: at
the end the breaker's counter has to be what was acknowledged. WHAT is rows, redis, pipelined, spread, load or idle.
A ratio is that of two measurements which follow each other directly, its median over the runs, whose spread is told too.
What is not there to compare with is said and left out. Nothing fails for being slow.
"""
import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from run import Redis, machine, write  # noqa: E402  (beside this file)
from support import tap  # noqa: E402
from support.agent import Agent, program  # noqa: E402
from support.postgres import Postgres, bindir  # noqa: E402
from support.scratch import Scratch, identity  # noqa: E402

CLIENTS = 32
PIPELINE = 32
COLUMNS = ("name, version, disabled, disabled_by, disabled_reason, opened_at, disabled_until, incident_id, "
           "consecutive_failures, last_failure_at, updated_at, drift_threshold, failure_threshold, "
           "schema_error_threshold, default_ttl_us, auto_recover")

# what is wanted of a row: the ratio at least, or at most
WANTED = {"rows": ">= 30", "redis": ">= 1", "pipelined": ">= 0.5", "load": "<= 2", "idle_cpu": "<= 0.2",
          "idle_rss": "<= 12"}


class Bench:
    """The servers, and one function for each thing that is measured."""

    def __init__(self, scratch, args):
        self.args = args
        self.skipped = []
        self.postgres = Postgres(scratch, fsync=True, options={"shared_buffers": "128MB", "max_wal_size": "4GB"})
        self.postgres.migrate()
        self.postgres.psql("CREATE TABLE hot (id int PRIMARY KEY, failures int NOT NULL, last_failure_at timestamptz, "
                           "version bigint NOT NULL) WITH (fillfactor = 80); INSERT INTO hot VALUES (1, 0, NULL, 1)")
        self.agent = Agent(self.postgres)
        self.scratch = scratch
        self.redis = None
        if shutil.which("redis-server") and shutil.which("redis-benchmark"):
            self.redis = Redis(scratch, ["--appendonly", "yes", "--appendfsync", "always"])
        else:
            self.skipped.append("Redis: redis-server or redis-benchmark is not installed")

    # ---- the peers ----

    def row_locks(self):
        """Transactions a second of clients that lock the same row, change it and commit."""
        path = os.path.join(self.scratch.path, "transaction.sql")
        write(path, "BEGIN;\nSELECT failures FROM hot WHERE id = 1 FOR UPDATE;\n"
              "UPDATE hot SET failures = failures + 1, last_failure_at = clock_timestamp(), version = version + 1 "
              "WHERE id = 1;\nCOMMIT;\n")
        pgbench = os.path.join(bindir(), "pgbench")
        if not os.access(pgbench, os.X_OK):
            pgbench = shutil.which("pgbench")
        done = subprocess.run([pgbench, "-n", "-c", str(CLIENTS), "-M", "prepared", "-T", str(self.args.seconds), "-f",
                               path, self.postgres.conninfo()], stdout=subprocess.PIPE, text=True, check=True)
        return float(re.search(r"tps = ([0-9.]+)", done.stdout).group(1))

    def increments(self, pipeline):
        """INCRs a second of one key, each acknowledged after fsync."""
        def run(number):
            done = subprocess.run(["redis-benchmark", "-s", self.redis.socket, "-c", str(CLIENTS), "-P", str(pipeline),
                                   "-n", str(number), "--csv", "INCR", "hot"], stdout=subprocess.PIPE, text=True,
                                  check=True)
            return float(done.stdout.splitlines()[-1].split(",")[1].strip('"'))
        rate = run(CLIENTS * pipeline * 100)
        return run(int(rate * self.args.seconds))

    def copy(self):
        """Seconds that it takes to read the columns of the mirror and throw them away."""
        begin = time.monotonic()
        subprocess.run([os.path.join(bindir(), "psql"), "-qX", "-d", self.postgres.conninfo(), "-c",
                        f"COPY (SELECT {COLUMNS} FROM cbshm.mirror) TO STDOUT"], stdout=subprocess.DEVNULL, check=True,
                       **identity(None))
        return time.monotonic() - begin

    # ---- the agent ----

    def reports(self, clients, pipeline, breakers=1):
        """What tests/bench/writes prints; it is checked that just the acknowledged reports were applied."""
        self.postgres.psql("DELETE FROM cbshm.breaker WHERE name LIKE 'hot%'; INSERT INTO cbshm.breaker (name, "
                           "failure_threshold) SELECT 'hot' || coalesce(nullif(n, 0)::text, ''), 2147483647 "
                           f"FROM generate_series(0, {breakers - 1}) n")
        self.postgres.psql("VACUUM ANALYZE cbshm.breaker; CHECKPOINT", db="cbshm")
        before = self.cpu()
        done = subprocess.run([program("tests/bench/writes"), self.agent.socket, str(clients), str(pipeline),
                               str(self.args.seconds * 1000), str(breakers)], stdout=subprocess.PIPE, text=True,
                              check=True)
        result = json.loads(done.stdout)
        result["agent_us"] = (self.cpu() - before) / 1000 / max(result["answered"], 1)
        counted = int(self.postgres.value("SELECT sum(consecutive_failures) FROM cbshm.breaker WHERE name LIKE 'hot%'"))
        if result["refused"] or counted != result["answered"]:
            sys.exit(f"{result['answered']} reports were answered, {result['refused']} of them refused, and {counted} "
                     "were counted")
        return result

    def cpu(self):
        """Nanoseconds that the agent has run."""
        total = 0
        for task in os.listdir(f"/proc/{self.agent.pid}/task"):
            with open(f"/proc/{self.agent.pid}/task/{task}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0])
        return total

    def fill(self, number):
        """Another fleet of breakers; made without the triggers, which is quicker."""
        self.postgres.psql("SET session_replication_role = replica; DELETE FROM cbshm.breaker; "
                           "INSERT INTO cbshm.breaker (name) SELECT 'service-' || n || '/guarded-path' "
                           f"FROM generate_series(1, {number}) n")
        self.postgres.psql("VACUUM ANALYZE cbshm.breaker; CHECKPOINT")

    def restart(self, capacity=65536):
        """An agent that has just been started, for so many breakers."""
        self.agent.close()
        self.agent = Agent(self.postgres, config={"segment": {"capacity": str(capacity)}})

    def loaded(self):
        """Seconds from the question to the last row in the segment."""
        self.restart(1 << 20)
        found = re.findall(r" loaded breakers=(\d+) milliseconds=(\d+)", self.agent.log().replace('event=', ' '))
        return int(found[-1][1]) / 1000

    def memory(self):
        with open(f"/proc/{self.agent.pid}/status", encoding="ascii") as file:
            status = dict(line.split(":", 1) for line in file)
        return {"rss": int(status["VmRSS"].split()[0]) / 1024, "anonymous": int(status["RssAnon"].split()[0]) / 1024,
                "shared": int(status["RssShmem"].split()[0]) / 1024}

    def idle(self):
        """Percent of a core, and memory in MiB."""
        self.restart()
        time.sleep(3)
        before, begin = self.cpu(), time.monotonic()
        time.sleep(max(self.args.seconds * 2, 10))
        percent = (self.cpu() - before) / 1e7 / (time.monotonic() - begin)
        return percent, self.memory()

    def close(self):
        self.agent.close()
        self.postgres.close()


def measure_rows(bench, run):
    peer = bench.row_locks()
    ours = bench.reports(CLIENTS, 1)
    run["rows"] = [f"{CLIENTS} clients, 1 breaker", ours["per_second"], "row locks, pgbench", peer, ours]


def measure_redis(bench, run):
    if bench.redis:
        peer = bench.increments(1)
        ours = bench.reports(CLIENTS, 1)
        run["redis"] = [f"{CLIENTS} clients, 1 breaker", ours["per_second"], "Redis INCR", peer, ours]


def measure_pipelined(bench, run):
    peer = bench.increments(PIPELINE) if bench.redis else None
    ours = bench.reports(CLIENTS, PIPELINE)
    run["pipelined"] = [f"{CLIENTS} x {PIPELINE} pipelined", ours["per_second"], "Redis INCR, likewise", peer, ours]


def measure_spread(bench, run):
    one = bench.reports(CLIENTS, PIPELINE)
    ours = bench.reports(CLIENTS, PIPELINE, 1000)
    run["spread"] = ["likewise, 1000 breakers", ours["per_second"], "1 breaker", one["per_second"], ours]


def measure_load(bench, run):
    bench.fill(bench.args.breakers)
    bench.copy()
    peer = statistics.median(bench.copy() for _ in range(3))
    ours = statistics.median(bench.loaded() for _ in range(3))
    run["load"] = [f"load of {bench.args.breakers} breakers, s", ours, "COPY TO STDOUT, s", peer, bench.memory()]
    bench.fill(0)
    bench.restart()


def measure_idle(bench, run):
    bench.fill(1000)
    percent, memory = bench.idle()
    run["idle_cpu"] = ["idle, 1000 breakers, % of a core", percent, None, None, None]
    run["idle_rss"] = ["  memory, MiB", memory["rss"], None, None, memory]


MEASURES = {"rows": measure_rows, "redis": measure_redis, "pipelined": measure_pipelined, "spread": measure_spread,
            "load": measure_load, "idle": measure_idle}


def summarize(runs):
    rows = []
    for key in runs[0]:
        found = [run[key] for run in runs if key in run]
        title, _, beside, peer, _ = found[0]
        ratios = [each[1] / each[3] if each[3] else each[1] for each in found]
        row = {"key": key, "title": title, "ours": statistics.median(each[1] for each in found), "beside": beside,
               "peer": statistics.median(each[3] for each in found) if peer else None,
               "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "wanted": WANTED.get(key),
               "runs": [each[4] for each in found]}
        if row["wanted"] and (peer or key.startswith("idle")):
            sign, limit = row["wanted"].split()
            row["reached"] = row["ratio"] >= float(limit) if sign == ">=" else row["ratio"] <= float(limit)
        rows.append(row)
    return rows


def number(value):
    return "" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def print_table(results):
    print(f"{results['machine']}; {results['count']} run(s) of {results['seconds']} s; medians\n")
    print(f"{'':34} {'a second':>9}  {'beside':22} {'a second':>9}  {'ratio':>6}  {'spread':15}  wanted")
    for row in results["rows"]:
        spread = f"{row['low']:.3g} to {row['high']:.3g}"
        wanted = f"{row['wanted']}{'' if row.get('reached', True) else '  MISSED'}" if row["wanted"] else ""
        print(f"{row['title']:34} {number(row['ours']):>9}  {row['beside'] or '':22} {number(row['peer']):>9}  "
              f"{row['ratio']:6.3g}  {spread:15}  {wanted}")
        last = row["runs"][-1]
        if last and "p50_us" in last:
            print(f"    a burst: median {last['p50_us']} us, 99 % {last['p99_us']} us, longest {last['max_us']} us; "
                  f"the agent's CPU a report: {last['agent_us']:.1f} us")
        elif last:
            print("    " + ", ".join(f"{key} {value:.1f} MiB" for key, value in last.items()))
    for what in results["skipped"]:
        print(f"SKIP {what}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1, help="how often everything is run")
    parser.add_argument("--seconds", type=int, default=5, help="how long each rate is measured")
    parser.add_argument("--only", default=",".join(MEASURES), help="what is measured")
    parser.add_argument("--breakers", type=int, default=1000000, help="how many are loaded")
    parser.add_argument("--json", default="bench-writes.json", help="where the results go")
    args = parser.parse_args()
    wanted = args.only.split(",")
    if args.runs < 1 or args.seconds < 1 or not set(wanted) <= set(MEASURES):
        parser.error(f"--runs and --seconds: at least 1; --only: of {', '.join(MEASURES)}")
    scratch = Scratch()
    bench = None
    try:
        bench = Bench(scratch, args)
        runs = []
        for _ in range(args.runs):
            runs.append({})
            for what in wanted:
                MEASURES[what](bench, runs[-1])
    except tap.SkipTest as reason:
        sys.exit(f"writes.py: {reason}")
    finally:
        if bench:
            bench.close()
        scratch.cleanup()
    results = {"machine": machine(), "count": args.runs, "seconds": args.seconds, "rows": summarize(runs),
               "skipped": bench.skipped}
    print_table(results)
    write(args.json, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
