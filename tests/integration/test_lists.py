# SPDX-License-Identifier: ISC
"""What operators ask for: the audit log, the queue of alerts, the agents."""
import os
import subprocess
import time
import unittest

from support import tap
from support.agent import Agent
from support.postgres import Postgres
from support.varlink import VarlinkError


class Lists(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()
        cls.addClassCleanup(cls.postgres.close)
        cls.agent = Agent(cls.postgres)
        cls.addClassCleanup(cls.agent.close)
        cls.cbctl = cls.agent.cbctl

    def refused(self, method, **parameters):
        with self.assertRaises(VarlinkError) as caught:
            self.agent.call(method, **parameters)
        return caught.exception

    # ---- questions that take long ----

    def test_long_questions(self):
        """They end after a second, and hold up no others; when whoever asked has left, they are not even asked."""
        session = self.postgres.session()
        self.addCleanup(session.close)
        session.execute("BEGIN")
        session.execute("LOCK TABLE cbshm.alert_queue")
        clients = [self.agent.connect() for _ in range(40)]
        for client in clients:
            client.send("GetAlerts", {"timeout_ms": 3600000})
        for client in clients[1:]:
            client.close()
        with self.assertRaises(VarlinkError) as caught:
            clients[0].receive()
        self.assertEqual(caught.exception.parameters["sqlstate"], "57014")
        clients[0].close()
        self.assertIn("entries", self.cbctl("log", "--limit=1", "--json", check=0).json())

    # ---- log ----

    def test_log(self):
        self.cbctl("disable", "l/one", "--reason", "wrong totals", "--by", "carol", check=0)
        self.cbctl("enable", "l/one", "--by", "dave", check=0)
        self.cbctl("disable", "l/other", "--reason", "x", check=0)
        entries = self.cbctl("log", "l/one", "--json", check=0).json()["entries"]
        self.assertEqual([(each["action"], each["actor"]) for each in entries],
                         [("enable", "dave"), ("disable", "carol"), ("create", "carol")])
        disabled = entries[1]
        self.assertEqual(disabled["old_values"], {"disabled": False})
        self.assertEqual(disabled["new_values"]["disabled_reason"], "wrong totals")
        self.assertEqual(disabled["proof"]["uid"], os.getuid())
        self.assertGreater(disabled["id"], entries[2]["id"])
        self.assertEqual(disabled["version"] + 1, entries[0]["version"])
        self.assertIsNotNone(disabled["request_id"])
        shown = self.cbctl("log", "l/one", check=0).out
        self.assertRegex(shown, r"disable  l/one  by carol, version \d+\n")
        self.assertIn("\n  disabled: false -> true\n", shown)
        self.assertIn("\n  disabled_reason: wrong totals\n", shown)
        self.assertRegex(shown, rf"\n  proven:.* uid={os.getuid()}\b")
        self.assertIn(f"\n  request: {disabled['request_id']}\n", shown)

    def test_log_of_the_fleet_and_of_sql(self):
        self.cbctl("policy", "--fleet", "failure_threshold=4", "--by", "erin", "--yes", check=0)
        entry = self.cbctl("log", "--limit", "1", "--json", check=0).json()["entries"][0]
        self.assertEqual((entry["breaker"], entry["action"], entry["actor"]), (None, "policy", "erin"))
        self.assertEqual((entry["old_values"], entry["new_values"]),
                         ({"failure_threshold": 3}, {"failure_threshold": 4}))
        self.assertRegex(self.cbctl("log", "--limit=1").out, r"policy  \(the fleet\)  by erin")
        self.postgres.psql("INSERT INTO cbshm.breaker (name) VALUES ('l/sql')")
        self.assertIn("session_user=postgres", self.cbctl("log", "l/sql", check=0).out)

    def test_log_since(self):
        self.cbctl("enable", "l/since", check=0)
        self.assertEqual(len(self.cbctl("log", "l/since", "--since", "1h", "--json").json()["entries"]), 1)
        time.sleep(0.2)
        self.assertEqual(self.cbctl("log", "l/since", "--since", "1ms", "--json").json()["entries"], [])
        self.assertIn("nothing", self.cbctl("log", "l/since", "--since", "2199-01-01T00:00:00Z", check=0).out)
        old = self.cbctl("log", "l/since", "--since", "2020-01-31 18:00", "--json")
        self.assertEqual(len(old.json()["entries"]), 1)
        for words in (["--since", "soon"], ["--since", "never"], ["--limit", "0"], ["--limit", "1001"]):
            self.assertIn(words[0], self.cbctl("log", *words, check=2).err)
        self.assertEqual(self.refused("GetLog", since="yesterday").parameters["field"], "since")

    def test_hostile_texts(self):
        self.cbctl("disable", "l/hostile", "--reason", "a\u202eb", "--by", "c\u200bd", check=0)
        for words in (["log", "l/hostile"], ["log", "l/hostile", "--json"]):
            shown = self.cbctl(*words, check=0).out
            self.assertFalse(set("\u202e\u200b") & set(shown))

    # ---- alerts ----

    def test_alerts(self):
        for name in ("a/failed", "a/closed", "a/waits"):
            self.cbctl("disable", name, "--reason", "x", check=0)
        self.cbctl("enable", "a/closed", check=0)
        # As if an Alertmanager had refused them ten times.
        self.postgres.psql("UPDATE cbshm.alert_queue SET status = 'failed', attempts = 10, last_error = 'HTTP 500' "
                           "WHERE breaker IN ('a/failed', 'a/closed')")
        found = [each for each in self.cbctl("alerts", "--json", check=0).json()["alerts"]
                 if each["breaker"].startswith("a/")]
        self.assertEqual([(each["breaker"], each["kind"], each["status"]) for each in found],
                         [("a/failed", "disable", "failed"), ("a/closed", "disable", "failed"),
                          ("a/closed", "enable", "failed"), ("a/waits", "disable", "pending")])
        self.assertEqual((found[0]["attempts"], found[0]["last_error"], found[0]["next_attempt_at"]),
                         (10, "HTTP 500", None))
        self.assertIsNotNone(found[3]["next_attempt_at"])
        shown = self.cbctl("alerts", check=0).out
        self.assertRegex(shown, r"failed  disable a/failed\n  queued .*\n  attempts  10\n  error     HTTP 500\n")
        self.assertIn("2 alerts", self.cbctl("alerts", "purge", check=0).out, "the open breaker's stays")
        self.assertEqual(self.cbctl("alerts", "retry", "--json", check=0).json(), {"count": 1})
        left = {(each["breaker"], each["kind"]): each for each in self.cbctl("alerts", "--json").json()["alerts"]}
        self.assertEqual(left[("a/failed", "disable")]["status"], "pending")
        self.assertRegex(self.agent.log(), r"event=alerts_retried count=1 user=\S+ uid=\d+")
        self.postgres.psql("UPDATE cbshm.alert_queue SET status = 'sent', sent_at = now()")
        self.assertIn("No alert waits", self.cbctl("alerts", check=0).out)
        self.assertIn("sent      ", self.cbctl("alerts", "--all", "--limit", "1", check=0).out)
        for words in (["prune"], ["retry", "--all"], ["purge", "--limit", "1"], ["--limit", "x"]):
            self.cbctl("alerts", *words, check=2)

    # ---- agents ----

    def test_agents(self):
        result = self.cbctl("agents", check=0)
        self.assertRegex(result.out, r"^ok +\S+  seen .* ago\)\n"
                                     r"Everything is in force on 1 of 1 host, slowest [\d.]+ m?s\.\n$")
        document = self.cbctl("agents", "--json", check=0).json()
        self.assertEqual((document["fleet"]["hosts"], document["fleet"]["in_force"]), (1, 1))
        agent = document["agents"][0]
        self.assertEqual((agent["live"], agent["behind"]), (True, False))
        self.postgres.psql("INSERT INTO cbshm.agent (host, instance, version, applied, last_seen_at) VALUES "
                           "('web7', 'web7', '0.0.9', 1, now() - interval '1 hour'),"
                           "('web8', 'two', '0.0.9', 1, now() - interval '2 days')")
        result = self.cbctl("agents", check=0)
        self.assertRegex(result.out, r"^silent  web7 \(cbagent 0\.0\.9\) +seen .*\(1 h ago\)\nok ")
        self.assertNotIn("web8", result.out, "forgotten")
        self.assertIn("web7", self.cbctl("enable", "g", "--wait", check=0).err)
        self.postgres.psql("DELETE FROM cbshm.agent WHERE host = 'web7'")

    def test_an_agent_from_the_future(self):
        self.postgres.psql("INSERT INTO cbshm.agent (host, instance, version, applied, last_seen_at) VALUES "
                           "(E'web9\\x1b[31m', 'web9', '0.0.9', 1, 'infinity')")
        self.addCleanup(self.postgres.psql, "DELETE FROM cbshm.agent WHERE instance = 'web9'")
        shown = self.cbctl("agents").out
        self.assertRegex(shown, r"behind  web9.* seen at an unknown time\n")
        self.assertNotIn("\x1b", shown)

    def test_who_may(self):
        if os.getuid() != 0:
            self.skipTest("needs root to become another user")
        group = 60
        config = {"socket": {"mode": "0666", "group": group}, "agent": {"instance": "b"}}
        with Agent(self.postgres, config=config) as agent:
            script = ("import sys; from support.varlink import Varlink, VarlinkError\n"
                      "client = Varlink(sys.argv[1])\n"
                      "for method in ('GetLog', 'GetAlerts', 'GetAgents', 'WaitFleet', 'RetryAlerts', 'PurgeAlerts'):\n"
                      "    try: client.call(method); print('done')\n"
                      "    except VarlinkError as error: print(error.name)\n")
            environment = {**os.environ, "PYTHONPATH": os.path.join(tap.source_dir(), "tests")}

            def attempt(groups):
                return subprocess.run(["python3", "-c", script, agent.socket], user=4711, group=4711,
                                      extra_groups=groups, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                      cwd="/", env=environment).stdout.split()
            denied = "PermissionDenied"
            found = attempt([])
            if "ModuleNotFoundError:" in found:
                self.skipTest("the source tree is closed to other users")
            self.assertEqual(found, [denied] * 6)
            self.assertEqual(attempt([group]), ["done"] * 4 + [denied] * 2)
            agent.stop()


if __name__ == "__main__":
    tap.main()
