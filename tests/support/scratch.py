# SPDX-License-Identifier: ISC
"""A temporary directory that takes everything with it when the test ends, however it ends.

Each process of a fixture is started with its working directory inside the scratch directory. That is
how they are found again, whoever forked or re-parented them: the cleanup kills every process whose
working directory is in there, removes the directory, and the shared memory named after it. If the
test itself is killed, a watchdog, which holds the other end of a pipe, does the same.
"""
import atexit
import glob
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time

_counter = 0


def processes_in(directory):
    """The pids of all processes, but this one, whose working directory is in there."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                cwd = os.readlink(f"/proc/{entry}/cwd")
            except OSError:
                continue
            if cwd == directory or cwd.startswith(directory + "/"):
                found.append(int(entry))
    return found


def kill_all_in(directory, sig=signal.SIGKILL):
    """Sends a signal to every process that works in the directory; returns their pids."""
    pids = processes_in(directory)
    for pid in pids:
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            pass
    return pids


def wait_none_in(directory, timeout=10):
    end = time.monotonic() + timeout
    while processes_in(directory):
        if time.monotonic() > end:
            raise TimeoutError(f"processes in {directory} do not end: {processes_in(directory)}")
        time.sleep(0.01)


def _clean(directory, segment_prefix):
    for _ in range(50):
        if not kill_all_in(directory):
            break
        time.sleep(0.02)
    for path in glob.glob(f"/dev/shm{segment_prefix}*"):
        try:
            os.unlink(path)
        except OSError:
            pass
    shutil.rmtree(directory, ignore_errors=True)


class Scratch:
    """`path` is a new directory (mode 0711), `segment_prefix` what its shared memory names begin with."""

    def __init__(self):
        base = os.environ.get("TMPDIR", "/tmp")
        # A socket's path must fit in 108 bytes, and other users of a test must get in.
        if len(base) > 40 or not _others_may_enter(base):
            base = "/tmp"
        self.path = os.path.realpath(tempfile.mkdtemp(prefix="cbshm-test-", dir=base))
        os.chmod(self.path, 0o711)
        global _counter
        _counter += 1
        self.segment_prefix = f"/cbshm-test-{os.getpid()}-{_counter}"
        self._segments = 0
        self._watch()
        atexit.register(self.cleanup)

    def _watch(self):
        reader, self._pipe = os.pipe()
        self._watchdog = subprocess.Popen(
            [sys.executable, "-S", os.path.abspath(__file__), self.path, self.segment_prefix],
            stdin=reader, stdout=subprocess.DEVNULL, start_new_session=True, cwd="/")
        os.close(reader)

    def segment(self):
        """A new name for a segment."""
        self._segments += 1
        return f"{self.segment_prefix}-{self._segments}"

    def directory(self, name, user=None, mode=0o700):
        """Makes a directory in the scratch directory that belongs to `user`."""
        path = os.path.join(self.path, name)
        os.mkdir(path)
        os.chmod(path, mode)
        if user and os.getuid() == 0:
            entry = pwd.getpwnam(user)
            os.chown(path, entry.pw_uid, entry.pw_gid)
        return path

    def cleanup(self):
        """Kills, removes; may be called twice."""
        if self._pipe is None:
            return
        atexit.unregister(self.cleanup)
        _clean(self.path, self.segment_prefix)
        os.close(self._pipe)
        self._pipe = None
        self._watchdog.wait()


def _others_may_enter(path):
    path = os.path.realpath(path)
    while True:
        if not os.stat(path).st_mode & 0o001:
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def identity(user):
    """The arguments that make subprocess.Popen() run as `user` (root only; None: as we are)."""
    if user is None or os.getuid() != 0:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid,
            "extra_groups": os.getgrouplist(user, entry.pw_gid)}


def reachable(user, path):
    """Whether `user` gets at the path (a build tree under /root is closed to others)."""
    return subprocess.run(["test", "-r", path], cwd="/", check=False, **identity(user)).returncode == 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.read(0, 1)
    _clean(sys.argv[1], sys.argv[2])
