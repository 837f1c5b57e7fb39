# SPDX-License-Identifier: ISC
"""The segment over the socket: GetSegment as a client of another language has it, and containers that have only the socket."""
import ctypes
import fcntl
import json
import mmap
import os
import pwd
import re
import socket
import struct
import subprocess
import sys
import threading
import unittest

from support import tap
from support.agent import Agent, program, wait_for
from support.postgres import Postgres
from support.probe import Probe
from support.scratch import Scratch, reachable

READER = os.path.join(tap.source_dir(), "examples", "segment_reader.py")
STRANGER = "nobody"

# A command in name spaces of its own, in which /dev/shm is an empty one and all else, the socket too, is the host's.
_USER = () if os.getuid() == 0 else ("--user", "--map-root-user")
CONTAINER = ("unshare", "--mount", *_USER, "sh", "-c", 'mount -t tmpfs -o mode=1777,size=4m none /dev/shm && exec "$@"', "sh")


def need_containers():
    try:
        done = subprocess.run([*CONTAINER, "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise unittest.SkipTest("unshare(1) is not here") from None
    if done.returncode != 0:
        raise unittest.SkipTest(f"no name spaces here: {done.stderr.strip()}")


class Handed:
    """A connection that asks for the segment; close() closes what has been received, too."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self.descriptors = []

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        for fd in self.descriptors:
            os.close(fd)
        self.socket.close()

    def send(self, method="GetSegment", **parameters):
        self.socket.sendall(json.dumps({"method": "io.cbshm." + method, "parameters": parameters}).encode() + b"\0")

    def receive(self):
        """The next part of the stream, and the descriptors that came with it."""
        text, descriptors, flags, _ = socket.recv_fds(self.socket, 65536, 16)
        assert not flags & socket.MSG_CTRUNC
        self.descriptors += descriptors
        return text, descriptors

    def ask(self, **parameters):
        self.send(**parameters)
        text, descriptors = self.receive()
        return json.loads(text[:-1]), descriptors


def held(agent):
    """How many descriptors of its segment the agent has open."""
    found = 0
    for fd in os.listdir(f"/proc/{agent.pid}/fd"):
        try:
            found += os.readlink(f"/proc/{agent.pid}/fd/{fd}") == "/dev/shm" + agent.segment
        except FileNotFoundError:
            pass
    return found


class Descriptor(unittest.TestCase):
    """The protocol, without libcbshm."""

    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()
        cls.agent = Agent(cls.postgres)

    @classmethod
    def tearDownClass(cls):
        cls.agent.close()
        cls.postgres.close()

    def test_what_comes(self):
        with Handed(self.agent.socket) as client:
            reply, (fd,) = client.ask()
            self.assertEqual(reply, {"parameters": {"name": self.agent.segment, "descriptor": 0}})
            named, received = os.stat("/dev/shm" + self.agent.segment), os.fstat(fd)
            self.assertEqual((received.st_dev, received.st_ino), (named.st_dev, named.st_ino))
            self.assertEqual(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE, os.O_RDONLY)
            wait_for(lambda: held(self.agent) == 1, what="the agent's own descriptor alone")
            for forbidden in (lambda: os.write(fd, b"x"), lambda: os.ftruncate(fd, 0), lambda: os.pwrite(fd, b"x", 0),
                              lambda: mmap.mmap(fd, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE)):
                self.assertRaises(OSError, forbidden)
            # It is a description of its own: what is done to its offset is not done to the agent's.
            os.lseek(fd, 4096, os.SEEK_SET)
            reply, (second,) = client.ask(name=self.agent.segment)
            self.assertEqual(os.lseek(second, 0, os.SEEK_CUR), 0)

    def test_another_language(self):
        """The reader made from cbshm-segment(5) alone says the same through the name and through the descriptor."""
        need_containers()
        self.agent.call("Disable", name="handed", reason="over the socket", timeout_ms=20000)
        said = [subprocess.run([*prefix, sys.executable, READER], env=self.agent.environment(), capture_output=True, text=True,
                               check=False) for prefix in ((), CONTAINER)]
        self.assertIn("over the socket", said[0].stdout)
        self.assertEqual(said[0].stdout, said[1].stdout, said[1].stderr)

    def test_in_order_among_others(self):
        """Calls before and behind it on the connection; the descriptor is there with its own reply."""
        with Handed(self.agent.socket) as client:
            client.send("List")
            client.send("GetIncidents", limit=1)
            client.send()
            client.send("List")
            replies, at = b"", None
            while replies.count(b"\0") < 4:
                text, descriptors = client.receive()
                self.assertTrue(text)
                replies += text
                if descriptors:
                    self.assertIsNone(at)
                    at = replies.count(b"\0")
            self.assertEqual(at, 3)
            self.assertIn(b"descriptor", replies.split(b"\0")[2])

    def test_hostile_askers(self):
        """10^5 calls, nothing received, on many connections: the agent keeps none of it, and others are served."""
        call = b'{"method":"io.cbshm.GetSegment"}\0' * 100
        hostile = []
        for _ in range(50):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(self.agent.socket)
            connection.setblocking(False)
            hostile.append(connection)
        sent = 0
        try:
            for _ in range(20):
                for connection in hostile:
                    try:
                        sent += connection.send(call) // (len(call) // 100)
                    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                        pass
            self.assertGreater(sent, 20000)
            with Handed(self.agent.socket) as client:
                reply, descriptors = client.ask()
                self.assertEqual(len(descriptors), 1, reply)
            self.assertTrue(self.agent.call("Enable", name="other", timeout_ms=20000) is not None)
            wait_for(lambda: held(self.agent) == 1, what="the agent's own descriptor alone")
        finally:
            for connection in hostile:
                connection.close()


def what_it_allows(path):
    """Asks for the segment, and tries to make more of the descriptor than was given."""
    with Handed(path) as client:
        reply, descriptors = client.ask()
        if not descriptors:
            return json.dumps(reply)
        again = f"/proc/self/fd/{descriptors[0]}"
        for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
            try:
                os.close(os.open(again, flags))
                return "it can be written"
            except PermissionError:
                pass
        os.close(os.open(again, os.O_RDONLY))
        return "read only"


def as_user(name, function, *arguments):
    """What the function returns, a text, in a child that is this user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "the child failed"
        try:
            entry = pwd.getpwnam(name)
            os.setgroups(os.getgrouplist(name, entry.pw_gid))
            os.setgid(entry.pw_gid)
            os.setuid(entry.pw_uid)
            ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is the user's own again
            answer = function(*arguments)
        except BaseException as error:  # pylint: disable=broad-except
            answer = repr(error)
        finally:
            os.write(writing, answer.encode())
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


class Users(unittest.TestCase):
    """Who may have it: who may read the file."""

    @classmethod
    def setUpClass(cls):
        if os.getuid() != 0:
            raise unittest.SkipTest("only root can be several users")
        cls.postgres = Postgres().migrate()

    @classmethod
    def tearDownClass(cls):
        cls.postgres.close()

    def ask(self, mode):
        with Agent(self.postgres, config={"segment": {"mode": mode, "group": "nogroup"}, "socket": {"mode": "0666"}}) as agent:
            return as_user(STRANGER, what_it_allows, agent.socket)

    def test_a_member_of_the_group_can_only_read(self):
        self.assertEqual(self.ask("0640"), "read only")

    def test_others_are_refused(self):
        said = self.ask("0600")
        self.assertIn("io.cbshm.PermissionDenied", said)
        self.assertIn("[segment] group", said)


def error_codes():
    """{"NO_SEGMENT": "-4", ...} of the public header."""
    with open(os.path.join(tap.source_dir(), "include", "cbshm.h"), encoding="utf-8") as header:
        return dict(re.findall(r"CBSHM_ERR_([A-Z_]+) *=\s*(-\d+)", header.read()))


ERR = error_codes()


class Container(unittest.TestCase):
    """Engines and cbctl where nothing of the host but the socket leads to the segment."""

    @classmethod
    def setUpClass(cls):
        need_containers()
        cls.postgres = Postgres().migrate()

    @classmethod
    def tearDownClass(cls):
        cls.postgres.close()

    def agent(self, **options):
        agent = Agent(self.postgres, **options)
        self.addCleanup(agent.close)
        return agent

    def probe(self, agent, prefix=CONTAINER, **more):
        probe = Probe(agent, prefix=prefix, environment={**agent.environment(), **more})
        self.addCleanup(probe.close)
        return probe

    def cbctl(self, agent, *words):
        return subprocess.run([*CONTAINER, program("cbctl/cbctl"), *words], env=agent.environment(), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=60, check=False)

    def disable(self, agent, name, reason="r"):
        agent.call("Disable", name=name, reason=reason, timeout_ms=20000)

    def test_attach_check_trip(self):
        agent = self.agent()
        probe = self.probe(agent)
        self.assertEqual(probe.ask("status"), "0")
        self.assertEqual(probe.ask("check engine"), "enabled 0 1")
        for _ in range(3):
            self.assertTrue(probe.ask("drift engine 0.9").startswith("ok"))
        self.assertTrue(probe.disabled("engine"))
        self.assertIn("Drift exceeded threshold", probe.fields("state engine")["reason"])
        self.assertEqual(probe.fields("health")["agent"], "1")
        agent.call("Enable", name="engine", timeout_ms=20000)
        self.assertFalse(probe.disabled("engine"))
        # What was received was mapped and closed, and so was the connection: only that of the writes is left.
        self.assertFalse([link for link in links_of(probe) if "shm" in link])
        self.assertLessEqual(len([link for link in links_of(probe) if link.startswith("socket:")]), 1)

    def test_growth_and_replacement(self):
        """In place, and into another file: capacity and all change, and the engine's handles follow."""
        agent = self.agent(config={"segment": {"capacity": "3000"}})
        probe = self.probe(agent)
        self.disable(agent, "before")
        self.assertTrue(probe.disabled("before"))
        self.postgres.psql("INSERT INTO cbshm.breaker (name) SELECT 'many-' || n FROM generate_series(1, 2000) n")
        self.disable(agent, "many-2000", "grown")
        wait_for(lambda: probe.disabled("many-2000"), what="a breaker beyond the first chunk")
        for capacity in ("4000", "5000"):
            self.assertFalse(probe.disabled(f"new-{capacity}"))  # the handle is there before
            agent.config["segment"]["capacity"] = capacity
            agent.write_config()
            agent.restart()
            # The write is answered, so it can be read, in the new segment.
            self.assertTrue(probe.ask(f"disable new-{capacity} 60000000 r").startswith("ok 1"))
            self.assertTrue(probe.disabled(f"new-{capacity}"))
            self.assertTrue(probe.disabled("before"))
            self.assertEqual(probe.ask("status"), "0")

    def test_checks_alone_follow(self):
        """An engine that does nothing but check finds the new segment, too."""
        agent = self.agent()
        probe = self.probe(agent)
        self.disable(agent, "a")
        self.assertTrue(probe.disabled("a"))
        agent.config["segment"]["capacity"] = "2048"
        agent.write_config()
        agent.restart()
        agent.call("Enable", name="a", timeout_ms=20000)
        wait_for(lambda: not probe.disabled("a"), what="the decision made in the new segment")

    def test_the_agent_dies(self):
        agent = self.agent()
        probe = self.probe(agent)
        self.disable(agent, "a")
        self.assertTrue(probe.disabled("a"))
        agent.kill9()
        self.assertTrue(probe.disabled("a"))
        wait_for(lambda: probe.fields("health")["agent"] == "0", what="the agent's death")
        self.assertTrue(probe.disabled("a"))
        agent.start()
        self.assertTrue(probe.disabled("a"))
        agent.call("Enable", name="a", timeout_ms=20000)
        self.assertFalse(probe.disabled("a"))
        self.assertEqual(probe.fields("health")["agent"], "1")

    def test_the_segment_is_lost_with_the_agent(self):
        """Another segment, and nobody has retired the first: found while the first one's agent is known to be dead."""
        agent = self.agent()
        probe = self.probe(agent)
        self.disable(agent, "a")
        self.assertTrue(probe.disabled("a"))
        agent.kill9()
        os.unlink("/dev/shm" + agent.segment)
        agent.start()
        agent.call("Enable", name="a", timeout_ms=20000)
        wait_for(lambda: probe.fields("health")["agent"] == "1", what="the new segment")
        self.assertFalse(probe.disabled("a"))

    def test_no_agent_at_first(self):
        agent = self.agent()
        self.disable(agent, "a")
        agent.stop()
        probe = self.probe(agent)
        self.assertEqual(probe.ask("status"), ERR["NO_SEGMENT"])
        self.assertEqual(probe.ask("check a"), "enabled 0 2")
        done = self.cbctl(agent, "check", "a")
        self.assertEqual(done.returncode, 3)
        self.assertIn(f"there is no segment {agent.segment} in /dev/shm, and no agent at {agent.socket} that hands one out",
                      done.stderr)
        agent.start()
        wait_for(lambda: probe.disabled("a"), what="the segment, by checks alone")

    def test_a_hanging_agent(self):
        """Opening waits for a second at most; checks do not wait at all."""
        agent = self.agent()
        self.disable(agent, "a")
        agent.sigstop()
        try:
            probe = self.probe(agent)
            self.assertEqual(probe.ask("status"), ERR["TIMEOUT"])
            checks, slowest = map(int, probe.ask("pace a 1500").split())
            self.assertGreater(checks, 0)
            self.assertLess(slowest, 900000, "a check has waited for the agent")
            self.assertEqual(self.cbctl(agent, "check", "a").returncode, 4)
        finally:
            agent.sigcont()
        wait_for(lambda: probe.disabled("a"), what="the segment, when the agent goes on")
        self.assertFalse([link for link in links_of(probe) if link.startswith("socket:")])

    def test_cbctl(self):
        agent = self.agent()
        self.disable(agent, "a", "by hand")
        self.assertEqual(self.cbctl(agent, "check", "a").returncode, 1)
        self.assertEqual(self.cbctl(agent, "check", "b").returncode, 0)
        for words in (["status"], ["status", "a"], ["list"], ["status", "--json"]):
            done = self.cbctl(agent, *words)
            self.assertEqual((done.returncode, done.stderr), (0, ""), words)
        self.assertEqual(self.cbctl(agent, "list").stdout, agent.cbctl("list").out)
        watch = subprocess.Popen([*CONTAINER, program("cbctl/cbctl"), "watch", "--json", "a"], env=agent.environment(),
                                 stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=agent.scratch.path)
        try:
            self.assertIn('"disabled":1', watch.stdout.readline())
            agent.call("Enable", name="a", timeout_ms=20000)
            self.assertTrue(any('"name":"a"' in line for line in watch.stdout))
        finally:
            watch.kill()
            watch.wait()
            watch.stdout.close()

    def test_of_another_name(self):
        """The agent at the socket has another segment than the one that is asked for."""
        agent = self.agent()
        probe = self.probe(agent, CBSHM_SEGMENT=agent.scratch.segment())
        self.assertEqual(probe.ask("status"), ERR["NO_SEGMENT"])
        self.assertEqual(self.probe(agent, CBSHM_SEGMENT='/a"\\b').ask("status"), ERR["NO_SEGMENT"])

    def test_a_name_that_leads_to_somebody_elses(self):
        """What stands under the name decides, whatever the agent would hand out."""
        if os.getuid() != 0:
            self.skipTest("only root can give a file away")
        agent = self.agent()
        make = ("sh", "-c", f'mount --bind /dev/shm /mnt && mount -t tmpfs none /dev/shm && '
                            f'cp "/mnt{agent.segment}" /dev/shm/ && chown nobody "/dev/shm{agent.segment}" && exec "$@"', "sh")
        probe = self.probe(agent, prefix=("unshare", "--mount", *make))
        self.assertEqual(probe.ask("status"), ERR["UNTRUSTED"])
        self.assertEqual(probe.ask("check a"), "enabled 0 2")

    def test_in_a_user_name_space(self):
        """Users who are not mapped there are all the same one: believed only if that is named."""
        if os.getuid() != 0:
            self.skipTest("only root has another user to be mapped")
        inner = ("unshare", "--user", "--map-user=4242", "--map-group=4242")
        if subprocess.run([*CONTAINER, *inner, "true"], capture_output=True, check=False).returncode != 0:
            self.skipTest("unshare(1) cannot map users here")
        if not reachable(STRANGER, program("agent/cbagent")):
            self.skipTest("the build tree is closed to other users")
        agent = self.agent(user=STRANGER, config={"socket": {"mode": "0666"}})
        self.disable(agent, "a")
        probe = self.probe(agent, prefix=(*CONTAINER, *inner), CBSHM_OWNER="0")
        self.assertEqual(probe.ask("status"), ERR["UNTRUSTED"])
        probe = self.probe(agent, prefix=(*CONTAINER, *inner), CBSHM_OWNER="65534")
        self.assertEqual(probe.ask("status"), "0")
        self.assertTrue(probe.disabled("a"))

    def test_denied(self):
        """Who may not read the segment's file is not given it."""
        if os.getuid() != 0:
            self.skipTest("only root can be several users")
        agent = self.agent(config={"segment": {"mode": "0600"}, "socket": {"mode": "0666"}})
        if not reachable(STRANGER, program("tests/support/probe")):
            self.skipTest("the build tree is closed to other users")
        become = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        probe = self.probe(agent, prefix=(*CONTAINER, *become))
        self.assertEqual(probe.ask("status"), ERR["DENIED"])


def links_of(probe):
    """What the probe's descriptors lead to."""
    folder = f"/proc/{probe.process.pid}/fd"
    return [os.readlink(os.path.join(folder, fd)) for fd in os.listdir(folder)]


class Server:
    """Says what it is told to whoever connects: a function that is given the connection, after a call has come."""

    def __init__(self, path):
        self.behave = lambda connection: None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if not connection.recv(65536):
                    continue
                if self.behave is None:
                    return
                try:
                    self.behave(connection)
                except OSError:
                    pass

    def close(self, path):
        self.behave = None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.connect(path)
            last.sendall(b"x")
            self._thread.join()
        self._listener.close()


REPLY = b'{"parameters":{"name":"/cbshm","descriptor":0}}\0'


def error_reply(name):
    return json.dumps({"error": name, "parameters": {"message": "m"}}, separators=(",", ":")).encode() + b"\0"


class Hostile(unittest.TestCase):
    """Servers that send something else than they should, under a user who is believed."""

    @classmethod
    def setUpClass(cls):
        need_containers()
        with Postgres() as postgres, Agent(postgres.migrate()) as agent:
            agent.call("Disable", name="a", reason="r", timeout_ms=20000)
            with open("/dev/shm" + agent.segment, "rb") as file:
                cls.segment = file.read()

    def setUp(self):
        self.scratch = Scratch()
        self.addCleanup(self.scratch.cleanup)
        self.path = os.path.join(self.scratch.path, "socket")
        self.server = Server(self.path)
        self.addCleanup(self.server.close, self.path)
        self.environment = {**os.environ, "CBSHM_SEGMENT": "/cbshm", "CBSHM_SOCKET": self.path, "CBSHM_OWNER": str(os.getuid())}

    def popen(self, command, user=None, env=None, **options):
        """As Agent has it: the probe is started through this."""
        del user, env
        return subprocess.Popen(command, cwd=self.scratch.path, env=self.environment, text=True, **options)

    def probe(self):
        probe = Probe(self, prefix=CONTAINER)
        self.addCleanup(probe.close)
        return probe

    def file(self, content=None, mode=0o600, owner=None, flags=os.O_RDONLY):
        """A descriptor of a new file, which goes with the test."""
        path = os.path.join(self.scratch.path, f"file-{len(os.listdir(self.scratch.path))}")
        with open(path, "wb") as file:
            file.write(self.segment if content is None else content)
        os.chmod(path, mode)
        if owner is not None:
            os.chown(path, owner, -1)
        fd = os.open(path, flags)
        self.addCleanup(os.close, fd)
        return fd

    def unlinked(self):
        fd = self.file()
        os.unlink(os.readlink(f"/proc/self/fd/{fd}"))
        return fd

    def pipe(self):
        ends = os.pipe()
        for end in ends:
            self.addCleanup(os.close, end)
        return ends[0]

    def answers(self):
        """name: (what the client must say, what is sent, descriptors that go with it)"""
        good = self.file()
        denied, limit, other, old = map(error_reply, ("io.cbshm.PermissionDenied", "io.cbshm.LimitExceeded", "io.cbshm.NotFound",
                                                      "org.varlink.service.MethodNotFound"))
        cases = {
            "none": ("PROTOCOL", REPLY, []),
            "two": ("PROTOCOL", REPLY, [good, good]),
            "two of which one may be right": ("PROTOCOL", REPLY, [good, self.pipe()]),
            "more than there is room for": ("PROTOCOL", REPLY, [good] * 100),
            "one that can write": ("UNTRUSTED", REPLY, [self.file(flags=os.O_RDWR)]),
            "one that can only write": ("UNTRUSTED", REPLY, [self.file(flags=os.O_WRONLY)]),
            "one that can do nothing": ("UNTRUSTED", REPLY, [self.file(flags=os.O_PATH)]),
            "a pipe": ("UNTRUSTED", REPLY, [self.pipe()]),
            "a directory": ("UNTRUSTED", REPLY, [self.directory()]),
            "a file without a name": ("UNTRUSTED", REPLY, [self.unlinked()]),
            "a file that others can write": ("UNTRUSTED", REPLY, [self.file(mode=0o620)]),
            "an empty file": ("LAYOUT", REPLY, [self.file(b"")]),
            "a short file": ("LAYOUT", REPLY, [self.file(self.segment[:4096])]),
            "a file that has shrunk": ("LAYOUT", REPLY, [self.file(self.segment[:-1024])]),
            "random bytes": ("LAYOUT", REPLY, [self.file(os.urandom(65536))]),
            "no JSON": ("PROTOCOL", b"garbage\0", [good]),
            "too much": ("PROTOCOL", REPLY + b"x", [good]),
            "no end": ("PROTOCOL", b"x" * 200000, [good]),
            "nothing": ("NO_SEGMENT", b"", []),
            "half an answer": ("NO_SEGMENT", REPLY[:10], [good]),
            "denied": ("DENIED", denied, []),
            "denied, and given": ("DENIED", denied, [good]),
            "a limit": ("REFUSED", limit, []),
            "another segment": ("NO_SEGMENT", other, []),
            "an older agent": ("NO_SEGMENT", old, []),
        }
        if os.getuid() == 0:
            cases["somebody else's"] = ("UNTRUSTED", REPLY, [self.file(owner=65534)])
        return cases

    def directory(self):
        fd = os.open(self.scratch.path, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        return fd

    @staticmethod
    def sender(text, descriptors):
        def send(connection):
            if not text:
                return
            socket.send_fds(connection, [text[:1]], descriptors)
            connection.sendall(text[1:])
        return send

    def test_answers(self):
        """Each is refused by its name, and nothing of it stays open."""
        probe = self.probe()
        before = None
        for name, (error, text, descriptors) in self.answers().items():
            with self.subTest(name):
                self.server.behave = self.sender(text, descriptors)
                self.assertEqual(probe.ask("status"), ERR[error])
                self.assertEqual(probe.ask("check a"), "enabled 0 2")
                links = sorted(link for link in links_of(probe) if not link.startswith("socket:"))
                before = before or links
                self.assertEqual(links, before)

    def test_silence(self):
        release = threading.Event()
        self.server.behave = lambda connection: release.wait(60)
        probe = self.probe()
        try:
            self.assertEqual(probe.ask("status"), ERR["TIMEOUT"])
        finally:
            release.set()

    def test_good_answers(self):
        """However they are cut."""
        good = self.file()

        def byte_by_byte(connection):
            socket.send_fds(connection, [REPLY[:1]], [good])
            for at in range(1, len(REPLY)):
                connection.sendall(REPLY[at:at + 1])

        def at_the_end(connection):
            connection.sendall(REPLY[:-1])
            socket.send_fds(connection, [REPLY[-1:]], [good])

        for behave in (self.sender(REPLY, [good]), byte_by_byte, at_the_end):
            self.server.behave = behave
            probe = self.probe()
            self.assertEqual(probe.ask("status"), "0")
            self.assertTrue(probe.disabled("a"))
            self.assertFalse([link for link in links_of(probe) if "file-" in link or link.startswith("socket:")])

    def test_a_huge_file(self):
        """A valid header that claims a terabyte: mapped or not, nothing beyond what is there is touched."""
        header = bytearray(self.segment)
        struct.pack_into("=Q", header, 72, 1 << 40)
        fd = self.file(bytes(header), flags=os.O_RDONLY)
        self.server.behave = self.sender(REPLY, [fd])
        probe = self.probe()
        self.assertIn(probe.ask("status"), ("0", ERR["SYSTEM"]))
        self.assertIn(probe.ask("check a").split()[0], ("disabled", "enabled"))

    def test_checks_take_nothing_bad(self):
        """What the checks have asked for is judged like what cbshm_open() has, and closed like it."""
        os.rename(self.path, self.path + ".away")
        probe = self.probe()
        self.assertEqual(probe.ask("check a"), "enabled 0 2")
        before = sorted(links_of(probe))
        asked = []
        writable, good = self.file(flags=os.O_RDWR), self.file()

        def behave(connection):
            asked.append(1)
            (self.sender(REPLY, [writable, good]) if len(asked) == 1 else self.sender(REPLY, [writable]))(connection)

        self.server.behave = behave
        os.rename(self.path + ".away", self.path)

        def checked():
            self.assertEqual(probe.ask("check a"), "enabled 0 2")
            return len(asked) > 1
        wait_for(checked, what="two questions")
        self.server.behave = lambda connection: None
        wait_for(lambda: probe.ask("check a") == "enabled 0 2" and sorted(links_of(probe)) == before, what="nothing left open")
        self.server.behave = self.sender(REPLY, [good])
        wait_for(lambda: probe.disabled("a"), what="the good one")


if __name__ == "__main__":
    tap.main()
