# SPDX-License-Identifier: ISC
"""The whole loop through real processes: engines, agent, Postgres; and what is left of it when parts die."""
import os
import shutil
import subprocess
import threading
import time
import unittest

from support import tap
from support.agent import Agent, wait_for
from support.postgres import Postgres
from support.probe import Probe


class Loop(unittest.TestCase):
    """Everything alive."""

    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()
        cls.agent = Agent(cls.postgres)

    @classmethod
    def tearDownClass(cls):
        cls.agent.close()
        cls.postgres.close()

    def probe(self):
        probe = Probe(self.agent)
        self.addCleanup(probe.close)
        return probe

    def test_trip_ttl_and_recovery(self):
        engine, neighbour = self.probe(), self.probe()
        name = "loop/trip"
        self.assertEqual(neighbour.ask(f"check {name}"), "enabled 0 1")  # unknown yet, and followed from now on
        self.agent.cbctl("policy", name, "default_ttl=2s", check=0)
        self.assertEqual(engine.ask(f"drift {name} 0.25"), "ok -")
        self.assertEqual(engine.ask(f"drift {name} 0.25"), "ok -")
        self.assertFalse(neighbour.disabled(name))
        answer = engine.ask(f'drift {name} 0.25 {{"symbol": "XYZ"}}')
        self.assertRegex(answer, r"^ok [0-9a-f-]{36}$")
        incident = answer.split()[1]
        self.assertTrue(neighbour.disabled(name))
        state = neighbour.fields(f"state {name}")
        self.assertEqual((state["incident"], state["by"], state["reason"]),
                         (incident, "circuit_breaker", "Drift exceeded threshold: 0.2500 > 0.2"))

        changes = neighbour.ask(f"watch {name} 4000").split()[1:]
        self.assertEqual([change.split(":")[1] for change in changes], ["1", "0"])
        ended = int(changes[1].split(":")[0])
        self.assertLess(abs(ended - int(state["until"])), 300_000, "the TTL ends when the database says so")

        wait_for(lambda: self.postgres.value(f"SELECT disabled FROM cbshm.breaker WHERE name = '{name}'") == "f")
        self.assertEqual(
            self.postgres.rows("SELECT severity, resolved, resolved_by, resolution_notes, details->>'symbol' "
                               f"FROM cbshm.incident WHERE id = '{incident}'"),
            [("P1", "t", "system-auto-recover", "Auto-recovered after TTL expired", "XYZ")])
        self.assertEqual(self.postgres.rows(f"SELECT count(*) FROM cbshm.incident WHERE breaker = '{name}'"), [("1",)])

    def test_person_disables_and_enables(self):
        engine = self.probe()
        name = "loop/person"
        self.assertFalse(engine.disabled(name))
        self.agent.cbctl("disable", name, "--reason", "bad prices", "--by", "anna", check=0)
        self.assertTrue(engine.disabled(name))
        self.assertEqual(self.agent.cbctl("check", name).status, 1)
        state = engine.fields(f"state {name}")
        self.assertEqual((state["by"], state["reason"]), ("anna", "bad prices"))
        self.agent.cbctl("enable", name, "--by", "anna", check=0)
        self.assertFalse(engine.disabled(name))
        self.assertEqual(self.agent.cbctl("check", name).status, 0)

    def test_plain_sql_is_seen(self):
        engine = self.probe()
        name = "loop/sql"
        engine.ask(f"check {name}")
        self.postgres.psql("INSERT INTO cbshm.breaker (name, disabled, disabled_reason) "
                           f"VALUES ('{name}', true, 'by hand')")
        wait_for(lambda: engine.disabled(name))
        self.assertEqual(engine.fields(f"state {name}")["reason"], "by hand")
        self.postgres.psql(f"UPDATE cbshm.breaker SET disabled = false WHERE name = '{name}'")
        wait_for(lambda: not engine.disabled(name))
        self.postgres.psql(f"DELETE FROM cbshm.breaker WHERE name = '{name}'")
        wait_for(lambda: engine.ask(f"check {name}") == "enabled 0 1")
        self.postgres.psql(f"INSERT INTO cbshm.breaker (name, disabled) VALUES ('{name}', true)")
        wait_for(lambda: engine.disabled(name))

    def test_writes_are_read_by_every_process(self):
        """After any successful write returns, every process of the host shows it."""
        writer, readers = self.probe(), [self.probe() for _ in range(3)]
        for i in range(150):
            name = f"loop/own-{i % 7}"
            self.assertEqual(writer.ask(f"disable {name} 60000000 round {i}").split()[:2], ["ok", "1"])
            for reader in readers:
                self.assertTrue(reader.disabled(name), f"round {i}")
                self.assertEqual(reader.fields(f"state {name}")["reason"], f"round {i}")
            self.assertEqual(writer.ask(f"enable {name}"), "ok 1")
            for reader in readers:
                self.assertFalse(reader.disabled(name), f"round {i}")
            failures = int(writer.fields(f"fetch {name}")["failures"])
            self.assertEqual(writer.ask(f"drift {name} 0.9"), "ok -")
            self.assertEqual(int(readers[0].fields(f"state {name}")["failures"]), failures + 1)
        answer = writer.ask("schema-error loop/schema 5")
        self.assertRegex(answer, "^ok [0-9a-f-]{36}$")
        self.assertTrue(all(reader.disabled("loop/schema") for reader in readers))

    def test_the_check_makes_no_system_call(self):
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        trace = os.path.join(self.agent.scratch.path, "strace")
        self.agent.cbctl("enable", "loop/strace", check=0)
        with Probe(self.agent, prefix=["strace", "-o", trace]) as engine:
            try:
                self.assertTrue(engine.ask("check loop/strace").startswith("enabled"))
            except EOFError:
                self.skipTest("strace may not trace here")
            self.assertEqual(engine.ask("spin loop/strace 1000000"), "disabled 0")
        with open(trace, encoding="utf-8") as file:
            calls = list(file)
        asked = next(i for i, call in enumerate(calls) if '"spin loop/strace' in call)
        self.assertIn('"disabled 0', calls[asked + 1], "a million checks, and not one system call between")

    def test_a_missing_successor_is_looked_for_now_and_then(self):
        """The engine's segment has been replaced, by one that nobody can reach: its checks do not become system calls."""
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        config = {"segment": {"capacity": "2048"}, "agent": {"instance": "replaced"}}
        with Agent(self.postgres, config=config) as agent:
            agent.cbctl("disable", "loop/left", "--reason", "x", check=0)
            trace = os.path.join(agent.scratch.path, "strace")
            with Probe(agent, prefix=["strace", "-o", trace]) as engine:
                try:
                    self.assertTrue(engine.disabled("loop/left"))
                except EOFError:
                    self.skipTest("strace may not trace here")
                agent.stop()
                agent.config["segment"]["capacity"] = "4096"
                agent.write_config()
                agent.start()
                agent.stop()
                os.unlink("/dev/shm" + agent.segment)
                self.assertEqual(engine.ask("spin loop/left 100000"), "disabled 100000")
                agent.start()
                agent.cbctl("enable", "loop/left", check=0)
                wait_for(lambda: not engine.disabled("loop/left"), 10, what="the successor")
            with open(trace, encoding="utf-8") as file:
                calls = list(file)
        asked = next(i for i, call in enumerate(calls) if '"spin loop/left' in call)
        answered = next(i for i, call in enumerate(calls) if '"disabled 100000' in call)
        self.assertLess(answered - asked, 2000, calls[asked:asked + 20])

    def test_group_members_report_and_admins_decide(self):
        if os.getuid() != 0:
            self.skipTest("needs root to become other users")
        report, admin = 60, 61  # groups by number; they need no names
        with Agent(self.postgres, config={"socket": {"mode": "0666", "group": report, "admin_group": admin}}) as agent:
            script = ("import sys; from support.varlink import Varlink, VarlinkError\n"
                      "client = Varlink(sys.argv[1])\n"
                      "for method, arguments in (('ReportDrift', dict(name='g', drift_score=0.1, sample_count=1)),"
                      " ('Disable', dict(name='g', reason='r', by='forged')), ('GetState', dict(name='g'))):\n"
                      "    try: client.call(method, **arguments); print(method, 'done')\n"
                      "    except VarlinkError as error: print(method, error.name)\n")

            def attempt(groups):
                done = subprocess.run(["python3", "-c", script, agent.socket], user=4711, group=4711, text=True,
                                      extra_groups=groups, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/",
                                      env={**os.environ, "PYTHONPATH": os.path.join(tap.source_dir(), "tests")})
                return done.stdout.split()

            if "ModuleNotFoundError" in " ".join(attempt([])):
                self.skipTest("the source tree is closed to other users")
            denied = "PermissionDenied"
            self.assertEqual(attempt([]), ["ReportDrift", denied, "Disable", denied, "GetState", denied])
            self.assertEqual(attempt([report]), ["ReportDrift", "done", "Disable", denied, "GetState", "done"])
            self.assertEqual(attempt([admin]), ["ReportDrift", "done", "Disable", "done", "GetState", "done"])
            claimed, proof = self.postgres.row("SELECT actor, proof->>'uid' FROM cbshm.audit_log "
                                               "WHERE breaker = 'g' AND action = 'disable'")
            self.assertEqual((claimed, proof), ("forged", "4711"))

    def test_outsiders_cannot_reach_socket_or_segment(self):
        if os.getuid() != 0:
            self.skipTest("needs root to become another user")
        script = ("import os, socket, sys\n"
                  "for flags in (os.O_RDWR, os.O_RDONLY):\n"
                  "    try: os.open(sys.argv[1], flags); print('opened')\n"
                  "    except PermissionError: print('denied')\n"
                  "try: socket.socket(socket.AF_UNIX).connect(sys.argv[2]); print('connected')\n"
                  "except PermissionError: print('denied')\n")
        done = subprocess.run(["python3", "-c", script, "/dev/shm" + self.agent.segment, self.agent.socket],
                              user=4711, group=4711, extra_groups=[], stdout=subprocess.PIPE, text=True, cwd="/")
        self.assertEqual(done.stdout.split(), ["denied"] * 3)

    def test_neither_agent_nor_client_takes_a_stranger_s_segment(self):
        if os.getuid() != 0:
            self.skipTest("needs root to become another user")
        name = self.agent.scratch.segment()
        path = "/dev/shm" + name
        shutil.copy("/dev/shm" + self.agent.segment, path)
        os.chown(path, 4711, 4711)
        os.chmod(path, 0o644)
        with Probe(self.agent, environment={**self.agent.environment(), "CBSHM_SEGMENT": name}) as engine:
            self.assertEqual(engine.ask("status"), "-5")
            self.assertEqual(engine.ask("check loop/person").split()[2], "2")
        other = Agent(self.postgres, config={"segment": {"name": name}}, ready=False)
        self.addCleanup(other.close)
        self.assertNotEqual(other.process.wait(20), 0)
        self.assertIn(name, other.log())
        self.assertEqual(os.stat(path).st_uid, 4711, "left alone")


