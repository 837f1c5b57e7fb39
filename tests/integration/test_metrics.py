# SPDX-License-Identifier: ISC
"""/metrics, /healthz and /readyz: they tell what happens, and nobody who asks can hurt the agent."""
import os
import re
import resource
import socket
import time
import unittest

from support import tap
from support.agent import Agent, wait_for
from support.alertmanager import Fake, free_port
from support.postgres import Postgres
from support.prometheus import OPENMETRICS, Samples, get, promtool, scrape

HOSTILE = ['quote"', "back\\slash", "\\", '"', "ends in \\\"", "ünï/cödé 🙂", "{a=\"b\"} 1", "#", " ", "\\n"]


class MetricsTest(unittest.TestCase):
    """One server for all, which begins empty for each class, and an agent for each."""

    CONFIG = {}
    postgres = None

    @classmethod
    def setUpClass(cls):
        if MetricsTest.postgres is None:
            MetricsTest.postgres = Postgres().migrate()
            unittest.addModuleCleanup(MetricsTest.postgres.close)
        cls.postgres.psql("DELETE FROM cbshm.breaker; DELETE FROM cbshm.incident")
        cls.port = free_port()
        config = {"metrics": {"listen": f"127.0.0.1:{cls.port}"}}
        for section, keys in cls.CONFIG.items():
            config.setdefault(section, {}).update(keys)
        cls.agent = Agent(cls.postgres, config=config)
        cls.addClassCleanup(cls.agent.close)

    def scrape(self):
        return scrape(self.port)

    def assertDelta(self, before, after, delta, name, **labels):
        self.assertEqual(after.value(name, **labels) - before.value(name, **labels), delta, (name, labels))

    def connect(self, segment=None):
        """A connection; with small segments the kernel keeps less of what is not read than it else does locally."""
        client = socket.socket()
        self.addCleanup(client.close)
        client.settimeout(10)
        if segment:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.connect(("127.0.0.1", self.port))
        return client


