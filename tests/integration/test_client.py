# SPDX-License-Identifier: ISC
"""Many threads of one process and a real agent: one connection, deadlines, and reports that nobody waits for."""
import subprocess
import time
import unittest

from support import tap
from support.agent import Agent, program, wait_for
from support.postgres import Postgres


def pairs(line):
    """ "ok 3 unknown 0" as a dictionary of numbers. """
    words = line.split()
    return {key: int(value) for key, value in zip(words[::2], words[1::2])}


class Client(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()
        cls.agent = Agent(cls.postgres)
        cls.agent.cbctl("policy", "--fleet", "failure_threshold=1000000000", check=0)

    @classmethod
    def tearDownClass(cls):
        cls.agent.close()
        cls.postgres.close()

    def start(self, *arguments):
        process = self.agent.popen([program("tests/support/crowd"), *map(str, arguments)], stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def finish(self, process, timeout=120):
        """{name: counts}, or {"": counts}"""
        output = process.communicate(timeout=timeout)[0]
        self.assertEqual(process.returncode, 0)
        found = {}
        for line in output.splitlines():
            name, _, rest = line.partition(" ")
            if name in ("connections", "flush"):
                found[""] = pairs(line)
            else:
                found[name] = pairs(rest)
        tap.note(found)
        return found

    def failures(self, names):
        rows = dict(self.postgres.rows("SELECT name, consecutive_failures FROM cbshm.breaker"))
        return {name: int(rows.get(name, 0)) for name in names}

    def test_threads_share_one_connection(self):
        names = [f"thread{i}" for i in range(8)]
        counts = self.finish(self.start("wait", 1000, 20000, *names))
        for name in names:
            self.assertEqual(counts[name]["ok"], 1000)
        self.assertEqual(self.failures(names), {name: 1000 for name in names})
        # One, unless the machine held everything up for a moment.
        self.assertLessEqual(counts[""]["connections"], 4)

    def test_a_locked_row_delays_its_own_thread(self):
        """Answers come in order; who would be behind one that waits takes another connection."""
        self.agent.cbctl("drift", "locked", "0.9", check=0)
        session = self.postgres.session()
        self.addCleanup(session.close)
        session.execute("BEGIN; SELECT 1 FROM cbshm.breaker WHERE name = 'locked' FOR UPDATE")
        process = self.start("wait", 20, 1000, "locked", *[f"free{i}" for i in range(7)])
        time.sleep(2)
        session.execute("ROLLBACK")
        counts = self.finish(process)
        self.assertLess(counts["locked"]["ok"], 20)
        for i in range(7):
            self.assertGreaterEqual(counts[f"free{i}"]["ok"], 18, "only what was on its way at that moment is held up")
        self.assertLessEqual(counts[""]["connections"], 4)

    def test_deadlines_with_an_agent_that_does_not_move(self):
        names = [f"slow{i}" for i in range(8)]
        process = self.start("wait", 20, 400, *names)
        self.agent.sigstop()
        time.sleep(2)
        self.agent.sigcont()
        counts = self.finish(process)
        wait_for(lambda: self.agent.cbctl("drift", "end", "0.1", check=None).status == 0)
        failures = self.failures(names)
        for name in names:
            count = counts[name]
            self.assertLess(count["slowest_ms"], 2500, "its own deadline is kept")
            self.assertEqual(count["ok"] + count["unknown"] + count["timeout"], 20)
            self.assertGreaterEqual(failures[name], count["ok"])
            self.assertLessEqual(failures[name], count["ok"] + count["unknown"])

    def outlives(self, mode):
        names = [f"{mode}{i}" for i in range(4)]
        process = self.start(mode, 3000, 1000, *names)
        for _ in range(3):
            time.sleep(0.7)
            self.agent.kill9()
            time.sleep(0.3)
            self.agent.start()
        counts = self.finish(process)[""]
        self.assertEqual(counts["flush"], 0)
        self.assertEqual(counts["queued"] + counts["dropped"], 12000)
        self.assertEqual(counts["queued"], counts["acknowledged"] + counts["failed"] + counts["unknown"])
        self.assertEqual(counts["pending"], 0)
        self.assertGreater(counts["acknowledged"], 1000)
        applied = sum(self.failures(names).values())
        self.assertGreaterEqual(applied, counts["acknowledged"], "an acknowledged report is missing")
        self.assertLessEqual(applied, counts["acknowledged"] + counts["unknown"], "a report was applied twice")

    def test_reports_outlive_the_agent(self):
        self.outlives("async")

    def test_reports_of_a_loop_outlive_the_agent(self):
        self.outlives("loop")

    def test_the_example_with_an_event_loop(self):
        with self.agent.popen([program("examples/event_loop")], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            output = process.communicate("example 0.9\nexample 0.9\n\nnonsense\nexample 0.8\n" * 100, timeout=60)[0]
        self.assertEqual(process.returncode, 0)
        self.assertEqual(pairs(output)["acknowledged"], 300)
        self.assertEqual(self.failures(["example"]), {"example": 300})


if __name__ == "__main__":
    tap.main()
