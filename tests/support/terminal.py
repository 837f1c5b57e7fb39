# SPDX-License-Identifier: ISC
"""A program on a terminal of its own: a pty that is its controlling terminal, with a size, keys and ^C."""
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time

_PAGE = re.compile(r"\x1b\[H(.*?)\x1b\[J", re.S)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Starts command; `with Terminal(...) as terminal`. Everything it has printed is in .output."""

    def __init__(self, command, environment, rows=24, columns=80):
        self.parent, child = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(child)
        self.output = ""
        self._bytes = b""
        self.process = subprocess.Popen(command, env={"TERM": "xterm", **environment}, stdin=child, stdout=child,
                                        stderr=child, preexec_fn=lambda: os.login_tty(child))
        os.close(child)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def resize(self, rows, columns):
        """The size that the program sees; a program that runs gets SIGWINCH."""
        fcntl.ioctl(self.parent, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys):
        os.write(self.parent, keys.encode())

    def _read(self, timeout):
        """False at the end."""
        if not select.select([self.parent], [], [], timeout)[0]:
            return True
        try:
            data = os.read(self.parent, 65536)
        except OSError:  # EIO: nobody has the other side any more
            return False
        self._bytes += data
        self.output = self._bytes.decode(errors="replace")
        return bool(data)

    def wait_for(self, condition, timeout=20, what="it"):
        """Reads until condition(self) is true, and returns its value."""
        end = time.monotonic() + timeout
        while True:
            value = condition(self)
            if value:
                return value
            if time.monotonic() > end or not self._read(0.1):
                raise AssertionError(f"{what} did not appear; the last page: {self.page()!r}; all: {self.output[-2000:]!r}")

    def page(self):
        """The lines of the last complete page, without control sequences."""
        pages = _PAGE.findall(self.output)
        return _CONTROL.sub("", pages[-1]).split("\r\n") if pages else []

    def shows(self, text):
        return any(text in line for line in self.page())

    def attributes(self):
        return termios.tcgetattr(self.parent)

    def finish(self, timeout=20):
        """Reads to the end; returns the exit status."""
        end = time.monotonic() + timeout
        while self._read(0.1) and time.monotonic() < end:
            if self.process.poll() is not None and not select.select([self.parent], [], [], 0)[0]:
                break
        return self.process.wait(max(end - time.monotonic(), 0.1))

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.parent)


def on_terminal(command, environment, rows=24, columns=80, keys=""):
    """Runs a command on a terminal; returns (exit status, what it printed)."""
    with Terminal(command, environment, rows, columns) as terminal:
        if keys:
            terminal.type(keys)
        status = terminal.finish()
        return status, terminal.output
