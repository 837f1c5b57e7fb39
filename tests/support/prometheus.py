# SPDX-License-Identifier: ISC
"""A reader of /metrics, and a real Prometheus on a port of 127.0.0.1."""
import http.client
import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request

from support import tap
from support.alertmanager import free_port

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"

_SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)')
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\.)*)"')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


def get(port, path, method="GET", headers=None, timeout=10):
    """(status, headers, body as text) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


class Samples(dict):
    """{(name, (("label", "value"), ...)): number} of a text; a line that is none is a ValueError."""

    def __init__(self, text):
        super().__init__()
        self.text = text
        for line in text.splitlines():
            if line.startswith("#"):
                continue
            match = _SAMPLE.fullmatch(line)
            if not match:
                raise ValueError(f"no sample: {line}")
            labels = tuple(sorted((name, re.sub(r"\\.", lambda m: _ESCAPES[m[0]], value))
                                  for name, value in _LABEL.findall(match[2] or "")))
            if (match[1], labels) in self:
                raise ValueError(f"twice: {line}")
            self[match[1], labels] = float(match[3])

    def value(self, name, **labels):
        """Of one sample; 0 if it is not there."""
        return self.get((name, tuple(sorted(labels.items()))), 0)

    def families(self):
        """The names of the families, as OpenMetrics has them."""
        return set(re.findall(r"^# TYPE (\S+)", self.text, re.M))


def scrape(port):
    """All samples, as OpenMetrics."""
    status, _, body = get(port, "/metrics", headers={"Accept": OPENMETRICS})
    if status != 200 or not body.endswith("\n# EOF\n"):
        raise AssertionError(f"status {status}: {body[-200:]}")
    return Samples(body)


def promtool(*args, stdin=None, cwd=None):
    """(exit status, output); SkipTest if it is not installed."""
    program = shutil.which("promtool")
    if program is None:
        raise tap.SkipTest("promtool is not installed (Debian: prometheus)")
    done = subprocess.run([program, *args], input=stdin, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, timeout=60, check=False)
    return done.returncode, done.stdout


class Prometheus:
    """A real one in the scratch directory that scrapes 127.0.0.1:port every second; SkipTest if it is not installed."""

    def __init__(self, scratch, port, rules=None, name="prometheus"):
        program = shutil.which("prometheus")
        if program is None:
            raise tap.SkipTest("prometheus is not installed")
        directory = scratch.directory(name)
        self.log_path = os.path.join(directory, "log")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        with open(os.path.join(directory, "config.yml"), "w", encoding="utf-8") as file:
            json.dump({  # JSON is YAML
                "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
                "rule_files": [rules] if rules else [],
                "scrape_configs": [{"job_name": "cbshm", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}],
            }, file)
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [program, "--config.file=config.yml", "--storage.tsdb.path=data",
                 f"--web.listen-address=127.0.0.1:{self.port}"], cwd=directory, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True)
        self._wait()

    def _wait(self, timeout=30):
        end = time.monotonic() + timeout
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/-/ready", timeout=5).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    with open(self.log_path, encoding="utf-8", errors="replace") as log:
                        raise RuntimeError(f"Prometheus did not start:\n{log.read()}") from None
                time.sleep(0.05)

    def close(self):
        self.process.kill()
        self.process.wait()

    def api(self, path, **parameters):
        """The data of an answer of its API."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression):
        """[(labels, number)] at this moment."""
        return [(each["metric"], float(each["value"][1])) for each in self.api("query", query=expression)["result"]]

    def firing(self):
        """{(alert, severity)} of what fires."""
        return {(alert["labels"]["alertname"], alert["labels"].get("severity"))
                for alert in self.api("alerts")["alerts"] if alert["state"] == "firing"}