class Format(MetricsTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for name in HOSTILE:
            cls.agent.call("Disable", name=name, reason="why", by="anna")

    def test_promtool_is_content(self):
        status, output = promtool("check", "metrics", stdin=get(self.port, "/metrics")[2])
        self.assertEqual((status, output), (0, ""))

    def test_hostile_names_are_themselves(self):
        for text in (get(self.port, "/metrics")[2], self.scrape().text):
            samples = Samples(text)
            for name in HOSTILE:
                self.assertEqual(samples.value("cbshm_breaker_disabled", breaker=name), 1, name)
                self.assertGreater(samples.value("cbshm_breaker_opened_timestamp_seconds", breaker=name, reason="manual",
                                                 severity="P2"), time.time() - 600)

    def test_negotiation(self):
        for accept, expected in [
                (None, "text/plain"), ("*/*", "text/plain"), ("text/html", "text/plain"),
                (OPENMETRICS, "application/openmetrics-text"), ("Application/OpenMetrics-Text", "application/openmetrics-text"),
                ("text/plain;q=0.9, application/openmetrics-text ; version=1.0.0; q=0.8", "text/plain"),
                ("text/plain;q=0.2,application/openmetrics-text;version=1.0.0;q=0.8", "application/openmetrics-text"),
                ("application/openmetrics-text;q=0", "text/plain"), ("application/openmetrics-textual", "text/plain")]:
            _, headers, body = get(self.port, "/metrics", headers={"Accept": accept} if accept else {})
            self.assertEqual(headers["Content-Type"].split(";")[0], expected, accept)
            self.assertEqual(body.endswith("# EOF\n"), expected != "text/plain", accept)
        self.assertIn("version=1.0.0", get(self.port, "/metrics", headers={"Accept": OPENMETRICS})[1]["Content-Type"])
        self.assertIn("version=0.0.4", get(self.port, "/metrics")[1]["Content-Type"])

    def test_both_formats_have_the_same_samples(self):
        self.assertEqual(set(Samples(get(self.port, "/metrics")[2])), set(self.scrape()))

    def test_openmetrics_types(self):
        text = self.scrape().text
        self.assertIn("# TYPE cbshm_reports counter\n", text)
        self.assertIn("# TYPE cbshm_build info\n", text)
        self.assertIn("# TYPE cbshm_reports_total counter\n", get(self.port, "/metrics")[2])

    def test_the_manual_has_every_family(self):
        with open(os.path.join(tap.source_dir(), "man", "cbshm-metrics.7"), encoding="utf-8") as page:
            described = set(re.findall(r"^\.It Li ([a-z_]+)", page.read(), re.M))
        wait_for(lambda: "cbshm_alert_queue{" in self.scrape().text, 10, "the first sample of the queue")
        names = {name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name, _ in self.scrape()}
        self.assertEqual(described, names)


class Http(MetricsTest):
    def test_head(self):
        for path in ("/metrics", "/healthz", "/readyz"):
            status, headers, body = get(self.port, path, "HEAD")
            self.assertEqual((status, body), (200, ""))
            self.assertEqual(headers["Content-Type"], get(self.port, path)[1]["Content-Type"])

    def test_other_paths_and_methods(self):
        for path in ("/", "/metrics/", "/metricsx", "/../metrics"):
            self.assertEqual(get(self.port, path)[0], 404, path)
        self.assertEqual(get(self.port, "/healthz?x=1")[::2], (200, "ok\n"))
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            status, headers, _ = get(self.port, "/metrics", method)
            self.assertEqual((status, headers["Allow"]), (405, "GET, HEAD"))

    def test_old_and_odd_requests(self):
        for request, expected in [
                (b"GET /healthz HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 "), (b"GET /metrics HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 "),
                (b"GET http://host/healthz HTTP/1.1\r\nHost: host\r\n\r\n", b"HTTP/1.1 200 "),
                (b"\x00\xff rubbish of some length\r\n\r\n", b"HTTP/1.1 400 "),
                (b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 20000 + b"\r\n\r\n", b"HTTP/1.1 4"),
                (b"POST /metrics HTTP/1.1\r\nContent-Length: 999999999\r\n\r\n", b"HTTP/1.1 4")]:
            client = self.connect()
            client.sendall(request)
            answer = b""
            try:
                while chunk := client.recv(65536):
                    answer += chunk
            except ConnectionResetError:
                pass
            self.assertTrue(answer.startswith(expected), (request[:40], answer[:200]))

    def test_a_connection_is_closed_after_its_answer(self):
        client = self.connect()
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
        with client.makefile("rb") as file:
            self.assertEqual(file.read().count(b"HTTP/1.1 200"), 1)

    def open_files(self):
        return len(os.listdir(f"/proc/{self.agent.pid}/fd"))

    def test_crowds_give_way(self):
        """Silent clients, and some that never end their request, hold neither the loop nor other scrapers up."""
        before = self.open_files()
        cut = self.scrape().value("cbshm_http_cut_off_total")
        crowd = [self.connect() for _ in range(100)]
        for client in crowd[::2]:
            try:
                client.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            except OSError:
                pass  # it was cut off already
        self.assertEqual(get(self.port, "/healthz")[0], 200)
        self.assertEqual(self.agent.call("Disable", name="crowd", reason="r")["changed"], True)
        after = self.scrape()
        self.assertLessEqual(self.open_files() - before, 20)
        self.assertGreaterEqual(after.value("cbshm_http_cut_off_total") - cut, 80)
        for client in crowd:
            client.close()
        wait_for(lambda: self.open_files() <= before, 10, "the descriptors' return")

    def test_clients_that_go_away(self):
        for length in (1, 20, 60):
            for _ in range(20):
                client = self.connect()
                client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nX: y\r\n\r\n"[:length])
                client.close()
        self.assertEqual(get(self.port, "/healthz")[0], 200)

    def test_no_descriptor_free(self):
        """The agent neither spins nor dies, and serves again when there is one."""
        agent = self.agent
        soft, hard = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (3, hard))  # it keeps those it has
        try:
            client = self.connect()
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_for(lambda: "event=http_accept_failed" in agent.log(), 10, "the complaint")
            time.sleep(1.5)
            self.assertLess(agent.log().count("event=http_accept_failed"), 5)
        finally:
            resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (soft, hard))
        self.assertIn(b"200 OK", client.recv(4096))


