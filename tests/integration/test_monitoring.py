# SPDX-License-Identifier: ISC
"""The alert rules and the dashboard that are shipped, in the hands of promtool and of a real Prometheus."""
import json
import os
import re
import unittest

from support import tap
from support.agent import Agent, wait_for
from support.alertmanager import free_port
from support.postgres import Postgres
from support.prometheus import Prometheus, promtool

MONITORING = os.path.join(tap.source_dir(), "monitoring")
RULES = os.path.join(MONITORING, "cbshm.rules.yml")


class Rules(unittest.TestCase):
    DIRECTORY = os.path.join(tap.source_dir(), "tests", "monitoring")

    def test_rules(self):
        for arguments in (("check", "rules", RULES), ("test", "rules", "rules_test.yml")):
            status, output = promtool(*arguments, cwd=self.DIRECTORY)
            self.assertEqual(status, 0, output)

    def test_every_rule_is_seen_firing(self):
        with open(RULES, encoding="utf-8") as rules, \
                open(os.path.join(self.DIRECTORY, "rules_test.yml"), encoding="utf-8") as tests:
            self.assertEqual(set(re.findall(r"- alert: (\w+)", rules.read())),
                             set(re.findall(r'alertname="(\w+)"', tests.read())))


class Scraped(unittest.TestCase):
    """By a real Prometheus, with the rules and the dashboard that are shipped."""

    @classmethod
    def setUpClass(cls):
        postgres = Postgres().migrate()
        cls.addClassCleanup(postgres.close)
        port = free_port()
        cls.agent = Agent(postgres, config={"metrics": {"listen": f"127.0.0.1:{port}"}})
        cls.addClassCleanup(cls.agent.close)
        cls.prometheus = Prometheus(postgres.scratch, port, RULES)
        cls.addClassCleanup(cls.prometheus.close)

    def up(self):
        """Once it has been scraped."""
        return self.prometheus.query('up{job="cbshm"} == 1')

    def test_a_trip_fires_and_a_recovery_ends_it(self):
        wait_for(self.up, 20, "the first scrape")
        (target,) = self.prometheus.api("targets")["activeTargets"]
        self.assertEqual((target["health"], target["lastError"]), ("up", ""))
        self.assertEqual(self.prometheus.firing(), set())
        for _ in range(3):
            self.agent.call("ReportDrift", name="x\\\"y", drift_score=0.5, sample_count=1)
        wait_for(lambda: self.prometheus.firing() == {("CbshmBreakerOpen", "p1")}, 20, "the alert")
        (alert,) = self.prometheus.api("alerts")["alerts"]
        self.assertEqual(alert["labels"]["breaker"], "x\\\"y")
        self.assertEqual(alert["annotations"]["summary"], "Circuit breaker x\\\"y is open (drift)")
        self.agent.call("Enable", name="x\\\"y")
        wait_for(lambda: not self.prometheus.firing(), 20, "the end of the alert")

    def names(self):
        """Of every series that there may be."""
        self.agent.call("Disable", name="n", reason="r")
        wait_for(lambda: self.prometheus.query('cbshm_breaker_disabled{breaker="n"} == 1'), 20, "the scrape")
        wait_for(lambda: self.prometheus.query("cbshm_alert_queue"), 20, "the queue")
        return set(self.prometheus.api("label/__name__/values"))

    def test_rules_name_what_there_is_and_say_what_to_do(self):
        names = self.names()
        (group,) = self.prometheus.api("rules")["groups"]
        for rule in group["rules"]:
            with self.subTest(alert=rule["name"]):
                self.assertEqual(rule["health"], "ok")
                self.assertGreater(set(re.findall(r"\b(?:cbshm|process)_\w+|\bup\b", rule["query"])), set())
                self.assertLessEqual(set(re.findall(r"\b(?:cbshm|process)_\w+|\bup\b", rule["query"])), names)
                self.assertGreater(len(rule["annotations"]["description"]), 40)
                self.assertIn("summary", rule["annotations"])

    def test_every_query_of_the_dashboard_works(self):
        names = self.names()
        with open(os.path.join(MONITORING, "cbshm-dashboard.json"), encoding="utf-8") as file:
            dashboard = json.load(file)
        panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
        self.assertEqual(len({panel["id"] for panel in dashboard["panels"]}), len(dashboard["panels"]))
        self.assertEqual([each["name"] for each in dashboard["templating"]["list"]], ["datasource", "instance"])
        for panel in panels:
            for target in panel["targets"]:
                with self.subTest(panel=panel["title"]):
                    self.assertEqual(target["datasource"], {"type": "prometheus", "uid": "${datasource}"})
                    query = target["expr"].replace("$__rate_interval", "5m").replace("$instance", ".*")
                    self.assertNotIn("$", query)
                    found = set(re.findall(r"\b(?:cbshm|process)_\w+", query))
                    self.assertGreater(found, set())
                    self.assertLessEqual(found, names)
                    self.prometheus.query(query)  # HTTPError if it is none
        shown = set(re.findall(r"\b(?:cbshm|process)_\w+", json.dumps(dashboard)))
        hidden = {name for name in names if name.startswith("cbshm_") and name not in shown}
        self.assertEqual({name for name in hidden if not re.search("_(bucket|sum|count)$", name)},
                         {"cbshm_breaker_disabled", "cbshm_database_notifies", "cbshm_http_cut_off_total",
                          "cbshm_mirror_incomplete", "cbshm_snapshot_failures_total",
                          "cbshm_snapshot_timestamp_seconds"})


if __name__ == "__main__":
    tap.main()
