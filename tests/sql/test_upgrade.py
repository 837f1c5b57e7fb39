# SPDX-License-Identifier: ISC
"""cbctl migrate on a database that is in use: nothing is lost, whatever version it comes from and whatever comes between."""
import glob
import json
import os
import shutil
import signal
import subprocess
import time
import unittest

from support import tap
from support.agent import Agent, cbctl, program, wait_for
from support.postgres import AGENT_USER, SUPERUSER, Postgres

FILES = sorted(glob.glob(os.path.join(tap.source_dir(), "sql", "[0-9]*.sql")))
NEWEST = len(FILES)
ID = "6f2c9f0a-3f57-4d0a-9d5e-00000000000"

# What plain SQL can do in any version.
BY_HAND = """
INSERT INTO cbshm.breaker (name) VALUES ('plain/closed'), ('plain/deleted'), ('plain/renamed');
INSERT INTO cbshm.breaker (name, disabled, disabled_by, disabled_reason) VALUES ('plain/öffen', true, 'ops', E'a\\nb');
UPDATE cbshm.breaker SET consecutive_failures = 2, last_failure_at = now() WHERE name = 'plain/closed';
UPDATE cbshm.breaker SET disabled = true, disabled_until = now() + interval '1 hour' WHERE name = 'plain/renamed';
UPDATE cbshm.breaker SET name = 'plain/new name' WHERE name = 'plain/renamed';
UPDATE cbshm.breaker SET disabled = true WHERE name = 'plain/deleted';
DELETE FROM cbshm.breaker WHERE name = 'plain/deleted';
UPDATE cbshm.breaker SET disabled = true, disabled_reason = 'over soon' WHERE name = 'plain/closed';
UPDATE cbshm.breaker SET disabled = false WHERE name = 'plain/closed';
UPDATE cbshm.settings SET failure_threshold = 4, default_ttl = interval '90 minutes';
"""

# The functions, by the version that brought them.
BY_FUNCTIONS = {2: f"""
SELECT cbshm.report_drift('drift', 0.3, 10, '{{"n": 12345678901234567890}}') FROM generate_series(1, 5);
SELECT cbshm.report_drift('counting', 0.9, 1) FROM generate_series(1, 3);
SELECT cbshm.report_schema_error('schema', 7);
SELECT cbshm.set_policy('policy', drift_threshold => 0.05, auto_recover => false, default_ttl => interval '1 s');
SELECT cbshm.disable('for ever', 'x', 'ops', until => 'infinity', request_id => '{ID}1');
SELECT cbshm.disable('superseded', 'first'); SELECT cbshm.disable('superseded', 'second', ttl => interval '2 h');
SELECT cbshm.disable('closed', 'x'); SELECT cbshm.enable('closed', 'ops', 'good again', request_id => '{ID}2');
SELECT cbshm.disable('expired', 'x', ttl => interval '1 ms'), pg_sleep(0.01);
SELECT cbshm.disable('recovered', 'x', ttl => interval '1 ms'), pg_sleep(0.01); SELECT cbshm.recover('recovered');
SELECT cbshm.heartbeat('host', 'instance', '0.0.9', 17);
""", 4: """
SELECT cbshm.alerts_sent('a', array_agg(id), interval '1 h') FROM cbshm.claim_alerts('a', 3, interval '1 min');
SELECT cbshm.alerts_put_off('b', array_agg(id), 'refused') FROM cbshm.claim_alerts('b', 3, interval '1 min');
SELECT count(*) FROM cbshm.claim_alerts('c', 2, interval '1 min');
""", 6: """
SELECT cbshm.announce_barrier() FROM generate_series(1, 40);
SELECT cbshm.acknowledge_barrier('host', 'instance', 40);
""", 7: """
SELECT cbshm.report('{reported/trips,reported/counts}', '{9,11}', array_fill(0.9::float8, '{11}'),
    array_fill(5::bigint, '{11}'), array_fill(NULL::text, '{11}'), array_fill(NULL::int, '{11}'), '{}', true);
"""}

