# SPDX-License-Identifier: ISC
"""A real PostgreSQL in a scratch directory, on a Unix socket only, never as root.

The server is the one that is installed, or, to try another version, the one whose initdb and postgres are in the
directory that CBSHM_TEST_POSTGRES names. The clients' programs are always those that are installed.
"""
import csv
import glob
import io
import json
import os
import pwd
import re
import select
import shutil
import signal
import subprocess
import time

from support import tap
from support.scratch import Scratch, identity, kill_all_in, wait_none_in

DATABASE = "cbshm"
SUPERUSER = "postgres"
AGENT_USER = "cbagent"  # a login role with the agent's rights, made by migrate()
_NULL = "\x01NULL\x01"


class PostgresError(Exception):
    """What the server answered. `sqlstate`, `message`, `detail` and `hint` are taken from psql's verbose form."""

    def __init__(self, text):
        super().__init__(text)
        found = re.search(r"(?:ERROR|FATAL|PANIC):  (?:([0-9A-Z]{5}): )?(.*)", text)
        self.sqlstate = found.group(1) if found else None
        self.message = found.group(2) if found else text.strip()
        self.detail = _field(text, "DETAIL")
        self.hint = _field(text, "HINT")


def _field(text, name):
    found = re.search(rf"^{name}:  (.*)$", text, re.MULTILINE)
    return found.group(1) if found else None


def _has(directory):
    return directory if all(os.access(os.path.join(directory, name), os.X_OK)
                            for name in ("initdb", "postgres", "psql")) else None


def bindir():
    """The directory of initdb and postgres; SkipTest if there is none."""
    candidates = []
    if shutil.which("pg_config"):
        found = subprocess.run(["pg_config", "--bindir"], stdout=subprocess.PIPE, text=True, check=False)
        candidates.append(found.stdout.strip())
    candidates += sorted(glob.glob("/usr/lib/postgresql/*/bin"),
                         key=lambda path: float(path.split("/")[4]), reverse=True)
    candidates += os.environ.get("PATH", "").split(":")
    for directory in candidates:
        if directory and _has(directory):
            return directory
    raise tap.SkipTest("no PostgreSQL server is installed (initdb, postgres, psql)")


def server_bindir():
    """The directory of the server's programs, which may be of another version than the clients'."""
    return os.environ.get("CBSHM_TEST_POSTGRES") or bindir()


