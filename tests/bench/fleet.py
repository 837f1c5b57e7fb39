#!/usr/bin/env python3
# SPDX-License-Identifier: ISC
"""Measures what a fleet costs its PostgreSQL, and how fast a change reaches the other hosts; prints tables.

    fleet.py [--runs N] [--only WHAT,...] [--commits N] [--seconds S] [--breakers N] [--json FILE]

WHAT is
    notified   a commit on one host until another host's segment shows it, beside a bare libpq listener woken by it
    listeners  commits a second that notify, with ever more sessions that listen, and with a synchronous standby
    storm      10^4 changes in one transaction, and 10^3 changes a second for --seconds: lag of the mirror, and nothing lost
    million    --breakers breakers: load, memory of agent and segment, a change until the segment shows it
Nothing fails for being slow; only for not running, or for a change that is lost.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from run import machine, write  # noqa: E402  (beside this file)
from support.agent import Agent, program, wait_for  # noqa: E402
from support.alertmanager import Alertmanager  # noqa: E402
from support.postgres import AGENT_USER, Postgres, bindir  # noqa: E402
from support.probe import Probe  # noqa: E402
from support.scratch import Scratch  # noqa: E402
from support.tap import SkipTest  # noqa: E402


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))]


def pgbench(postgres, sql, clients, seconds):
    """Transactions a second of clients that repeat the SQL."""
    path = os.path.join(postgres.scratch.path, "transaction.sql")
    write(path, sql)
    done = subprocess.run([os.path.join(bindir(), "pgbench"), "-n", "-c", str(clients), "-M", "prepared", "-T",
                           str(seconds), "-f", path, postgres.conninfo()], stdout=subprocess.PIPE, text=True, check=True)
    return float(re.search(r"tps = ([0-9.]+)", done.stdout).group(1))


class Listeners:
    """So many sessions that listen."""

    def __init__(self, postgres, count):
        self.process = subprocess.Popen([program("tests/bench/listeners"), postgres.conninfo(AGENT_USER), str(count)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process.stdout.readline()
        self.sessions = postgres.rows(f"SELECT pid FROM pg_stat_activity WHERE usename = '{AGENT_USER}'")

    def cpu(self):
        """Seconds that the server's processes for them have run."""
        total = 0
        for (pid,) in self.sessions:
            with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0]) / 1e9
        return total

    def close(self):
        self.process.communicate("\n")


# ---- notified ----

def notified(scratch, args):
    """Microseconds from the COMMIT to a listener, to the segment, and to an engine that sleeps on it: their quantiles."""
    with Postgres(scratch, name=f"pg-notified-{time.monotonic_ns()}") as postgres:
        postgres.migrate()
        postgres.psql("SELECT cbshm.enable('hot', 'bench')")
        agent = Agent(postgres)
        time.sleep(0.5)
        done = subprocess.run([program("tests/bench/notified"), postgres.conninfo(), "hot", str(args.commits), "200",
                               "500", "0"], env=agent.environment(), stdout=subprocess.PIPE, text=True, check=True)
        agent.close()
    times = json.loads(done.stdout)
    return {f"p{q}": {kind: quantile(values, q / 100) for kind, values in times.items()} for q in (50, 99)}


def show_notified(runs):
    rows = []
    print("\nFrom COMMIT to                p50 us   p99 us")
    for kind, title in (("answered", "its answer"), ("heard", "a bare listener"), ("shown", "another host's segment"),
                        ("seen", "an engine asleep on it")):
        print(f"  {title:26} {statistics.median(run['p50'][kind] for run in runs):8.0f} "
              f"{statistics.median(run['p99'][kind] for run in runs):8.0f}")
    for q, wanted in (("p50", 1.25), ("p99", 1.5)):
        ratios = [run[q]["shown"] / run[q]["heard"] for run in runs]
        ratio = statistics.median(ratios)
        rows.append({"what": q, "ratio": ratio, "low": min(ratios), "high": max(ratios), "wanted": f"<= {wanted}",
                     "reached": ratio <= wanted})
        print(f"  {q}: {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}), wanted <= {wanted}"
              f"{'' if ratio <= wanted else '  MISSED'}")
    return rows


# ---- listeners ----

_NOTIFY = "SELECT pg_notify('cbshm', 'c 1 nobody');\n"
_SILENT = "SELECT pg_current_xact_id();\n"


