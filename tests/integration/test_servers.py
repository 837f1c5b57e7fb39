# SPDX-License-Identifier: ISC
"""PostgreSQL as it is run for real: behind PgBouncer, over TLS, with an administrator's time-outs."""
import os
import shutil
import socket
import subprocess
import threading
import time

from support import tap
from support.agent import ServerTest, wait_for
from support.postgres import AGENT_USER, Postgres
from support.scratch import identity


class PgBouncer:
    """A pooler in front of a server, on a Unix socket of its own; it refuses to run as root, as the server does."""

    def __init__(self, postgres, size):
        self.directory = postgres.scratch.directory(f"pooler-{time.monotonic_ns()}", postgres.user, 0o711)
        settings = os.path.join(self.directory, "pgbouncer.ini")
        users = os.path.join(self.directory, "users")
        with open(users, "w", encoding="utf-8") as file:
            file.write(f'"{AGENT_USER}" ""\n"postgres" ""\n')
        with open(settings, "w", encoding="utf-8") as file:
            file.write(f"[databases]\ncbshm = host={postgres.host} dbname=cbshm\n[pgbouncer]\nlisten_addr =\n"
                       f"listen_port = 5432\nunix_socket_dir = {self.directory}\nunix_socket_mode = 0777\n"
                       f"auth_type = trust\nauth_file = {users}\npool_mode = transaction\n"
                       f"default_pool_size = {size}\nserver_login_retry = 0.2\nadmin_users = postgres\n")
        with open(os.path.join(self.directory, "log"), "ab") as log:
            self.process = subprocess.Popen([self.program(), "-q", settings], cwd=self.directory, stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, start_new_session=True, **identity(postgres.user))
        wait_for(lambda: os.path.exists(os.path.join(self.directory, ".s.PGSQL.5432")), 10, "the pooler's socket")

    @staticmethod
    def program():
        found = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
        if not found:
            raise tap.SkipTest("pgbouncer is not installed")
        return found

    def conninfo(self):
        return f"host={self.directory} dbname=cbshm user={AGENT_USER}"


class Pooler(ServerTest):
    """PgBouncer in transaction mode: no LISTEN, no prepared statements, and settings that are somebody else's next time."""

    @classmethod
    def setUpClass(cls):
        cls.server = Postgres().migrate()
        cls.addClassCleanup(cls.server.close)

    def pooled(self, size):
        pooler = PgBouncer(self.server, size)
        self.addCleanup(pooler.process.kill)
        return self.agent(self.server, conninfo=pooler.conninfo())

    def test_asks_instead_of_listening(self):
        agent = self.pooled(4)
        self.assertEqual(agent.outcome("Disable", name="own", reason="x")[0], "ok")
        self.assertTrue(agent.is_open("own"))
        wait_for(lambda: "event=listen_does_not_work" in agent.log(), 10)
        self.server.psql("SELECT cbshm.disable('foreign', 'x')")
        started = time.monotonic()
        wait_for(lambda: agent.is_open("foreign"), 5)
        tap.note(f"a change of others is seen after {time.monotonic() - started:.2f} s")
        self.server.psql("DELETE FROM cbshm.breaker WHERE name = 'foreign'")
        wait_for(lambda: agent.is_open("foreign") is None, 5)
        agent.call("Disable", name="ttl", reason="x", ttl_seconds=0.5)
        wait_for(lambda: self.server.psql("SELECT disabled FROM cbshm.breaker WHERE name = 'ttl'") == "f", 5)

    def test_one_server_connection_for_all(self):
        """Control, write and lane take turns on it; each finds its own settings."""
        self.server.psql("CREATE TABLE public.seen (statement_timeout text, lock_timeout text, by text)")
        self.server.psql("CREATE FUNCTION public.look() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN "
                         "INSERT INTO public.seen VALUES (current_setting('statement_timeout'), "
                         "current_setting('lock_timeout'), NEW.name); RETURN NEW; END $$")
        self.server.psql("CREATE TRIGGER look BEFORE INSERT OR UPDATE ON cbshm.breaker FOR EACH ROW "
                         "EXECUTE FUNCTION public.look()")
        agent = self.pooled(1)
        for i in range(20):
            self.assertEqual(agent.outcome("ReportDrift", name=f"one/{i % 3}", drift_score=0.9,
                                      sample_count=1)[0], "ok")
            agent.call("GetState", name=f"one/{i % 3}")
            time.sleep(0.15)
        self.assertEqual(self.server.rows("SELECT DISTINCT statement_timeout, lock_timeout FROM public.seen"),
                         [("0", "100ms")])
        self.server.psql("DROP TRIGGER look ON cbshm.breaker")

    def test_locked_row(self):
        agent = self.pooled(2)
        agent.call("Enable", name="held")
        session = self.server.session()
        session.execute("BEGIN")
        session.execute("SELECT 1 FROM cbshm.breaker WHERE name = 'held' FOR UPDATE")
        self.assertEqual(agent.outcome("Disable", name="held", reason="x", timeout_ms=500)[0], "Busy")
        self.assertEqual(agent.outcome("Disable", name="free", reason="x")[0], "ok")
        session.execute("COMMIT")
        self.assertEqual(agent.outcome("Disable", name="held", reason="x")[0], "ok")

    def test_commit_waits_for_a_standby(self):
        """Nobody takes the server for dead, although a pooler does not tell which of its sessions is the one that waits."""
        standby = self.postgres(name="standby", scratch=self.server.scratch, standby_of=self.server)
        self.addCleanup(self.server.psql, "SELECT pg_reload_conf()")
        self.addCleanup(self.server.psql, "ALTER SYSTEM RESET synchronous_standby_names")
        self.server.wait_for_standby()
        agent = self.pooled(4)
        agent.call("Enable", name="slow")
        wait_for(lambda: "event=listen_does_not_work" in agent.log(), 10)
        standby.sigstop()
        with agent.connect() as client:
            client.send("Disable", {"name": "slow", "reason": "x", "timeout_ms": 30000})
            wait_for(lambda: "event=commit_waits_for_standby" in agent.log(), 20)
            time.sleep(2)
            standby.sigcont()
            self.assertTrue(client.receive()["changed"])
        self.assertNotIn("database_unavailable", agent.log())

    def test_the_server_restarts_behind_it(self):
        agent = self.pooled(4)
        agent.call("Enable", name="x")
        self.server.restart("fast")
        tap.note(f"after a restart behind the pooler: {agent.writes_again():.2f} s")
        agent.call("Disable", name="x", reason="y")
        self.assertTrue(agent.is_open("x"))


