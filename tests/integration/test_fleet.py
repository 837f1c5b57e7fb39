# SPDX-License-Identifier: ISC
"""Several agents on one PostgreSQL: whether all of them have what one has decided, and which have not."""
import grp
import os
import pwd
import re
import threading
import time
import unittest

from support import tap
from support.agent import Agent, wait_for
from support.postgres import Postgres
from support.proxy import Proxy
from support.varlink import VarlinkError


def start(postgres, instance, **more):
    return Agent(postgres, config={"agent": {"instance": instance}, **more.pop("config", {})}, **more)


def instances(agents):
    return sorted(each["instance"] for each in agents)


class Later:
    """A call in a thread of its own."""

    def __init__(self, function, *args, **kwargs):
        self.value = self.error = None
        self.thread = threading.Thread(target=self._run, args=(function, args, kwargs))
        self.thread.start()

    def _run(self, function, args, kwargs):
        try:
            self.value = function(*args, **kwargs)
        except Exception as error:  # pylint: disable=broad-except
            self.error = error

    def get(self):
        self.thread.join(60)
        if self.error:
            raise self.error
        return self.value


class Fleet(unittest.TestCase):
    """Three agents, the third behind a proxy; all are alive and up to date at the end of each test."""

    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()
        cls.addClassCleanup(cls.postgres.close)
        cls.proxy = Proxy(cls.postgres, cls.postgres.scratch.directory("proxy"))
        cls.addClassCleanup(cls.proxy.close)
        cls.agents = [start(cls.postgres, f"agent-{i}", conninfo=cls.proxy.conninfo() if i == 2 else None)
                      for i in range(3)]
        for agent in cls.agents:
            cls.addClassCleanup(agent.close)
        cls.first, cls.second, cls.third = cls.agents

    def tearDown(self):
        self.proxy.filter = self.proxy.client_filter = lambda *data: True
        fleet = self.wait_fleet(15000)
        self.assertEqual((fleet["hosts"], fleet["in_force"], fleet["behind"], fleet["silent"]), (3, 3, [], []))

    def wait_fleet(self, timeout_ms=10000, agent=None):
        return (agent or self.first).call("WaitFleet", timeout_ms=timeout_ms)["fleet"]

    def in_force(self, timeout_ms=18000):
        fleet = self.wait_fleet(timeout_ms)
        self.assertEqual((fleet["hosts"], fleet["in_force"], fleet["behind"]), (3, 3, []))
        return fleet

    def breakers(self, agent):
        """What stands in the agent's segment, without asking anybody else."""
        return {each["name"]: each for each in agent.cbctl("list", "--json", check=0).json()["breakers"]}

    def sql(self, text):
        self.postgres.psql(text)

    # ---- what "in force" means ----

    def test_decisions(self):
        for i in range(8):
            self.first.call("Disable", name=f"round-{i % 5}", reason=f"round {i}")
            self.assertGreater(self.in_force()["slowest_ms"], 0)
            for agent in self.agents:
                self.assertEqual(self.breakers(agent)[f"round-{i % 5}"]["reason"], f"round {i}")

    def test_everything_that_is_committed(self):
        """By whomever: many rows at once, deletions, the fleet's policy."""
        self.sql("INSERT INTO cbshm.breaker (name) SELECT 'many-' || i FROM generate_series(1, 900) i")
        for disabled in ("true", "false"):
            self.sql(f"UPDATE cbshm.breaker SET disabled = {disabled} WHERE name LIKE 'many-%'")
            self.in_force()
            for agent in self.agents:
                found = self.breakers(agent)
                self.assertEqual({found[f"many-{i}"]["is_open"] for i in range(1, 901)}, {disabled == "true"})
        self.sql("DELETE FROM cbshm.breaker WHERE name LIKE 'many-%'")
        self.in_force()
        for agent in self.agents:
            self.assertEqual([name for name in self.breakers(agent) if name.startswith("many-")], [])
        self.first.call("Enable", name="policy")
        for threshold in (7, 3):
            self.first.call("SetPolicy", set={"failure_threshold": threshold})
            self.in_force()
            for agent in self.agents:
                found = agent.call("List", after="polic", limit=1)["breakers"][0]
                self.assertEqual(found["policy"]["failure_threshold"], threshold)

    def test_a_load_that_brings_what_was_heard_meanwhile(self):
        """Then nothing is left to ask for, and no answer comes that would acknowledge the barrier."""
        self.first.call("Enable", name="meanwhile")
        self.in_force()
        last = self.agents[-1]
        last.sigstop()
        self.sql("UPDATE cbshm.settings SET failure_threshold = 9")
        self.sql("UPDATE cbshm.breaker SET disabled = true WHERE name = 'meanwhile'")
        with self.first.connect() as waiting:
            waiting.send("WaitFleet", {"timeout_ms": 10000})
            time.sleep(0.3)
            last.sigcont()
            found = waiting.receive()["fleet"]
        self.assertEqual((found["hosts"], found["in_force"], found["behind"]), (3, 3, []))

    def test_repeated_barrier(self):
        """Whoever may listen can say again what the database has said: nothing that was acknowledged is taken back."""
        heard = self.postgres.session()
        self.addCleanup(heard.close)
        heard.execute("LISTEN cbshm")
        self.in_force()
        said = re.search('payload "(b [0-9]+\x01[0-9a-f]+)" received', heard.execute("SELECT 1")).group(1)
        self.in_force()
        acknowledged = "SELECT min(acknowledged) FROM cbshm.agent"
        reached = int(self.postgres.value(acknowledged))
        self.assertGreater(reached, int(said[2:].split("\x01")[0]))
        self.postgres.psql(f"SELECT pg_notify('cbshm', '{said}')")
        # Sent after it, heard after it.
        self.sql("INSERT INTO cbshm.breaker (name) VALUES ('after')")
        wait_for(lambda: all("after" in self.breakers(agent) for agent in self.agents), 5)
        time.sleep(0.2)
        self.assertEqual(int(self.postgres.value(acknowledged)), reached)

    def test_newer_is_in_force_too(self):
        """Somebody else changes the breaker again and again meanwhile."""
        stop = threading.Event()

        def flip():
            while not stop.is_set():
                self.second.call("Disable", name="flipped", reason="x")
                self.second.call("Enable", name="flipped")
        flipping = Later(flip)
        try:
            for _ in range(8):
                self.first.call("Disable", name="flipped", reason="y")
                version = self.first.call("GetState", name="flipped")["state"]["version"]
                self.in_force()
                for agent in self.agents:
                    self.assertGreaterEqual(self.breakers(agent)["flipped"]["version"], version)
        finally:
            stop.set()
            flipping.get()

    def test_many_wait(self):
        waits = [Later(self.wait_fleet, agent=self.agents[i % 3]) for i in range(40)]
        self.assertEqual({wait.get()["in_force"] for wait in waits}, {3})

    def test_what_is_heard_is_not_yet_there(self):
        """The third hears of change and question at once, but the row, for which it has to ask as it is new, does not come."""
        hears, gets = threading.Event(), threading.Event()
        self.in_force()

        def hold(kind, body):
            if kind == b"A":
                hears.wait(10)
            if kind == b"D" and b"held" in body:
                gets.wait(10)
            return True
        self.proxy.filter = hold
        self.first.call("Disable", name="held anew", reason="x")
        wait = Later(self.wait_fleet, 1500)
        time.sleep(0.3)
        hears.set()
        fleet = wait.get()
        gets.set()
        self.assertEqual((fleet["in_force"], instances(fleet["behind"])), (2, ["agent-2"]))
        self.in_force()
        self.assertTrue(self.breakers(self.third)["held anew"]["is_open"])

    # ---- agents that are not there ----

    def test_cbctl(self):
        result = self.first.cbctl("disable", "told", "--reason", "x", "--wait", check=0)
        self.assertRegex(result.out, r"told is disabled\n(.*\n)+  in force  on 3 of 3 hosts, slowest [\d.]+ m?s\n")
        for command in (["enable", "told", "--wait=5s"], ["reset", "told", "--wait"],
                        ["disable", "told", "--reason=y", "--wait"]):
            fleet = self.first.cbctl(*command, "--json", check=0).json()["fleet"]
            self.assertEqual((fleet["error"], fleet["hosts"], fleet["in_force"], fleet["behind"]), (None, 3, 3, []))
        document = self.first.cbctl("policy", "told", "failure_threshold=4", "--wait", "--json", check=0).json()
        self.assertEqual((document["policy"]["failure_threshold"], document["fleet"]["in_force"]), (4, 3))
        self.assertIn("in force  on 3 of 3", self.first.cbctl("policy", "told", "failure_threshold=3", "--wait").out)
        self.assertNotIn("fleet", self.first.cbctl("enable", "told", "--json", check=0).json())
        self.assertIn("--wait=0s", self.first.cbctl("enable", "told", "--wait=0s", check=2).err)

    def test_one_that_hangs_is_named(self):
        self.third.sigstop()
        try:
            result = self.first.cbctl("disable", "hung", "--reason", "x", "--wait=700ms", check=8)
            self.assertRegex(result.out, r"in force  on 2 of 3 hosts")
            self.assertRegex(result.err, r"not in force yet on \S+/agent-2\n")
            document = self.first.cbctl("enable", "hung", "--wait=700ms", "--json", check=8).json()
            self.assertEqual(document["fleet"]["error"], "behind")
            self.assertEqual(instances(document["fleet"]["behind"]), ["agent-2"])
            self.assertTrue(document["changed"])
            self.assertIn("agent-2", document["fleet"]["message"])
            wait = Later(self.wait_fleet)
        finally:
            self.third.sigcont()
        self.assertEqual(wait.get()["in_force"], 3, "and as soon as it goes on, it is not")

    def test_nobody_is_seen(self):
        """Then it is not known whether anybody has it."""
        self.sql("CREATE FUNCTION public.hide() RETURNS trigger LANGUAGE plpgsql AS "
                 "'BEGIN NEW.last_seen_at := now() - interval ''1 hour''; RETURN NEW; END';"
                 "CREATE TRIGGER hide BEFORE INSERT OR UPDATE ON cbshm.agent FOR EACH ROW EXECUTE FUNCTION public.hide();"
                 "UPDATE cbshm.agent SET version = version")
        try:
            done = self.first.cbctl("disable", "unseen", "--reason", "x", "--wait=500ms", check=8)
            self.assertIn("no agent is seen alive", done.err)
            before = time.monotonic()
            self.assertEqual(self.wait_fleet(400)["hosts"], 0)
            self.assertGreater(time.monotonic() - before, 0.3, "it was waited for somebody to be seen")
            self.assertIn("No agent is seen alive.", self.first.cbctl("agents", check=0).out)
        finally:
            self.sql("DROP TRIGGER hide ON cbshm.agent; DROP FUNCTION public.hide")
            self.sql("UPDATE cbshm.agent SET last_seen_at = now()")

    def test_rows_that_somebody_keeps_locked(self):
        """All go on, a new one begins, and nobody asks the server again and again; who waits is answered when it is over."""
        session = self.postgres.session()
        self.addCleanup(session.close)
        session.execute("BEGIN")
        session.execute("LOCK TABLE cbshm.agent IN SHARE MODE")
        before = self.postgres.log().count("due to lock timeout")
        with start(self.postgres, "new") as new:
            self.assertTrue(new.is_open("locked") is None)
            for agent in (self.first, new):
                wait_for(lambda agent=agent: "event=agent_locked" in agent.log(), 5)
            waiting = Later(self.first.call, "WaitFleet", timeout_ms=20000)
            time.sleep(2)
            tap.note(f"{self.postgres.log().count('due to lock timeout') - before} statements failed")
            self.assertLess(self.postgres.log().count("due to lock timeout") - before, 60)
            self.postgres.psql("SELECT cbshm.disable('locked', 'x')")
            wait_for(lambda: all(agent.is_open("locked") for agent in (*self.agents, new)), 2)
            session.execute("COMMIT")
            fleet = waiting.get()["fleet"]
            self.assertEqual(fleet["hosts"], fleet["in_force"])
            told = ("SELECT count(*) FROM cbshm.agent WHERE instance IN ('agent-0', 'new') "
                    "AND acknowledged = (SELECT max(acknowledged) FROM cbshm.agent)")
            wait_for(lambda: self.postgres.value(told) == "2", 5, "the new one has told how far it is")
            self.assertNotIn("database_unavailable", new.log())
            self.assertEqual(new.log().count("event=agent_locked"), 1)
            new.stop()

    def test_one_that_dies_drops_out(self):
        self.third.kill9()
        self.sql("UPDATE cbshm.agent SET last_seen_at = last_seen_at - interval '8 s' WHERE instance = 'agent-2'")
        result = self.first.cbctl("disable", "died", "--reason", "x", "--wait=9s", check=0)
        self.assertIn("in force  on 2 of 2 hosts", result.out)
        self.assertRegex(result.err, "not counted, as their agents are silent: .*/agent-2;")
        found = {each["instance"]: each for each in self.first.call("GetAgents")["agents"]}
        self.assertEqual({name: (each["live"], each["behind"]) for name, each in found.items()},
                         {"agent-0": (True, False), "agent-1": (True, False), "agent-2": (False, True)})
        self.assertEqual(self.first.call("GetAgents", limit=1)["agents"][0]["instance"], "agent-2", "trouble first")
        self.third.start()

    def test_one_that_stops_in_order_is_gone(self):
        self.assertEqual(self.third.stop(), 0)
        fleet = self.wait_fleet()
        self.assertEqual((fleet["hosts"], fleet["in_force"], fleet["silent"]), (2, 2, []))
        self.third.start()

    def test_one_that_connects_anew(self):
        """It has not heard the question, and finds it after the load."""
        self.third.sigstop()
        self.first.call("Disable", name="anew", reason="x")
        wait = Later(self.wait_fleet)
        time.sleep(0.2)
        self.proxy.cut_all()
        self.third.sigcont()
        self.assertEqual(wait.get()["in_force"], 3)
        self.assertTrue(self.breakers(self.third)["anew"]["is_open"])

    def test_the_one_that_is_asked_connects_anew(self):
        self.third.sigstop()
        wait = Later(self.wait_fleet)
        time.sleep(0.2)
        self.sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'cbagent'")
        self.third.sigcont()
        self.assertEqual(wait.get()["in_force"], 3)

    def test_one_that_hears_nothing(self):
        """As behind a connection pooler: it polls, and answers."""
        self.proxy.filter = lambda kind, body: kind != b"A"
        self.proxy.cut_all()
        wait_for(lambda: "listen_does_not_work" in self.third.log(), 10)
        self.first.call("Disable", name="deaf", reason="x")
        fleet = self.in_force()
        self.assertTrue(self.breakers(self.third)["deaf"]["is_open"])
        self.assertLess(fleet["slowest_ms"], 5000)
        self.proxy.filter = lambda *data: True
        self.proxy.cut_all()


