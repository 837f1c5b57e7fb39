# SPDX-License-Identifier: ISC
"""cbctl through a real agent and a real PostgreSQL; and migrate."""
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
import unittest

from support import tap
from support.agent import Agent, cbctl, program, wait_for
from support.postgres import Postgres
from support.proxy import Proxy
from support.scratch import Scratch
from support.terminal import on_terminal

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class FakeAgent:
    """Answers one call with a reply of the test's choice."""

    def __init__(self, path, reply):
        self.reply = json.dumps(reply).encode() + b"\0"
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *unused):
        self.thread.join(10)
        self.listener.close()
        os.unlink(self.path)

    def run(self):
        connection, _ = self.listener.accept()
        with connection:
            while not connection.recv(65536).endswith(b"\0"):
                pass
            connection.sendall(self.reply)
            connection.recv(1)


class Loop(unittest.TestCase):
    """With everything up."""

    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres()
        cls.addClassCleanup(cls.postgres.close)
        cls.postgres.migrate()
        cls.agent = Agent(cls.postgres)
        cls.addClassCleanup(cls.agent.close)
        cls.cbctl = cls.agent.cbctl

    def test_disable_check_enable(self):
        result = self.cbctl("disable", "d1", "--reason", "wrong totals", "--by", "ann", "--for", "2h", check=0)
        self.assertIn("d1 is disabled", result.out)
        self.assertIn("in 1 h 59 min", result.out)
        self.assertRegex(result.out, UUID)
        self.assertEqual(self.postgres.value("SELECT disabled_by FROM cbshm.breaker WHERE name = 'd1'"), "ann")
        result = self.cbctl("check", "d1", check=1)
        self.assertIn("wrong totals", result.out)
        self.assertEqual(result.err, "")
        self.cbctl("enable", "d1", "--reason", "fixed", check=0)
        self.cbctl("check", "d1", check=0)
        notes = self.postgres.value("SELECT resolution_notes FROM cbshm.incident WHERE breaker = 'd1'")
        self.assertEqual(notes, "fixed")

    def test_repeating_changes_nothing(self):
        for arguments in ([], ["--until", "never"], ["--until", "2199-01-01T00:00:00+01:00"]):
            with self.subTest(arguments=arguments):
                command = ["disable", "again", "--reason", "r", *arguments, "--json"]
                self.assertTrue(self.cbctl(*command, check=0).json()["changed"])
                second = self.cbctl(*command, check=0).json()
                self.assertFalse(second["changed"])
                self.assertTrue(second["state"]["is_open"])
        self.assertIn("nothing changed", self.cbctl(*command[:-1], check=0).out)
        self.assertTrue(self.cbctl("reset", "again", "--json", check=0).json()["changed"])
        self.assertFalse(self.cbctl("reset", "again", "--json", check=0).json()["changed"])

    def test_until(self):
        state = self.cbctl("disable", "u", "--reason", "r", "--until", "2199-01-01T01:00:00+01:00", "--json",
                           check=0).json()["state"]
        self.assertEqual(state["disabled_until"], "2199-01-01T00:00:00.000000Z")
        result = self.cbctl("disable", "u", "--reason", "r", "--until", "never", check=0)
        self.assertIn("never by itself", result.out)
        result = self.cbctl("disable", "u", "--reason", "r", "--until", "tomorrow 09:00", check=0)
        self.assertRegex(result.out, r"ends +\d{4}-\d\d-\d\d 09:00:00 ")
        state = self.cbctl("disable", "u", "--reason", "r", "--json", check=0).json()["state"]
        self.assertAlmostEqual(state["remaining_seconds"], 86400, delta=60)

    def test_ttl_ends(self):
        self.cbctl("disable", "short", "--reason", "r", "--for", "2s", check=0)
        self.cbctl("check", "short", check=1)
        wait_for(lambda: self.cbctl("check", "short").status == 0, 10, "the end of the TTL")

    def test_drift_trips(self):
        for left in (1, 2):
            result = self.cbctl("drift", "engine", "0.5", "--samples", "10", check=0)
            self.assertIn(f"{left} of 3 failures", result.out)
        result = self.cbctl("--json", "drift", "engine", "0.25", "--samples=100", "--details", '{"batch": 12345678901234567890}', check=0)
        self.assertTrue(result.json()["tripped"])
        self.assertRegex(result.json()["incident_id"], UUID)
        self.assertTrue(result.json()["state"]["is_open"])
        incident = self.cbctl("incidents", "engine", "--json", check=0).json()["incidents"][0]
        self.assertEqual(incident["id"], result.json()["incident_id"])
        self.assertEqual((incident["severity"], incident["sample_count"], incident["drift_score"]), ("P1", 100, 0.25))
        self.assertEqual(incident["reason"], "Drift exceeded threshold: 0.2500 > 0.2")
        self.assertEqual(incident["details"]["batch"], 12345678901234567890)
        self.assertIn("Drift exceeded", self.cbctl("incidents", "engine", check=0).out)
        self.assertIn("engine is disabled, 4 failures", self.cbctl("drift", "engine", "0.5", check=0).out)

    def test_schema_error_trips(self):
        self.assertFalse(self.cbctl("schema-error", "parser", "4", "--json", check=0).json()["tripped"])
        self.assertIn("5 schema errors at once", self.cbctl("schema-error", "parser", "4", check=0).out)
        self.assertIn("tripped", self.cbctl("schema-error", "parser", "5", check=0).out)
        self.cbctl("check", "parser", check=1)
        self.assertIn("measured  5 schema errors\n", self.cbctl("incidents", "parser", check=0).out)

    def test_incidents(self):
        self.assertIn("No open incident of quiet", self.cbctl("incidents", "quiet", check=0).out)
        for i in range(3):
            self.cbctl("disable", "busy", "--reason", f"r{i}", check=0)
        self.cbctl("enable", "busy", check=0)
        self.assertEqual(self.cbctl("incidents", "busy", "--json", check=0).json()["incidents"], [])
        found = self.cbctl("incidents", "--all", "busy", "--limit", "2", "--json", check=0).json()["incidents"]
        self.assertEqual([incident["reason"] for incident in found], ["r2", "r1"])
        self.assertTrue(all(incident["resolved"] for incident in found))
        self.assertIn("resolved", self.cbctl("incidents", "busy", "--all", check=0).out)

    def test_policy(self):
        policy = self.cbctl("policy", "p", "drift_threshold=0.3", "default_ttl=1h30m", "auto_recover=off", "--json",
                            check=0).json()["policy"]
        self.assertEqual(policy, {"drift_threshold": 0.3, "failure_threshold": 3, "schema_error_threshold": 5,
                                  "default_ttl_seconds": 5400, "auto_recover": False})
        shown = self.cbctl("policy", "p", check=0).out
        self.assertIn("1h30m", shown)
        self.assertEqual(self.cbctl("policy", "p", "--json", check=0).json()["policy"], policy)
        self.cbctl("policy", "p", "drift_threshold=default", "default_ttl=default", "auto_recover=on", check=0)
        row = self.postgres.row("SELECT drift_threshold, default_ttl, auto_recover FROM cbshm.breaker WHERE name = 'p'")
        self.assertEqual(tuple(row), (None, None, "t"))

    def test_policy_of_the_fleet(self):
        before = self.cbctl("policy", "--fleet", "--json", check=0).json()
        self.assertIsNone(before["name"])
        after = self.cbctl("policy", "--fleet", "schema_error_threshold=50", "--json", check=0).json()
        self.assertEqual(after["policy"], {**before["policy"], "schema_error_threshold": 50})
        self.cbctl("policy", "--fleet", "schema_error_threshold=5", check=0)

    def test_fleet_policy_is_confirmed(self):
        command = [program("cbctl/cbctl"), "policy", "--fleet", "failure_threshold=9"]
        now = lambda: self.cbctl("policy", "--fleet", "--json", check=0).json()["policy"]["failure_threshold"]
        self.addCleanup(self.cbctl, "policy", "--fleet", "failure_threshold=3")
        for answer in ("\n", "n\n", "yesterday\n", "\x04"):
            with self.subTest(answer=answer):
                status, shown = on_terminal(command, self.agent.environment(), keys=answer)
                self.assertEqual(status, 7, shown)
                self.assertIn("failure_threshold       3 -> 9", shown)
                self.assertIn("nothing was changed", shown)
                self.assertEqual(now(), 3)
        status, shown = on_terminal(command, self.agent.environment(), keys="yes\n")
        self.assertEqual((status, now()), (0, 9), shown)
        # Not asked: with --yes, to look, for one breaker, and where there is no terminal.
        for words in (["--fleet", "failure_threshold=8", "--yes"], ["--fleet"], ["p1", "failure_threshold=4"]):
            status, shown = on_terminal([*command[:2], *words], self.agent.environment())
            self.assertEqual(status, 0)
            self.assertNotIn("[y/N]", shown)
        self.assertEqual(now(), 8)
        self.cbctl("policy", "--fleet", "failure_threshold=7", check=0)
        self.assertEqual(now(), 7)

    def test_policy_mistakes(self):
        for words, expected in ((["p", "drift_treshold=1"], "did you mean drift_threshold"),
                                (["p", "drift_threshold=2"], "from 0 to 1"), (["p", "drift_threshold"], "needs a value"),
                                (["p", "failure_threshold=0"], "1 or more"), (["p", "default_ttl=5"], "duration"),
                                (["p", "auto_recover=perhaps"], "on or off"), ([], "NAME, or --fleet"),
                                (["--fleet", "auto_recover=default"], "nothing to follow"),
                                (["p", "auto_recover=on", "auto_recover=on"], "twice")):
            with self.subTest(words=words):
                self.assertIn(expected, self.cbctl("policy", *words, check=2).err)
        self.assertIn("no breaker", self.cbctl("policy", "nobody-knows", check=7).err)

    def test_mistyped_names(self):
        self.cbctl("enable", "spelling", check=0)
        for words in (["policy", "speling", "failure_threshold=4"], ["incidents", "spellling"], ["log", "spellin"]):
            self.assertRegex(self.cbctl(*words, check=0).err, "no breaker spel+in.?.*; did you mean spelling\\?")
        self.assertEqual(self.cbctl("policy", "speling", "failure_threshold=5", check=0).err, "")
        self.assertEqual(self.cbctl("incidents", "spelling", check=0).err, "")

    def test_list_and_status(self):
        self.cbctl("disable", "zz-late", "--reason", "because", check=0)
        self.cbctl("drift", "aa-early", "0.9", check=0)
        lines = self.cbctl("list", check=0).out.splitlines()
        names = [line.split()[1] for line in lines]
        self.assertEqual(names, sorted(names))
        self.assertRegex(lines[names.index("aa-early")], r"^enabled +aa-early +1 of 3 failures")
        self.assertRegex(lines[names.index("zz-late")], r"^disabled +zz-late +ends in 23 h 59 min, because")
        everything = self.cbctl("list", "--json", check=0).json()
        self.assertEqual([breaker["name"] for breaker in everything["breakers"]], names)
        self.assertEqual(everything["total"], len(names))
        self.assertTrue(everything["health"]["agent_alive"])

        nothing = self.cbctl("list", "nothing", check=0)
        self.assertEqual((nothing.out, nothing.err), ("", "cbctl: warning: no breaker's name begins with that\n"))
        self.assertEqual(self.cbctl("list", "nothing", "--names", check=0).err, "")
        self.assertEqual(self.cbctl("list", "zz", check=0).err, "")

        status = self.cbctl("status", check=0)
        self.assertIn("zz-late is disabled", status.out)
        self.assertNotIn("aa-early", status.out)
        self.assertRegex(status.out, r"\d+ of \d+ breakers are disabled\.\nAgent running, .*database connected")
        one = self.cbctl("status", "aa-early", check=0).out
        self.assertIn("aa-early is enabled", one)
        self.assertIn("1 in a row", one)

    def test_bench(self):
        self.cbctl("enable", "0-closed", check=0)
        self.cbctl("disable", "0-for-good", "--reason", "r", "--until", "never", check=0)
        self.cbctl("disable", "0-with-a-TTL", "--reason", "r", check=0)
        results = {each["name"]: each for each in self.cbctl("bench", "--json", check=0).json()["results"]}
        for name, breaker in (("check_closed", "0-closed"), ("check_open", "0-for-good"), ("check_ttl", "0-with-a-TTL"),
                              ("check_unknown", "no such breaker 0"), ("state_closed", "0-closed"),
                              ("state_ttl", "0-with-a-TTL"), ("lookup", "0-closed")):
            result = results.pop(name)
            self.assertEqual(result["breaker"], breaker)
            self.assertTrue(0 < result["p10_ns"] <= result["median_ns"] <= result["p90_ns"], result)
        self.assertEqual(results, {})
        self.assertRegex(self.cbctl("bench", check=0).out, r"check, closed +\d+\.\d\d +\d+\.\d\d - \d+\.\d\d\n")
        self.assertEqual(self.cbctl("check", "no such breaker 0", "--json", check=0).json()["known"], False)

    def test_status_of_unknown(self):
        self.cbctl("disable", "costsim_v2", "--reason", "r", check=0)
        result = self.cbctl("status", "costsim_v2", "costsim_v3", check=7)
        self.assertIn("costsim_v2 is disabled", result.out)
        self.assertIn("did you mean costsim_v2?", result.err)
        document = self.cbctl("status", "costsim_v2", "costsim_v3", "--json", check=7).json()
        self.assertEqual(len(document["breakers"]), 1)
        self.assertEqual(document["error"], "not_found")

    def test_check_of_unknown(self):
        result = self.cbctl("check", "never-heard-of-it", check=0)
        self.assertIn("is enabled: there is no breaker", result.out)
        self.assertFalse(self.cbctl("check", "never-heard-of-it", "--json", check=0).json()["known"])

    def test_mistyped_name_in_an_emergency(self):
        self.cbctl("enable", "pricing_v1", check=0)
        result = self.cbctl("disable", "pricing_v2", "--reason", "r", check=0)
        self.assertIn("if you meant pricing_v1", result.err)
        result = self.cbctl("enable", "pricing_v9", check=0)
        self.assertIn("there was no breaker pricing_v9, it has been made", result.err)
        self.assertNotIn("nothing changed", result.out)
        self.assertIn("nothing changed", self.cbctl("enable", "pricing_v9", check=0).out)

    def test_plain_sql_is_seen(self):
        self.postgres.psql("INSERT INTO cbshm.breaker (name, disabled, disabled_by, disabled_reason) "
                           "VALUES ('by-sql', true, 'orm', 'by hand')")
        wait_for(lambda: self.cbctl("check", "by-sql").status == 1, 10, "the row in the segment")
        self.assertIn("by hand", self.cbctl("check", "by-sql").out)

    def test_options_stand_anywhere(self):
        for words in (["--json", "check", "any"], ["check", "--json", "any"], ["check", "any", "--json"],
                      ["check", "--json", "--", "any"], [f"--segment={self.agent.segment}", "check", "any", "--json"],
                      ["--socket", self.agent.socket, "check", "--json", "any"]):
            with self.subTest(words=words):
                self.assertEqual(self.cbctl(*words, check=0).json()["name"], "any")
        self.cbctl("disable", "--reason", "r", "--", "--odd", check=0)
        self.assertIn("--odd is disabled", self.cbctl("check", "--", "--odd", check=1).out)

    def test_escapes_do_not_reach_the_terminal(self):
        nasty = "a\u202eb\u200bc\nd"
        self.postgres.psql("INSERT INTO cbshm.breaker (name, disabled, disabled_by, disabled_reason) "
                           f"VALUES ('nasty', true, 'x', '{nasty}')")
        wait_for(lambda: self.cbctl("check", "nasty").status == 1, 10, "the row in the segment")
        for words in (["check", "nasty"], ["status", "nasty"], ["list"], ["check", "nasty", "--json"],
                      ["incidents", "nasty"], ["incidents", "nasty", "--json"]):
            with self.subTest(words=words):
                shown = self.cbctl(*words)
                for bad in "\u202e\u200b":
                    self.assertNotIn(bad, shown.out + shown.err)
        self.assertIn("a\\u202eb\\u200bc\\nd", self.cbctl("check", "nasty").out)
        self.assertEqual(self.cbctl("check", "nasty", "--json").json()["state"]["reason"], nasty)

    def test_colours(self):
        command = [program("cbctl/cbctl"), "check", "plain"]
        environment = {**self.agent.environment(), "TERM": "xterm"}
        environment.pop("NO_COLOR", None)
        self.assertIn("\x1b[", on_terminal([command[0], "status"], environment)[1])
        for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
            self.assertNotIn("\x1b", on_terminal([command[0], "status"], {**environment, **plain})[1])
        self.assertNotIn("\x1b", self.cbctl("status").out)

    def test_a_full_disk_is_no_success(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run([program("cbctl/cbctl"), "list"], env=self.agent.environment(), stdout=full,
                                  stderr=subprocess.PIPE, check=False)
        self.assertEqual(done.returncode, 7)

    def test_bad_values(self):
        for words, expected in (
                (["drift", "b", "1.5"], "score"), (["drift", "b", "-0.5"], "score"), (["drift", "b", "x"], "SCORE"),
                (["drift", "b", "nan"], "SCORE"), (["drift", "b", "0.5", "--samples", "0"], "samples"),
                (["drift", "b", "0.5", "--samples", "1.5"], "--samples"),
                (["drift", "b", "0.5", "--details", "[]"], "details"), (["drift", "b"], "one more argument"),
                (["schema-error", "b", "-1"], "count"), (["schema-error", "b", "many"], "COUNT"),
                (["disable", "b"], "--reason"), (["disable", "b", "--reason", ""], "reason"),
                (["disable", "b", "--reason", "r", "--for", "0s"], "--for"),
                (["disable", "b", "--reason", "r", "--for", "-1h"], "negative"),
                (["disable", "b", "--reason", "r", "--for", "90"], "unit"),
                (["disable", "b", "--reason", "r", "--for", "never"], "--until never"),
                (["disable", "b", "--reason", "r", "--until", "2020-01-01T00:00:00Z"], "passed"),
                (["disable", "b", "--reason", "r", "--until", "tomorrow"], "zone"),
                (["disable", "b", "--reason", "r", "--until", "never", "--for", "1h"], "exclude"),
                (["disable", "b", "--reason", "r", "--by", "a\nb"], "by"),
                (["disable", "n" * 129, "--reason", "r"], "name"), (["check", ""], "NAME"), (["check", "a\nb"], "NAME"),
                (["incidents", "--limit", "0"], "--limit"), (["incidents", "--limit", "1001"], "--limit")):
            with self.subTest(words=words):
                self.assertIn(expected, self.cbctl(*words, check=2).err)
                document = self.cbctl(*words, "--json", check=2)
                self.assertIn(document.json()["error"], ("usage", "invalid"))
                self.assertIn(expected, document.json()["message"])
        self.assertEqual(self.postgres.value("SELECT count(*) FROM cbshm.breaker WHERE name = 'b'"), "0")

    def test_lock_of_somebody_else(self):
        self.cbctl("enable", "locked", check=0)
        session = self.postgres.session()
        session.execute("BEGIN")
        session.execute("SELECT 1 FROM cbshm.breaker WHERE name = 'locked' FOR UPDATE")
        begun = time.monotonic()
        result = self.cbctl("disable", "locked", "--reason", "r", "--json")
        session.execute("ROLLBACK")
        self.assertEqual(result.status, 4)
        self.assertIn(result.json()["error"], ("busy", "timeout"))
        self.assertLess(time.monotonic() - begun, 10)


class Down(unittest.TestCase):
    """With parts of it dead."""

    def setUp(self):
        self.postgres = Postgres()
        self.addCleanup(self.postgres.close)
        self.postgres.migrate()
        self.agent = Agent(self.postgres)
        self.addCleanup(self.agent.close)

    def test_database_down(self):
        self.agent.cbctl("disable", "b", "--reason", "r", check=0)
        self.postgres.stop()
        begun = time.monotonic()
        result = self.agent.cbctl("enable", "b", "--json")
        self.assertLess(time.monotonic() - begun, 3)
        self.assertIn((result.status, result.json()["error"]), ((4, "database_down"), (6, "outcome_unknown")))
        wait_for(lambda: "no news from Postgres" in self.agent.cbctl("check", "b", check=1).err, 20, "the warning")
        self.assertEqual(self.agent.cbctl("drift", "b", "0.5").status, 4)

    def test_agent_killed(self):
        self.agent.cbctl("disable", "b", "--reason", "r", "--for", "2s", check=0)
        self.agent.kill9()
        result = self.agent.cbctl("check", "b", check=1)
        self.assertIn("cbagent is not running", result.err)
        self.assertIn("systemctl", result.err)
        self.assertFalse(self.agent.cbctl("list", "--json", check=0).json()["health"]["agent_alive"])
        begun = time.monotonic()
        result = self.agent.cbctl("enable", "b", check=4)
        self.assertIn("no agent answers at " + self.agent.socket, result.err)
        self.assertLess(time.monotonic() - begun, 2)
        wait_for(lambda: self.agent.cbctl("check", "b").status == 0, 10, "the end of the TTL without an agent")
        self.assertIn("cbagent is not running", self.agent.cbctl("status", check=0).err)

    def test_agent_hangs(self):
        self.agent.cbctl("disable", "b", "--reason", "r", check=0)
        self.agent.sigstop()
        result = self.agent.cbctl("drift", "b", "0.5", "--json")
        self.assertEqual((result.status, result.json()["error"]), (6, "outcome_unknown"))
        self.assertEqual(self.agent.cbctl("incidents", "--json").json()["error"], "timeout")
        wait_for(lambda: "hanging" in self.agent.cbctl("check", "b", check=1).err, 20, "the warning")
        self.agent.sigcont()


class Nothing(unittest.TestCase):
    """With nothing there at all."""

    def setUp(self):
        self.scratch = Scratch()
        self.addCleanup(self.scratch.cleanup)
        self.environment = {**os.environ, "CBSHM_SEGMENT": self.scratch.segment(),
                            "CBSHM_SOCKET": os.path.join(self.scratch.path, "none"), "CBSHM_OWNER": str(os.getuid())}

    def cbctl(self, *words, **options):
        return cbctl(*words, environment=self.environment, **options)

    def test_no_segment(self):
        for words in (["check", "b"], ["status"], ["status", "b"], ["list"], ["policy", "b"], ["bench"]):
            with self.subTest(words=words):
                self.assertIn("there is no segment", self.cbctl(*words, check=3).err)
                self.assertEqual(self.cbctl(*words, "--json", check=3).json()["error"], "no_segment")

    def test_no_agent(self):
        for words in (["disable", "b", "--reason", "r"], ["enable", "b"], ["reset", "b"], ["drift", "b", "1"],
                      ["schema-error", "b", "1"], ["incidents"], ["policy", "--fleet"]):
            with self.subTest(words=words):
                self.assertIn("no agent answers at", self.cbctl(*words, check=4).err)
                self.assertEqual(self.cbctl(*words, "--json", check=4).json()["error"], "agent_down")

    def test_escapes_of_an_agent_do_not_reach_the_terminal(self):
        text = "\x1b]0;owned\x07\x7f\u009b31m\ud83d\ude00"
        incident = {"id": "0e7a8b4e-92f6-4e2a-8a43-2f9c5c3c1d11", "breaker": "b", "timestamp": "2026-11-23T21:00:00Z",
                    "reason": text, "severity": "P1", "drift_score": None, "sample_count": None,
                    "details": {"a": text}, "resolved": True, "resolved_at": "2026-11-23T21:00:00Z",
                    "resolved_by": text, "resolution_notes": text, "alert_sent": False, "alert_sent_at": None}
        with open("/dev/shm" + self.environment["CBSHM_SEGMENT"], "wb"):
            pass  # so that the agent is not asked for it
        for reply in ({"parameters": {"incidents": [incident]}},
                      {"error": "io.cbshm.Busy", "parameters": {"message": text}}, {"error": text}):
            for words in (["incidents"], ["incidents", "--json"]):
                with self.subTest(reply=reply, words=words), FakeAgent(self.environment["CBSHM_SOCKET"], reply):
                    result = self.cbctl(*words)
                    for bad in "\x1b\x07\x7f\x9b":
                        self.assertNotIn(bad, result.out + result.err)
                    self.assertIn("\U0001f600", result.out + result.err)
                    if "--json" in words:
                        self.assertIn("owned", json.dumps(result.json()))

    def test_untrusted_segment(self):
        if os.getuid() != 0:
            self.skipTest("only root can make a segment of another user")
        path = "/dev/shm" + self.environment["CBSHM_SEGMENT"]
        with open(path, "wb") as file:
            file.truncate(1 << 20)
        self.addCleanup(os.unlink, path)
        os.chown(path, 65534, 65534)
        result = self.cbctl("check", "b", "--json", check=3)
        self.assertEqual(result.json()["error"], "untrusted")

    def test_help_and_version(self):
        general = self.cbctl("--help", check=0).out
        self.assertEqual(self.cbctl("help", check=0).out, general)
        self.assertLessEqual(len(general.splitlines()), 24)
        self.assertLessEqual(max(map(len, general.splitlines())), 80)
        for command in ("check", "status", "list", "disable", "enable", "reset", "drift", "schema-error", "incidents",
                        "policy", "migrate", "log", "alerts", "agents", "watch", "bench"):
            with self.subTest(command=command):
                self.assertIn(f"  {command} ", general)
                text = self.cbctl(command, "--help", check=0).out
                self.assertIn(f"usage: cbctl {command}", text)
                self.assertLessEqual(len(text.splitlines()), 24)
                # Wherever it is installed: the path of the SQL files may be of any length.
                self.assertLessEqual(max(len(line) for line in text.splitlines() if "/cbshm/sql" not in line), 80)
                self.assertEqual(self.cbctl("help", command, check=0).out, text)
        self.assertTrue(self.cbctl("bench", "--help", check=0).out.startswith("usage: cbctl bench\n"))
        self.assertRegex(self.cbctl("--version", check=0).out, r"^cbctl \d+\.\d+\.\d+\n$")

    def test_usage(self):
        for words, expected in (([], "no command"), (["disabel", "b"], "did you mean disable?"), (["frob"], "no command"),
                                (["help", "disabel"], "did you mean disable?"),
                                (["disable", "b", "--raeson", "r"], "did you mean --reason?"),
                                (["check", "b", "c"], "no use for"), (["check"], "needs an argument"),
                                (["disable", "b", "--reason"], "needs a value"), (["check", "b", "-x"], "unknown option"),
                                (["disable", "b", "--reason", "a", "--reason", "b"], "twice"),
                                (["list", "--json=yes"], "takes no value"), (["list", "--socket", "p" * 200], "socket")):
            with self.subTest(words=words):
                self.assertIn(expected, self.cbctl(*words, check=2).err)


class Migrate(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres()
        cls.addClassCleanup(cls.postgres.close)
        cls.sql = os.path.join(tap.source_dir(), "sql")

    def setUp(self):
        self.database = "m" + self.id().rsplit("_", 1)[-1]
        self.postgres.psql(f"CREATE DATABASE {self.database} ENCODING 'UTF8' TEMPLATE template0", db="postgres")
        self.directory = self.postgres.scratch.directory(self.database)

    def migrate(self, *words, sql=None, check=None, database=None):
        environment = {**os.environ, "CBSHM_SQL_DIR": sql or self.sql}
        return cbctl("migrate", "--conninfo", self.postgres.conninfo(db=database or self.database), *words,
                     environment=environment, check=check)

    def value(self, sql):
        return self.postgres.value(sql, db=self.database)

    def own(self, **files):
        """A directory with the first migration of the project, and others."""
        shutil.copyfile(os.path.join(self.sql, "0001_schema.sql"), os.path.join(self.directory, "0001_schema.sql"))
        for name, text in files.items():
            with open(os.path.join(self.directory, name[1:] + ".sql"), "w", encoding="utf-8") as file:
                file.write(text)
        return self.directory

    def test_from_nothing_and_again_nothing(self):
        count = len([name for name in os.listdir(self.sql) if name.endswith(".sql")])
        result = self.migrate(check=0)
        self.assertEqual(len(re.findall("^applied ", result.out, re.MULTILINE)), count)
        self.assertIn(f"schema is now up to date: version {count}\n", result.out)
        result = self.migrate(check=0)
        self.assertEqual(result.out, f"schema is up to date: version {count}\n")
        self.assertEqual(self.migrate("--json", check=0).json(), {"applied": [], "version": count})
        self.assertEqual(self.value("SELECT string_agg(version || ' ' || file, ',' ORDER BY version) "
                                    "FROM cbshm.schema_version WHERE version = 1"), "1 0001_schema.sql")

    def test_environment_instead_of_conninfo_env(self):
        environment = {**os.environ, **self.postgres.environment(db=self.database), "CBSHM_SQL_DIR": "/nonexistent"}
        result = cbctl("migrate", "--sql", self.sql, "--json", environment=environment, check=0)
        self.assertEqual(result.json()["applied"][0], {"version": 1, "file": "0001_schema.sql"})

    def test_newer_schema_is_refused_newer(self):
        self.migrate(check=0)
        self.postgres.psql("INSERT INTO cbshm.schema_version (version, applied_at, file) VALUES (99, now(), 'x')",
                           db=self.database)
        result = self.migrate("--json", check=7)
        self.assertEqual(result.json()["error"], "schema_newer")
        self.assertIn("version 99", self.migrate(check=7).err)

    def test_a_file_that_fails_leaves_nothing_fails(self):
        sql = self.own(_0002_good="CREATE TABLE cbshm.good ();",
                       _0003_bad="CREATE TABLE cbshm.half ();\n-- \u00e9\u00e9\n\nSELEC 1;\n")
        result = self.migrate(sql=sql, check=7)
        self.assertIn("0003_bad.sql failed in line 4 and nothing of it was applied", result.err)
        self.assertIn("applied 0002_good.sql", result.out)
        self.assertEqual(self.value("SELECT max(version) FROM cbshm.schema_version"), "2")
        self.assertIsNone(self.value("SELECT to_regclass('cbshm.half')"))
        document = self.migrate("--json", sql=sql, check=7).json()
        self.assertEqual(document["error"], "database")
        with open(os.path.join(sql, "0003_bad.sql"), "w", encoding="utf-8") as file:
            file.write("CREATE TABLE cbshm.half ();")
        self.migrate(sql=sql, check=0)
        self.assertEqual(self.value("SELECT max(version) FROM cbshm.schema_version"), "3")

    def test_a_file_must_not_commit_commit(self):
        sql = self.own(_0002_rude="COMMIT;")
        self.assertIn("ends the transaction", self.migrate(sql=sql, check=7).err)
        self.assertEqual(self.value("SELECT max(version) FROM cbshm.schema_version"), "1")

    def test_numbers_missing_and_twice_numbers(self):
        self.assertIn("no migrations", self.migrate(sql=self.directory, check=7).err)
        sql = self.own(_0003_late="SELECT 1;")
        self.assertIn("migration 0002 is missing", self.migrate(sql=sql, check=7).err)
        sql = self.own(_0002_one="SELECT 1;", _0002_other="SELECT 1;")
        self.assertIn("0002_one.sql and 0002_other.sql", self.migrate(sql=sql, check=7).err)
        self.assertIsNone(self.value("SELECT to_regclass('cbshm.schema_version')"))
        self.assertIn("/nonexistent", self.migrate("--sql", "/nonexistent", check=7).err)

    def test_several_at_once_several(self):
        environment = {**os.environ, "CBSHM_SQL_DIR": self.sql}
        command = [program("cbctl/cbctl"), "migrate", "--conninfo", self.postgres.conninfo(db=self.database), "--json"]
        running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                    text=True) for _ in range(4)]
        documents = [json.loads(process.communicate(timeout=60)[0]) for process in running]
        self.assertEqual([process.returncode for process in running], [0] * 4)
        self.assertEqual(sorted(bool(document["applied"]) for document in documents), [False] * 3 + [True])

    def test_older_server_old(self):
        """One that says that it is 12, as far as a client can see."""
        proxy = Proxy(self.postgres, self.directory)
        self.addCleanup(proxy.close)
        said = b"server_version\00012.22\000"
        proxy.filter = lambda kind, body: (kind + struct.pack("!I", len(said) + 4) + said
                                           if kind == b"S" and body.startswith(b"server_version") else True)
        result = cbctl("migrate", "--sql", self.sql, "--conninfo", f"host={self.directory} dbname={self.database} user=postgres",
                       check=7)
        self.assertIn("the server is PostgreSQL 12.22; cbshm needs 13 or newer", result.err)
        self.assertIsNone(self.value("SELECT to_regnamespace('cbshm')"))

    def test_encoding_other(self):
        self.postgres.psql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0", db="postgres")
        result = self.migrate(database="latin", check=7)
        self.assertIn("needs UTF8", result.err)

    def test_no_server_gone(self):
        result = cbctl("migrate", "--sql", self.sql, "--conninfo", "host=/nonexistent", "--json", check=4,
                       environment=dict(os.environ))
        self.assertEqual(result.json()["error"], "database_down")
        self.assertNotRegex(result.json()["message"], r"[\n\t]")
        result = cbctl("migrate", "--sql", self.sql, "--conninfo", "hots=db", check=2, environment=dict(os.environ))
        self.assertIn('invalid connection option "hots"', result.err)


if __name__ == "__main__":
    tap.main()
