# SPDX-License-Identifier: ISC
"""
Clocks that are wrong: the database's by minutes, the host's stepped by hours while everything runs. A TTL ends when the database
says so, and nobody else is asked.

libfaketime gives each process the time of day that a file says. CLOCK_MONOTONIC and CLOCK_BOOTTIME, which nobody can set, go on.
"""
import glob
import os
import time
import unittest

from support import tap
from support.agent import Agent, program, wait_for
from support.postgres import Postgres
from support.probe import Probe
from support.scratch import Scratch

LIBRARIES = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
SLACK = 0.5  # seconds by which the two may disagree on the moment


class Clock:
    """The time of day of the processes that have its environment."""

    def __init__(self, scratch, name):
        self.path = os.path.join(scratch.path, name)
        self.environment = {"LD_PRELOAD": LIBRARIES[0], "FAKETIME_TIMESTAMP_FILE": self.path, "FAKETIME_NO_CACHE": "1",
                            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DISABLE_SHM": "1"}
        self.set(0)

    def set(self, seconds):
        # In one step, or somebody would read half of it.
        with open(self.path + ".new", "w", encoding="ascii") as file:
            file.write(f"{seconds:+d}")
        os.chmod(self.path + ".new", 0o644)
        os.rename(self.path + ".new", self.path)


@unittest.skipUnless(LIBRARIES, "libfaketime is not installed")
class Clocks(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open(program("agent/cbagent"), "rb") as file:
            if b"__asan_init" in file.read():
                raise unittest.SkipTest("AddressSanitizer and libfaketime both want to be loaded first")
        cls.scratch = Scratch()
        cls.database_clock = Clock(cls.scratch, "database-clock")
        cls.host_clock = Clock(cls.scratch, "host-clock")
        cls.postgres = Postgres(cls.scratch, extra_environment=cls.database_clock.environment).migrate()
        cls.agent = Agent(cls.postgres, environment=cls.host_clock.environment)
        cls.probe = Probe(cls.agent)

    @classmethod
    def tearDownClass(cls):
        cls.probe.close()
        cls.agent.close()
        cls.postgres.close()
        cls.scratch.cleanup()

    def tearDown(self):
        self.database_clock.set(0)
        self.host_clock.set(0)

    def seconds_over(self, name):
        """For how long the TTL has been over on the database's clock; negative while it lasts."""
        value = self.postgres.value("SELECT extract(epoch FROM clock_timestamp() - disabled_until) FROM cbshm.breaker "
                                    f"WHERE name = '{name}'")
        return float(value) if value else float("inf")  # recovered already

    def follow(self, name):
        """Looks until the breaker is closed: never longer than the database says, and never shorter."""
        looks = 0
        while True:
            before = self.seconds_over(name)
            disabled = self.probe.disabled(name)
            after = self.seconds_over(name)
            if not disabled:
                self.assertGreater(after, -SLACK, "closed before the database's time")
                self.assertGreater(looks, 0, "it was never seen open")
                return
            looks += 1
            self.assertLess(before, SLACK, "still open after the database's time")
            time.sleep(0.01)

    def disable(self, name, seconds):
        self.assertEqual(self.probe.ask(f"disable {name} {seconds * 1000000} clocks")[:4], "ok 1")
        self.assertTrue(self.probe.disabled(name))

    def database_off_by(self, seconds):
        """The agent begins with it, as one that comes to a database whose clock is wrong."""
        self.database_clock.set(seconds)
        self.agent.restart()
        name = f"clocks/database{seconds:+d}"
        self.disable(name, 2)
        until = int(self.probe.fields(f"state {name}")["until"]) / 1e6
        self.assertLess(abs(until - (time.time() + seconds + 2)), 60, "the end is on the database's clock")
        self.follow(name)

    def test_database_ahead(self):
        self.database_off_by(600)

    def test_database_behind(self):
        self.database_off_by(-600)

    def test_database_stepped_forward(self):
        self.disable("clocks/forward", 3600)
        self.database_clock.set(7200)
        wait_for(lambda: not self.probe.disabled("clocks/forward"), what="the end that the database's new time says")

    def test_database_stepped_back(self):
        self.disable("clocks/back", 4)
        self.database_clock.set(-600)
        end = time.monotonic() + 6
        while time.monotonic() < end:
            self.assertTrue(self.probe.disabled("clocks/back"), "closed before the database's time")
            time.sleep(0.05)

    def host_stepped_by(self, seconds):
        name = f"clocks/host{seconds:+d}"
        self.agent.restart()
        self.disable(name, 3)
        self.host_clock.set(seconds)
        self.assertTrue(self.probe.disabled(name))
        self.follow(name)
        self.disable(name + "/later", 2)
        self.follow(name + "/later")

    def test_host_stepped_forward(self):
        self.host_stepped_by(3 * 3600)

    def test_host_stepped_back(self):
        self.host_stepped_by(-3 * 3600)

    def attach_anew(self):
        """For the others: nobody tells a program that the segment which it has was removed while there was no agent."""
        self.agent.wait_ready()
        self.probe.close()
        type(self).probe = Probe(self.agent)

    def test_a_snapshot_from_the_future(self):
        """The wall clock stands before the moment at which the snapshot was made: no time has passed since, as none is known."""
        self.agent.config["segment"]["snapshot"] = os.path.join(self.agent.directory, "snapshot")
        self.agent.write_config()
        self.agent.restart()
        self.disable("clocks/snapshot", 3)
        self.disable("clocks/snapshot/later", 7200)
        self.agent.stop()
        self.postgres.stop()
        self.addCleanup(self.attach_anew)
        self.addCleanup(self.postgres.start)
        for suffix in ("", ".lock"):
            os.unlink("/dev/shm" + self.agent.segment + suffix)
        self.host_clock.set(-3 * 3600)
        self.agent.start(ready=False)
        wait_for(lambda: "event=snapshot_restored" in self.agent.log(), what="a segment from the snapshot")
        with Probe(self.agent) as probe:
            self.assertTrue(probe.disabled("clocks/snapshot/later"))
            wait_for(lambda: not probe.disabled("clocks/snapshot"), what="the end of a TTL of seconds")
            self.assertTrue(probe.disabled("clocks/snapshot/later"))

    def test_the_clock_is_really_stepped(self):
        self.host_clock.set(7200)
        now = int(self.probe.ask("watch clocks/none 10").split()[1].split(":")[0]) / 1e6
        self.assertGreater(now - time.time(), 7000)


if __name__ == "__main__":
    tap.main()
