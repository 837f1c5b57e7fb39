# SPDX-License-Identifier: ISC
"""An engine to command: tests/support/probe.c, a process that links libcbshm and keeps its handles."""
import select
import subprocess

from support.agent import program


class Probe:
    """`ask("check x")` sends a line and returns the answer. Started with the clients' environment of an agent."""

    def __init__(self, agent, prefix=(), user=None, environment=None):
        self.process = agent.popen([*prefix, program("tests/support/probe")], user=user, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=1, env=environment)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def send(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def receive(self, timeout=30):
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise TimeoutError("the probe does not answer")
        answer = self.process.stdout.readline()
        if not answer:
            raise EOFError(f"the probe has ended with {self.process.wait()}")
        return answer.rstrip("\n")

    def ask(self, line, timeout=30):
        self.send(line)
        return self.receive(timeout)

    def disabled(self, name):
        return self.ask(f"check {name}").startswith("disabled")

    def fields(self, line):
        """The answer to `state`, `fetch` or `health` as a dictionary; the last field may hold spaces."""
        answer = self.ask(line)
        if answer.startswith("error"):
            raise AssertionError(answer)
        head, _, reason = answer.partition(" reason=")
        found = dict(field.split("=", 1) for field in head.split())
        found["reason"] = reason
        return found

    def close(self):
        """Ends the probe; returns its exit status."""
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        status = self.process.wait(20)
        self.process.stdout.close()
        return status
