# SPDX-License-Identifier: ISC
"""Subscriptions against a real agent: over the socket, and through the library's descriptor."""
import os
import socket
import time
import unittest

from support import tap
from support.agent import Agent, wait_for
from support.postgres import Postgres
from support.probe import Probe
from support.varlink import Varlink


class Follower:
    """A subscription over the socket: what it has been told, by name; None for unknown."""

    def __init__(self, agent, names=None, buffer=None):
        self.connection = agent.connect()
        if buffer:
            self.connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.states = {}
        self.replies = 0
        self.complete = False
        self.connection.send("Subscribe", {"names": names} if names else {}, more=True)

    def take(self):
        reply = self.connection.receive()
        self.replies += 1
        self.complete = reply["complete"]
        for name in reply["unknown"]:
            self.states[name] = None
        for state in reply["breakers"]:
            self.states[state["name"]] = state
        return reply

    def until(self, condition, timeout=20):
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"not told: {self.states}")
            self.take()


class SubscriptionCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()
        cls.addClassCleanup(cls.postgres.close)

    def setUp(self):
        self.postgres.psql("DELETE FROM cbshm.breaker")
        self.agent = Agent(self.postgres)
        self.addCleanup(self.agent.close)

    def make(self, count):
        self.postgres.psql(f"INSERT INTO cbshm.breaker (name) SELECT 'b' || i FROM generate_series(1, {count}) i")
        wait_for(lambda: self.agent.header()[2] >= count, what="the mirror")


class Subscribe(SubscriptionCase):
    def follow(self, *args, **options):
        follower = Follower(self.agent, *args, **options)
        self.addCleanup(follower.connection.close)
        return follower

    def test_listing_then_changes(self):
        self.make(250)
        follower = self.follow()
        follower.until(lambda: follower.complete)
        self.assertEqual(len(follower.states), 250)
        self.assertFalse(follower.states["b7"]["is_open"])
        self.agent.cbctl("disable", "b7", "--reason", "why", "--by", "me", check=0)
        follower.until(lambda: follower.states["b7"]["is_open"])
        state = follower.states["b7"]
        self.assertEqual((state["reason"], state["disabled_by"]), ("why", "me"))
        self.assertEqual(self.agent.call("GetState", name="b7")["state"], state)
        self.agent.cbctl("enable", "b7", check=0)
        follower.until(lambda: not follower.states["b7"]["is_open"])
        self.postgres.psql("DELETE FROM cbshm.breaker WHERE name = 'b9'")
        follower.until(lambda: follower.states["b9"] is None)
        self.agent.cbctl("disable", "b9", "--reason", "again", check=0)
        follower.until(lambda: follower.states["b9"] is not None)
        self.assertEqual(len(follower.states), 250)

    def test_names_that_come_later(self):
        follower = self.follow(names=["x", "y"])
        follower.until(lambda: follower.complete)
        self.assertEqual(follower.states, {"x": None, "y": None})
        self.agent.cbctl("disable", "z", "--reason", "r", check=0)
        self.agent.cbctl("disable", "y", "--reason", "r", check=0)
        follower.until(lambda: follower.states["y"])
        self.assertEqual(follower.states["x"], None)
        self.assertNotIn("z", follower.states)

    def test_a_slow_reader_hears_the_newest(self):
        follower = self.follow(names=["hot"], buffer=4096)
        follower.until(lambda: follower.complete)
        with Varlink(self.agent.socket) as client:
            for _ in range(1000):
                client.send("ReportDrift", {"name": "hot", "drift_score": 0.1, "sample_count": 1})
            for _ in range(1000):
                client.receive()
            for _ in range(2):
                client.call("Disable", name="hot", reason="r")
                client.call("Enable", name="hot")
            client.call("Disable", name="hot", reason="last")
        follower.until(lambda: (follower.states["hot"] or {}).get("reason") == "last")
        self.assertLess(follower.replies, 1000)

    def test_removed_segment(self):
        """The agent makes its segment anew: whoever has subscribed is told everything again, and goes on."""
        self.make(50)
        follower = self.follow()
        follower.until(lambda: follower.complete)
        follower.states.clear()
        os.unlink("/dev/shm" + self.agent.segment)
        follower.until(lambda: len(follower.states) == 50)
        self.agent.cbctl("disable", "b3", "--reason", "r", check=0)
        follower.until(lambda: follower.states["b3"]["is_open"])

    def test_the_agent_ends(self):
        follower = self.follow()
        follower.until(lambda: follower.complete)
        self.assertEqual(self.agent.stop(), 0)
        with self.assertRaises(EOFError):
            follower.take()


class Library(SubscriptionCase):
    """The same through the library, by an engine that waits for the descriptor in poll()."""

    def setUp(self):
        super().setUp()
        self.probe = Probe(self.agent)
        self.addCleanup(self.probe.close)

    def told(self, until, timeout=20):
        """The events up to one that begins so; the last state of each breaker."""
        states = {}
        while True:
            answer = self.probe.ask(f"event {timeout * 1000}")
            self.assertFalse(answer.startswith("error"), answer)
            kind, *rest = answer.split()
            if kind in ("state", "unknown"):
                states[rest[0]] = rest[1] if kind == "state" else None
            if answer.startswith(until):
                return states

    def test_events(self):
        self.make(250)
        self.agent.cbctl("disable", "b7", "--reason", "why", "--for", "1h", check=0)
        self.assertEqual(self.probe.ask("subscribe"), "ok")
        states = self.told("complete")
        self.assertEqual(len(states), 250)
        self.assertEqual((states["b7"], states["b8"]), ("1", "0"))
        self.assertTrue(self.probe.ask("event 100").startswith("error -11"))
        self.agent.cbctl("disable", "b8", "--reason", "why", check=0)
        self.told("state b8 1")
        self.postgres.psql("DELETE FROM cbshm.breaker WHERE name = 'b9'")
        self.told("unknown b9")

    def test_names(self):
        self.assertEqual(self.probe.ask("subscribe x y"), "ok")
        self.assertEqual(self.told("complete"), {"x": None, "y": None})
        self.agent.cbctl("disable", "y", "--reason", "r", check=0)
        self.told("state y 1")

    def test_reconnects(self):
        self.make(5)
        self.agent.cbctl("disable", "b1", "--reason", "r", check=0)
        self.assertEqual(self.probe.ask("subscribe"), "ok")
        self.told("complete")
        self.agent.kill9()
        self.told("lost -9")
        self.assertTrue(self.probe.ask("event 300").startswith("error -11"), "one loss is told once")
        self.postgres.psql("DELETE FROM cbshm.breaker WHERE name = 'b2'")
        self.agent.start()
        states = self.told("complete")
        self.assertEqual(states, {"b1": "1", "b3": "0", "b4": "0", "b5": "0"})
        self.agent.cbctl("enable", "b1", check=0)
        self.told("state b1 0")

    def test_before_there_is_an_agent(self):
        self.agent.stop()
        self.assertEqual(self.probe.ask("subscribe"), "ok")
        self.told("lost -9")
        self.agent.start()
        self.assertEqual(self.told("complete"), {})


if __name__ == "__main__":
    tap.main()