class Secure(Postgres):
    """A server that lets the agent in over TLS only, with a password. Certificates lie in `directory`."""

    def __init__(self):
        # What every version but 13 does unasked.
        super().__init__(options={"password_encryption": "scram-sha-256"})
        self.migrate()
        self.directory = self.scratch.directory("tls", self.user, 0o755)
        self.authority("ca")
        self.certificate("server", "ca", "localhost")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.psql(f"ALTER ROLE {AGENT_USER} PASSWORD 'right'")
        with open(os.path.join(self.data, "pg_hba.conf"), "w", encoding="utf-8") as file:
            file.write(f"local all postgres trust\nhostssl all {AGENT_USER} 127.0.0.1/32 scram-sha-256\n")
        self.options.update({"listen_addresses": "127.0.0.1", "port": str(self.port), "ssl": "on",
                             "ssl_cert_file": self.path("server.crt"), "ssl_key_file": self.path("server.key")})
        self.stop()
        # The Unix socket is named after the port; the fixture looks for it under the usual name.
        os.symlink(f".s.PGSQL.{self.port}", os.path.join(self.host, ".s.PGSQL.5432"))
        self.start()

    def path(self, name):
        return os.path.join(self.directory, name)

    def openssl(self, *args):
        subprocess.run(["openssl", *args], cwd=self.directory, check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, **identity(self.user))

    def authority(self, name):
        self.openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
                     "-keyout", f"{name}.key", "-out", f"{name}.crt")

    def certificate(self, name, authority, host):
        self.openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={host}", "-keyout", f"{name}.key",
                     "-out", f"{name}.csr")
        self.openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.crt", "-CAkey", f"{authority}.key",
                     "-CAcreateserial", "-days", "2", "-out", f"{name}.crt")
        os.chmod(self.path(f"{name}.key"), 0o600)