class Counters(MetricsTest):
    def test_reports_and_trips(self):
        before = self.scrape()
        for score in (0.0, 0.3, 0.3, 0.9, 0.9):
            self.agent.call("ReportDrift", name="r", drift_score=score, sample_count=10)
        self.agent.call("ReportSchemaError", name="s", count=1)
        self.agent.call("ReportSchemaError", name="s", count=9)
        after = self.scrape()
        self.assertDelta(before, after, 5, "cbshm_reports_total", kind="drift")
        self.assertDelta(before, after, 2, "cbshm_reports_total", kind="schema_error")
        self.assertDelta(before, after, 1, "cbshm_disables_total", reason="drift", severity="P1")
        self.assertDelta(before, after, 1, "cbshm_disables_total", reason="schema_error", severity="P3")
        self.assertDelta(before, after, 2, "cbshm_incidents_total")
        self.assertDelta(before, after, 1, "cbshm_drift_score_bucket", le="0.001")
        self.assertDelta(before, after, 3, "cbshm_drift_score_bucket", le="0.3")
        self.assertDelta(before, after, 5, "cbshm_drift_score_bucket", le="0.9")
        self.assertDelta(before, after, 5, "cbshm_drift_score_count")
        self.assertAlmostEqual(after.value("cbshm_drift_score_sum") - before.value("cbshm_drift_score_sum"), 2.4)
        self.assertDelta(before, after, 5, "cbshm_replies_total", method="io.cbshm.ReportDrift", error="")
        self.assertGreaterEqual(after.value("cbshm_commit_duration_seconds_count"),
                                before.value("cbshm_commit_duration_seconds_count") + 7)
        self.assertGreater(after.value("cbshm_commit_duration_seconds_sum"), before.value("cbshm_commit_duration_seconds_sum"))
        self.assertDelta(before, after, 7, "cbshm_batch_requests_sum")
        # A notification may overtake the answer to the transaction.
        self.assertGreater(after.value("cbshm_mirror_lag_seconds_count", source="own"),
                           before.value("cbshm_mirror_lag_seconds_count", source="own"))
        self.assertEqual(after.value("cbshm_breaker_disabled", breaker="r"), 1)
        self.assertEqual(after.value("cbshm_breaker_consecutive_failures", breaker="r"), 4)
        for name, reason, severity in (("r", "drift", "P1"), ("s", "schema_error", "P3")):
            self.assertGreater(after.value("cbshm_breaker_opened_timestamp_seconds", breaker=name, reason=reason,
                                           severity=severity), 0)

    def test_disables_enables_and_recoveries(self):
        before = self.scrape()
        self.agent.call("Disable", name="d", reason="one")
        self.agent.call("Disable", name="d", reason="one")
        self.agent.call("Disable", name="d", reason="two")
        self.agent.call("Enable", name="d")
        self.agent.call("Enable", name="d")
        self.agent.call("Disable", name="e", reason="short", ttl_seconds=0.2)
        wait_for(lambda: self.scrape().value("cbshm_automatic_recoveries_total")
                 > before.value("cbshm_automatic_recoveries_total"), 10, "the recovery")
        after = self.scrape()
        self.assertDelta(before, after, 3, "cbshm_disables_total", reason="manual", severity="P2")
        self.assertDelta(before, after, 1, "cbshm_enables_total", reason="manual")
        self.assertDelta(before, after, 1, "cbshm_enables_total", reason="recovered")
        self.assertDelta(before, after, 3, "cbshm_incidents_total")
        self.assertEqual(after.value("cbshm_breaker_disabled", breaker="d"), 0)
        self.assertEqual([key for key in after if key[0] == "cbshm_breaker_opened_timestamp_seconds"
                          and dict(key[1])["breaker"] in "de"], [])

    def test_open_breakers(self):
        before = self.scrape()
        self.agent.call("Disable", name="o1", reason="r")
        self.agent.call("Disable", name="o2", reason="r")
        after = self.scrape()
        self.assertDelta(before, after, 2, "cbshm_breakers_open")
        self.assertDelta(before, after, 2, "cbshm_segment_breakers")

    def test_what_others_change(self):
        self.postgres.psql("INSERT INTO cbshm.breaker (name) VALUES ('other')")
        wait_for(lambda: ("cbshm_breaker_disabled", (("breaker", "other"),)) in self.scrape(), 10, "the row")
        before = self.scrape()
        self.postgres.psql("UPDATE cbshm.breaker SET disabled = true, disabled_by = 'x', disabled_reason = 'y' "
                           "WHERE name = 'other'")
        wait_for(lambda: self.scrape().value("cbshm_breaker_disabled", breaker="other") == 1, 10, "the change")
        self.postgres.psql("UPDATE cbshm.breaker SET consecutive_failures = 7 WHERE name = 'other'")
        wait_for(lambda: self.scrape().value("cbshm_breaker_consecutive_failures", breaker="other") == 7, 10, "the counter")
        after = self.scrape()
        self.assertDelta(before, after, 1, "cbshm_mirror_lag_seconds_count", source="notified")
        self.assertDelta(before, after, 1, "cbshm_mirror_lag_seconds_count", source="counters")
        self.assertEqual(after.value("cbshm_mirror_lag_seconds_bucket", source="counters", le="+Inf"),
                         after.value("cbshm_mirror_lag_seconds_count", source="counters"))
        self.assertLess(after.value("cbshm_mirror_lag_seconds_sum", source="notified"), 60)

    def test_clients_and_errors(self):
        wait_for(lambda: self.scrape().value("cbshm_connections") == 0, 10, "the end of other clients")
        before = self.scrape()
        with self.agent.connect() as client:
            client.call("org.varlink.service.GetInfo")
            self.assertDelta(before, self.scrape(), 1, "cbshm_connections")
        self.assertRaises(Exception, self.agent.call, "Enable")
        self.assertRaises(Exception, self.agent.call, "NoSuchMethod")
        after = self.scrape()
        self.assertDelta(before, after, 3, "cbshm_connections_accepted_total")
        self.assertDelta(before, after, 1, "cbshm_replies_total", method="org.varlink.service.GetInfo", error="")
        self.assertDelta(before, after, 1, "cbshm_replies_total", method="unknown", error="org.varlink.service.MethodNotFound")
        self.assertDelta(before, after, 1, "cbshm_error_replies_total", error="org.varlink.service.MethodNotFound")
        self.assertEqual(sum(value - before.get(key, 0) for key, value in after.items() if key[0] == "cbshm_replies_total"
                             and dict(key[1])["method"] == "io.cbshm.Enable" and dict(key[1])["error"]), 1)

    def test_settings_are_a_load(self):
        before = self.scrape()
        self.agent.cbctl("policy", "--fleet", "failure_threshold=3", check=0)
        self.agent.cbctl("policy", "--fleet", "default_ttl=23h", check=0)
        wait_for(lambda: self.scrape().value("cbshm_mirror_loads_total") > before.value("cbshm_mirror_loads_total"))

    def test_the_process(self):
        samples = self.scrape()
        self.assertGreater(samples.value("process_resident_memory_bytes"), 1e6)
        self.assertIn(samples.value("process_open_fds") - len(os.listdir(f"/proc/{self.agent.pid}/fd")), (0, 1))
        self.assertGreater(samples.value("process_max_fds"), samples.value("process_open_fds"))
        self.assertLess(abs(samples.value("process_start_time_seconds") - time.time()), 600)
        self.assertGreaterEqual(self.scrape().value("process_cpu_seconds_total"), samples.value("process_cpu_seconds_total"))
        (labels,) = [dict(labels) for name, labels in samples if name == "cbshm_build_info"]
        self.assertEqual(labels["agent"], socket.gethostname())
        self.assertIn(labels["version"], self.agent.call("org.varlink.service.GetInfo")["version"])


