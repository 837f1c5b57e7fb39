#!/usr/bin/env python3
# SPDX-License-Identifier: ISC
"""The socket end to end: a client, a real agent, a real PostgreSQL."""
import grp
import json
import os
import pwd
import re
import resource
import socket
import stat
import subprocess
import sys
import time
import unittest

from support import tap
from support.agent import Agent, wait_for
from support.postgres import Postgres
from support.varlink import Varlink, VarlinkError

STRANGER = "nobody"

# The example of io.cbshm(7) is run from the manual itself.
MANUAL = os.path.join(tap.source_dir(), "man/io.cbshm.7")

# Runs as another user: connects, makes one call, prints the reply.
CALL = """
import json, os, socket, sys
if os.getuid() == 0 and len(sys.argv) > 3:
    os.setgroups([int(g) for g in sys.argv[4].split(",") if g]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[3]))
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode() + bytes(1))
d = b""
while not d.endswith(bytes(1)):
    b = s.recv(65536)
    if not b: break
    d += b
sys.stdout.write(d[:-1].decode())
"""


def setUpModule():
    global postgres
    postgres = Postgres()
    unittest.addModuleCleanup(postgres.close)
    postgres.migrate()


class SocketCase(unittest.TestCase):
    config = {}

    @classmethod
    def setUpClass(cls):
        cls.agent = Agent(postgres, config=cls.config)
        cls.addClassCleanup(cls.agent.close)

    def client(self):
        client = self.agent.connect()
        self.addCleanup(client.close)
        return client

    def fails(self, error, method, client=None, /, **parameters):
        """The parameters of the error that the call must give."""
        with self.assertRaises(VarlinkError) as caught:
            (client or self.client()).call(method, **parameters)
        self.assertEqual(caught.exception.name, error, caught.exception)
        return caught.exception.parameters

    def version(self, name):
        return postgres.value(f"select max(version) from cbshm.breaker where name = '{name}'")


