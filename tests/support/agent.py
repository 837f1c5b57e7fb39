# SPDX-License-Identifier: ISC
"""A real cbagent with a segment and a socket of its own, and the programs that talk to it."""
import json
import mmap
import os
import signal
import struct
import subprocess
import time
import unittest

from support import tap
from support.postgres import AGENT_USER, Postgres
from support.scratch import Scratch, identity
from support.varlink import Varlink, VarlinkError

_LIVE = 2  # CBSHM_SEGMENT_LIVE of include/cbshm/segment.h
_STATE_OFFSET = 128  # state, boot_epoch, allocated, breakers, clock_offset, owner_pid


def program(path):
    """A program of the build tree (through libtool's wrapper); SkipTest if it isn't built."""
    full = os.path.join(tap.build_dir(), path)
    if not os.access(full, os.X_OK):
        raise tap.SkipTest(f"{path} is not built in {tap.build_dir()}")
    return full


def wait_for(condition, timeout=20, what="the condition"):
    """Polls until condition() is true, and returns its value; AssertionError after the timeout."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true within {timeout} s")
        time.sleep(0.01)


class Agent:
    """
    A cbagent, started and ready. postgres: a migrated support.postgres.Postgres (or conninfo=).
    config: more settings, {"segment": {"capacity": 1024}}; a value of None drops the key.
    user: run as that user (root only). ready=False: only start it, e.g. with the database down.
    prefix: a command that executes its arguments. Both it and `program` may be others at the next start.
    """

    def __init__(self, postgres=None, scratch=None, config=None, user=None, conninfo=None, ready=True, environment=None,
                 prefix=()):
        self._own_scratch = scratch is None and postgres is None
        self.scratch = scratch or (postgres.scratch if postgres else Scratch())
        self.user = user
        self.segment = self.scratch.segment()
        self.directory = self.scratch.directory("agent" + self.segment.replace("/", "-"), user, 0o711)
        self.socket = os.path.join(self.directory, "io.cbshm")
        self.config_path = os.path.join(self.directory, "cbagent.conf")
        self.log_path = os.path.join(self.directory, "log")
        self.process = None
        self.program = "agent/cbagent"
        self.prefix = prefix
        self._environment = {**os.environ, **(environment or {})}
        conninfo = conninfo or (postgres.conninfo(user=AGENT_USER) if postgres else None)
        self.config = {"postgres": {"conninfo": conninfo}, "segment": {"name": self.segment, "capacity": "1024"},
                       "socket": {"path": self.socket}, "agent": {}}
        for section, keys in (config or {}).items():
            self.config.setdefault(section, {}).update(keys)
        self.write_config()
        try:
            self.start(ready=ready)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def write_config(self):
        """Writes self.config to its file; for tests that change it and send SIGHUP."""
        with open(self.config_path, "w", encoding="utf-8") as file:
            for section, keys in self.config.items():
                file.write(f"[{section}]\n")
                file.writelines(f"{key} = {value}\n" for key, value in keys.items() if value is not None)
        os.chmod(self.config_path, 0o644)

    # ---- the process ----

    def start(self, ready=True, timeout=20):
        command = [*self.prefix, program(self.program), "--config", self.config_path]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, env=self._environment, start_new_session=True,
                                            **identity(self.user))
        if ready:
            self.wait_ready(timeout)

    @property
    def pid(self):
        return self.process.pid

    def header(self):
        """(state, boot_epoch, breakers, owner_pid) of the segment's header, or None."""
        try:
            with open("/dev/shm" + self.segment, "rb") as file:
                with mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ) as memory:
                    state, epoch, _, breakers, _, owner = struct.unpack_from("=QQQQqQ", memory, _STATE_OFFSET)
                    return state, epoch, breakers, owner
        except (OSError, ValueError):
            return None

    def is_ready(self):
        """The segment is live in this agent's hands, and the socket answers."""
        header = self.header()
        if not header or header[0] != _LIVE or header[3] != self.pid:
            return False
        try:
            with Varlink(self.socket) as client:
                return bool(client.call("org.varlink.service.GetInfo"))
        except (OSError, EOFError):
            return False

    def wait_ready(self, timeout=20):
        def ready_or_dead():
            if self.process.poll() is not None:
                raise RuntimeError(f"cbagent ended with {self.process.returncode}:\n{self.log()}")
            return self.is_ready()
        try:
            wait_for(ready_or_dead, timeout, "the agent's readiness")
        except AssertionError as error:
            raise AssertionError(f"{error}; header {self.header()}; its log:\n{self.log()}") from None

    def stop(self, timeout=20):
        """SIGTERM; returns the exit status."""
        self.process.terminate()
        return self.process.wait(timeout)

    def restart(self, ready=True):
        self.stop()
        self.start(ready)

    def kill9(self):
        self.process.kill()
        self.process.wait()

    def sigstop(self):
        self.process.send_signal(signal.SIGSTOP)

    def sigcont(self):
        self.process.send_signal(signal.SIGCONT)

    def sighup(self):
        self.process.send_signal(signal.SIGHUP)

    def alive(self):
        return self.process.poll() is None

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def close(self):
        """Kills the agent, and removes its segment."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        try:
            os.unlink("/dev/shm" + self.segment)
        except OSError:
            pass
        if self._own_scratch:
            self.scratch.cleanup()

    # ---- its clients ----

    def environment(self):
        """The environment in which clients find this agent."""
        owner = self.user if self.user and os.getuid() == 0 else str(os.getuid())
        return {**self._environment, "CBSHM_SEGMENT": self.segment, "CBSHM_SOCKET": self.socket, "CBSHM_OWNER": owner}

    def connect(self):
        return Varlink(self.socket)

    def call(self, method, **parameters):
        """One Varlink call on a connection of its own."""
        with Varlink(self.socket) as client:
            return client.call(method, **parameters)

    def is_open(self, name):
        """By the agent's mirror (of at most 100 breakers); None if it has no such breaker."""
        return {each["name"]: each["is_open"] for each in self.call("List")["breakers"]}.get(name)

    def outcome(self, method, **parameters):
        """("ok", "") or the name of the error that a call ends with, and its message."""
        try:
            self.call(method, **parameters)
            return "ok", ""
        except VarlinkError as error:
            return error.name, error.parameters.get("message", "")

    def writes_again(self, within=10):
        """Seconds until a write succeeds."""
        started = time.monotonic()
        wait_for(lambda: self.outcome("Enable", name="again", timeout_ms=1000)[0] == "ok", within, "a write")
        return time.monotonic() - started

    def cbctl(self, *args, user=None, check=None):
        """Runs cbctl against this agent; see Result. check: the exit status it must have."""
        return cbctl(*args, environment=self.environment(), user=user, check=check)

    def popen(self, command, user=None, env=None, **options):
        """Starts a client of this agent in the scratch directory, with pipes as text."""
        return subprocess.Popen(command, cwd=self.scratch.path, env=env or self.environment(), text=True,
                                start_new_session=True, **options, **identity(user))


class Result:
    """What a program left: status, out, err; json() parses its output."""

    def __init__(self, done):
        self.status = done.returncode
        self.out = done.stdout
        self.err = done.stderr

    def json(self):
        return json.loads(self.out)

    def __repr__(self):
        return f"exit {self.status}\nstdout: {self.out}\nstderr: {self.err}"


def cbctl(*args, environment=None, user=None, check=None, timeout=60):
    """Runs the built cbctl; returns a Result. check: the exit status it must have."""
    done = subprocess.run([program("cbctl/cbctl"), *map(str, args)], env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=timeout, check=False,
                          **identity(user))
    result = Result(done)
    if check is not None and result.status != check:
        raise AssertionError(f"cbctl {' '.join(map(str, args))}: {check} expected, {result}")
    return result


class ServerTest(unittest.TestCase):
    """A test that starts servers and agents as it needs them; they are gone at its end."""

    def postgres(self, **options):
        postgres = Postgres(**options)
        self.addCleanup(postgres.close)
        return postgres

    def agent(self, postgres, **options):
        agent = Agent(postgres, **options)
        self.addCleanup(agent.close)
        return agent