class Apart(unittest.TestCase):
    """Parts die."""

    def setUp(self):
        self.postgres = Postgres().migrate()
        self.addCleanup(self.postgres.close)
        self.agent = Agent(self.postgres)
        self.addCleanup(self.agent.close)

    def probe(self):
        probe = Probe(self.agent)
        self.addCleanup(probe.close)
        return probe

    def test_everything_dead_but_the_readers(self):
        engine = self.probe()
        self.assertEqual(engine.ask("disable forever 3600000000 stays").split()[:2], ["ok", "1"])
        self.assertEqual(engine.ask("enable closed"), "ok 0")
        self.assertEqual(engine.ask("disable ttl 3000000 ends").split()[:2], ["ok", "1"])
        until = int(engine.fields("state ttl")["until"])
        self.agent.kill9()
        self.postgres.kill9()

        self.assertTrue(engine.disabled("ttl"))
        self.assertTrue(engine.disabled("forever"))
        self.assertFalse(engine.disabled("closed"))
        changes = engine.ask("watch ttl 5000").split()[1:]
        self.assertEqual([change.split(":")[1] for change in changes], ["1", "0"])
        self.assertLess(abs(int(changes[1].split(":")[0]) - until), 300_000)
        late = self.probe()  # attaches to what the dead have left
        self.assertTrue(late.disabled("forever"))
        self.assertEqual(late.fields("state forever")["reason"], "stays")
        self.assertRegex(late.ask("health"), r"^agent=0 .*\bdatabase=0 ")
        for line in ("drift closed 0.5", "disable closed 0 why", "enable forever"):
            before = time.monotonic()
            answer = engine.ask(line)
            self.assertRegex(answer, "^error -9 .*cbagent", line)
            self.assertLess(time.monotonic() - before, 2, "at once, not at the deadline")

    def test_database_dead(self):
        engine = self.probe()
        self.assertEqual(engine.ask("disable x 3600000000 stays").split()[:2], ["ok", "1"])
        self.postgres.kill9()
        engine.ask("timeout 20000")
        engine.ask("drift x 0.5")  # the first one may find the connection just lost
        time.sleep(1.5)
        before = time.monotonic()
        answer = engine.ask("disable y 0 why")
        self.assertRegex(answer, "^error -10 .*([Pp]ostgres|database)")
        self.assertLess(time.monotonic() - before, 2)
        self.assertTrue(engine.disabled("x"))
        self.assertRegex(engine.ask("health"), r"^agent=1 .*\bdatabase=0 ")
        self.postgres.start()
        wait_for(lambda: engine.ask("disable y 0 why").startswith("ok"), 10, "a write after the restart")
        self.assertTrue(engine.disabled("y"))

    def test_agent_killed_under_readers_and_writers(self):
        """Acknowledged writes stand, decisions never go back, and the segment keeps its inode."""
        rounds = 12
        inode = os.stat("/dev/shm" + self.agent.segment).st_ino
        stop = threading.Event()
        faults, acknowledged = [], {}

        def write(number):
            probe, i = Probe(self.agent), 0
            while not stop.is_set():
                i += 1
                answer = probe.ask(f"disable w{number} 3600000000 r{i}")
                if answer.startswith("ok"):
                    acknowledged[number] = i
                    state = probe.fields(f"state w{number}")
                    if state["reason"] != f"r{i}":
                        faults.append(f"w{number}: {state} after r{i} was acknowledged")
                else:
                    time.sleep(0.01)
            probe.close()

        def read():
            probe, last = Probe(self.agent), {}
            while not stop.is_set():
                for number in range(2):
                    word = probe.ask(f"check w{number}").split()
                    if word[2] == "1" and number not in last:
                        continue
                    epoch = int(word[1])
                    if word[2] != "0" or epoch < last.get(number, 0):
                        faults.append(f"w{number}: {word} after epoch {last.get(number)}")
                    last[number] = epoch
                    state = probe.fields(f"state w{number}")
                    if int(state["version"]) < epoch or not state["reason"].startswith("r"):
                        faults.append(f"w{number}: {state} after epoch {epoch}")
            probe.close()

        threads = [threading.Thread(target=write, args=(i,)) for i in range(2)]
        threads += [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for i in range(rounds):
            time.sleep(0.05 + 0.03 * (i % 5))
            self.agent.kill9()
            self.agent.start()
        time.sleep(0.3)
        stop.set()
        for thread in threads:
            thread.join()
        self.assertEqual(faults, [])
        self.assertEqual(os.stat("/dev/shm" + self.agent.segment).st_ino, inode)
        for number, i in acknowledged.items():
            reason = self.postgres.value(f"SELECT disabled_reason FROM cbshm.breaker WHERE name = 'w{number}'")
            self.assertGreaterEqual(int(reason[1:]), i)
        self.assertGreater(sum(acknowledged.values()), rounds)
        tap.note(f"{acknowledged} writes acknowledged over {rounds} kills")

    def test_postgres_restarted_under_load(self):
        """Each acknowledged report is counted once; one whose outcome was said to be unknown, at most once."""
        stop = threading.Event()
        counts = [{"ok": 0, "unknown": 0, "refused": 0} for _ in range(4)]

        def report(number):
            probe = Probe(self.agent)
            probe.ask("timeout 5000")
            while not stop.is_set():
                answer = probe.ask(f"drift load{number} 0.9")
                kind = "ok" if answer.startswith("ok") else "unknown" if answer.startswith("error -12") else "refused"
                counts[number][kind] += 1
                if kind == "refused":
                    time.sleep(0.02)
            probe.close()

        threads = [threading.Thread(target=report, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for how in ("fast", "kill", "immediate", "kill"):
            time.sleep(0.7)
            if how == "kill":
                self.postgres.kill9()
                self.postgres.start()
            else:
                self.postgres.restart(how)
        time.sleep(1.5)
        stop.set()
        for thread in threads:
            thread.join()
        for number, count in enumerate(counts):
            failures = int(self.postgres.value(
                f"SELECT consecutive_failures FROM cbshm.breaker WHERE name = 'load{number}'"))
            self.assertGreaterEqual(failures, count["ok"], counts)
            self.assertLessEqual(failures, count["ok"] + count["unknown"], counts)
            self.assertGreater(count["ok"], 20)
        tap.note(counts)


if __name__ == "__main__":
    tap.main()