class Methods(SocketCase):
    def test_introspection(self):
        info = self.agent.call("org.varlink.service.GetInfo")
        self.assertEqual(info["interfaces"], ["org.varlink.service", "io.cbshm"])
        self.assertEqual(info["product"], "cbagent")
        with open(os.path.join(tap.source_dir(), "agent/io.cbshm.varlink"), encoding="utf-8") as file:
            shipped = file.read()
        got = self.agent.call("org.varlink.service.GetInterfaceDescription", interface="io.cbshm")
        self.assertEqual(got["description"], shipped)

    def test_trip_and_enable(self):
        client = self.client()
        report = {"name": "trip", "drift_score": 0.25, "sample_count": 100, "details": {"path": ["a", 1.5, None]}}
        for _ in range(2):
            self.assertIsNone(client.call("ReportDrift", **report)["incident"])
        incident = client.call("ReportDrift", **report)["incident"]
        self.assertEqual((incident["severity"], incident["breaker"]), ("P1", "trip"))
        self.assertEqual(incident["reason"], "Drift exceeded threshold: 0.2500 > 0.2")
        self.assertEqual(incident["details"]["path"], ["a", 1.5, None])
        state = client.call("GetState", name="trip")["state"]
        self.assertTrue(state["is_open"])
        self.assertEqual(state["incident_id"], incident["id"])
        self.assertEqual([i["id"] for i in client.call("GetIncidents", name="trip")["incidents"]], [incident["id"]])
        self.assertTrue(client.call("Enable", name="trip", by="me", reason="fixed")["changed"])
        self.assertFalse(client.call("Reset", name="trip")["changed"])
        self.assertEqual(client.call("GetIncidents", name="trip")["incidents"], [])
        resolved, = client.call("GetIncidents", name="trip", include_resolved=True)["incidents"]
        self.assertEqual((resolved["resolved_by"], resolved["resolution_notes"]), ("me", "fixed"))

    def test_schema_errors(self):
        client = self.client()
        self.assertIsNone(client.call("ReportSchemaError", name="schema", count=4)["incident"])
        incident = client.call("ReportSchemaError", name="schema", count=7)["incident"]
        self.assertEqual((incident["severity"], incident["sample_count"]), ("P3", 7))

    def test_disable(self):
        client = self.client()
        first = client.call("Disable", name="off", reason="two\nlines", until="2099-02-28T23:59:59.5+02:00")
        self.assertTrue(first["changed"])
        state = client.call("GetState", name="off")["state"]
        self.assertEqual(state["reason"], "two\nlines")
        self.assertEqual(state["disabled_by"], pwd.getpwuid(os.getuid()).pw_name)
        again = client.call("Disable", name="off", reason="two\nlines", until="2099-02-28T21:59:59.5Z")
        self.assertFalse(again["changed"])
        self.assertTrue(client.call("Disable", name="off", reason="other", until="never")["changed"])
        self.assertIsNone(client.call("GetState", name="off")["state"]["disabled_until"])
        self.assertTrue(client.call("Disable", name="off", reason="other", ttl_seconds=3600)["changed"])
        self.assertIsNotNone(client.call("GetState", name="off")["state"]["disabled_until"])

    def test_until_in_the_past(self):
        self.assertEqual(self.fails("InvalidArgument", "Disable", name="past", reason="r",
                                    until="2001-01-01T00:00:00Z")["field"], "until")
        self.assertIsNone(self.version("past"))

    def test_request_id(self):
        client = self.client()
        call = {"name": "once", "reason": "r", "request_id": "5a0b1c9e-8d1f-4c57-9a55-6d3f0c2b7e41"}
        first = client.call("Disable", **call)
        client.call("Enable", name="once")
        self.assertEqual(client.call("Disable", **call), first)
        self.assertFalse(client.call("GetState", name="once")["state"]["is_open"])

    def test_policy(self):
        client = self.client()
        before = client.call("SetPolicy")["policy"]
        policy = client.call("SetPolicy", name="policy", set={"failure_threshold": 9, "default_ttl_seconds": 0.5,
                                                              "auto_recover": False})["policy"]
        self.assertEqual((policy["failure_threshold"], policy["default_ttl_seconds"], policy["auto_recover"]),
                         (9, 0.5, False))
        self.assertEqual(client.call("SetPolicy", name="policy")["policy"], policy)
        policy = client.call("SetPolicy", name="policy", clear=["failure_threshold", "default_ttl_seconds",
                                                                "auto_recover"])["policy"]
        self.assertEqual(policy, before)
        self.assertEqual(self.fails("NotFound", "SetPolicy", name="unknown policy")["name"], "unknown policy")

    def test_unknown(self):
        self.assertEqual(self.fails("NotFound", "GetState", name="never heard of")["name"], "never heard of")
        self.assertEqual(self.agent.call("GetIncidents", name="never heard of")["incidents"], [])

    def test_list(self):
        client = self.client()
        names = {f"list/{n}" for n in range(120)}
        for name in names:
            client.send("ReportSchemaError", {"name": name, "count": 0})
        for _ in names:
            client.receive()
        client.call("Disable", name="list/7", reason="seven", by="me", until="never")
        listed, after, pages = [], "list/", 0
        while True:
            page = client.call("List", after=after, limit=50)
            listed += page["breakers"]
            pages += 1
            if page["complete"]:
                break
            after = listed[-1]["name"]
        self.assertEqual([b["name"] for b in listed if b["name"] in names], sorted(names))
        self.assertGreaterEqual(pages, 3)
        self.assertEqual([b["name"] for b in listed if b["is_open"] and b["name"] in names], ["list/7"])
        # The mirror's state and the database's are the same, but for how they write a time.
        mirrored = next(b for b in listed if b["name"] == "list/7")
        fetched = client.call("GetState", name="list/7")["state"]
        self.assertEqual(mirrored.keys(), fetched.keys())
        for key in mirrored:
            if not key.endswith("_at"):
                self.assertEqual(mirrored[key], fetched[key], key)

    def test_pipelined(self):
        client = self.client()
        for n in range(3000):
            client.send("ReportDrift", {"name": f"pipe/{n % 50}", "drift_score": 0.1, "sample_count": n + 1})
            client.send("GetState", {"name": f"pipe/{n % 50}"})
            if n % 300 == 299:
                for i in range(n - 299, n + 1):
                    self.assertEqual(client.receive(), {"incident": None})
                    self.assertEqual(client.receive()["state"]["name"], f"pipe/{i % 50}")

    def test_oneway(self):
        client = self.client()
        client.send("ReportSchemaError", {"name": "oneway", "count": 7}, oneway=True)
        self.assertEqual(client.call("org.varlink.service.GetInfo")["product"], "cbagent")
        wait_for(lambda: postgres.value("select disabled from cbshm.breaker where name = 'oneway'") == "t"
                 or postgres.value("select disabled from cbshm.breaker where name = 'oneway'") is True,
                 what="the oneway report")

    def test_client_that_leaves(self):
        client = self.client()
        client.send("ReportSchemaError", {"name": "left", "count": 7})
        client.close()
        wait_for(lambda: self.version("left"), what="the report of a client that left")

    def test_manual_example(self):
        with open(MANUAL, encoding="utf-8") as file:
            example = re.search(r"\.Bd -literal -offset indent\n(import json.*?)\.Ed\n", file.read(), re.S).group(1)
        example = example.replace("\\&", "").replace("\\e", "\\")
        self.assertLessEqual(len(example.strip().splitlines()), 8)
        self.assertIn("/run/cbshm/io.cbshm", example)
        example = example.replace("/run/cbshm/io.cbshm", self.agent.socket)
        done = subprocess.run([sys.executable, "-c", example], stdout=subprocess.PIPE, text=True, check=True)
        self.assertIn("costsim_v2", done.stdout)