def listeners(scratch, args):
    """Commits a second by number of listeners, of clients, and with or without a standby to wait for."""
    found = []
    options = {"max_connections": "1200", "shared_buffers": "64MB"}
    with Postgres(scratch, fsync=True, options=options, name="pg-listeners") as postgres:
        postgres.migrate()

        def row(standby, count, clients, sql):
            crowd = Listeners(postgres, count)
            before = crowd.cpu()
            rate = pgbench(postgres, sql, clients, args.seconds)
            cost = (crowd.cpu() - before) / (rate * args.seconds)
            crowd.close()
            found.append({"standby": standby, "listeners": count, "clients": clients, "notify": sql is _NOTIFY, "tps": rate,
                          "listening_us": cost * 1e6})
            print(f"  {standby:8} {count:9} {clients:8}  {'NOTIFY' if sql is _NOTIFY else '':7} {rate:9.0f} {cost * 1e6:12.0f}",
                  flush=True)
        print("\n  standby  listeners  clients           commits/s  us of CPU in all listening sessions, a commit")
        for clients in (1, 16):
            row("no", 0, clients, _SILENT)
            for count in (0, 1, 10, 100, 1000):
                row("no", count, clients, _NOTIFY)
        with Postgres(scratch, fsync=True, options=options, name="pg-standby", standby_of=postgres):
            postgres.wait_for_standby()
            for sql in (_SILENT, _NOTIFY):
                for clients in (1, 16):
                    row("waits", 10, clients, sql)
            postgres.psql("ALTER SYSTEM SET synchronous_standby_names = ''")
            postgres.psql("SELECT pg_reload_conf()")
    return found


# ---- storm ----

class Watcher:
    """Looks at one breaker's version in an agent's segment, and remembers when it first saw each."""

    def __init__(self, agent, name):
        self.probe, self.name = Probe(agent), name

    def version(self):
        answer = self.probe.ask(f"state {self.name}")
        return 0 if answer.startswith("error") else int(re.match(r"version=(\d+)", answer).group(1))

    def close(self):
        self.probe.close()


def _same(postgres, agent):
    """Whether the agent's mirror is the table, to the version."""
    rows = dict(postgres.rows("SELECT name, version FROM cbshm.breaker"))
    found, after, complete = {}, None, False
    while not complete:
        page = agent.call("List", **({"after": after} if after else {}))
        found.update((each["name"], str(each["version"])) for each in page["breakers"])
        complete = page["complete"]
        after = page["breakers"][-1]["name"] if page["breakers"] else None
    return rows == found


def storm(scratch, args):
    """Milliseconds from a commit to the segment: of 10^4 changes at once, and of 10^3 a second."""
    with Postgres(scratch, name="pg-storm", options={"shared_buffers": "128MB"}) as postgres:
        postgres.migrate()
        postgres.psql("INSERT INTO cbshm.breaker (name) SELECT 'storm/' || to_char(n, 'FM00000') "
                      "FROM generate_series(1, 10000) n")
        agent = Agent(postgres, config={"segment": {"capacity": "16384"}})
        at_once = _at_once(postgres, agent)
        stream = _stream(postgres, agent, "storm/10000", args.seconds)
        away = _away(postgres, agent)
        told = _told(postgres, agent, "storm/10000", args.seconds)
        agent.close()
    return {"at_once": at_once, "stream": stream, "told": told, "away": away}


def _cpu(pid):
    """Seconds of a processor that it has had."""
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as file:
        return int(file.read().split()[0]) / 1e9


