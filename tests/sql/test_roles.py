# SPDX-License-Identifier: ISC
"""Who may do what, and how the schema comes into a database."""
import glob
import os
import subprocess

import fixture
from support import tap
from support.agent import Agent, cbctl
from support.postgres import AGENT_USER, PostgresError

TABLES = ("agent", "alert_queue", "audit_log", "breaker", "incident", "request", "schema_version", "settings",
          "tombstone")
AGENT_FUNCTIONS = {"apply", "report", "recover", "state_json", "incidents_json", "set_policy_json", "heartbeat",
                   "claim_alerts", "alerts_sent", "alerts_put_off", "alerts_release", "alerts_wake",
                   "alerts_wake_some", "alerts_skipped", "alerts_due", "alerts_depth", "alerts_retry", "alerts_purge",
                   "announce_barrier", "last_barrier", "acknowledge_barrier", "remove_agent", "fleet_json",
                   "agents_json", "settings_version", "announcement_key", "log_json", "alerts_json"}
READER_FUNCTIONS = {"get_state", "get_incidents", "state_json", "incidents_json", "policy_json", "fleet_json",
                    "agents_json", "log_json", "alerts_json"}


class Roles(fixture.SqlTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.db.execute("CREATE ROLE reader LOGIN IN ROLE cbshm_reader; CREATE ROLE stranger LOGIN")
        cls.agent = fixture.server().session(AGENT_USER)
        cls.reader = fixture.server().session("reader")
        cls.stranger = fixture.server().session("stranger")

    @classmethod
    def tearDownClass(cls):
        for session in (cls.agent, cls.reader, cls.stranger):
            session.close()
        super().tearDownClass()

    def functions_of(self, role):
        return {each["proname"] for each in self.rows(
            "SELECT DISTINCT proname FROM pg_proc p WHERE pronamespace = 'cbshm'::regnamespace "
            f"AND has_function_privilege('{role}', p.oid, 'EXECUTE')")}

    def tables_of(self, role, privilege):
        return {each["relname"] for each in self.rows(
            "SELECT relname FROM pg_class c WHERE relnamespace = 'cbshm'::regnamespace AND relkind IN ('r', 'v') "
            f"AND has_table_privilege('{role}', c.oid, '{privilege}')")}

    def test_privileges(self):
        for role, functions, tables in ((AGENT_USER, AGENT_FUNCTIONS, {"mirror", "schema_version"}),
                                        ("reader", READER_FUNCTIONS, {"mirror", *TABLES}),
                                        ("stranger", set(), set())):
            with self.subTest(role=role):
                self.assertEqual(self.functions_of(role), functions)
                self.assertEqual(self.tables_of(role, "SELECT"), tables)
                for privilege in ("INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"):
                    self.assertEqual(self.tables_of(role, privilege), set())
                self.assertEqual(self.value(f"has_schema_privilege('{role}', 'cbshm', 'CREATE')"), False)

    def test_owner(self):
        owners = self.rows("""SELECT DISTINCT pg_get_userbyid(o) AS owner FROM (
            SELECT relowner AS o FROM pg_class WHERE relnamespace = 'cbshm'::regnamespace
            UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'cbshm'::regnamespace
            UNION ALL SELECT nspowner FROM pg_namespace WHERE nspname = 'cbshm') all_of_it""")
        self.assertEqual([each["owner"] for each in owners], ["cbshm_owner"])
        role = self.row("SELECT rolcanlogin, rolsuper, rolcreaterole, rolbypassrls FROM pg_roles "
                        "WHERE rolname = 'cbshm_owner'")
        self.assertEqual(set(role.values()), {False})
        self.assertFalse(self.value("has_database_privilege('cbshm_owner', current_database(), 'CREATE')"))

    def test_definers_have_their_path_pinned(self):
        loose = self.rows("""SELECT proname FROM pg_proc WHERE pronamespace = 'cbshm'::regnamespace AND prosecdef
            AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)""")
        self.assertEqual(loose, [])
        callable_but_loose = (AGENT_FUNCTIONS | READER_FUNCTIONS) - {each["proname"] for each in self.rows(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'cbshm'::regnamespace AND prosecdef")}
        self.assertEqual(callable_but_loose, set())

    def test_agent_does_what_it_needs(self):
        none = "'{NULL}'"
        self.rows(f"SELECT * FROM cbshm.apply('{{report_schema_error}}', '{{{self.name}}}', {none}, '{{5}}', {none}, "
                  f"{none}, {none}, {none}, {none}, {none}, {none}, false)", self.agent)
        self.assertTrue(self.value(f"cbshm.state_json('{self.name}')", self.agent)["is_open"])
        self.assertEqual(len(self.value("cbshm.incidents_json(NULL, true, 1)", self.agent)), 1)
        self.assertFalse(self.value(f"cbshm.recover('{self.name}')", self.agent))
        self.value(f"""cbshm.set_policy_json('{self.name}', '{{"auto_recover": false}}', 'x', NULL)""", self.agent)
        self.assertEqual(len(self.rows(f"SELECT * FROM cbshm.mirror WHERE name = '{self.name}'", self.agent)), 1)
        self.assertGreaterEqual(self.value("(SELECT max(version) FROM cbshm.schema_version)", self.agent), 4)
        self.agent.execute("LISTEN cbshm; UNLISTEN cbshm")

    def test_heartbeat(self):
        for applied in (1, 7):
            self.assertIsNotNone(self.value(f"cbshm.heartbeat('h', 'i', '0.1', {applied})", self.agent))
        beat = self.row("SELECT *, last_seen_at > first_seen_at AS later FROM cbshm.agent")
        self.assertEqual((beat["host"], beat["instance"], beat["version"], beat["applied"], beat["later"]),
                         ("h", "i", "0.1", 7, True))

    def test_agent_may_do_no_more(self):
        for sql in ("INSERT INTO cbshm.breaker (name) VALUES ('x')", "UPDATE cbshm.breaker SET disabled = true",
                    "DELETE FROM cbshm.breaker", "SELECT * FROM cbshm.audit_log", "SELECT * FROM cbshm.breaker",
                    "SELECT cbshm.disable('x', 'y')", "SELECT cbshm.audit('x', 1, 'a', '{}', '{}', 'b', '{}', NULL)",
                    "SET ROLE cbshm_owner", "DROP SCHEMA cbshm CASCADE", "CREATE TABLE cbshm.x ()"):
            with self.subTest(sql=sql):
                self.refused(sql, "42501", self.agent)

    def test_reader(self):
        self.disable()
        for table in TABLES + ("mirror",):
            self.reader.execute(f"SELECT * FROM cbshm.{table} LIMIT 1")
        self.assertEqual(self.row(f"SELECT * FROM cbshm.get_state('{self.name}')", self.reader)["is_open"], True)
        self.assertEqual(len(self.rows(f"SELECT * FROM cbshm.get_incidents('{self.name}')", self.reader)), 1)
        for sql in ("UPDATE cbshm.settings SET auto_recover = false", "SELECT cbshm.enable('x')",
                    "SELECT cbshm.recover('x')", "DELETE FROM cbshm.audit_log", "SELECT * FROM cbshm.secret",
                    "SELECT cbshm.announcement_key()"):
            self.refused(sql, "42501", self.reader)

    def test_stranger(self):
        for sql in ("SELECT * FROM cbshm.mirror", "SELECT * FROM cbshm.get_state('x')",
                    "SELECT cbshm.rfc3339(now())"):
            self.refused(sql, "42501", self.stranger)

    def test_one_function_can_be_granted(self):
        self.run_sql("CREATE ROLE reporter LOGIN; GRANT USAGE ON SCHEMA cbshm TO reporter; "
                     "GRANT EXECUTE ON FUNCTION cbshm.report_drift TO reporter")
        reporter = fixture.server().session("reporter")
        reporter.execute(f"SELECT cbshm.report_drift('{self.name}', 0.9, 1)")
        self.refused(f"SELECT cbshm.disable('{self.name}', 'x')", "42501", reporter)
        reporter.close()
        self.assertEqual(self.breaker()["consecutive_failures"], 1)

    def test_plain_writer(self):
        """Rights on the table are enough: the triggers bring their own."""
        self.run_sql("CREATE ROLE service LOGIN; GRANT USAGE ON SCHEMA cbshm TO service; "
                     "GRANT SELECT, INSERT, UPDATE, DELETE ON cbshm.breaker TO service")
        service = fixture.server().session("service")
        service.execute(f"INSERT INTO cbshm.breaker (name, disabled) VALUES ('{self.name}', true)")
        self.assertEqual(self.breaker()["disabled_by"], "service")
        service.execute(f"DELETE FROM cbshm.breaker WHERE name = '{self.name}'")
        self.assertEqual(self.actions(), ["disable", "delete"])
        self.refused("SELECT * FROM cbshm.incident", "42501", service)
        service.close()

    def test_hostile_search_path(self):
        """Operators and functions that a caller puts in front of pg_catalog are not ours to run."""
        self.run_sql("""CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
            CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
                $f$ BEGIN RAISE EXCEPTION 'evil'; END $f$;
            CREATE FUNCTION evil.gt(float8, float8) RETURNS boolean LANGUAGE plpgsql AS
                $f$ BEGIN RAISE EXCEPTION 'evil'; END $f$;
            CREATE OPERATOR evil.> (FUNCTION = evil.gt, LEFTARG = float8, RIGHTARG = float8)""")
        session = fixture.server().session()
        session.execute("SET search_path = evil, pg_catalog, public")
        session.execute(f"SELECT cbshm.report_drift('{self.name}', 0.9, 1)")
        session.execute(f"UPDATE cbshm.breaker SET disabled = true WHERE name = '{self.name}'")
        session.close()
        self.assertTrue(self.breaker()["disabled"])


class Migration(fixture.SqlTest):
    FILES = sorted(glob.glob(os.path.join(tap.source_dir(), "sql", "[0-9]*.sql")))

    def psql(self, database, user="postgres", files=FILES):
        """Applies files as a person would."""
        for path in files:
            with open(path, encoding="utf-8") as file:
                done = subprocess.run(
                    [os.path.join(fixture.server().bin, "psql"), "-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-f", "-"],
                    env=fixture.server().environment(user, database), stdin=file, text=True, cwd="/",
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            if done.returncode != 0:
                return done.stdout
        return ""

    def database(self, options="", owner="postgres"):
        name = self.id().split(".")[-1]
        self.run_sql(f"CREATE DATABASE {name} OWNER {owner} {options}")
        return name

    def test_files_work_with_plain_psql(self):
        self.assertGreaterEqual(len(self.FILES), 7)
        database = self.database()
        self.assertEqual(self.psql(database), "")
        self.assertEqual(fixture.server().psql("SELECT cbshm.enable('x')", db=database), "f")

    def test_other_encodings_are_refused(self):
        database = self.database("ENCODING 'LATIN1' TEMPLATE template0")
        answer = self.psql(database)
        self.assertIn("UTF8", answer)
        self.assertIn("HINT", answer)

    def test_owner_of_the_database_is_enough(self):
        self.run_sql("CREATE ROLE landlord LOGIN; GRANT cbshm_owner TO landlord")
        database = self.database(owner="landlord")
        self.assertEqual(self.psql(database, "landlord"), "")
        ask = fixture.server().psql
        self.assertEqual(ask("SELECT cbshm.report_schema_error('x', 5) IS NULL", "landlord", database), "f")
        ask("INSERT INTO cbshm.schema_version (version, file) VALUES (3, 'x')", "landlord", database)
        self.assertEqual(ask("SELECT nspowner::regrole FROM pg_namespace WHERE nspname = 'cbshm'", db=database),
                         "cbshm_owner")

    def test_owner_of_the_database_without_the_role(self):
        self.run_sql("CREATE ROLE tenant LOGIN")
        answer = self.psql(self.database(owner="tenant"), "tenant")
        self.assertIn("cannot give the schema cbshm to cbshm_owner", answer)
        self.assertIn("GRANT cbshm_owner TO tenant", answer)

    def test_roles_that_cannot_be_made(self):
        """In a cluster of which nothing is known, the hint says what an administrator has to do."""
        with fixture.Postgres() as other:
            other.psql("CREATE ROLE tenant LOGIN; ")
            other.psql("CREATE DATABASE theirs OWNER tenant")
            with self.assertRaises(PostgresError) as caught:
                for path in self.FILES:
                    with open(path, encoding="utf-8") as file:
                        other.psql("BEGIN;" + file.read() + "COMMIT;", "tenant", "theirs")
            self.assertIn('role "cbshm_owner" does not exist', caught.exception.message)
            self.assertIn("CREATE ROLE cbshm_owner NOLOGIN", caught.exception.hint)

    def test_who_may_create_roles_needs_nothing_else(self):
        with fixture.Postgres() as other:
            other.psql("CREATE ROLE dba LOGIN CREATEROLE")
            other.psql("CREATE DATABASE theirs OWNER dba")
            for path in self.FILES:
                with open(path, encoding="utf-8") as file:
                    other.psql("BEGIN;" + file.read() + "COMMIT;", "dba", "theirs")
            self.assertEqual(other.psql("SELECT cbshm.enable('x')", "dba", "theirs"), "f")

    def test_cbctl_and_an_agent_without_a_superuser(self):
        """Who may create roles migrates, and makes the agent's user."""
        with fixture.Postgres() as other:
            other.psql("CREATE ROLE dba LOGIN CREATEROLE")
            other.psql("CREATE DATABASE theirs OWNER dba")
            cbctl("migrate", "--sql", os.path.dirname(self.FILES[0]), "--conninfo", other.conninfo("dba", "theirs"), check=0)
            other.psql("CREATE ROLE their_agent LOGIN IN ROLE cbshm_agent; CREATE ROLE analyst LOGIN; "
                       "GRANT cbshm_reader TO analyst", "dba", "theirs")
            with Agent(other, conninfo=other.conninfo("their_agent", "theirs")) as agent:
                self.assertEqual(agent.outcome("Disable", name="x", reason="y")[0], "ok")
            self.assertEqual(other.value("SELECT is_open FROM cbshm.get_state('x')", "analyst", "theirs"), "t")


if __name__ == "__main__":
    tap.main()