class BadInput(SocketCase):
    def test_nothing_is_written(self):
        client = self.client()
        bad = [("ReportDrift", {"drift_score": 1.5, "sample_count": 1}, "drift_score"),
               ("ReportDrift", {"drift_score": 0.5, "sample_count": 0}, "sample_count"),
               ("ReportDrift", {"drift_score": 0.5, "sample_count": 1, "details": [1]}, "details"),
               ("ReportSchemaError", {"count": -1}, "count"),
               ("Disable", {"reason": ""}, "reason"),
               ("Disable", {"reason": "r", "until": "2030-02-30T00:00:00Z"}, "until"),
               ("Disable", {"reason": "r", "unknown": 1}, "unknown"),
               ("SetPolicy", {"set": {"failure_threshold": 0}}, "failure_threshold")]
        for method, parameters, field in bad:
            with self.subTest(method=method, field=field):
                self.assertEqual(self.fails("InvalidArgument", method, client, name="bad", **parameters)["field"], field)
        for name in ("", "x" * 129, "a\tb", "\u0085"):
            self.fails("InvalidArgument", "Enable", client, name=name)
        self.assertIsNone(self.version("bad"))
        self.assertEqual(client.call("org.varlink.service.GetInfo")["product"], "cbagent")

    def test_malformed(self):
        frames = [b"\0", b"x\0", b"{}\0", b"[]\0", b'{"method":"a\xff"}\0', b'{"method":"io.cbshm.List\\u0000"}\0',
                  b"[" * 60000 + b"\0", b" " * 65537 + b"\0", b"x" * 200000, b'{"method":"a","method":"a"}\0']
        for frame in frames:
            with self.subTest(frame=frame[:40]):
                client = self.client()
                try:
                    client.send_raw(frame)
                except OSError:
                    pass  # closed while we were still sending
                with self.assertRaises(VarlinkError) as caught:
                    client.receive()
                self.assertEqual(caught.exception.error, "io.cbshm.Malformed")
                self.assertIsNone(client.receive_raw())
        self.assertTrue(self.agent.alive())

    def test_random_bytes(self):
        for n in range(100):
            client = self.client()
            try:
                client.send_raw(os.urandom(1 + n * 37) + b"\0")
                client.receive_raw()
            except OSError:
                pass
            client.close()
        self.assertEqual(self.agent.call("org.varlink.service.GetInfo")["product"], "cbagent")

    def test_details_survive(self):
        details = {"ü": "\U0001f4a5", "n": [1e20, -0.1, 12345678901234567890, 1.234567890123456789e-5], "deep": {"a": [[[]]]}, "q": "\"\\/\n"}
        client = self.client()
        incident = client.call("ReportSchemaError", name="details", count=9, details=details)["incident"]
        for key in details:
            self.assertEqual(incident["details"][key], details[key], key)