def _server_user():
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
            return name
        except KeyError:
            pass
    raise tap.SkipTest("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


def _environment():
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


class Postgres:
    """
    A cluster of its own with an empty database `cbshm`, started. As a context manager it is gone at the
    end; the scratch directory may be shared with other fixtures (scratch=).

    fsync: off for speed, unless a test is about durability. options: more server settings, {"name": "value"}.
    extra_environment: of the server.
    standby_of: instead of an empty one, a standby that streams from that server.
    """

    def __init__(self, scratch=None, fsync=False, options=None, name="pg", standby_of=None,
                 extra_environment=None):
        self._extra_environment = extra_environment or {}
        self.bin = bindir()
        self.server_bin = server_bindir()
        self.user = _server_user()
        self._own_scratch = scratch is None
        self.scratch = scratch or Scratch()
        self.host = self.scratch.directory(name, self.user, 0o711)
        self.data = os.path.join(self.host, "data")
        self.log_path = os.path.join(self.host, "log")
        self.options = {"fsync": "on" if fsync else "off", "listen_addresses": "", "shared_buffers": "16MB",
                        "dynamic_shared_memory_type": "mmap",
                        "unix_socket_directories": self.host, "unix_socket_permissions": "0777",
                        "log_line_prefix": "%m [%p] %a ", **(options or {})}
        self.process = None
        self._sessions = []
        try:
            if standby_of:
                self.follow(standby_of)
            else:
                self._run(os.path.join(self.server_bin, "initdb"), "--pgdata", self.data, "--username", SUPERUSER,
                          "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync")
                self.start()
                self.psql(f"CREATE DATABASE {DATABASE} ENCODING 'UTF8'", db="postgres")
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def _run(self, *command):
        done = subprocess.run(command, cwd=self.host, env=_environment(), stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=False, **identity(self.user))
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} failed ({done.returncode}):\n{done.stdout}")

    @property
    def version(self):
        """The major version of the server."""
        with open(os.path.join(self.data, "PG_VERSION"), encoding="utf-8") as file:
            return int(file.read())

    # ---- the server ----

    def start(self, timeout=30):
        """Starts the server and waits until it takes connections."""
        settings = [word for key, value in self.options.items() for word in ("-c", f"{key}={value}")]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [os.path.join(self.server_bin, "postgres"), "-D", self.data, *settings], cwd=self.data,
                env={**_environment(), **self._extra_environment},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **identity(self.user))
        end = time.monotonic() + timeout
        while subprocess.run([os.path.join(self.bin, "pg_isready"), "-q", "-h", self.host], env=_environment(),
                             check=False).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"PostgreSQL did not start:\n{self.log()}")
            time.sleep(0.02)

    def follow(self, primary):
        """Throws away what this server has, copies the primary's files, and starts as its standby."""
        shutil.rmtree(self.data, ignore_errors=True)
        session = primary.session(db="postgres")
        # Until the session ends, the primary keeps what it has written since.
        session.execute(f"SELECT pg_create_physical_replication_slot('copy_{time.monotonic_ns()}', true, true)")
        self._copy(primary, session)
        with open(os.path.join(self.data, "postgresql.auto.conf"), "a", encoding="utf-8") as file:
            file.write(f"primary_conninfo = 'host={primary.host} user={SUPERUSER} "
                       f"application_name={os.path.basename(self.host)}'\n")
            # Once promoted it waits for nobody, until wait_for_standby() of its own.
            file.write("synchronous_standby_names = ''\n")
        self.start()
        session.close()

    def _copy(self, primary, session):
        """What pg_basebackup does, which takes no server that is newer than itself."""
        start, stop = (("pg_backup_start('copy', true)", "pg_backup_stop(false)") if primary.version >= 15 else
                       ("pg_start_backup('copy', true, false)", "pg_stop_backup(false, false)"))
        session.execute(f"SELECT {start}", timeout=60)
        self._run("mkdir", "--mode=700", self.data)
        self._run("sh", "-c", "tar -C \"$1\" -c --exclude='./pg_wal/*' --exclude='./pg_replslot/*' "
                  "--exclude='./postmaster.*' --exclude='./pg_dynshmem/*' . | tar -C \"$2\" -x", "sh", primary.data, self.data)
        self._run("touch", os.path.join(self.data, "backup_label"), os.path.join(self.data, "standby.signal"))
        with open(os.path.join(self.data, "backup_label"), "w", encoding="utf-8") as file:
            file.write(session.execute(f"SELECT labelfile FROM {stop}", timeout=60) + "\n")

    def wait_for_standby(self, timeout=30):
        """From now on a commit waits for a standby; returns when one has everything."""
        self.psql("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.psql("SELECT pg_reload_conf()")
        self._poll("SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state = 'sync' "
                   "AND flush_lsn >= pg_current_wal_flush_lsn()", timeout)

    def promote(self, timeout=30):
        """Makes a primary of a standby; returns when it takes writes."""
        self.psql("SELECT pg_promote(false)", db="postgres")
        self._poll("SELECT NOT pg_is_in_recovery()", timeout)

    def _poll(self, question, timeout):
        end = time.monotonic() + timeout
        while self.psql(question, db="postgres") != "t":
            if time.monotonic() > end:
                raise TimeoutError(f"not within {timeout} s: {question}\n{self.log()}")
            time.sleep(0.02)

    def stop(self, mode="fast"):
        """Stops the server: "smart", "fast" or "immediate"."""
        if self.process is None:
            return
        sig = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode]
        self.process.send_signal(sig)
        self.process.wait(60)
        wait_none_in(self.data)
        self.process = None

    def restart(self, mode="fast"):
        self.stop(mode)
        self.start()

    def kill9(self):
        """SIGKILL to the whole server, as a crash of the machine would look to its clients."""
        kill_all_in(self.data, signal.SIGKILL)
        self.process.wait(60)
        wait_none_in(self.data)
        self.process = None
        self._remove_interlock()

    def _remove_interlock(self):
        """The little piece of System V shared memory that a killed postmaster leaves behind."""
        try:
            with open(os.path.join(self.data, "postmaster.pid"), encoding="utf-8") as file:
                _, identifier = file.read().splitlines()[6].split()
        except (OSError, IndexError, ValueError):
            return
        subprocess.run(["ipcrm", "--shmem-id", identifier], check=False, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)

    def sigstop(self):
        """Freezes the postmaster and all its children: connections stay, nothing answers."""
        self.process.send_signal(signal.SIGSTOP)
        kill_all_in(self.data, signal.SIGSTOP)

    def sigcont(self):
        kill_all_in(self.data, signal.SIGCONT)

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def _quit(self):
        """Asks the server to end at once, so that it takes its System V shared memory with it."""
        if self.process is None:
            return
        self.sigcont()
        self.process.send_signal(signal.SIGQUIT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            pass

    def close(self):
        """Throws the server away."""
        for session in self._sessions:
            session.close()
        self._quit()
        kill_all_in(self.host)
        if self.process:
            self.process.wait()
            self.process = None
        if self._own_scratch:
            self.scratch.cleanup()

    # ---- the database ----

    def conninfo(self, user=SUPERUSER, db=DATABASE):
        return f"host={self.host} dbname={db} user={user}"

    def environment(self, user=SUPERUSER, db=DATABASE):
        """The environment in which libpq's programs find this server."""
        return {**_environment(), "PGHOST": self.host, "PGUSER": user, "PGDATABASE": db}

    def _psql(self, *args):
        return [os.path.join(self.bin, "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose",
                "-v", "SHOW_CONTEXT=never", *args]

    def _query(self, sql, user, db, *args):
        done = subprocess.run(self._psql(*args, "-f", "-"), env=self.environment(user, db), input=sql, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", check=False)
        if done.returncode != 0:
            raise PostgresError(done.stderr)
        return done.stdout

    def psql(self, sql, user=SUPERUSER, db=DATABASE):
        """Runs SQL (each statement its own transaction); returns what it prints, unaligned, as text."""
        return self._query(sql, user, db, "-At").rstrip("\n")

    def rows(self, sql, user=SUPERUSER, db=DATABASE):
        """Runs one query; returns a list of tuples of strings, None for null."""
        text = self._query(sql, user, db, "--csv", "-t", "-P", f"null={_NULL}")
        return [tuple(None if value == _NULL else value for value in row) for row in csv.reader(io.StringIO(text))]

    def row(self, sql, user=SUPERUSER, db=DATABASE):
        """The only row of a query."""
        rows = self.rows(sql, user, db)
        if len(rows) != 1:
            raise AssertionError(f"{len(rows)} rows instead of one: {sql}")
        return rows[0]

    def value(self, sql, user=SUPERUSER, db=DATABASE):
        """The only column of the only row of a query."""
        return self.row(sql, user, db)[0]

    def json(self, sql, user=SUPERUSER, db=DATABASE):
        """The only value of a query that returns json; None for null."""
        value = self.value(sql, user, db)
        return None if value is None else json.loads(value)

    def session(self, user=SUPERUSER, db=DATABASE):
        """A connection that stays open, see Session."""
        session = Session(self._psql("-At", "-v", "ON_ERROR_STOP=0"), self.environment(user, db))
        self._sessions.append(session)
        return session

    def migrate(self):
        """
        Makes the schema: with cbctl if it is built, else straight from the files. Creates the login role
        AGENT_USER, a member of cbshm_agent.
        """
        cbctl = os.path.join(tap.build_dir(), "cbctl", "cbctl")
        if os.access(cbctl, os.X_OK):
            self._migrate_with(cbctl)
        else:
            self._migrate_from_files()
        self.psql(f"CREATE ROLE {AGENT_USER} LOGIN IN ROLE cbshm_agent")
        return self

    def _migrate_with(self, cbctl):
        done = subprocess.run([cbctl, "migrate", "--sql", os.path.join(tap.source_dir(), "sql"), "--conninfo",
                               self.conninfo()], text=True, env=_environment(), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"cbctl migrate failed ({done.returncode}):\n{done.stdout}")

    def _migrate_from_files(self):
        for path in sorted(glob.glob(os.path.join(tap.source_dir(), "sql", "[0-9]*.sql"))):
            name = os.path.basename(path)
            with open(path, encoding="utf-8") as file:
                self._query(file.read(), SUPERUSER, DATABASE, "-1")
            self.psql("INSERT INTO cbshm.schema_version (version, applied_at, file) "
                      f"VALUES ({int(name.split('_')[0])}, now(), '{name}') ON CONFLICT DO NOTHING")


class Session:
    """
    One open connection. execute() waits for the statement, send() does not: wait() then does.

        a.execute("BEGIN"); a.execute("SELECT ... FOR UPDATE")
        b.send("SELECT cbshm.enable('x', 'me', NULL)")     # blocks in the server
        a.execute("COMMIT"); b.wait()
    """

    def __init__(self, command, environment):
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, cwd="/", start_new_session=True)
        self._buffer = b""
        self._sent = 0
        self._done = 0

    def send(self, sql):
        self._sent += 1
        text = f"{sql.rstrip().rstrip(';')};\n\\echo -- done {self._sent} --\n"
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def wait(self, timeout=20):
        """The output of the oldest statement sent; raises PostgresError, TimeoutError."""
        self._done += 1
        marker = f"-- done {self._done} --\n".encode()
        end = time.monotonic() + timeout
        while marker not in self._buffer:
            if not select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]:
                self._done -= 1
                raise TimeoutError("the statement does not end")
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                raise PostgresError(self._buffer.decode() or "the session has ended")
            self._buffer += data
        output, self._buffer = self._buffer.split(marker, 1)
        text = output.decode().rstrip("\n")
        if re.search(r"^(psql:.*)?(ERROR|FATAL|PANIC):  ", text, re.MULTILINE):
            raise PostgresError(text)
        return text

    def execute(self, sql, timeout=20):
        self.send(sql)
        return self.wait(timeout)

    def blocked(self, seconds=0.3):
        """Whether the oldest statement sent is still running after that time."""
        try:
            self.wait(seconds)
        except TimeoutError:
            return True
        raise AssertionError("the statement has ended")

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            try:
                stream.close()
            except OSError:
                pass