def _at_once(postgres, agent):
    """10^4 changes in one transaction: when the last one is in the segment, and when a bare listener has read it."""
    bare = subprocess.Popen([program("tests/bench/listeners"), postgres.conninfo(AGENT_USER), "1", "10000"], text=True,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    bare.stdout.readline()
    session = postgres.session()
    found = {"agent_ms": [], "bare_ms": [], "agent_cpu_us": [], "bare_cpu_us": []}
    for _ in range(5):
        # The server goes through the table from its beginning to its end.
        last = Watcher(agent, postgres.value("SELECT name FROM cbshm.breaker ORDER BY ctid DESC LIMIT 1"))
        before, had = last.version(), (_cpu(agent.pid), _cpu(bare.pid))
        session.execute("UPDATE cbshm.breaker SET disabled = NOT disabled", timeout=60)
        committed = time.monotonic()
        while last.version() == before:
            time.sleep(0.0005)
        found["agent_ms"].append((time.monotonic() - committed) * 1000)
        found["bare_ms"].append((int(bare.stdout.readline()) / 1e9 - committed) * 1000)
        found["agent_cpu_us"].append((_cpu(agent.pid) - had[0]) * 100)
        found["bare_cpu_us"].append((_cpu(bare.pid) - had[1]) * 100)
        last.close()
        wait_for(lambda: _same(postgres, agent), 10, "the mirror of all changes")
    bare.communicate()
    return {key: {"median": statistics.median(each), "max": max(each)} for key, each in found.items()}


def _stream(postgres, agent, name, seconds):
    """Changes as fast as a thousand a second; meanwhile a breaker is changed 15 times a second, and looked at."""
    postgres.psql(f"UPDATE cbshm.breaker SET disabled = false WHERE name = '{name}'")
    script = ("\\set n random(1, 9999)\nUPDATE cbshm.breaker SET disabled = NOT disabled "
              "WHERE name = 'storm/' || to_char(:n::int, 'FM00000');\n")
    path = os.path.join(postgres.scratch.path, "stream.sql")
    write(path, script)
    load = subprocess.Popen([os.path.join(bindir(), "pgbench"), "-n", "-c", "4", "-R", "1000", "-T", str(seconds), "-f",
                             path, postgres.conninfo()], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    done = subprocess.run([program("tests/bench/notified"), postgres.conninfo(), name, str(seconds * 15), "1", "50000",
                           "100"], env=agent.environment(), stdout=subprocess.PIPE, text=True, check=True)
    rate = float(re.search(r"tps = ([0-9.]+)", load.communicate()[0]).group(1))
    times = json.loads(done.stdout)
    wait_for(lambda: _same(postgres, agent), 10, "the mirror of all changes")

    def lag(known, answered):
        return max(0, known - answered) / 1000
    lags = {kind: [lag(known, answered) for answered, known in zip(times["answered"], times[column])]
            for kind, column in (("segment", "shown"), ("bare", "heard"))}
    return {"changes_per_second": rate, "samples": len(lags["segment"]),
            **{kind: {"p50_ms": quantile(each, 0.5), "p99_ms": quantile(each, 0.99), "max_ms": max(each)}
               for kind, each in lags.items()}}


def _told(postgres, agent, name, seconds):
    """The same while the agent tells Alertmanager of each of them, and of all those before; None without an Alertmanager."""
    try:
        alertmanager = Alertmanager(postgres.scratch)
    except SkipTest:
        return None
    agent.config["alertmanager"] = {"url": alertmanager.url}
    agent.write_config()
    agent.sighup()
    stream = _stream(postgres, agent, name, seconds)
    stream["alerts"] = int(postgres.value("SELECT count(*) FROM cbshm.alert_queue WHERE status = 'sent'"))
    alertmanager.kill9()
    return stream


def _away(postgres, agent):
    """An agent that was away for many changes: how many loads it takes, and how long."""
    agent.stop()
    for _ in range(3):
        postgres.psql("UPDATE cbshm.breaker SET disabled = NOT disabled")
    begin = time.monotonic()
    agent.start()
    seconds = time.monotonic() - begin
    if not _same(postgres, agent):
        sys.exit("the agent that was away has not caught up in one load")
    return {"changes": 30000, "seconds": seconds, "loads": agent.log().split("event=started")[-1].count("event=loaded")}


def show_storm(runs):
    run = runs[-1]
    once = run["at_once"]
    print(f"\n10^4 changes in one transaction: the last one is in the segment {once['agent_ms']['median']:.0f} ms after the "
          f"commit (at most {once['agent_ms']['max']:.0f}); a bare listener has read it after {once['bare_ms']['median']:.0f} ms "
          f"(at most {once['bare_ms']['max']:.0f}); us of CPU for each: agent {once['agent_cpu_us']['median']:.1f}, listener "
          f"{once['bare_cpu_us']['median']:.1f}")
    for stream in filter(None, (run["stream"], run["told"])):
        lags = [f"{where} p50 {lag['p50_ms']:.1f} ms, p99 {lag['p99_ms']:.1f} ms, max {lag['max_ms']:.1f} ms"
                for where, lag in (("segment", stream["segment"]), ("bare listener", stream["bare"]))]
        beside = f", beside {stream['alerts']} alerts taken by Alertmanager" if "alerts" in stream else ""
        print(f"{stream['changes_per_second']:.0f} changes/s{beside}; behind the commit's answer: {'; '.join(lags)}, of "
              f"{stream['samples']}; nothing lost")
    print(f"away for {run['away']['changes']} changes: {run['away']['loads']} load, {run['away']['seconds']:.2f} s from the "
          "start of the process")


# ---- million ----

def million(scratch, args):
    """The largest fleet of breakers: what it takes."""
    with Postgres(scratch, name="pg-million", options={"shared_buffers": "512MB", "max_wal_size": "4GB"}) as postgres:
        postgres.migrate()
        postgres.psql("SET session_replication_role = replica; INSERT INTO cbshm.breaker (name) "
                      f"SELECT 'service-' || n || '/guarded-path' FROM generate_series(1, {args.breakers}) n")
        postgres.psql("VACUUM ANALYZE cbshm.breaker")
        begin = time.monotonic()
        agent = Agent(postgres, config={"segment": {"capacity": str(1 << 20)}}, ready=False)
        agent.wait_ready(300)
        ready = time.monotonic() - begin
        loaded = int(re.findall(r"event=loaded.* milliseconds=(\d+)", agent.log())[-1]) / 1000
        lags = _changes(postgres, agent, args.breakers)
        with open(f"/proc/{agent.pid}/status", encoding="ascii") as file:
            status = dict(line.split(":", 1) for line in file)
        shared, own = (int(status[key].split()[0]) for key in ("RssShmem", "RssAnon"))
        segment = os.stat("/dev/shm" + agent.segment)
        agent.close()
    return {"breakers": args.breakers, "load_s": loaded, "ready_s": ready, "agent_own_kib": own, "agent_shared_kib": shared,
            "segment_bytes": segment.st_blocks * 512, "segment_bytes_a_breaker": segment.st_blocks * 512 / args.breakers,
            "change_p50_ms": quantile(lags, 0.5), "change_max_ms": max(lags)}


def _changes(postgres, agent, breakers):
    """Milliseconds from a commit to the segment, for some breakers of many."""
    session, lags = postgres.session(), []
    for number in range(1, breakers, max(1, breakers // 50)):
        watcher = Watcher(agent, f"service-{number}/guarded-path")
        before = watcher.version()
        session.execute(f"UPDATE cbshm.breaker SET disabled = true WHERE name = '{watcher.name}'")
        committed = time.monotonic()
        while watcher.version() == before:
            time.sleep(0.0002)
        lags.append((time.monotonic() - committed) * 1000)
        watcher.close()
    return lags


def show_million(runs):
    run = runs[-1]
    print(f"\n{run['breakers']} breakers: loaded in {run['load_s']:.1f} s, ready in {run['ready_s']:.1f} s; segment "
          f"{run['segment_bytes'] / 2**20:.0f} MiB ({run['segment_bytes_a_breaker']:.0f} bytes a breaker), agent "
          f"{run['agent_own_kib'] / 1024:.0f} MiB of its own; a change is in the segment {run['change_p50_ms']:.1f} ms after "
          f"its commit (at most {run['change_max_ms']:.1f})")


MEASUREMENTS = {"notified": (notified, show_notified), "listeners": (listeners, None), "storm": (storm, show_storm),
                "million": (million, show_million)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="how often `notified` is run")
    parser.add_argument("--only", default=",".join(MEASUREMENTS), help="what is measured")
    parser.add_argument("--commits", type=int, default=2000)
    parser.add_argument("--seconds", type=int, default=10, help="of each row of listeners, and of the stream of a storm")
    parser.add_argument("--breakers", type=int, default=1000000)
    parser.add_argument("--json", default="fleet.json", help="where the results go")
    args = parser.parse_args()
    results = {"machine": machine()}
    scratch = Scratch()
    try:
        for name in args.only.split(","):
            measure, show = MEASUREMENTS[name]
            runs = [measure(scratch, args) for _ in range(args.runs if name == "notified" else 1)]
            results[name] = {"runs": runs}
            if show:
                results[name]["rows"] = show(runs)
    finally:
        scratch.cleanup()
    write(args.json, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
