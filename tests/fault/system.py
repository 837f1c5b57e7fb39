# SPDX-License-Identifier: ISC
"""Three agents, a primary, a synchronous standby, and everything that may happen to them.

Server faults follow the rules of a cluster manager: a standby is promoted only if it was in sync, and the old primary is
fenced, which is to say dead, before anybody can ask it again.
"""
import os
import random
import re
import threading
import time
from datetime import datetime, timezone

from fault.client import Client, Reader
from support.agent import Agent, wait_for
from support.postgres import AGENT_USER, DATABASE, Postgres
from support.proxy import Proxy
from support.scratch import Scratch

AGENTS, CLIENTS = 3, 8
_READY = r"^(\S+ \S+) \S+ .*system is ready to accept connections$"
_BACKENDS = f"SELECT pid FROM pg_stat_activity WHERE usename = '{AGENT_USER}' ORDER BY random() LIMIT 1"


class System:
    """rounds: the breakers that the clients have used, those of the moment last. synchronous=False: commits wait for no standby."""

    def __init__(self, seed, synchronous=True, clients=CLIENTS):
        self.random = random.Random(seed)
        self.synchronous = synchronous
        self.scratch = Scratch()
        self.rounds = []
        self.agents_killed = 0
        self.writable = []  # (when a server took writes again, after which fault)
        options = {"wal_retrieve_retry_interval": "100ms", "max_wal_size": "256MB"}
        self.primary = Postgres(self.scratch, options=options, name="pg-a").migrate()
        self.standby = Postgres(self.scratch, options=options, name="pg-b", standby_of=self.primary)
        self._wait_for_standby()
        self.proxies = [Proxy(server, self.scratch.directory("via-" + server.host[-1], None, 0o711))
                        for server in (self.primary, self.standby)]
        # The first agent talks to the servers themselves, the others can be cut off.
        direct = ",".join(server.host for server in (self.primary, self.standby))
        proxied = ",".join(proxy.directory for proxy in self.proxies)
        self.agents = [Agent(scratch=self.scratch, config={"agent": {"instance": f"agent-{number}"}, "segment": {"capacity": 16384}},
                             conninfo=f"host={hosts} dbname={DATABASE} user={AGENT_USER}")
                       for number, hosts in enumerate([direct] + [proxied] * (AGENTS - 1))]
        self.next_round()
        self.clients = [Client(number, number % AGENTS, self.agents[number % AGENTS], lambda: self.names, f"{seed}/{number}")
                        for number in range(clients)]
        self.readers = [Reader(number, agent, lambda: self.names) for number, agent in enumerate(self.agents)]

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def close(self):
        for each in self.agents + self.proxies + [self.primary, self.standby]:
            each.close()
        self.scratch.cleanup()

    @property
    def names(self):
        return self.rounds[-1]

    def next_round(self):
        """New breakers, so that no history becomes too long to be checked, or holds so much unknown that it explains anything."""
        names = [f"round-{len(self.rounds) + 1}/{letter}" for letter in "abc"]
        self.primary.psql(";".join(f"SELECT cbshm.enable('{name}', 'harness')" for name in names))
        self.rounds.append(names)

    def stop_clients(self):
        for each in self.clients + self.readers:
            each.stop()

    def records(self):
        return [record for client in self.clients for record in list(client.records)]

    def _wait_for_standby(self):
        if self.synchronous:
            self.primary.wait_for_standby()

    def _writable(self, fault):
        self.writable.append((time.monotonic(), fault))

    def _promoted(self, fault):
        """By the server's own log: psql has seen it only later."""
        before = len(self.primary.log())
        self.primary.promote()
        found = wait_for(lambda: re.findall(_READY, self.primary.log()[before:], re.MULTILINE), 5, "the server's word")
        moment = datetime.strptime(found[-1], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=timezone.utc).timestamp()
        self.writable.append((time.monotonic() - max(0, time.time() - moment), fault))

    def wait_for_writes(self, timeout=30):
        """Every host has written something since now."""
        since, missing = time.monotonic(), set(range(AGENTS))
        while missing:
            for client in self.clients:
                if client.trouble:
                    raise AssertionError(f"client {client.number}: {client.trouble!r}")
                for record in client.records[-5:]:
                    if record.invoked > since and record.outcome == "ok" and record.kind not in ("segment", "fetch"):
                        missing.discard(client.host)
            if time.monotonic() > since + timeout:
                raise AssertionError(f"no writes through {sorted(missing)} for {timeout} s:\n"
                                     + "\n".join(self.agents[host].log()[-2000:] for host in missing))
            time.sleep(0.02)

    # ---- agents, clients, connections ----

    def kill_agent(self):
        agent = self.random.choice(self.agents)
        agent.kill9()
        self.agents_killed += 1
        time.sleep(self.random.uniform(0, 0.3))
        agent.start()

    def kill_agents(self):
        """Every one of them, each at a moment of its own."""
        for agent in self.random.sample(self.agents, AGENTS):
            time.sleep(self.random.uniform(0, 0.05))
            agent.kill9()
            self.agents_killed += 1
            agent.start(ready=False)
        for agent in self.agents:
            agent.wait_ready()

    def stop_agent(self):
        agent = self.random.choice(self.agents)
        agent.sigstop()
        time.sleep(self.random.uniform(0.1, 2))
        agent.sigcont()

    def kill_client(self):
        self.random.choice(self.clients).kill()

    def cut_connection(self):
        """At the moment of a commit: before the server hears of it, or before the agent does."""
        proxy = self.proxies[0] if self.proxies[0].server.startswith(self.primary.host) else self.proxies[1]
        cut = threading.Event()

        def judge(found):
            if found and not cut.is_set():
                cut.set()
                return None
            return True
        if self.random.random() < 0.3:
            proxy.client_filter = lambda data: judge(b"COMMIT" in data)
        else:
            proxy.filter = lambda kind, body: judge(kind == b"C" and body.startswith(b"COMMIT"))
        cut.wait(2)
        proxy.filter, proxy.client_filter = (lambda kind, body: True), (lambda data: True)

    # ---- the server ----

    def terminate_backend(self):
        self.primary.psql(f"SELECT pg_terminate_backend(pid) FROM ({_BACKENDS}) b")
        self._writable("terminate_backend")

    def kill_backend(self):
        """The postmaster takes it for a crash, ends all others, and recovers."""
        os.kill(int(self.primary.psql(_BACKENDS)), 9)
        self._back("kill_backend")

    def _back(self, fault):
        end = time.monotonic() + 30
        while True:
            try:
                self._wait_for_standby()
                return self._writable(fault)
            except Exception:  # pylint: disable=broad-except
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def restart(self):
        self.primary.restart(self.random.choice(("fast", "immediate")))
        self._back("restart")

    def crash(self):
        self.primary.kill9()
        time.sleep(self.random.uniform(0, 0.5))
        self.primary.start()
        self._back("crash")

    def freeze(self):
        self.primary.sigstop()
        time.sleep(self.random.choice((0.2, 1, 3)))
        self.primary.sigcont()
        self._writable("freeze")

    def lose_standby(self):
        """Until it is back, commits wait."""
        self.standby.kill9()
        time.sleep(self.random.uniform(0, 1))
        self.standby.start()
        self._back("lose_standby")

    def fail_over(self):
        self.primary, self.standby = self.standby, self.primary
        if self.random.random() < 0.3:
            self.standby.sigstop()  # a partition; nobody gets an answer from it any more
            self._promoted("fail_over_frozen")
            time.sleep(self.random.choice((0, 1, 3)))
            self.standby.kill9()
        else:
            self.standby.kill9()
            time.sleep(self.random.uniform(0, 0.3))
            self._promoted("fail_over")
        time.sleep(self.random.uniform(0, 1))
        self.standby.follow(self.primary)
        self._wait_for_standby()

    def switch_over(self):
        """As planned by a person: the old primary has sent everything when it ends."""
        self.primary, self.standby = self.standby, self.primary
        self.standby.stop()
        self._promoted("switch_over")
        self.standby.follow(self.primary)
        self._wait_for_standby()

    FAULTS = {"kill_agent": 4, "kill_agents": 2, "stop_agent": 2, "kill_client": 3, "cut_connection": 6, "terminate_backend": 4,
              "kill_backend": 2, "restart": 2, "crash": 3, "freeze": 2, "lose_standby": 2, "fail_over": 4,
              "switch_over": 1}

    def fault(self, name=None, only=None):
        """Lets something happen, and returns when it is over; its name. only: drawn from these."""
        kinds = list(only or self.FAULTS)
        name = name or self.random.choices(kinds, [self.FAULTS[kind] for kind in kinds])[0]
        getattr(self, name)()
        return name