class Limits(SocketCase):
    def test_many_connections(self):
        """1024 in all: the next hears why, and one that goes makes room."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < 1100:
            self.skipTest(f"this process may open only {hard} files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1100), hard))
        clients = [self.client() for _ in range(1024)]
        for client in (clients[0], clients[-1]):
            self.assertEqual(client.call("org.varlink.service.GetInfo")["product"], "cbagent")
        refused = self.client()
        with self.assertRaises(VarlinkError) as caught:
            refused.receive()
        self.assertEqual(caught.exception.name, "LimitExceeded")
        self.assertIsNone(refused.receive_raw())
        for client in clients[:10]:
            client.close()
        wait_for(self.served, what="room after some have gone")


    def test_ten_thousand(self):
        """
        Most of them are turned away with a reason, some send half a message, or ask and never read: who is served already
        does not notice.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < 10200:
            self.skipTest(f"this process may open only {hard} files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 10200), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        writer, before = self.alone()
        crowd, slowest = [], 0
        for number in range(10000):
            crowd.append(self.client())
            try:
                if number % 3 == 0:
                    crowd[-1].send_raw(b'{"method":"io.cbshm.Li')
                elif number % 3 == 1:
                    crowd[-1].send("List")
            except OSError:
                pass  # turned away already
            if number % 500 == 0:
                started = time.monotonic()
                self.assertTrue(writer.call("ReportDrift", name="crowd", drift_score=0.0, sample_count=1) is not None)
                slowest = max(slowest, time.monotonic() - started)
        refused = sum(self.is_refused(client) for client in crowd)
        tap.note(f"{refused} of {len(crowd)} were turned away; the slowest report beside them took {slowest * 1000:.0f} ms")
        self.assertEqual(refused, 10000 - 1023)
        for client in crowd:
            client.close()
        wait_for(lambda: self.files() <= before, what="every file of theirs closed")
        self.assertIsNone(writer.call("ReportDrift", name="crowd", drift_score=0.0, sample_count=1)["incident"])

    def alone(self):
        """A client that is served, when all others have gone, and how many files the agent has open then."""
        client = self.client()
        client.call("Enable", name="crowd")
        wait_for(lambda: self.files() < 40, what="the end of other tests' clients")
        return client, self.files()

    def files(self):
        return len(os.listdir(f"/proc/{self.agent.pid}/fd"))

    @staticmethod
    def is_refused(client):
        client.socket.setblocking(False)
        try:
            return b"LimitExceeded" in client.socket.recv(4096)
        except BlockingIOError:
            return False

    def test_no_file_left(self):
        """Whoever finds no descriptor free is told so, and who is served goes on."""
        writer, own = self.alone()
        before = resource.prlimit(self.agent.pid, resource.RLIMIT_NOFILE)
        self.addCleanup(resource.prlimit, self.agent.pid, resource.RLIMIT_NOFILE, before)
        resource.prlimit(self.agent.pid, resource.RLIMIT_NOFILE, (own + 10, before[1]))
        crowd = [self.client() for _ in range(40)]
        self.assertIsNone(writer.call("ReportDrift", name="files", drift_score=0.0, sample_count=1)["incident"])
        wait_for(lambda: any(self.is_refused(client) for client in crowd), what="one that is told")
        for client in crowd:
            client.close()
        wait_for(lambda: self.served() is not None, what="room after they have gone")

    def served(self):
        try:
            return self.agent.call("org.varlink.service.GetInfo")
        except (VarlinkError, OSError, EOFError):
            return None


    def test_no_descriptor_comes_in(self):
        """The agent would have to close it; that of a socket with SO_LINGER takes as long as its owner likes."""
        if tuple(int(n) for n in re.findall(r"\d+", os.uname().release)[:2]) < (6, 16):
            self.skipTest("Linux before 6.16 lets all of them through")
        client = self.client()
        with self.assertRaises(PermissionError):
            socket.send_fds(client.socket, [b" "], [0])
        self.assertEqual(client.call("org.varlink.service.GetInfo")["product"], "cbagent")


class OtherUsers(SocketCase):
    @classmethod
    def setUpClass(cls):
        if os.getuid() != 0:
            raise unittest.SkipTest("only root can become another user")
        groups = [g for g in grp.getgrall() if g.gr_gid > 0]
        if len(groups) < 3:
            raise unittest.SkipTest("there are too few groups here")
        cls.reporters, cls.admins, cls.others = groups[:3]
        cls.config = {"socket": {"mode": "0666", "group": cls.reporters.gr_name, "admin_group": cls.admins.gr_name}}
        super().setUpClass()
        cls.uid = pwd.getpwnam(STRANGER).pw_uid

    def call_as(self, group, method, **parameters):
        message = json.dumps({"method": method if "." in method else "io.cbshm." + method, "parameters": parameters})
        done = subprocess.run([sys.executable, "-c", CALL, self.agent.socket, message, str(self.uid), str(group.gr_gid)],
                              stdout=subprocess.PIPE, check=True, text=True, timeout=30)
        return json.loads(done.stdout)

    def test_socket_file(self):
        status = os.stat(self.agent.socket)
        self.assertEqual(stat.S_IMODE(status.st_mode), 0o666)
        self.assertEqual(status.st_gid, self.reporters.gr_gid)

    def test_outsider(self):
        self.assertIn("parameters", self.call_as(self.others, "org.varlink.service.GetInfo"))
        for method, parameters in (("ReportDrift", {"name": "o", "drift_score": 1, "sample_count": 1}),
                                   ("ReportSchemaError", {"name": "o", "count": 9}),
                                   ("Disable", {"name": "o", "reason": "r"}), ("Enable", {"name": "o"}),
                                   ("Reset", {"name": "o"}), ("SetPolicy", {"name": "o"}), ("GetState", {"name": "o"}),
                                   ("GetIncidents", {}), ("List", {})):
            with self.subTest(method=method):
                self.assertEqual(self.call_as(self.others, method, **parameters)["error"], "io.cbshm.PermissionDenied")
        self.assertIsNone(self.version("o"))

    def test_reporter(self):
        reply = self.call_as(self.reporters, "ReportSchemaError", name="reported", count=9)
        self.assertEqual(reply["parameters"]["incident"]["severity"], "P3")
        for method, parameters in (("Disable", {"name": "reported", "reason": "r"}), ("Enable", {"name": "reported"}),
                                   ("SetPolicy", {"name": "reported", "set": {"auto_recover": False}})):
            with self.subTest(method=method):
                reply = self.call_as(self.reporters, method, **parameters)
                self.assertEqual(reply["error"], "io.cbshm.PermissionDenied")

    def test_admin_and_audit(self):
        reply = self.call_as(self.admins, "Disable", name="audited", reason="r", by="somebody else")
        self.assertTrue(reply["parameters"]["changed"])
        row = postgres.value("select row_to_json(a)::text from cbshm.audit_log a where breaker = 'audited' "
                             "order by version desc limit 1")
        row = row if isinstance(row, str) else json.dumps(row)
        self.assertIn("somebody else", row)
        self.assertIn(str(self.uid), row)

    def test_per_user(self):
        code = ("import os, socket, sys\nos.setgid(%d); os.setuid(%d)\nheld = []\n"
                "for n in range(129):\n s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); held.append(s)\n"
                "print(held[-1].recv(4096).decode(errors='replace'))\n" % (self.uid, self.uid))
        done = subprocess.run([sys.executable, "-c", code, self.agent.socket], stdout=subprocess.PIPE, text=True,
                              check=True, timeout=30)
        self.assertIn("io.cbshm.LimitExceeded", done.stdout)
        self.assertEqual(self.agent.call("org.varlink.service.GetInfo")["product"], "cbagent")


class Life(SocketCase):
    def test_replaces_a_dead_agents_socket(self):
        self.agent.kill9()
        self.assertTrue(stat.S_ISSOCK(os.stat(self.agent.socket).st_mode))
        with self.assertRaises(ConnectionRefusedError):
            Varlink(self.agent.socket)
        self.agent.start()
        self.assertTrue(self.agent.call("Disable", name="life", reason="r")["changed"])

    def test_stops_in_order(self):
        client = self.client()
        client.call("Disable", name="stop", reason="r")
        self.assertEqual(self.agent.stop(), 0)
        self.assertIsNone(client.receive_raw())
        self.assertFalse(os.path.exists(self.agent.socket))
        self.agent.start()

    def test_half_closed(self):
        client = self.client()
        for count in range(20):
            client.send("ReportSchemaError", {"name": "half", "count": count % 3})
        client.socket.shutdown(socket.SHUT_WR)
        for _ in range(20):
            self.assertEqual(client.receive(), {"incident": None})
        self.assertIsNone(client.receive_raw())

    def test_a_foreign_file_stays(self):
        self.agent.stop()
        with open(self.agent.socket, "w", encoding="utf-8") as file:
            file.write("mine")
        self.agent.start(ready=False)
        self.assertNotEqual(self.agent.process.wait(20), 0)
        with open(self.agent.socket, encoding="utf-8") as file:
            self.assertEqual(file.read(), "mine")
        self.assertIn(self.agent.socket, self.agent.log())
        os.unlink(self.agent.socket)
        self.agent.start()


if __name__ == "__main__":
    tap.main()
