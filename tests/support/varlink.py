# SPDX-License-Identifier: ISC
"""A Varlink client: NUL-terminated JSON on a Unix stream socket."""
import json
import socket
import time


class VarlinkError(Exception):
    """An error reply. `error` is its full name, `parameters` what came with it."""

    def __init__(self, error, parameters):
        super().__init__(f"{error} {json.dumps(parameters)}")
        self.error = error
        self.name = error.rsplit(".", 1)[-1]
        self.parameters = parameters


class Varlink:
    """One connection. Replies come in the order of the calls."""

    def __init__(self, path, timeout=20):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self._connect(path, time.monotonic() + timeout)
        self._buffer = b""

    def _connect(self, path, end):
        # With a timeout, Python's sockets are non-blocking: a full backlog is an error instead of a wait.
        while True:
            try:
                return self.socket.connect(path)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.005)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def close(self):
        self.socket.close()

    def send_raw(self, data):
        self.socket.sendall(data)

    def send(self, method, parameters=None, **flags):
        """Sends a call and does not wait. Flags: oneway=True, more=True."""
        if "." not in method:
            method = "io.cbshm." + method
        message = {"method": method, "parameters": parameters or {}, **flags}
        self.send_raw(json.dumps(message).encode() + b"\0")

    def receive_raw(self):
        """One message without its NUL; None at the end of the connection."""
        while b"\0" not in self._buffer:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        return message

    def receive(self):
        """The parameters of the next reply; raises VarlinkError, or EOFError when the peer has closed."""
        message = self.receive_raw()
        if message is None:
            raise EOFError("the peer closed the connection")
        reply = json.loads(message)
        if "error" in reply:
            raise VarlinkError(reply["error"], reply.get("parameters", {}))
        return reply.get("parameters", {})

    def call(self, method, **parameters):
        """call("ReportDrift", name="x", drift_score=0.5, sample_count=1)"""
        self.send(method, parameters)
        return self.receive()
