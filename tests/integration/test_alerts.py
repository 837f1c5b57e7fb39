# SPDX-License-Identifier: ISC
"""Alerts: what Alertmanager shows is what the breakers are, whatever happens on the way."""
import concurrent.futures
import os
import random
import ssl
import subprocess
import threading
import time
import unittest

from support import tap
from support.agent import Agent, wait_for
from support.alertmanager import Alertmanager, Fake, free_port
from support.postgres import Postgres, PostgresError


def alerting(url, resend=1, **more):
    return {"alertmanager": {"url": url, "resend_interval": str(resend), **more}}


class AlertTest(unittest.TestCase):
    """A server for each class; a queue that begins empty, and agents that are gone, for each test."""

    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()
        cls.scratch = cls.postgres.scratch

    @classmethod
    def tearDownClass(cls):
        cls.postgres.close()

    def setUp(self):
        self.postgres.psql("DELETE FROM cbshm.breaker; DELETE FROM cbshm.incident")

    def agent(self, url, **options):
        agent = Agent(self.postgres, config=alerting(url, **options))
        self.addCleanup(agent.close)
        return agent

    def fake(self, *args, **kwargs):
        fake = Fake(*args, **kwargs)
        self.addCleanup(fake.close)
        return fake

    def alertmanager(self, **options):
        name = f"alertmanager-{self.id().rsplit('.', maxsplit=1)[-1]}"
        alertmanager = Alertmanager(self.scratch, name=name, **options)
        self.addCleanup(alertmanager.kill9)
        return alertmanager

    def session(self):
        session = self.postgres.session()
        self.addCleanup(session.close)
        return session

    def open_breakers(self):
        return set(self.postgres.rows("SELECT name, incident_id FROM cbshm.breaker WHERE disabled"))

    def statuses(self, breaker):
        """[(kind, status)] of its alerts."""
        return self.postgres.rows(f"SELECT kind, status FROM cbshm.alert_queue WHERE breaker = '{breaker}' ORDER BY id")

    def hurry(self):
        """What was put off is due."""
        self.postgres.psql("UPDATE cbshm.alert_queue SET next_attempt_at = now() WHERE status = 'pending'; NOTIFY cbshm, 'a'")


class Delivery(AlertTest):
    def test_opening_and_closing(self):
        alertmanager = self.alertmanager()
        agent = self.agent(alertmanager.url, runbook_url="https://runbooks.example/breakers")
        incident = agent.call("Disable", name="a\"\\ü/1", reason="why", by="anna")["incident"]["id"]
        wait_for(lambda: alertmanager.firing() == {("a\"\\ü/1", incident)}, 2)
        alert = alertmanager.alerts()[0]
        self.assertEqual(alert["annotations"]["runbook_url"], "https://runbooks.example/breakers")
        self.assertEqual((alert["labels"]["severity"], alert["labels"]["component"]), ("p2", "cbshm"))
        wait_for(lambda: self.postgres.rows("SELECT alert_sent FROM cbshm.incident WHERE alert_sent_at IS NOT NULL")
                 == [("t",)], 2)
        agent.call("Enable", name="a\"\\ü/1")
        wait_for(lambda: not alertmanager.firing(), 2)
        wait_for(lambda: self.postgres.value("SELECT count(*) FROM cbshm.alert_queue WHERE status = 'sent'") == "2", 2)

    def test_open_longer_than_the_resolve_timeout(self):
        alertmanager = self.alertmanager(resolve_timeout="3s")
        agent = self.agent(alertmanager.url)
        agent.call("Disable", name="long", reason="x")
        wait_for(alertmanager.firing, 2)
        end = time.monotonic() + 7
        while time.monotonic() < end:
            self.assertEqual(alertmanager.firing(), self.open_breakers())
            time.sleep(0.1)
        agent.kill9()
        wait_for(lambda: not alertmanager.firing(), 6, "forgetting what nobody repeats")

    def test_alertmanager_that_forgets(self):
        alertmanager = self.alertmanager()
        agent = self.agent(alertmanager.url, resend=3600)
        agent.call("Disable", name="kept", reason="x")
        wait_for(alertmanager.firing, 2)
        alertmanager.kill9()
        agent.call("Disable", name="new", reason="x")
        time.sleep(4)
        alertmanager.start()
        wait_for(lambda: alertmanager.firing() == self.open_breakers(), 5)
        self.assertIn("event=alertmanager_available", agent.log())

    def test_every_member_gets_every_alert(self):
        first, second = self.fake(), self.fake()
        agent = self.agent(f"{first.url}, {second.url}/prefix/", resend=3600)
        agent.call("Disable", name="both", reason="x")
        wait_for(lambda: self.statuses("both") == [("disable", "sent")], 2)
        self.assertEqual((first.kinds(), second.kinds()), ([("both", "open")],) * 2)
        self.assertEqual({path for path, _ in second.requests}, {"/prefix/api/v2/alerts"})
        second.close()
        agent.call("Enable", name="both")
        wait_for(lambda: ("both", "closed") in first.kinds(), 2)
        self.assertEqual(self.statuses("both")[1], ("enable", "pending"))
        back = self.fake(port=second.port)
        wait_for(lambda: self.statuses("both")[1] == ("enable", "sent"), 5)
        self.assertIn(("both", "closed"), back.kinds())

    def test_two_agents_deliver_once(self):
        fake = self.fake()
        agents = [self.agent(fake.url, resend=3600) for _ in range(2)]
        for i in range(60):
            agents[i % 2].call("Disable", name=f"shared/{i}", reason="x")
        for i in range(60):
            agents[i % 2].call("Enable", name=f"shared/{i}")
        wait_for(lambda: self.postgres.value("SELECT count(*) FROM cbshm.alert_queue WHERE status = 'sent'") == "120", 5)
        kinds = fake.kinds()
        self.assertEqual(len(kinds), 120)
        for i in range(60):
            self.assertLess(kinds.index((f"shared/{i}", "open")), kinds.index((f"shared/{i}", "closed")))
        for agent in agents:
            self.assertIn("event=alert_sent", agent.log(), "one of the agents has done nothing")

    def test_closing_waits_for_its_opening(self):
        answers = threading.Event()
        fake = self.fake(lambda alerts: 200 if answers.wait(4) else 500)
        agents = [self.agent(fake.url, resend=3600) for _ in range(2)]
        agents[0].call("Disable", name="order", reason="x")
        wait_for(lambda: fake.kinds() == [("order", "open")], 2)
        agents[1].call("Enable", name="order")
        time.sleep(1.5)
        self.assertEqual(fake.kinds(), [("order", "open")], "the closing was sent beside its opening")
        answers.set()
        wait_for(lambda: fake.kinds() == [("order", "open"), ("order", "closed")], 3)

    def test_lease_of_a_killed_agent_passes_on(self):
        hang = self.fake(lambda alerts: None if alerts else 200)
        dying = self.agent(hang.url)
        dying.call("Disable", name="orphan", reason="x")
        wait_for(lambda: hang.kinds() == [("orphan", "open")], 2)
        dying.kill9()
        fake = self.fake()
        self.agent(fake.url, resend=3600)
        time.sleep(1.5)
        self.assertEqual(fake.kinds(), [], "somebody else holds the lease")
        self.postgres.psql("UPDATE cbshm.alert_queue SET leased_until = now(), next_attempt_at = now(); "
                           "NOTIFY cbshm, 'a'")
        wait_for(lambda: fake.kinds() == [("orphan", "open")], 2)

    def test_a_stopped_agent_gives_back_what_it_holds(self):
        hang = self.fake(lambda alerts: None if alerts else 200)
        leaving = self.agent(hang.url)
        leaving.call("Disable", name="given", reason="x")
        wait_for(lambda: hang.kinds() == [("given", "open")], 2)
        leaving.stop()
        fake = self.fake()
        self.agent(fake.url, resend=3600)
        wait_for(lambda: fake.kinds() == [("given", "open")], 3)

    def test_none_configured(self):
        agent = Agent(self.postgres)
        self.addCleanup(agent.close)
        agent.call("Disable", name="skipped", reason="x")
        agent.call("Disable", name="over", reason="x")
        agent.call("Enable", name="over")
        wait_for(lambda: self.statuses("skipped") == [("disable", "skipped")], 30)  # after 10 s if all is quick
        wait_for(lambda: self.statuses("over") == [("disable", "skipped"), ("enable", "skipped")], 30)
        self.assertEqual(agent.log().count("event=alerts_skipped"), 1)
        # Once there is one, it is told of what is open, and of nothing else.
        fake = self.fake()
        agent.config.update(alerting(fake.url))
        agent.write_config()
        agent.sighup()
        wait_for(lambda: self.statuses("skipped") == [("disable", "sent")], 5)
        self.assertEqual(set(fake.kinds()), {("skipped", "open")})


