# SPDX-License-Identifier: ISC
"""The agent as a service: what it tells the manager, and life under the restrictions of the unit."""
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import unittest

from support import confine, tap
from support.agent import Agent, wait_for
from support.postgres import AGENT_USER, Postgres
from support.scratch import Scratch, reachable

UNIT = os.path.join(tap.source_dir(), "systemd/cbagent.service.in")


class Manager:
    """The service manager's end of sd_notify(3)."""

    def __init__(self, name):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name[0] == "@" else name)
        if name[0] == "/":
            os.chmod(name, 0o666)
        self.heard = []

    def listen(self, timeout):
        """The next message as {variable: value}, or None."""
        self.socket.settimeout(timeout)
        try:
            message = self.socket.recv(4096).decode()
        except TimeoutError:
            return None
        self.heard.append(dict(line.split("=", 1) for line in message.split("\n")))
        return self.heard[-1]

    def wait(self, wanted, timeout=20):
        """Listens until a message for which wanted() is true; returns that."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            said = self.listen(end - time.monotonic())
            if said is not None and wanted(said):
                return said
        raise AssertionError(f"not said within {timeout} s; heard: {self.heard}")

    def close(self):
        self.socket.close()


class Notification(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()

    @classmethod
    def tearDownClass(cls):
        cls.postgres.close()

    def start(self, name, **environment):
        manager = Manager(name)
        self.addCleanup(manager.close)
        agent = Agent(self.postgres, ready=False, environment={"NOTIFY_SOCKET": name, **environment})
        self.addCleanup(agent.close)
        return manager, agent

    def test_a_life(self):
        manager, agent = self.start(os.path.join(self.postgres.scratch.path, "notify"))
        manager.wait(lambda said: said.get("READY") == "1")
        manager.wait(lambda said: re.fullmatch(r"Mirrors \d+ breakers from .*", said.get("STATUS", "")))

        self.postgres.stop()
        manager.wait(lambda said: said.get("STATUS", "").startswith("No database, readers go on"))
        self.postgres.start()
        manager.wait(lambda said: said.get("STATUS", "").startswith("Mirrors"))

        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        agent.sighup()
        said = manager.wait(lambda said: said.get("RELOADING") == "1")
        self.assertGreaterEqual(int(said["MONOTONIC_USEC"]), before)
        self.assertEqual(manager.listen(20), {"READY": "1"})

        with open(agent.config_path, "a", encoding="utf-8") as file:
            file.write("[agent]\nno_such_key = 1\n")
        agent.sighup()
        manager.wait(lambda said: said.get("RELOADING") == "1")
        self.assertEqual(manager.listen(20), {"READY": "1"}, "a file with a mistake does not leave it reloading for ever")

        agent.process.terminate()
        manager.wait(lambda said: said.get("STOPPING") == "1")
        self.assertEqual(agent.process.wait(20), 0)

    def test_ready_without_a_database(self):
        self.postgres.stop()
        self.addCleanup(self.postgres.start)
        manager, _ = self.start("@cbshm-test-notify-%d" % os.getpid())
        manager.wait(lambda said: said.get("READY") == "1")

    def test_watchdog_is_fed_by_the_loop(self):
        name = os.path.join(self.postgres.scratch.path, "watchdog")
        manager, agent = self.start(name, WATCHDOG_USEC="200000")
        for _ in range(3):
            manager.wait(lambda said: said.get("WATCHDOG") == "1")
        agent.sigstop()
        while manager.listen(0.5) is not None:
            pass  # what was sent before
        self.assertIsNone(manager.listen(1), "a process that stands still does not feed it")
        agent.sigcont()
        manager.wait(lambda said: said.get("WATCHDOG") == "1")

    def test_watchdog_of_another_process(self):
        name = os.path.join(self.postgres.scratch.path, "other")
        manager, agent = self.start(name, WATCHDOG_USEC="100000", WATCHDOG_PID="1")
        manager.wait(lambda said: said.get("READY") == "1")
        agent.wait_ready()
        while (said := manager.listen(0.5)) is not None:
            self.assertNotIn("WATCHDOG", said)

    def test_no_manager_at_the_socket(self):
        for name in "/nonexistent/notify", "relative", "/" + "x" * 200:
            agent = Agent(self.postgres, environment={"NOTIFY_SOCKET": name})
            self.assertIn("event=notify_unavailable", agent.log())
            agent.close()


class Confined(Agent):
    """A cbagent under tests/support/confine.py."""

    def __init__(self, postgres, user):
        scratch = Scratch()
        self.place = scratch.directory("writable", user)
        prefix = [sys.executable, os.path.join(tap.source_dir(), "tests/support/confine.py"), UNIT,
                  "--writable", scratch.path, *(["--user", user] if user else []), "--"]
        # A sanitizer that looks for leaks at the end traces the process, which the filter kills.
        sanitizer = {"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"}
        super().__init__(scratch=scratch, user=user, conninfo=postgres.conninfo(user=AGENT_USER), prefix=prefix,
                         environment=sanitizer)

    def start(self, ready=True, timeout=20):
        user, self.user = self.user, None  # it becomes the user by itself
        try:
            super().start(ready=False)
        finally:
            self.user = user
        self.wait_ready(timeout)


def confined(command, writable, user=None):
    """Runs a command under the restrictions, to see what they forbid."""
    script = os.path.join(tap.source_dir(), "tests/support/confine.py")
    return subprocess.run([sys.executable, script, UNIT, "--writable", writable, *(["--user", user] if user else []), "--",
                           *command], capture_output=True, text=True, check=False)


class Restrictions(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if shutil.which("systemd-analyze") is None:
            raise unittest.SkipTest("systemd-analyze, which knows the groups of system calls, is not installed")
        cls.user = "nobody" if os.getuid() == 0 else None
        if cls.user and not reachable(cls.user, os.path.join(tap.build_dir(), "agent/cbagent")):
            raise unittest.SkipTest(f"{tap.build_dir()} is closed to other users")
        cls.scratch = Scratch()
        cls.place = cls.scratch.directory("place", cls.user)
        done = confined(["true"], cls.place, cls.user)
        if done.returncode == confine.CANNOT or "libseccomp" in done.stderr:
            raise unittest.SkipTest(done.stderr.strip().splitlines()[-1])
        if done.returncode != 0:
            raise AssertionError(done.stderr)
        cls.postgres = Postgres().migrate()

    @classmethod
    def tearDownClass(cls):
        cls.postgres.close()
        cls.scratch.cleanup()

    def test_the_restrictions_restrict(self):
        """Else the others of this class would say nothing."""
        def run(program, *arguments):
            return confined([program, *arguments], self.place, self.user)
        self.assertEqual(run("touch", self.place + "/file").returncode, 0)
        self.assertIn("Read-only file system", run("touch", self.scratch.path + "/file").stderr)
        python = next((path for path in (sys.executable, "/usr/bin/python3") if reachable(self.user, path)), None)
        if python is None:
            self.skipTest(f"no python that {self.user} may run")
        for forbidden in ("import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)",
                          "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
                          "import os; os.setuid(os.getuid())"):
            with self.subTest(forbidden):
                self.assertEqual(run(python, "-c", forbidden).returncode, -signal.SIGSYS)
        self.assertEqual(run(python, "-c", "import socket, mmap; socket.socket(); mmap.mmap(-1, 4096)").returncode, 0)

    def test_the_loop(self):
        agent = Confined(self.postgres, self.user)
        self.addCleanup(agent.close)
        with open(f"/proc/{agent.pid}/status", encoding="ascii") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        self.assertEqual((status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16)), ("1", "2", 0))
        if self.user:
            self.assertEqual(status["Uid"].split()[0], str(pwd.getpwnam(self.user).pw_uid))
            self.assertEqual(int(status["CapBnd"], 16), 0)

        for _ in range(3):
            agent.cbctl("drift", "confined", "0.9", check=0)
        agent.cbctl("check", "confined", check=1)
        agent.cbctl("enable", "confined", check=0)
        agent.cbctl("disable", "confined", "--reason", "short", "--for", "1s", check=0)
        wait_for(lambda: agent.cbctl("check", "confined").status == 0)
        # More than one chunk of the segment, so that it grows.
        self.postgres.psql("INSERT INTO cbshm.breaker (name) SELECT 'many/' || i FROM generate_series(1, 1000) i")
        wait_for(lambda: agent.header()[2] >= 1001)
        agent.sighup()
        wait_for(lambda: "event=reloaded" in agent.log())
        self.postgres.restart()
        wait_for(lambda: agent.log().count("event=database state=live") >= 2)
        self.assertEqual(agent.stop(), 0)
        agent.start()
        self.assertEqual(agent.header()[1], 2, "the same segment, taken over")
        agent.cbctl("check", "many/1000", check=0)
        self.assertNotIn("level=error", agent.log())


if __name__ == "__main__":
    tap.main()