class Database(MetricsTest):
    def ready(self):
        return get(self.port, "/readyz")[::2]

    def test_ready_as_long_as_the_mirror_is_fresh(self):
        self.assertEqual(self.ready(), (200, "ok\n"))
        before = self.scrape()
        self.assertEqual(before.value("cbshm_database_up"), 1)
        self.assertLess(before.value("cbshm_mirror_age_seconds"), 10)
        self.postgres.stop()
        wait_for(lambda: self.ready()[0] == 503, 10, "readyz without a database")
        self.assertRegex(self.ready()[1], "^the database is away: .+")
        away = self.scrape()
        self.assertEqual(away.value("cbshm_database_up"), 0)
        self.assertEqual(get(self.port, "/healthz")[0], 200)
        self.assertDelta(before, away, 1, "cbshm_database_losses_total")
        wait_for(lambda: self.scrape().value("cbshm_database_connect_failures_total")
                 > before.value("cbshm_database_connect_failures_total"), 10, "a failed attempt")
        self.postgres.start()
        wait_for(lambda: self.ready() == (200, "ok\n"), 20, "readyz with a database")
        self.assertDelta(before, self.scrape(), 1, "cbshm_database_connects_total")


class Alerts(MetricsTest):
    def fake(self, *args, **kwargs):
        fake = Fake(*args, **kwargs)
        self.addCleanup(fake.close)
        return fake

    def configure(self, **keys):
        """Alertmanager's section as it is from now on."""
        self.agent.config["alertmanager"] = {"resend_interval": "1", **keys}
        self.agent.write_config()
        loads = self.agent.log().count("event=reloaded")
        self.agent.sighup()
        wait_for(lambda: self.agent.log().count("event=reloaded") > loads, 10, "the reload")

    def wait_for_delta(self, before, delta, name, **labels):
        wait_for(lambda: self.scrape().value(name, **labels) - before.value(name, **labels) >= delta, 20, f"{name} {labels}")

    def test_results_of_posts(self):
        before = self.scrape()
        hanging = self.fake(lambda alerts: None)
        plain = self.fake()
        members = {"accepted": self.fake().url, "refused": self.fake(lambda alerts: 400).url,
                   "status": self.fake(lambda alerts: 500).url, "connect": f"http://127.0.0.1:{free_port()}",
                   "timeout": hanging.url, "tls": f"https://127.0.0.1:{plain.port}", "lookup": "http://no..name"}
        self.configure(url=", ".join(members.values()))
        for result in members:
            with self.subTest(result=result):
                self.wait_for_delta(before, 1, "cbshm_alert_posts_total", result=result)
        self.configure(url=plain.url, bearer_token_file="/nowhere/token")
        self.wait_for_delta(before, 1, "cbshm_alert_posts_total", result="internal")

    def test_what_becomes_of_alerts(self):
        self.postgres.psql("DELETE FROM cbshm.breaker; DELETE FROM cbshm.incident")
        answer = [200]
        fake = self.fake(lambda alerts: answer[0])
        self.configure(url=fake.url)
        before = self.scrape()
        self.agent.call("Disable", name="a", reason="r")
        self.wait_for_delta(before, 1, "cbshm_alerts_total", result="sent")
        self.wait_for_delta(before, 1, "cbshm_alerts_total", result="repeated")
        answer[0] = 500
        self.agent.call("Disable", name="b", reason="r")
        self.wait_for_delta(before, 1, "cbshm_alerts_total", result="put_off")
        wait_for(lambda: self.scrape().value("cbshm_alert_queue", status="pending") == 1, 10, "the queue")
        self.assertGreater(self.scrape().value("cbshm_alert_queue_oldest_seconds"), 0)
        self.postgres.psql("UPDATE cbshm.alert_queue SET attempts = 9, next_attempt_at = now() WHERE status = 'pending'; "
                           "NOTIFY cbshm, 'a'")
        self.wait_for_delta(before, 1, "cbshm_alerts_total", result="failed")
        wait_for(lambda: self.scrape().value("cbshm_alert_queue", status="failed") == 1, 10, "the failed one")
        self.assertEqual(self.scrape().value("cbshm_alert_queue", status="pending"), 0)
        self.configure(url=None)
        self.agent.call("Enable", name="a")
        # As if whoever sent anything had done so a while ago.
        self.postgres.psql("UPDATE cbshm.alert_queue SET next_attempt_at = now() - interval '1 min' WHERE status = 'pending'; "
                           "UPDATE cbshm.alert_queue SET resend_at = now() WHERE resend_at > now(); NOTIFY cbshm, 'a'")
        self.wait_for_delta(before, 1, "cbshm_alerts_total", result="skipped")

    def test_leased(self):
        hanging = self.fake(lambda alerts: None if alerts else 200)
        self.configure(url=hanging.url)
        self.agent.call("Disable", name="c", reason="r")
        wait_for(lambda: self.scrape().value("cbshm_alert_queue", status="leased") == 1, 15, "the lease")


