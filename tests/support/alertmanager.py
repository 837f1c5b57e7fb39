# SPDX-License-Identifier: ISC
"""A real Alertmanager on a port of 127.0.0.1, and a fake one for answers that a real one cannot be asked to give."""
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request

from support import tap

_CONFIG = """
global:
  resolve_timeout: {resolve_timeout}
route:
  receiver: nobody
receivers:
  - name: nobody
"""


def free_port():
    """A port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Alertmanager:
    """A real one, without a cluster, in the scratch directory; SkipTest if it is not installed. It keeps its port."""

    def __init__(self, scratch, resolve_timeout="5m", name="alertmanager", start=True):
        self.program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
        if self.program is None:
            raise tap.SkipTest("prometheus-alertmanager is not installed")
        self.directory = scratch.directory(name)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None
        with open(os.path.join(self.directory, "config.yml"), "w", encoding="utf-8") as file:
            file.write(_CONFIG.format(resolve_timeout=resolve_timeout))
        if start:
            self.start()

    def start(self, timeout=20):
        with open(os.path.join(self.directory, "log"), "ab") as log:
            self.process = subprocess.Popen(
                [self.program, "--config.file=config.yml", "--storage.path=data", "--cluster.listen-address=",
                 f"--web.listen-address=127.0.0.1:{self.port}"], cwd=self.directory, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + timeout
        while True:
            try:
                self.alerts()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"Alertmanager did not start; see {self.directory}/log") from None
                time.sleep(0.02)

    def kill9(self):
        """At once; it forgets every alert."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def sigstop(self):
        self.process.send_signal(signal.SIGSTOP)

    def sigcont(self):
        self.process.send_signal(signal.SIGCONT)

    def alerts(self):
        """What it shows as firing."""
        with urllib.request.urlopen(f"{self.url}/api/v2/alerts", timeout=5) as answer:
            return json.load(answer)

    def firing(self):
        """{(breaker, incident id)} of what it shows."""
        return {(alert["labels"]["circuit_breaker"], alert["labels"]["incident_id"]) for alert in self.alerts()}


class Fake:
    """
    Takes POSTs, keeps their alerts in `posts` (a list for each), and answers `answer(alerts) -> status`; None =
    never, 0 = closes the connection. `requests` has the headers of each. tls: an ssl.SSLContext.
    """

    def __init__(self, answer=lambda alerts: 200, port=None, tls=None):
        self.posts = []
        self.requests = []
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: the name is the library's
                alerts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                fake.requests.append((self.path, dict(self.headers)))
                if alerts:
                    fake.posts.append(alerts)
                status = answer(alerts)
                if status is None:
                    fake.closing.wait()
                if not status:
                    return
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *unused):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *unused):
                pass

        self.closing = threading.Event()
        self.server = Server(("127.0.0.1", port or 0), Handler)
        self.server.block_on_close = False
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def kinds(self):
        """[(breaker, "open" or "closed")] of everything that was posted, in its order."""
        return [(alert["labels"]["circuit_breaker"], "closed" if "endsAt" in alert else "open")
                for post in self.posts for alert in post]