class Secured(ServerTest):
    """TLS with the server's name verified, and SCRAM."""

    @classmethod
    def setUpClass(cls):
        if not shutil.which("openssl"):
            raise tap.SkipTest("openssl is not installed")
        cls.server = Secure()
        cls.addClassCleanup(cls.server.close)

    def conninfo(self, **changes):
        settings = {"host": "localhost", "port": self.server.port, "dbname": "cbshm", "user": AGENT_USER, "password": "right",
                    "sslmode": "verify-full", "sslrootcert": self.server.path("ca.crt"), **changes}
        return " ".join(f"{key}={value}" for key, value in settings.items())

    def test_verified(self):
        agent = self.agent(self.server, conninfo=self.conninfo())
        self.assertEqual(agent.outcome("Disable", name="x", reason="y")[0], "ok")
        self.assertEqual(self.server.rows("SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
                                          f"WHERE usename = '{AGENT_USER}'"), [("t",)])
        self.server.psql("SELECT cbshm.enable('x')")
        wait_for(lambda: agent.is_open("x") is False, 5)

    def refused(self, because, **changes):
        agent = self.agent(self.server, conninfo=self.conninfo(**changes), ready=False)
        wait_for(lambda: "event=database_unavailable" in agent.log(), 10)
        self.assertRegex(agent.log(), because)
        wait_for(lambda: os.path.exists(agent.socket), 10)
        wait_for(lambda: agent.outcome("Enable", name="x", timeout_ms=500)[0] == "DatabaseUnavailable", 10)
        self.assertRegex(agent.outcome("Enable", name="x", timeout_ms=500)[1], because)
        return agent

    def test_another_authority(self):
        self.server.authority("other")
        agent = self.refused("certificate verify failed", sslrootcert=self.server.path("other.crt"))
        agent.config["postgres"]["conninfo"] = self.conninfo()
        agent.write_config()
        agent.sighup()
        agent.writes_again()

    def test_another_name(self):
        self.refused("does not match host name", host="127.0.0.1")

    def test_wrong_password(self):
        agent = self.refused("password authentication failed", password="wrong")
        self.server.psql(f"ALTER ROLE {AGENT_USER} PASSWORD 'wrong'")
        agent.writes_again()
        self.server.psql(f"ALTER ROLE {AGENT_USER} PASSWORD 'right'")
        self.assertNotIn("password=wrong", agent.log())


class Timeouts(ServerTest):
    """What an administrator sets for the role, the agent has thought about itself."""

    def test_of_the_role(self):
        server = self.postgres().migrate()
        some = [setting for since, setting in ((14, "idle_session_timeout = '700ms'"), (17, "transaction_timeout = '40ms'"))
                if server.version >= since]
        for setting in ("statement_timeout = '40ms'", "lock_timeout = '1ms'", *some,
                        "idle_in_transaction_session_timeout = '20ms'", "default_transaction_isolation = 'serializable'",
                        "synchronous_commit = 'off'", "search_path = 'nowhere'", "extra_float_digits = -5",
                        "DateStyle = 'German'", "TimeZone = 'Asia/Kathmandu'", "IntervalStyle = 'sql_standard'",
                        "bytea_output = 'escape'"):
            server.psql(f"ALTER ROLE {AGENT_USER} SET {setting}")
        agent = self.agent(server)
        agent.call("SetPolicy", name="x", set={"drift_threshold": 0.3})  # the lane is there as well
        server.psql("CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS "
                    "'BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END'")
        server.psql("CREATE TRIGGER slow BEFORE UPDATE ON cbshm.breaker FOR EACH ROW EXECUTE FUNCTION public.slow()")
        pids = self.pids(server)
        time.sleep(2.5)  # idle
        self.assertEqual(agent.outcome("Disable", name="x", reason="slow")[0], "ok")
        self.assertEqual(self.pids(server), pids, "no connection was lost")
        server.psql("DROP TRIGGER slow ON cbshm.breaker")
        server.psql("SELECT cbshm.enable('x')")
        wait_for(lambda: agent.is_open("x") is False, 5)
        self.assertNotIn("database_unavailable", agent.log())

    @staticmethod
    def pids(server):
        return server.rows(f"SELECT pid FROM pg_stat_activity WHERE usename = '{AGENT_USER}' ORDER BY pid")


class Terminated(ServerTest):
    def test_each_connection(self):
        """Every one of the agent's connections is ended, again and again, while it writes."""
        server = self.postgres().migrate()
        agent = self.agent(server)
        agent.call("SetPolicy", name="x", set={"failure_threshold": 1000000})
        stop, counts = threading.Event(), {}

        def write():
            while not stop.is_set():
                outcome = agent.outcome("ReportDrift", name="x", drift_score=0.9, sample_count=1)[0]
                counts[outcome] = counts.get(outcome, 0) + 1
        threads = [threading.Thread(target=write) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            time.sleep(0.15)
            server.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        f"WHERE usename = '{AGENT_USER}'")
        stop.set()
        for thread in threads:
            thread.join()
        agent.writes_again()
        tap.note(counts)
        applied = int(server.value("SELECT consecutive_failures FROM cbshm.breaker WHERE name = 'x'"))
        self.assertEqual(applied, counts["ok"], counts)
        self.assertEqual(set(counts), {"ok"}, "each loss is looked up and waited out")


if __name__ == "__main__":
    tap.main()
