# SPDX-License-Identifier: ISC
"""The segment over the socket: GetSegment as a client of another language has it, and containers that have only the socket."""
import ctypes
import fcntl
import json
import mmap
import os
import pwd
import socket
import subprocess
import sys
import unittest

from support import tap
from support.agent import Agent, wait_for
from support.postgres import Postgres

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
            self.agent.call("List", limit=1)  # what it did after sending the descriptor is done
            self.assertEqual(held(self.agent), 1, "more than its own")
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


if __name__ == "__main__":
    tap.main()