class Trouble(AlertTest):
    def test_failed_and_retried(self):
        well = threading.Event()
        fake = self.fake(lambda alerts: 200 if well.is_set() else 500)
        agent = self.agent(fake.url, resend=3600)
        agent.call("Disable", name="dead", reason="x")
        agent.call("Enable", name="dead")
        for _ in range(40):
            if self.statuses("dead") == [("disable", "failed"), ("enable", "failed")]:
                break
            self.hurry()
            time.sleep(0.1)
        self.assertEqual(self.statuses("dead"), [("disable", "failed"), ("enable", "failed")])
        self.assertIn("event=alert_failed", agent.log())
        self.assertEqual(self.postgres.value("SELECT max(attempts) FROM cbshm.alert_queue"), "10")
        self.assertIn("500", self.postgres.value("SELECT last_error FROM cbshm.alert_queue LIMIT 1"))
        well.set()
        before = len(fake.kinds())
        self.assertEqual(self.postgres.value("SELECT cbshm.alerts_retry()"), "2")
        wait_for(lambda: self.statuses("dead") == [("disable", "sent"), ("enable", "sent")], 3)
        self.assertEqual(fake.kinds()[before:before + 2], [("dead", "open"), ("dead", "closed")])

    def test_a_failed_opening_is_still_repeated(self):
        fake = self.fake(lambda alerts: 200)
        self.postgres.psql("SELECT cbshm.disable('still', 'x')")
        self.postgres.psql("UPDATE cbshm.alert_queue SET status = 'failed', resend_at = now()")
        self.agent(fake.url)
        wait_for(lambda: self.statuses("still") == [("disable", "sent")], 3)

    def test_purge(self):
        self.postgres.psql("SELECT cbshm.disable('x', 'y'); SELECT cbshm.disable('z', 'y'); SELECT cbshm.enable('z')")
        self.postgres.psql("UPDATE cbshm.alert_queue SET status = 'failed'")
        self.assertEqual(self.postgres.value("SELECT cbshm.alerts_purge()"), "2")
        self.assertEqual((self.statuses("x"), self.statuses("z")), ([("disable", "failed")], []))

    def test_one_refused_alert_delays_no_other(self):
        refusing = self.fake(lambda alerts: 400 if any(alert["labels"]["circuit_breaker"] == "poison/7"
                                                       for alert in alerts) else 200)
        self.postgres.psql("SELECT cbshm.disable('poison/' || i, 'x') FROM generate_series(1, 20) i")
        self.agent(refusing.url, resend=3600)
        wait_for(lambda: self.postgres.value("SELECT count(*) FROM cbshm.alert_queue WHERE status = 'sent'") == "19", 3)
        self.assertEqual(self.statuses("poison/7"), [("disable", "pending")])
        self.postgres.psql("SELECT cbshm.enable('poison/8')")
        wait_for(lambda: self.statuses("poison/8") == [("disable", "sent"), ("enable", "sent")], 3)

    def test_backoff(self):
        fake = self.fake(lambda alerts: 500 if alerts else 200)
        self.postgres.psql("SELECT cbshm.disable('slow', 'x')")
        self.agent(fake.url)
        time.sleep(6)
        self.assertLess(len(fake.posts), 8, "who takes empty lists only is asked less and less")
        self.assertGreaterEqual(len(fake.posts), 2)

    def test_hanging_one_stops_nothing_else(self):
        hang = self.fake(lambda alerts: None)
        agent = self.agent(hang.url)
        agent.call("Disable", name="first", reason="x")
        wait_for(lambda: hang.kinds() == [("first", "open")], 2)
        started = time.monotonic()
        agent.call("Disable", name="second", reason="x")
        self.assertLess(time.monotonic() - started, 0.5)
        wait_for(lambda: "event=alertmanager_unavailable" in agent.log(), 7)
        wait_for(lambda: ("second", "open") in hang.kinds(), 7)

    def test_database_lost_in_mid_post(self):
        answers = threading.Event()
        fake = self.fake(lambda alerts: 200 if answers.wait(4) else 500)
        agent = self.agent(fake.url, resend=3600)
        agent.call("Disable", name="cut", reason="x")
        wait_for(lambda: fake.kinds() == [("cut", "open")], 2)
        self.postgres.restart("immediate")
        answers.set()
        wait_for(lambda: self.statuses("cut") == [("disable", "sent")], 10)

    def test_many_at_once(self):
        alertmanager = self.alertmanager()
        self.agent(alertmanager.url, resend=3600)
        self.postgres.psql("SELECT cbshm.disable('many/' || i, 'x') FROM generate_series(1, 600) i")
        wait_for(lambda: len(alertmanager.firing()) == 600, 10)
        self.postgres.psql("SELECT cbshm.enable('many/' || i) FROM generate_series(1, 600) i")
        wait_for(lambda: not alertmanager.firing(), 10)