EVERYTHING_ANEW = """
ALTER TABLE cbshm.breaker ADD COLUMN newer int, DISABLE TRIGGER USER, ENABLE TRIGGER USER;
DO $$
DECLARE
    definition text;
BEGIN
    FOR definition IN SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'cbshm'::regnamespace LOOP
        EXECUTE definition;
    END LOOP;
END
$$;
CREATE OR REPLACE FUNCTION cbshm.announce(b cbshm.breaker) RETURNS void
LANGUAGE sql AS $$ SELECT pg_notify('cbshm', 'w ' || b.name) $$;
"""


class Upgrade(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()
        cls.addClassCleanup(cls.postgres.close)
        cls.made = 0

    # ---- databases ----

    def database(self, version):
        """A new one with the schema of that version."""
        Upgrade.made += 1
        name = f"upgrade_{self.made}"
        self.postgres.psql(f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0")
        cbctl("migrate", "--conninfo", self.conninfo(name), "--sql", self.first(version), check=0)
        return name

    def first(self, version, **others):
        """A directory with the migrations up to a version; others: texts by file name."""
        directory = self.postgres.scratch.directory(f"sql-{version}-{time.monotonic_ns()}")
        for path in FILES[:version]:
            shutil.copy(path, directory)
        for name, text in others.items():
            with open(os.path.join(directory, f"{name[1:]}.sql"), "w", encoding="utf-8") as file:
                file.write(text)
        return directory

    def conninfo(self, database, user=SUPERUSER):
        return self.postgres.conninfo(user, database)

    def migrate(self, database, sql=None, check=0):
        return cbctl("migrate", "--conninfo", self.conninfo(database), "--sql", sql or os.path.dirname(FILES[0]), check=check)

    def start(self, database, sql=None):
        """The same, not waited for."""
        return subprocess.Popen([program("cbctl/cbctl"), "migrate", "--conninfo", self.conninfo(database), "--sql",
                                 sql or os.path.dirname(FILES[0])], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def agent(self, database, **options):
        agent = Agent(scratch=self.postgres.scratch, conninfo=self.conninfo(database, AGENT_USER), **options)
        self.addCleanup(agent.close)
        return agent

    def fill(self, database, version):
        self.postgres.psql(BY_HAND, db=database)
        for since, sql in BY_FUNCTIONS.items():
            if version >= since:
                self.postgres.psql(sql, db=database)

    # ---- what is in them ----

    def content(self, database, columns=None):
        """{table: its rows}, of these columns if given. Rows are dictionaries, in an order of their own."""
        tables = [row[0] for row in self.postgres.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'cbshm'", db=database)]
        tables = sorted(set(tables) & set(columns or tables))
        ask = " UNION ALL ".join(f"SELECT '{table}' AS name, to_jsonb(t) AS row FROM cbshm.{table} t" for table in tables)
        rows = self.postgres.json(f"SELECT jsonb_agg(jsonb_build_array(name, row)) FROM ({ask}) r", db=database)
        content = {table: [] for table in tables}
        for table, row in rows:
            content[table].append({key: row[key] for key in (columns[table] if columns else row)})
        for kept in content.values():
            kept.sort(key=json.dumps)
        return content

    @staticmethod
    def columns(content):
        return {table: list(rows[0]) for table, rows in content.items() if rows}

    @staticmethod
    def skip_what_was_over(content):
        """What 0004 does on purpose: nobody wants to hear of an opening that was over before alerts were delivered."""
        over = {incident["id"] for incident in content["incident"] if incident["resolved"]}
        for alert in content["alert_queue"]:
            if alert["incident_id"] in over and alert["status"] == "pending":
                alert.update(status="skipped", last_error="was over before alerts were delivered")
        content["alert_queue"].sort(key=json.dumps)

    def definitions(self, database):
        """What the schema is made of, to be compared with another database's."""
        ask = "SELECT string_agg(md5({}), ',' ORDER BY {}::text) FROM {}"
        in_schema = "= 'cbshm'::regnamespace"
        return self.postgres.row("SELECT ({}), ({}), ({})".format(
            ask.format("pg_get_functiondef(oid) || proacl::text || proowner", "oid::regprocedure",
                       f"pg_proc WHERE pronamespace {in_schema}"),
            ask.format("pg_get_triggerdef(oid)", "tgname", "pg_trigger WHERE NOT tgisinternal"),
            ask.format("attrelid::regclass || attname || atttypid", "(attrelid::regclass, attnum)",
                       f"pg_attribute WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace {in_schema})")), db=database)

    # ---- tests ----

    def upgrade(self, version):
        database = self.database(version)
        self.fill(database, version)
        before = self.content(database)
        self.migrate(database)
        if version < 4:
            self.skip_what_was_over(before)
        after = self.content(database, self.columns(before))
        after["schema_version"] = [row for row in after["schema_version"] if row["version"] <= version]
        for table, rows in before.items():
            if rows:
                self.assertEqual(after[table], rows, table)
        self.assertEqual(self.definitions(database), self.definitions("cbshm"))
        return database, {row["name"]: row for row in before["breaker"]}

    def serves(self, database, breakers):
        """An agent shows what was there before, and goes on from there."""
        agent = self.agent(database)
        listed = {row["name"]: row for row in agent.cbctl("list", "--json", check=0).json()["breakers"]}
        self.assertEqual(sorted(listed), sorted(breakers))
        for name, row in breakers.items():
            if name != "expired":
                self.assertEqual((listed[name]["is_open"], listed[name].get("reason"), listed[name]["version"]),
                                 (row["disabled"], row["disabled_reason"], row["version"]))
        for name in ("plain/öffen", "plain/closed", "plain/new name"):
            agent.call("Enable", name=name)
            self.assertEqual(agent.outcome("Disable", name=name, reason="after")[0], "ok")
            self.assertGreater(agent.call("GetState", name=name)["state"]["version"], breakers[name]["version"])
        agent.close()

    def check_requests(self, database):
        """A request of before that is repeated now is answered as then, and not applied."""
        ask = self.postgres.value
        self.assertEqual(ask(f"SELECT changed FROM cbshm.disable('for ever', 'x', request_id => '{ID}1')", db=database), "t")
        self.assertEqual(ask(f"SELECT cbshm.enable('closed', request_id => '{ID}2')", db=database), "t")

    def check_deleted(self, database):
        grave = int(self.postgres.value("SELECT version FROM cbshm.tombstone WHERE name = 'plain/deleted'", db=database))
        self.postgres.psql("SELECT cbshm.enable('plain/deleted')", db=database)
        self.assertGreater(int(self.postgres.value("SELECT version FROM cbshm.breaker WHERE name = 'plain/deleted'", db=database)),
                           grave)

    def test_from_every_version(self):
        for version in range(1, NEWEST):
            with self.subTest(version=version):
                database, breakers = self.upgrade(version)
                self.serves(database, breakers)
                self.check_deleted(database)
                if version >= 2:
                    self.check_requests(database)
                if version >= 6:
                    self.assertGreater(int(self.postgres.value("SELECT barrier FROM cbshm.announce_barrier()", db=database)), 40)
                self.postgres.psql(f"DROP DATABASE {database}")

    def test_two_at_once(self):
        database = self.database(4)
        self.fill(database, 4)
        running = [self.start(database), self.start(database)]
        said = [process.communicate(timeout=60)[0] for process in running]
        self.assertEqual([process.returncode for process in running], [0, 0], said)
        for path in FILES[4:]:
            self.assertEqual(sum(text.count(f"applied {os.path.basename(path)}") for text in said), 1, said)
        self.assertEqual(self.definitions(database), self.definitions("cbshm"))

    def interrupted(self, kill):
        """A migration is cut off in its middle; what it has not finished is as if it had not begun, and the next one goes on."""
        with open(FILES[5], encoding="utf-8") as file:
            slow = self.first(5, **{"_" + os.path.basename(FILES[5])[:-4]: file.read() + ";SELECT pg_sleep(2);"})
        database = self.database(4)
        self.fill(database, 4)
        before = self.content(database)
        process = self.start(database, slow)
        wait_for(lambda: self.postgres.value(
            f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND wait_event = 'PgSleep'") == "1")
        kill(process)
        said = process.communicate(timeout=60)[0]
        self.assertNotEqual(process.returncode, 0)
        self.assertEqual(self.postgres.value("SELECT max(version) FROM cbshm.schema_version", db=database), "5")
        self.assertEqual(self.content(database, self.columns(before))["breaker"], before["breaker"])
        self.assertIsNone(self.postgres.value("SELECT to_regclass('cbshm.barrier')", db=database))
        result = self.migrate(database)
        self.assertIn("applied " + os.path.basename(FILES[5]), result.out)
        self.assertEqual(self.content(database, self.columns(before))["breaker"], before["breaker"])
        self.assertEqual(self.definitions(database), self.definitions("cbshm"))
        return said

    def test_killed(self):
        """The server notices only when it comes to answer; the next one waits for that."""
        self.interrupted(lambda process: process.send_signal(signal.SIGKILL))

    def test_the_server_is_killed(self):
        def kill(_):
            self.postgres.kill9()
            self.postgres.start()
        self.assertIn("run it again, it goes on where it was", self.interrupted(kill))

    def test_a_lock_that_somebody_holds(self):
        """It gives up by itself before the writers that queue up behind it have to; then nothing has changed."""
        database = self.database(8)
        self.fill(database, 8)
        session = self.postgres.session(db=database)
        session.execute("BEGIN")
        session.execute("SELECT * FROM cbshm.breaker WHERE name = 'drift' FOR UPDATE")
        result = self.migrate(database, check=7)
        self.assertIn(f"{os.path.basename(FILES[8])} failed and nothing of it was applied", result.err)
        self.assertIn("pg_stat_activity", result.err)
        session.execute("COMMIT")
        self.migrate(database)

    def test_an_agent_that_waits_for_it(self):
        database = self.database(NEWEST - 1)
        self.fill(database, NEWEST - 1)
        agent = self.agent(database, ready=False)
        wait_for(lambda: f"has version {NEWEST - 1}, this agent needs {NEWEST}: run cbctl migrate" in agent.log())
        self.migrate(database)
        agent.wait_ready()
        self.assertTrue(agent.is_open("for ever"))

    def test_an_agent_that_is_older(self):
        """
        It goes on while it is connected, whatever is made anew, and sees what others decide although notifications are such as
        it does not know; then its host lives on what the segment has.
        """
        database = self.database(NEWEST)
        self.fill(database, NEWEST)
        agent = self.agent(database)
        agent.call("Disable", name="before", reason="x")
        newer = self.first(NEWEST, **{f"_{NEWEST + 1:04}_newer": EVERYTHING_ANEW})
        self.migrate(database, newer)
        self.assertEqual(agent.outcome("Disable", name="since", reason="x")[0], "ok")
        self.assertEqual(agent.outcome("ReportDrift", name="counted", drift_score=0.9, sample_count=1)[0], "ok")
        self.postgres.psql("SELECT cbshm.enable('before')", db=database)
        wait_for(lambda: agent.is_open("before") is False, 10)
        self.assertNotIn("level=error", agent.log())
        self.postgres.psql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{AGENT_USER}'")
        wait_for(lambda: f"has version {NEWEST + 1}, this agent knows {NEWEST}: install a newer cbagent" in agent.log())
        self.assertTrue(agent.is_open("since"))
        self.assertEqual(agent.cbctl("check", "since").status, 1)
        wait_for(lambda: agent.outcome("Enable", name="since", timeout_ms=500)[0] == "DatabaseUnavailable")
        self.assertIn("install a newer cbagent", agent.outcome("Enable", name="since", timeout_ms=500)[1])


if __name__ == "__main__":
    tap.main()