class Many(MetricsTest):
    """More breakers than are shown, and clients that read slowly."""

    CONFIG = {"segment": {"capacity": "16384"}, "metrics": {"breakers": "5000"}}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.insert(4000, "a")

    @classmethod
    def insert(cls, count, prefix):
        cls.postgres.psql("INSERT INTO cbshm.breaker (name) "
                          f"SELECT '{prefix}-' || repeat('x', 110) || n FROM generate_series(1, {count}) n")
        wait_for(lambda: scrape(cls.port).value("cbshm_segment_breakers")
                 == float(cls.postgres.value("SELECT count(*) FROM cbshm.breaker")), 20, "the rows")

    def shown(self, samples, name="cbshm_breaker_disabled"):
        return sum(key[0] == name for key in samples)

    def test_a_client_that_does_not_read(self):
        """It holds its part of the answer and nobody up; when it reads at last, the answer is whole."""
        memory = self.scrape().value("process_resident_memory_bytes")
        clients = [self.connect(segment=1000) for _ in range(8)]
        for client in clients:
            client.sendall(b"GET /metrics HTTP/1.0\r\nAccept: application/openmetrics-text\r\n\r\n")
        for _ in range(20):
            self.assertEqual(get(self.port, "/healthz")[0], 200)
        self.agent.call("Disable", name="meanwhile", reason="r")
        self.agent.call("Enable", name="meanwhile")
        if "ASAN_OPTIONS" not in os.environ:  # under which nothing that was freed goes
            self.assertLess(self.scrape().value("process_resident_memory_bytes") - memory, 4e6)
        with clients[0].makefile("rb") as file:
            body = file.read().split(b"\r\n\r\n", 1)[1].decode()
        self.assertTrue(body.endswith("# EOF\n"))
        self.assertGreaterEqual(self.shown(Samples(body)), 4000)
        self.assertEqual(self.agent.stop(), 0)  # in the middle of the other answers
        self.agent.start()

    def test_only_open_ones_beyond_the_limit(self):
        samples = self.scrape()
        self.assertEqual(self.shown(samples), samples.value("cbshm_segment_breakers"))
        self.insert(2000, "b")
        self.agent.call("Disable", name="open", reason="r")
        samples = self.scrape()
        self.assertEqual((self.shown(samples), samples.value("cbshm_breakers_open")), (1, 1))
        self.assertEqual(samples.value("cbshm_breaker_disabled", breaker="open"), 1)
        self.assertEqual(self.shown(samples, "cbshm_breaker_opened_timestamp_seconds"), 1)
        self.agent.config["metrics"]["breakers"] = "0"
        self.agent.write_config()
        self.agent.sighup()
        wait_for(lambda: self.shown(self.scrape()) == 0, 10, "the new limit")
        self.assertEqual(self.scrape().value("cbshm_breakers_open"), 1)


class Start(unittest.TestCase):
    def test_off_unless_asked_for_and_loud_if_it_cannot_be(self):
        with Agent(conninfo="host=/nowhere", ready=False) as agent:
            wait_for(lambda: "event=started" in agent.log())
            self.assertNotIn("event=serving_metrics", agent.log())
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            with Agent(conninfo="host=/nowhere", ready=False, config={"metrics": {"listen": address}}) as agent:
                self.assertEqual(agent.process.wait(20), 1)
                self.assertIn(f"cannot listen at {address}: Address already in use; change [metrics] listen", agent.log())

    def test_ipv6_and_no_database(self):
        port = free_port()
        with Agent(conninfo="host=/nowhere", ready=False, config={"metrics": {"listen": f"[::1]:{port}"}}) as agent:
            try:
                wait_for(lambda: "event=s" in agent.log())
                wait_for(lambda: "event=started" in agent.log(), 5)
            except AssertionError:
                self.skipTest("there is no ::1 here")
            with socket.create_connection(("::1", port), timeout=10) as client:
                client.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
                self.assertIn(b"503 Service Unavailable", client.makefile("rb").read())


if __name__ == "__main__":
    tap.main()
