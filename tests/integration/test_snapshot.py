# SPDX-License-Identifier: ISC
"""The snapshot on disk: a segment that is gone, as after a reboot, and no database to ask."""
import itertools
import os
import re
import signal
import time
import unittest

from support import tap
from support.agent import Agent, wait_for
from support.postgres import Postgres
from support.probe import Probe


class Snapshot(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()
        cls.addClassCleanup(cls.postgres.close)

    def setUp(self):
        if self.postgres.process is None:
            self.postgres.start()
        self.postgres.psql("DELETE FROM cbshm.breaker")
        self.path = os.path.join(self.postgres.scratch.directory(self._testMethodName), "snapshot")
        self.agent = Agent(self.postgres, config={"segment": {"snapshot": self.path}})
        self.addCleanup(self.agent.close)

    def decide(self):
        self.agent.cbctl("disable", "killed", "--reason", "it prices wrong", "--by", "me", "--until", "never", check=0)
        self.agent.cbctl("disable", "soon", "--reason", "r", "--for", "4s", check=0)
        self.agent.cbctl("disable", "later", "--reason", "r", "--for", "1h", check=0)
        self.agent.cbctl("policy", "closed", "failure_threshold=7", check=0)

    def written(self, since=0):
        """A snapshot newer than that; its time."""
        def newer():
            try:
                found = os.stat(self.path).st_mtime_ns
            except FileNotFoundError:
                return None
            return found if found > since else None
        return wait_for(newer, what="a snapshot")

    def holds(self, *names):
        try:
            with open(self.path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return False
        return all(name.encode() in content for name in names)

    def remove_segment(self):
        """What a reboot does: every process dies, and /dev/shm is empty."""
        for suffix in ("", ".lock"):
            os.unlink("/dev/shm" + self.agent.segment + suffix)

    def reboot(self):
        self.agent.kill9()
        self.postgres.stop("immediate")
        self.remove_segment()
        self.agent.start(ready=False)
        wait_for(self.agent.header, what="a segment")

    def test_killed_stays_killed(self):
        self.decide()
        with Probe(self.agent) as before:
            state = before.fields("state killed")
        wait_for(lambda: self.holds("killed", "soon", "later", "closed"), what="a snapshot of all four")
        self.reboot()
        with Probe(self.agent) as probe:
            self.assertTrue(probe.disabled("killed"))
            self.assertEqual(probe.fields("state killed"), state)
            self.assertEqual(probe.ask("check closed").split()[::2], ["enabled", "0"])
            self.assertTrue(probe.disabled("later"))
            wait_for(lambda: not probe.disabled("soon"), what="the end of a TTL")
            self.assertEqual(probe.fields("health")["restored"], "1")
            self.assertEqual(probe.fields("health")["database"], "0")
            self.assertEqual(probe.ask("policy closed closed 3000000"), "ok")
            wait_for(lambda: probe.ask("check closed").split()[::2] == ["disabled", "3"], what="staleness")
            self.assertRegex(self.agent.log(), r"event=snapshot_restored .*breakers=4 disabled=3 .*age_seconds=")
            kept = os.stat(self.path).st_mtime_ns
            self.postgres.start()
            wait_for(lambda: probe.fields("health")["database"] == "1", what="the database")
            self.assertEqual(probe.fields("health")["restored"], "0")
            self.assertFalse(probe.disabled("closed"))
            self.assertGreater(self.written(kept), kept)

    def test_the_last_words(self):
        """An agent that ends in order leaves what it knew, without waiting for its time."""
        self.decide()
        self.assertEqual(self.agent.stop(), 0)
        self.postgres.stop("immediate")
        self.remove_segment()
        self.agent.start(ready=False)
        wait_for(self.agent.header, what="a segment")
        with Probe(self.agent) as probe:
            self.assertTrue(probe.disabled("killed"))
        # And one that is killed before the database has come back takes over what is there, as old as it is.
        self.agent.kill9()
        self.agent.start(ready=False)
        wait_for(lambda: (self.agent.header() or (0, 0, 0, 0))[3] == self.agent.pid, what="the next agent")
        with Probe(self.agent) as probe:
            self.assertTrue(probe.disabled("killed"))
            self.assertEqual(probe.fields("health")["restored"], "1")

    def test_what_is_not_believed(self):
        self.decide()
        self.agent.stop()
        self.postgres.stop("immediate")
        with open(self.path, "rb") as file:
            good = file.read()
        flipped = good[:1000 % len(good)] + bytes([good[1000 % len(good)] ^ 4]) + good[1000 % len(good) + 1:]
        for content, why in ((good[:-1], "shorter or longer"), (flipped, "damaged"), (b"", "too short"),
                             (os.urandom(5000), "no snapshot")):
            self.remove_segment()
            with open(self.path, "wb") as file:
                file.write(content)
            self.agent.start(ready=False)
            wait_for(self.agent.header, what="a segment")
            with Probe(self.agent) as probe:
                self.assertEqual(probe.ask("check killed").split()[::2], ["enabled", "1"])
                self.assertEqual(probe.fields("health")["restored"], "0")
            self.agent.stop()
            self.assertRegex(self.agent.log(), "event=snapshot_ignored .*" + re.escape(why))

    def test_another_database(self):
        self.decide()
        self.agent.stop()
        self.postgres.stop("immediate")
        self.remove_segment()
        self.agent.config["postgres"]["conninfo"] += " dbname=another"
        self.agent.write_config()
        self.agent.start(ready=False)
        wait_for(self.agent.header, what="a segment")
        with Probe(self.agent) as probe:
            self.assertFalse(probe.disabled("killed"))
        self.assertRegex(self.agent.log(), "event=snapshot_ignored .*another database")

    def test_another_database_comes(self):
        """What was restored could not be compared then; it is when there is a database again, and another one it is."""
        other = Postgres(self.postgres.scratch, name="another").migrate()
        other.stop()
        self.decide()
        self.agent.stop()
        self.postgres.stop("immediate")
        self.remove_segment()
        self.agent.start(ready=False)
        wait_for(lambda: "event=snapshot_restored" in self.agent.log(), what="a segment from the snapshot")
        os.rename(self.postgres.data, self.postgres.data + ".first")
        os.rename(other.data, self.postgres.data)
        self.addCleanup(self.change_back)
        self.postgres.start()
        wait_for(lambda: "event=snapshot_of_another_database" in self.agent.log(), what="the comparison")
        with Probe(self.agent) as probe:
            wait_for(lambda: not probe.disabled("killed"), what="the other database's breakers")

    def change_back(self):
        self.postgres.stop("immediate")
        os.rename(self.postgres.data, self.postgres.data + ".second")
        os.rename(self.postgres.data + ".first", self.postgres.data)
        self.postgres.start()

    def test_no_place_for_it(self):
        """It is said once, and everything else goes on."""
        directory = os.path.dirname(self.path)
        self.written()
        os.unlink(self.path)
        os.rename(directory, directory + ".gone")
        self.decide()
        wait_for(lambda: "event=snapshot_failed" in self.agent.log(), what="a log line")
        os.rename(directory + ".gone", directory)

    def stop_writer(self):
        """Stops a process that writes a snapshot, in the middle of it; its id. A decision a second brings the next one."""
        path = f"/proc/{self.agent.pid}/task/{self.agent.pid}/children"
        end = time.monotonic() + 15
        for number in itertools.count():
            self.agent.call("Disable", name="again", reason=f"r{number}")
            again = time.monotonic() + 1
            while time.monotonic() < again:
                with open(path, encoding="ascii") as file:
                    children = file.read().split()
                if children:
                    os.kill(int(children[0]), signal.SIGSTOP)
                    with open(f"/proc/{children[0]}/stat", encoding="ascii") as file:
                        if file.read().rsplit(")", 1)[1].split()[0] == "T":
                            return int(children[0])
            self.assertLess(time.monotonic(), end, "no snapshot was caught being written")

    def test_one_that_hangs(self):
        """It is ended, said so, and everything else goes on meanwhile."""
        if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
            self.skipTest("this kernel does not list children")
        pid = self.stop_writer()
        self.assertEqual(self.agent.outcome("Enable", name="again")[0], "ok")
        wait_for(lambda: "event=snapshot_hangs" in self.agent.log(), 20, "a log line")
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"), 5, "its end")
        self.agent.call("Disable", name="on", reason="r")
        self.assertEqual(self.agent.stop(), 0)
        self.assertTrue(self.holds("on"), "the last words")


if __name__ == "__main__":
    tap.main()