class Queue(AlertTest):
    """The functions that the agents call, without an agent."""

    def claim(self, agent, session=None, lease="20 s", incidents=100):
        sql = ("SELECT breaker || ' ' || kind || ' ' || repeated "
               f"FROM cbshm.claim_alerts('{agent}', {incidents}, '{lease}') ORDER BY id")
        return (session.execute(sql) if session else self.postgres.psql(sql)).split("\n")

    def ids(self, breaker):
        return self.postgres.value(f"SELECT array_agg(id) FROM cbshm.alert_queue WHERE breaker = '{breaker}'")

    def sent(self, agent, claimed):
        kind = claimed.split()[1] if claimed else ""
        self.postgres.psql(f"SELECT cbshm.alerts_sent('{agent}', array_agg(id), '0') FROM cbshm.alert_queue "
                           f"WHERE kind = '{kind}'; SELECT cbshm.alerts_release('{agent}')")

    def test_whose_turn_it_is(self):
        """New ones, those that have waited longest, suspects, and what has failed by itself; none fills the places of others."""
        self.postgres.psql("SELECT cbshm.disable(n, 'x') FROM unnest('{e1,d,e2,c,b}'::text[]) n")
        self.claim("one")
        for breaker, suspicion in (("e1", "2"), ("e2", "2"), ("d", "1"), ("c", "NULL"), ("b", "NULL")):
            self.postgres.psql(f"SELECT cbshm.alerts_put_off('one', '{self.ids(breaker)}', 'no', {suspicion})")
        self.postgres.psql("UPDATE cbshm.alert_queue SET next_attempt_at = now() - CASE breaker WHEN 'b' THEN 2 ELSE 1 END * interval '1 s'; "
                           "SELECT cbshm.disable('a', 'x'); SELECT cbshm.enable(n) FROM unnest('{c,e1,e2}'::text[]) n")
        turns = "SELECT string_agg(breaker || left(kind, 1) || ' ' || suspect, ', ') FROM cbshm.claim_alerts('{}', {}, '20 s')"
        self.assertEqual(self.postgres.value(turns.format("one", 3)), "cd false, ce false, ad false, bd false")
        two = self.postgres.value(turns.format("two", 2))
        self.assertIn(two, ("dd true, e1d true, e1e true", "dd true, e2d true, e2e true"))
        self.assertEqual(len(self.postgres.value(turns.format("three", 2)).split(",")), 2)

    def test_new_ones_are_found_behind_many_suspects(self):
        self.postgres.psql("INSERT INTO cbshm.breaker (name, disabled) SELECT 'bad' || n, true FROM generate_series(1, 200) n; "
                           "UPDATE cbshm.alert_queue SET suspicion = 1, attempts = 1; SELECT cbshm.disable('new', 'x')")
        self.assertEqual(self.claim("one", incidents=1), ["new disable false"])

    def test_what_has_failed_by_itself_waits_its_time(self):
        """Ten seconds at least, whoever comes back; and it stays suspect until it is sent."""
        self.postgres.psql("SELECT cbshm.disable(n, 'x') FROM unnest('{a,b,c,d}'::text[]) n")
        self.claim("one")
        for breaker, suspicion in (("a", "NULL"), ("b", "1"), ("c", "2"), ("d", "2")):
            self.postgres.psql(f"SELECT cbshm.alerts_put_off('one', '{self.ids(breaker)}', 'no', {suspicion})")
        self.postgres.psql("UPDATE cbshm.alert_queue SET next_attempt_at = now() + interval '1 min', attempts = 5; "
                           "UPDATE cbshm.alert_queue SET status = 'failed', resend_at = now() + interval '1 min' WHERE breaker = 'd'")
        for _ in range(2):
            self.postgres.psql("SELECT cbshm.alerts_wake_some('1 min', '-infinity')")
            self.assertEqual(self.postgres.rows("SELECT breaker, attempts, coalesce(resend_at, next_attempt_at) > now() + interval '5 s', "
                                                "coalesce(resend_at, next_attempt_at) > now() + interval '10 s' "
                                                "FROM cbshm.alert_queue ORDER BY 1"),
                             [("a", "4", "f", "f"), ("b", "4", "f", "f"), ("c", "4", "t", "f"), ("d", "5", "t", "f")])
        self.postgres.psql("UPDATE cbshm.alert_queue SET next_attempt_at = now(), resend_at = now()")
        self.claim("one")
        suspicions = "SELECT array_agg(suspicion ORDER BY breaker) FROM cbshm.alert_queue"
        self.postgres.psql(f"SELECT cbshm.alerts_put_off('one', '{self.ids('c')}', 'no')")
        self.assertEqual(self.postgres.value(suspicions), "{0,1,2,2}")
        for breaker in "bd":
            self.postgres.psql(f"SELECT cbshm.alerts_sent('one', '{self.ids(breaker)}', '0')")
        self.assertEqual(self.postgres.value(suspicions), "{0,0,2,0}")

    def test_claim_waits_for_nobody(self):
        self.postgres.psql("SELECT cbshm.disable('a', 'x'); SELECT cbshm.disable('b', 'x')")
        one, user = self.session(), self.session()
        user.execute("BEGIN")
        user.execute("SELECT cbshm.enable('a')")
        one.execute("BEGIN")
        self.assertEqual(self.claim("one", one), ["a disable false", "b disable false"])
        self.assertEqual(self.claim("two"), [""])
        # A closing that is committed now has to wait for the claim of the opening.
        user.execute("COMMIT")
        self.assertEqual(self.claim("two"), [""])
        one.execute("COMMIT")
        self.assertEqual(self.claim("two"), [""])
        self.postgres.psql(f"SELECT cbshm.alerts_sent('one', '{self.ids('b')}', '60 s')")
        self.postgres.psql("SELECT cbshm.alerts_release('one')")
        self.assertEqual(self.claim("two"), ["a disable false", "a enable false"])

    def test_marking_waits_for_no_person(self):
        self.postgres.psql("SELECT cbshm.disable('held', 'x')")
        self.claim("one")
        user = self.session()
        user.execute("BEGIN")
        user.execute("SELECT cbshm.enable('held')")
        self.postgres.psql(f"SET lock_timeout = '1s'; SELECT cbshm.alerts_sent('one', '{self.ids('held')}', '60 s')")
        self.assertEqual(self.statuses("held"), [("disable", "sent")])
        user.execute("COMMIT")
        self.assertEqual(self.claim("one"), ["held enable false"])
        self.postgres.psql(f"SELECT cbshm.alerts_sent('one', '{self.ids('held')}', '60 s')")
        self.assertEqual(self.postgres.value("SELECT alert_sent FROM cbshm.incident"), "t")

    def test_what_is_locked_holds_up_nothing_else(self):
        """Not a closing of which somebody has locked the row, nor as many as a turn takes."""
        self.postgres.psql("SELECT cbshm.disable('one', 'x'); SELECT cbshm.enable('one');"
                           "INSERT INTO cbshm.breaker (name, disabled) SELECT 'held/' || n, true FROM generate_series(1, 150) n;"
                           "SELECT cbshm.disable('free', 'x')")
        user = self.session()
        user.execute("BEGIN")
        user.execute("SELECT FROM cbshm.alert_queue WHERE breaker ~ 'held' OR breaker = 'one' AND kind = 'enable' FOR UPDATE")
        self.assertEqual(self.claim("two"), ["free disable false"])
        user.execute("COMMIT")
        self.assertEqual(self.claim("two")[:2], ["one disable false", "one enable false"])

    def test_closings_that_are_locked_hold_up_nothing_else(self):
        self.postgres.psql("INSERT INTO cbshm.breaker (name, disabled) SELECT 'held/' || n, true FROM generate_series(1, 60) n;"
                           "UPDATE cbshm.breaker SET disabled = false; SELECT cbshm.disable('free', 'x')")
        user = self.session()
        user.execute("BEGIN")
        user.execute("SELECT FROM cbshm.alert_queue WHERE kind = 'enable' FOR UPDATE")
        self.assertEqual(self.claim("two", incidents=20), ["free disable false"])

    def test_nothing_is_skipped_while_somebody_sends(self):
        skip = "SELECT cbshm.alerts_skipped('0')"
        self.postgres.psql("SELECT cbshm.disable('a', 'x')")
        self.claim("one")
        self.postgres.psql("SELECT cbshm.disable('b', 'x')")
        self.assertEqual(self.postgres.value(skip), "0")
        self.postgres.psql(f"SELECT cbshm.alerts_sent('one', '{self.ids('a')}', '1 h'); SELECT cbshm.alerts_release('one')")
        self.assertEqual(self.postgres.value(skip), "0")
        self.postgres.psql("UPDATE cbshm.alert_queue SET resend_at = now() WHERE breaker = 'a'")
        self.assertEqual(self.postgres.value(skip), "1")

    def test_an_alert_put_off_for_ever(self):
        self.postgres.psql("SELECT cbshm.disable('never', 'x'); UPDATE cbshm.alert_queue SET next_attempt_at = 'infinity'")
        self.assertEqual(self.postgres.value("SELECT cbshm.alerts_due(false)"), str(24 * 3600 * 1000))
        self.postgres.psql("UPDATE cbshm.alert_queue SET next_attempt_at = '-infinity'")
        self.assertEqual(self.postgres.value("SELECT cbshm.alerts_due(false)"), "0")

    def test_marking_waits_for_other_agents(self):
        """As for one that looks for something to lease: else what was sent is sent once more."""
        self.postgres.psql("SELECT cbshm.disable('busy', 'x')")
        self.claim("one")
        limit = self.postgres.value("SELECT split_part(setting, '=', 2) FROM pg_proc, unnest(proconfig) setting "
                                    "WHERE oid = 'cbshm.alerts_sent'::regproc AND setting LIKE 'lock_timeout=%'")
        # However slow this machine is.
        self.postgres.psql("ALTER FUNCTION cbshm.alerts_sent SET lock_timeout = '60 s'")
        self.addCleanup(self.postgres.psql, f"ALTER FUNCTION cbshm.alerts_sent SET lock_timeout = '{limit}'")
        looking = self.session()
        looking.execute("BEGIN")
        looking.execute("SELECT FROM cbshm.alert_queue FOR UPDATE")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            marked = pool.submit(self.postgres.value, f"SELECT cbshm.alerts_sent('one', '{self.ids('busy')}', '0')")
            wait_for(lambda: marked.done() or self.postgres.value(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND query LIKE 'SELECT cbshm.alerts_sent%'") == "1")
            looking.execute("COMMIT")
            self.assertEqual(marked.result(), "1")
        self.assertEqual(self.statuses("busy"), [("disable", "sent")])

    def test_marking_passes_by_what_a_person_has_locked(self):
        self.postgres.psql("SELECT cbshm.disable('busy', 'x'); SELECT cbshm.disable('free', 'x')")
        self.claim("one")
        user = self.session()
        user.execute("BEGIN")
        user.execute("SELECT FROM cbshm.alert_queue WHERE breaker = 'busy' FOR UPDATE")
        ids = "(SELECT array_agg(id) FROM cbshm.alert_queue)"
        self.assertEqual(self.postgres.value(f"SELECT cbshm.alerts_sent('one', {ids}, '0')"), "1")
        user.execute("COMMIT")
        self.assertEqual([self.statuses(name) for name in ("busy", "free")], [[("disable", "pending")], [("disable", "sent")]])

    def test_lease_that_has_passed_on(self):
        self.postgres.psql("SELECT cbshm.disable('late', 'x')")
        self.assertEqual(self.claim("slow", lease="0.2 s"), ["late disable false"])
        self.assertEqual(self.claim("quick"), [""])
        time.sleep(0.3)
        self.assertEqual(self.claim("quick"), ["late disable false"])
        # The one that had it does not decide any more.
        self.postgres.psql(f"SELECT cbshm.alerts_put_off('slow', '{self.ids('late')}', 'x'); "
                           "SELECT cbshm.alerts_release('slow')")
        self.assertEqual(self.claim("third"), [""])

    def test_repeated_while_open_and_once_after(self):
        self.postgres.psql("SELECT cbshm.disable('again', 'x')")
        for kind in ("again disable false", "again disable true", "again disable true"):
            self.assertEqual(self.claim("one"), [kind])
            self.sent("one", kind)
        self.postgres.psql("SELECT cbshm.enable('again')")
        for kind in ("again enable false", "again enable true", ""):
            self.assertEqual(self.claim("one"), [kind])
            self.sent("one", kind)
        self.assertIsNone(self.postgres.value("SELECT cbshm.alerts_due(true)"))

    def test_a_refused_opening_does_not_follow_its_closing(self):
        self.postgres.psql("SELECT cbshm.disable('wrong', 'x'); SELECT cbshm.enable('wrong')")
        self.claim("one")
        self.postgres.psql("SELECT cbshm.alerts_put_off('one', ARRAY[min(id)], 'no') FROM cbshm.alert_queue; "
                           "SELECT cbshm.alerts_sent('one', ARRAY[max(id)], '60 s') FROM cbshm.alert_queue")
        self.assertEqual(self.statuses("wrong"), [("disable", "skipped"), ("enable", "sent")])

    def test_backoff_grows(self):
        waits = self.postgres.rows("SELECT min(extract(epoch FROM b)), max(extract(epoch FROM b)) FROM (SELECT n, "
                                   "cbshm.alert_backoff(n) AS b FROM generate_series(1, 12) n, generate_series(1, 50)) x "
                                   "GROUP BY n ORDER BY n")
        for n, (least, most) in enumerate(waits, 1):
            whole = min(2 ** n, 300)
            self.assertTrue(whole / 2 <= float(least) < float(most) <= whole, (n, least, most))

    def test_illegal_moves(self):
        self.postgres.psql("SELECT cbshm.disable('m', 'x')")
        self.postgres.psql("UPDATE cbshm.alert_queue SET status = 'sent'")
        with self.assertRaisesRegex(PostgresError, "cannot become pending after it was sent"):
            self.postgres.psql("UPDATE cbshm.alert_queue SET status = 'pending'")


class Reconfigured(AlertTest):
    def test_another_alertmanager_while_one_hangs(self):
        """What was claimed for the old one, and what came meanwhile, is sent to the new one."""
        hang = self.fake(lambda alerts: None if alerts else 200)
        agent = self.agent(hang.url)
        agent.call("Disable", name="given", reason="x")
        wait_for(lambda: hang.kinds() == [("given", "open")], 2)
        agent.call("Disable", name="meanwhile", reason="x")
        time.sleep(0.1)
        fake = self.fake()
        agent.config.update(alerting(fake.url, resend=3600))
        agent.write_config()
        agent.sighup()
        wait_for(lambda: set(fake.kinds()) == {("given", "open"), ("meanwhile", "open")}, 5)


class LongQueue(AlertTest):
    """Of thousands of alerts, in tables that nobody has analyzed: the plans were made while they were short."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for table in ("breaker", "incident", "alert_queue"):
            cls.postgres.psql(f"ALTER TABLE cbshm.{table} SET (autovacuum_enabled = false)")

    def fill(self, count, also=""):
        self.postgres.psql("INSERT INTO cbshm.breaker (name, disabled) SELECT 'many/' || n, true "
                           f"FROM generate_series(1, {count}) n; {also}")

    @staticmethod
    def reads(session, call):
        """How many rows of the alert queue and of the incidents the call has read, and by how many scans of whole tables."""
        counts = []
        session.execute("BEGIN")
        for do in ("1", f"count(*) FROM {call}"):
            session.execute(f"SELECT {do}")
            tuples, scans = session.execute(
                "SELECT sum(coalesce(idx_tup_fetch, 0) + seq_tup_read) || ' ' || sum(seq_scan) "
                "FROM pg_stat_xact_user_tables WHERE relname IN ('alert_queue', 'incident')").split()
            counts.append((int(tuples), int(scans)))
        session.execute("COMMIT")
        return counts[1][0] - counts[0][0], counts[1][1] - counts[0][1]

    def test_a_turn_reads_what_it_hands_out(self):
        """And not the queue from its beginning for each of them; nor what was sent a moment ago, to find nothing to wake."""
        ids = "(SELECT array_agg(id) FROM cbshm.alert_queue WHERE leased_by = 'one')"
        calls = ("cbshm.claim_alerts('one', 50, '20 s')", f"cbshm.alerts_sent('one', {ids}, '60 s')",
                 "cbshm.claim_alerts('one', 50, '20 s')", f"cbshm.alerts_put_off('one', {ids}, 'no')",
                 "cbshm.alerts_release('one')", "cbshm.alerts_skipped('0')", "cbshm.alerts_due(true)",
                 "cbshm.alerts_wake_some('1 min', '-infinity')", "cbshm.alerts_wake_some('1 min', now() + interval '30 min')")
        session = self.session()
        for _ in range(6):
            for call in calls:
                self.reads(session, call)
        self.fill(10000, "UPDATE cbshm.alert_queue SET status = 'sent', sent_at = now(), "
                         "resend_at = clock_timestamp() + interval '1 hour' WHERE breaker > 'many/5'")
        for call in calls:
            tuples, scans = self.reads(session, call)
            tap.note(f"{call}: {tuples} rows")
            self.assertLess(tuples, 2500, call)
            self.assertEqual(scans, 0, call)

    def wake(self, away="1 min"):
        """How many steps it took."""
        position, steps = "-infinity", 0
        while position:
            position = self.postgres.value(f"SELECT cbshm.alerts_wake_some('{away}', '{position}')")
            steps += 1
            self.assertLess(steps, 100)
        return steps

    def due(self):
        return self.postgres.psql("SELECT breaker FROM cbshm.alert_queue WHERE resend_at <= clock_timestamp() ORDER BY 1").split("\n")

    def test_a_fleet_does_not_use_up_the_attempts(self):
        """Each of many agents has what was put off tried again when Alertmanager answers, though it takes no alerts."""
        takes = threading.Event()
        fake = self.fake(lambda alerts: 200 if takes.is_set() or not alerts else 503)
        self.fill(5)
        for _ in range(6):
            self.agent(fake.url)
        time.sleep(7)
        states = "SELECT status, count(*), max(attempts) < 10 FROM cbshm.alert_queue GROUP BY 1"
        self.assertEqual(self.postgres.rows(states), [("pending", "5", "t")], len(fake.posts))
        takes.set()
        wait_for(lambda: self.postgres.rows(states) == [("sent", "5", "t")], 40)

    def test_one_that_goes_away_as_soon_as_it_is_sent_something(self):
        """However often: what waits is sent when it stays."""
        port = free_port()
        self.fill(5, "UPDATE cbshm.alert_queue SET attempts = 1, next_attempt_at = now() + interval '1 hour'")
        self.agent(f"http://127.0.0.1:{port}", resend=3600)
        for _ in range(5):
            gone = threading.Event()

            def answer(alerts, gone=gone):
                if not alerts:
                    return 200
                fake.close()
                gone.set()
                return 0

            fake = self.fake(answer, port=port)
            self.assertTrue(gone.wait(10), "it has not been asked")
            time.sleep(0.5)
        fake = self.fake(port=port)
        wait_for(lambda: len(fake.kinds()) == 5, 15)
        states = "SELECT status, count(*), max(attempts) < 10 FROM cbshm.alert_queue GROUP BY 1"
        wait_for(lambda: self.postgres.rows(states) == [("sent", "5", "t")], 2)

    def test_a_comeback_that_is_lost_with_the_connection(self):
        """It is told to the database again."""
        self.fill(5, "UPDATE cbshm.alert_queue SET attempts = 3, next_attempt_at = now() + interval '1 hour'")
        self.postgres.psql("CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); "
                           "RETURN NULL; END $$; CREATE TRIGGER slow BEFORE UPDATE ON cbshm.alert_queue "
                           "EXECUTE FUNCTION public.slow()")
        self.addCleanup(self.postgres.psql, "DROP FUNCTION IF EXISTS public.slow CASCADE")
        fake = self.fake()
        self.agent(fake.url, resend=3600)
        end = ("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
               "WHERE state = 'active' AND query LIKE 'SELECT cbshm.alerts_wake%'")
        wait_for(lambda: self.postgres.value(end) == "1", 15)
        self.postgres.psql("DROP FUNCTION public.slow CASCADE")
        wait_for(lambda: len(set(fake.kinds())) == 5, 10)

    def test_an_alert_that_alertmanager_cannot_bear(self):
        """It ends the connection without an answer: the others are sent one by one."""
        fake = self.fake(lambda alerts: 0 if any(alert["labels"]["circuit_breaker"] == "many/1" for alert in alerts) else 200)
        self.fill(10)
        agent = self.agent(fake.url)
        wait_for(lambda: self.postgres.rows("SELECT breaker FROM cbshm.alert_queue WHERE status <> 'sent'") == [("many/1",)], 20)
        # It goes on by itself, later and later, and does not have the others sent again each time.
        wait_for(lambda: int(self.postgres.value("SELECT attempts FROM cbshm.alert_queue WHERE breaker = 'many/1'")) >= 3, 60)
        self.assertLess(fake.kinds().count(("many/2", "open")), 10)
        self.assertNotIn("event=alertmanager_unavailable", agent.log())

    def test_alerts_to_which_alertmanager_does_not_answer(self):
        """Each attempt takes its whole time: nevertheless the others are sent."""
        bad = [("many/1",), ("many/2",)]
        fake = self.fake(lambda alerts: None if any((alert["labels"]["circuit_breaker"],) in bad for alert in alerts) else 200)
        self.fill(10)
        agent = self.agent(fake.url)
        wait_for(lambda: self.postgres.rows("SELECT breaker FROM cbshm.alert_queue WHERE status <> 'sent' ORDER BY 1") == bad, 60)
        self.assertRegex(agent.log(), "event=alert_not_taken breaker=many/[12] kind=disable reason=")
        self.assertNotIn("event=alertmanager_unavailable", agent.log())

    def test_an_alert_that_brings_alertmanager_down(self):
        """It does so less and less often, and the others are sent meanwhile."""
        port, crashes, fakes = free_port(), [], []

        def answer(alerts):
            if any(alert["labels"]["circuit_breaker"] == "many/1" for alert in alerts):
                fakes[-1].close()
                crashes.append(len(alerts))
                return 0
            return 200

        fakes.append(self.fake(answer, port=port))
        self.fill(10)
        self.agent(f"http://127.0.0.1:{port}", resend=3600)
        end = time.monotonic() + 15
        while time.monotonic() < end:
            if fakes[-1].closing.is_set():
                time.sleep(0.3)
                fakes.append(self.fake(answer, port=port))
            time.sleep(0.05)
        tap.note(f"{len(crashes)} crashes, by so many alerts: {crashes}")
        self.assertEqual(self.postgres.rows("SELECT breaker FROM cbshm.alert_queue WHERE status <> 'sent'"), [("many/1",)])
        self.assertLess(len(crashes), 8)

    def test_well_again(self):
        """It has taken empty lists only: the first alert that is taken shows that the others need not wait any longer."""
        takes = threading.Event()
        fake = self.fake(lambda alerts: 200 if takes.is_set() or not alerts else 500)
        self.fill(3)
        self.agent(fake.url, resend=3600)
        suspects = "SELECT count(*) FROM cbshm.alert_queue WHERE suspicion = 2"
        wait_for(lambda: self.postgres.value(suspects) == "3", 5)
        self.postgres.psql("UPDATE cbshm.alert_queue SET next_attempt_at = now() + interval '1 hour', attempts = 9 WHERE id <> "
                           "(SELECT min(id) FROM cbshm.alert_queue)")
        takes.set()
        wait_for(lambda: self.postgres.value("SELECT count(*) FROM cbshm.alert_queue WHERE status = 'sent'") == "3", 30)

    def test_only_one_at_a_time(self):
        """What is taken by itself does not have all the others repeated each time."""
        fake = self.fake(lambda alerts: 503 if len(alerts) > 1 else 200)
        self.fill(30)
        self.agent(fake.url, resend=3600)
        wait_for(lambda: self.postgres.value("SELECT count(*) FROM cbshm.alert_queue WHERE status = 'sent'") == "30", 10)
        time.sleep(5)
        tap.note(f"{len(fake.posts)} posts, {len(fake.kinds())} alerts")
        self.assertLess(len(fake.posts), 100)

    def test_two_comebacks(self):
        """It is started anew twice, while it is sent something."""
        known, fail = set(), threading.Event()

        def answer(alerts):
            names = {alert["labels"]["circuit_breaker"] for alert in alerts}
            if names and fail.is_set():
                fail.clear()
                known.clear()
                return 0
            known.update(names)
            return 200

        agent = self.agent(self.fake(answer).url, resend=3600)
        agent.call("Disable", name="kept", reason="x")
        wait_for(lambda: "kept" in known, 2)
        for number in range(2):
            time.sleep(2.5)
            fail.set()
            agent.call("Disable", name=f"new{number}", reason="x")
            wait_for(lambda number=number: f"new{number}" in known, 3)
            if number == 0:
                wait_for(lambda: "kept" in known, 3)
        wait_for(lambda: known == {"kept", "new0", "new1"}, 40)
        self.assertNotIn("event=alert_not_taken", agent.log())

    def test_one_of_two_does_not_answer(self):
        """The other one is told everything, not one alert after the other."""
        hangs = threading.Event()
        here, there = self.fake(), self.fake(lambda alerts: None if hangs.is_set() else 200)
        agent = self.agent(f"{here.url} {there.url}", resend=3600)
        wait_for(lambda: there.requests, 5)
        hangs.set()
        self.fill(12)
        wait_for(lambda: "event=alertmanager_unavailable" in agent.log(), 15)
        self.postgres.psql("UPDATE cbshm.breaker SET disabled = false")
        wait_for(lambda: len(set(here.kinds())) == 24, 15)
        self.assertLess(len([post for post in here.posts if any("endsAt" in alert for alert in post)]), 3)

    def test_an_opening_and_its_closing_fail_together(self):
        """Nobody else gets the one while the other is on its way."""
        fake = self.fake(lambda alerts: 200 if not alerts or len(fake.posts) > 3 else 0)
        self.agent(fake.url, resend=3600)
        self.postgres.psql("BEGIN; SELECT cbshm.disable('p', 'x'); SELECT cbshm.enable('p'); COMMIT")
        wait_for(lambda: self.statuses("p") == [("disable", "sent"), ("enable", "sent")], 10)
        self.assertEqual(fake.kinds(), [("p", "open"), ("p", "closed")] * 4)

    def test_what_others_repeat_more_often_hides_nothing(self):
        """What has been sent since comes first, however much it is."""
        self.fill(3000, "UPDATE cbshm.alert_queue SET status = 'sent', sent_at = now(), "
                        "resend_at = clock_timestamp() + interval '1 min'; UPDATE cbshm.alert_queue SET sent_at = now() - interval '10 min', "
                        "resend_at = now() + interval '50 min' WHERE breaker = 'many/7'; "
                        "UPDATE cbshm.alert_queue SET sent_at = now() - interval '10 min', resend_at = 'infinity' "
                        "WHERE breaker = 'many/8'")
        tap.note(f"{self.wake()} steps")
        self.assertEqual(self.due(), ["many/7"])

    def test_all_at_the_same_moment(self):
        self.fill(700, "UPDATE cbshm.alert_queue SET status = 'sent', resend_at = now() + interval '1 hour', sent_at = now() "
                       "- interval '10 min' * (breaker < 'many/2')::int")
        self.wake()
        self.assertEqual(len(self.due()), int(self.postgres.value("SELECT count(*) FROM cbshm.breaker WHERE name < 'many/2'")))

    def test_all_that_was_put_off_is_due_at_once(self):
        """More than one statement may take: Alertmanager has come back."""
        self.fill(700, "UPDATE cbshm.alert_queue SET attempts = 3, next_attempt_at = now() + interval '1 hour'")
        self.agent(self.fake().url, resend=3600)
        wait_for(lambda: self.postgres.value("SELECT count(*) FROM cbshm.alert_queue WHERE status = 'sent'") == "700", 15)

    def test_all_that_was_to_be_repeated_is_due_at_once(self):
        """Once each: what has been sent since is not due again."""
        self.fill(700, "UPDATE cbshm.alert_queue SET status = 'sent', sent_at = now() - interval '1 min', "
                       "resend_at = now() + interval '1 hour'")
        fake = self.fake()
        self.agent(fake.url, resend=3600)
        wait_for(lambda: len(set(fake.kinds())) == 700, 15)
        time.sleep(1)
        self.assertEqual(len(fake.kinds()), 700)

    def test_all_that_nobody_sends_is_skipped(self):
        self.fill(700)
        agent = Agent(self.postgres)
        self.addCleanup(agent.close)
        wait_for(lambda: self.postgres.value("SELECT count(*) FROM cbshm.alert_queue WHERE status = 'skipped'") == "700", 30)


class Credentials(AlertTest):
    def setUp(self):
        super().setUp()
        self.directory = self.scratch.directory(self.id().rsplit(".", maxsplit=1)[-1])

    def write(self, name, text):
        path = os.path.join(self.directory, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def sent(self, agent, fake, name):
        agent.call("Disable", name=name, reason="x")
        wait_for(lambda: self.statuses(name) == [("disable", "sent")], 5)
        return fake.requests[-1][1].get("Authorization")

    def test_bearer_token(self):
        fake = self.fake()
        path = self.write("token", "s3cret\n")
        agent = self.agent(fake.url, bearer_token_file=path)
        self.assertEqual(self.sent(agent, fake, "t1"), "Bearer s3cret")
        self.write("token", "other")
        self.assertEqual(self.sent(agent, fake, "t2"), "Bearer other")

    def test_basic_auth(self):
        fake = self.fake()
        agent = self.agent(fake.url, basic_auth_file=self.write("auth", "user:pa ss\n"))
        self.assertEqual(self.sent(agent, fake, "b1"), "Basic dXNlcjpwYSBzcw==")

    def test_missing_file(self):
        fake = self.fake()
        agent = self.agent(fake.url, bearer_token_file=os.path.join(self.directory, "none"))
        agent.call("Disable", name="n1", reason="x")
        wait_for(lambda: "cannot read" in agent.log(), 3)
        self.assertEqual(fake.requests, [])
        self.write("none", "there")
        wait_for(lambda: self.statuses("n1") == [("disable", "sent")], 5)

    def tls_server(self, names):
        key, cert = (os.path.join(self.directory, name) for name in ("key.pem", "cert.pem"))
        done = subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert,
                               "-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName={names}"],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        return self.fake(tls=context), cert

    def test_https(self):
        fake, cert = self.tls_server("IP:127.0.0.1,DNS:localhost")
        for i, url in enumerate((fake.url, f"https://localhost:{fake.port}")):
            agent = self.agent(url, ca_file=cert)
            agent.call("Disable", name=f"tls/{i}", reason="x")
            wait_for(lambda i=i: self.statuses(f"tls/{i}") == [("disable", "sent")], 5)
            agent.close()

    def test_https_of_somebody_else(self):
        fake, cert = self.tls_server("DNS:other.example")
        agent = self.agent(fake.url, ca_file=cert)
        agent.call("Disable", name="mismatch", reason="x")
        wait_for(lambda: "certificate is refused: IP address mismatch" in agent.log(), 5)
        agent.close()
        agent = self.agent(f"https://localhost:{fake.port}", ca_file=cert)
        wait_for(lambda: "certificate is refused: hostname mismatch" in agent.log(), 5)
        agent.close()
        # Not known to the system's authorities.
        agent = self.agent(fake.url)
        wait_for(lambda: "certificate is refused: self-signed" in agent.log().replace("self signed", "self-signed"), 5)
        self.assertEqual(fake.requests, [])


class Chaos(AlertTest):
    """200 operations on 20 breakers while Alertmanager is anything but well."""

    OPERATIONS = 200
    SECONDS = 34

    def operate(self, agents, number, dice):
        agent = dice.choice(agents)
        name = f"breaker/{dice.randrange(20)}"
        kind = dice.randrange(10)
        if kind < 4:
            agent.call("Disable", name=name, reason=f"reason {number % 3}")
        elif kind < 7:
            agent.call("Enable", name=name)
        elif kind < 9:
            agent.call("ReportSchemaError", name=name, count=9)
        else:
            agent.call("Disable", name=name, reason=f"for a moment {number}", ttl_seconds=1)

    def phases(self, alertmanager, done):
        """What happens to Alertmanager until `done`, then it is up."""
        port = alertmanager.port
        while not done.is_set():
            done.wait(2)
            alertmanager.kill9()
            done.wait(2)
            for answer in (500, None):
                with Fake(lambda alerts, answer=answer: answer, port=port):
                    done.wait(2)
            alertmanager.start()
            for _ in range(3):
                done.wait(random.uniform(0.05, 0.4))
                alertmanager.kill9()
                alertmanager.start()
            done.wait(1)
            alertmanager.sigstop()
            done.wait(2)
            alertmanager.sigcont()

    def test_converges(self):
        seed = random.randrange(1 << 32)
        tap.note(f"seed {seed}")
        dice = random.Random(seed)
        alertmanager = self.alertmanager(resolve_timeout="5m")
        agents = [self.agent(alertmanager.url) for _ in range(2)]
        done = threading.Event()
        chaos = threading.Thread(target=self.phases, args=(alertmanager, done))
        chaos.start()
        try:
            started = time.monotonic()
            for number in range(self.OPERATIONS):
                self.operate(agents, number, dice)
                time.sleep(max(0, started + (number + 1) * self.SECONDS / self.OPERATIONS - time.monotonic()))
            self.postgres.psql("SELECT cbshm.enable(name) FROM cbshm.breaker WHERE disabled_until < now() + '1 min'")
        finally:
            done.set()
            chaos.join()
        ended = time.monotonic()
        wait_for(lambda: alertmanager.firing() == self.open_breakers(), 5, "what is shown equals the breakers")
        tap.note(f"{len(self.open_breakers())} open, shown after {time.monotonic() - ended:.2f} s")
        end = time.monotonic() + 3
        while time.monotonic() < end:
            self.assertEqual(alertmanager.firing(), self.open_breakers())
            time.sleep(0.1)
        self.assertEqual(self.postgres.rows("SELECT breaker, kind, status, last_error FROM cbshm.alert_queue "
                                            "WHERE status NOT IN ('sent', 'skipped')"), [])
        self.assertEqual(self.postgres.rows("SELECT breaker FROM cbshm.incident WHERE NOT alert_sent"), [])

    def test_nobody_there_at_first(self):
        alertmanager = self.alertmanager(start=False)
        agent = self.agent(f"http://localhost:{alertmanager.port}", resend=3600)
        for i in range(5):
            agent.call("Disable", name=f"early/{i}", reason="x")
        agent.call("Enable", name="early/0")
        wait_for(lambda: "event=alertmanager_unavailable" in agent.log(), 3)
        time.sleep(5)
        alertmanager.start()
        wait_for(lambda: alertmanager.firing() == self.open_breakers(), 5)


if __name__ == "__main__":
    tap.main()