class Alone(unittest.TestCase):
    def test_a_full_segment_is_behind(self):
        """It is told of what it has no room for, but cannot show it."""
        config = {"segment": {"capacity": "16"}}
        with Postgres().migrate() as postgres, start(postgres, "small", config=config) as agent:
            postgres.psql("INSERT INTO cbshm.breaker (name, disabled) "
                          "SELECT 'b' || i, true FROM generate_series(1, 17) i")
            fleet = agent.call("WaitFleet", timeout_ms=500)["fleet"]
            self.assertEqual((fleet["in_force"], instances(fleet["behind"])), (0, ["small"]))
            postgres.psql("DELETE FROM cbshm.breaker WHERE name IN ('b1', 'b2')")
            self.assertEqual(agent.call("WaitFleet", timeout_ms=10000)["fleet"]["in_force"], 1)

    def test_who_has_left_waits_no_more(self):
        config = {"segment": {"capacity": "16"}}
        with Postgres().migrate() as postgres, start(postgres, "small", config=config) as agent:
            postgres.psql("INSERT INTO cbshm.breaker (name) SELECT 'b' || i FROM generate_series(1, 17) i")
            clients = [agent.connect() for _ in range(64)]
            for client in clients:
                client.send("WaitFleet", {"timeout_ms": 3600000})

            def outcome():
                with agent.connect() as another:
                    another.send("WaitFleet", {"timeout_ms": 300})
                    return self.error_of(another)
            wait_for(lambda: "64 clients" in str(outcome()), 5)
            for client in clients:
                client.close()
            wait_for(lambda: outcome() is None, 5)
            before = time.monotonic()
            self.assertEqual(agent.stop(), 0)
            self.assertLess(time.monotonic() - before, 4, "nothing to wait for")

    def connect_as(self, user, agent, count):
        """Connections of that user: the kernel notes who connects."""
        os.setegid(pwd.getpwnam(user).pw_gid)
        os.seteuid(pwd.getpwnam(user).pw_uid)
        try:
            clients = [agent.connect() for _ in range(count)]
        finally:
            os.seteuid(0)
            os.setegid(0)
        for client in clients:
            self.addCleanup(client.close)
        return clients

    @staticmethod
    def error_of(client):
        try:
            client.receive()
            return None
        except VarlinkError as error:
            return error

    def test_one_user_cannot_use_up_all(self):
        if os.getuid() != 0:
            self.skipTest("takes root, to be another user as well")
        group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name
        config = {"segment": {"capacity": "16"}, "socket": {"mode": "0666", "group": group}}
        with Postgres().migrate() as postgres, start(postgres, "small", config=config) as agent:
            postgres.psql("INSERT INTO cbshm.breaker (name) SELECT 'b' || i FROM generate_series(1, 17) i")
            clients = self.connect_as("nobody", agent, 20)
            for client in clients:
                client.send("WaitFleet", {"timeout_ms": 3000})
            time.sleep(0.5)
            own = [Later(agent.call, "WaitFleet", timeout_ms=500) for _ in range(20)]
            self.assertEqual({wait.get()["fleet"]["in_force"] for wait in own}, {0}, "root is not counted")
            refused = [error.parameters["message"] for error in map(self.error_of, clients) if error]
            self.assertEqual(len(refused), 4, refused)
            self.assertIn("16 clients of this user", refused[0])

    def test_agents_that_cannot_be_asked(self):
        """As many wait already as may; what cbctl shows then is not that all is well."""
        config = {"segment": {"capacity": "16"}}
        with Postgres().migrate() as postgres, start(postgres, "small", config=config) as agent, \
                start(postgres, "large"):
            wait_for(lambda: re.findall(r"(?m)^(\w+) .*/large ", agent.cbctl("agents", check=0).out) == ["ok"], 10)
            postgres.psql("INSERT INTO cbshm.breaker (name) SELECT 'b' || i FROM generate_series(1, 17) i")
            for _ in range(64):
                client = agent.connect()
                self.addCleanup(client.close)
                client.send("WaitFleet", {"timeout_ms": 60000})

            def shown():
                document = agent.cbctl("agents", "--json", check=7).json()
                self.assertEqual(document["fleet"]["error"], "refused")
                return {each["instance"]: each["state"] for each in document["agents"]}
            wait_for(lambda: shown() == {"small": "behind", "large": "unknown"}, 20, what="both states")
            result = agent.cbctl("agents", check=7)
            self.assertRegex(result.out, r"(?m)^behind   \S+/small +seen")
            self.assertRegex(result.out, r"(?m)^unknown  \S+/large +seen")
            self.assertIn("could not be asked whether they have everything", result.err)

    def test_database_away(self):
        with Postgres().migrate() as postgres, start(postgres, "lonely") as agent:
            agent.cbctl("disable", "b", "--reason", "x", check=0)
            postgres.stop()
            time.sleep(1.2)
            with self.assertRaises(VarlinkError) as caught:
                agent.call("WaitFleet", timeout_ms=2000)
            self.assertEqual(caught.exception.name, "DatabaseUnavailable")


if __name__ == "__main__":
    tap.main()
