# SPDX-License-Identifier: ISC
"""Engines that do things at random and write down what they were told, and readers that only look."""
import random
import threading
import time
from typing import Any, NamedTuple

from support.probe import Probe

GOOD, BAD = 0.1, 0.9
TIMEOUT_MS = 3000
# Told to have failed, nothing was applied: busy, no agent, no database, too late.
_FAILED = {-8, -9, -10, -11}
_UNKNOWN, _NOT_FOUND = -12, -7


class Record(NamedTuple):
    """
    One call. outcome: "ok", "fail" (nothing was applied), "unknown" (it may have been, or may yet be).
    kind, argument, answer: disable, reason, (changed, incident); enable, by, changed; report, score, incident or None;
    fetch and segment, None, a Seen. `process` is one process of a client: a new one after each kill.
    """
    host: int
    process: str
    invoked: float
    returned: float
    kind: str
    breaker: str
    argument: Any
    outcome: str
    answer: Any


class Seen(NamedTuple):
    reason: Any  # None: closed
    failures: int
    version: int


class UnexpectedError(Exception):
    """An answer that no fault explains."""


def _outcome(kind, answer):
    if not answer.startswith("error"):
        return "ok"
    code = int(answer.split()[1])
    if kind == "segment" and code == _NOT_FOUND:
        return "fail"  # not mirrored yet; verdict.py knows when it should be
    if code == _UNKNOWN:
        return "unknown"
    if code in _FAILED:
        return "fail"
    raise UnexpectedError(answer)


def _seen(answer):
    head, _, reason = answer.partition(" reason=")
    fields = dict(field.split("=", 1) for field in head.split())
    return Seen(reason if fields["disabled"] == "1" else None, int(fields["failures"]), int(fields["version"]))


def _word(answer):
    word = answer.split()[1]
    return None if word == "-" else word


# What a call looks like to the probe, and what its answer means.
_CALLS = {
    "disable": (lambda name, reason: f"disable {name} 3600000000 {reason}",
                lambda answer: (answer.split()[1] == "1", answer.split()[2])),
    "enable": (lambda name, by: f"enable {name} {by}", lambda answer: answer.split()[1] == "1"),
    "report": (lambda name, score: f"drift {name} {score}", _word),
    "fetch": (lambda name, _: f"fetch {name}", _seen),
    "segment": (lambda name, _: f"state {name}", _seen),
}
_KINDS = ["disable", "enable", "enable", "report", "report", "report", "report", "fetch", "fetch"]


class Client:
    """A thread and its engine, at the agent `host`. `names()` are the breakers of the moment."""

    def __init__(self, number, host, agent, names, seed):
        self.number, self.host, self.agent, self.names = number, host, agent, names
        self.random = random.Random(seed)
        self.records = []
        self.trouble = None
        self.probe = None
        self.running = True
        self._processes = self._calls = 0
        self._start()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _start(self):
        self._processes += 1
        self.probe = Probe(self.agent)
        self.probe.ask(f"timeout {TIMEOUT_MS}")

    def kill(self):
        self.probe.process.kill()

    def call(self, kind, name, argument=None):
        """Makes a call and its record; the outcome."""
        line, meaning = _CALLS[kind]
        process = f"{self.number}.{self._processes}"
        invoked = time.monotonic()
        try:
            answer = self.probe.ask(line(name, argument))
        except (EOFError, BrokenPipeError):
            answer = None
        returned = time.monotonic()
        outcome = "unknown" if answer is None else _outcome(kind, answer)
        self.records.append(Record(self.host, process, invoked, returned, kind, name, argument, outcome,
                                   meaning(answer) if outcome == "ok" else None))
        if answer is None:
            self._start()
        return outcome

    def _argument(self, kind):
        self._calls += 1
        if kind == "report":
            return self.random.choice((BAD, BAD, BAD, GOOD))
        return f"{kind}-{self.number}-{self._calls}" if kind != "fetch" else None

    def _run(self):
        try:
            while self.running:
                kind, name = self.random.choice(_KINDS), self.random.choice(self.names())
                self.call("segment", name)
                if self.call(kind, name, self._argument(kind)) == "ok":
                    self.call("segment", name)
                    time.sleep(self.random.uniform(0, 0.03))
                else:
                    time.sleep(0.02)
        except Exception as error:  # pylint: disable=broad-except
            self.trouble = error

    def stop(self):
        self.running = False
        self.thread.join()
        self.probe.close()


class Reader:
    """Looks once a millisecond, and knows how long the longest look took."""

    def __init__(self, host, agent, names):
        self.host, self.agent, self.names = host, agent, names
        self.checks = self.slowest = 0
        self.running = True
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        with Probe(self.agent) as probe:
            while self.running:
                checks, slowest = probe.ask(f"pace {self.names()[0]} 500").split()
                self.checks += int(checks)
                self.slowest = max(self.slowest, int(slowest))

    def stop(self):
        self.running = False
        self.thread.join()
