# SPDX-License-Identifier: ISC
"""cbctl watch: on a real terminal, and into a pipe; through a real agent and a real PostgreSQL."""
import json
import os
import select
import signal
import subprocess
import termios
import time
import unicodedata
import unittest

from support import tap
from support.agent import Agent, cbctl, program, wait_for
from support.postgres import Postgres
from support.scratch import Scratch
from support.terminal import Terminal


def columns(text):
    """The columns of a terminal that a text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


class Lines:
    """cbctl watch, its output a pipe; lines() is what it has said so far."""

    def __init__(self, agent, *words):
        self.process = agent.popen([program("cbctl/cbctl"), "watch", *words], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        self.text = ""

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.process.kill()
        self.process.communicate()

    def lines(self):
        while select.select([self.process.stdout], [], [], 0)[0]:
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                break
            self.text += data.decode()
        return self.text.splitlines()

    def wait_for(self, text):
        """The lines from the first that contains the text on."""
        def found():
            lines = self.lines()
            at = [i for i, line in enumerate(lines) if text in line]
            return at and lines[at[0]:]
        try:
            return wait_for(found, 20, repr(text))
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.text}") from None

    def events(self):
        return [(event["event"], event.get("name")) for event in map(json.loads, self.lines())]


class Watch(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres()
        cls.addClassCleanup(cls.postgres.close)
        cls.postgres.migrate()

    def setUp(self):
        self.postgres.psql("DELETE FROM cbshm.breaker")
        self.agent = Agent(self.postgres)
        self.addCleanup(self.agent.close)
        self.cbctl = self.agent.cbctl

    # ---- into a pipe ----

    def test_a_name_that_does_not_exist_yet(self):
        self.cbctl("enable", "spelling", check=0)
        with Lines(self.agent, "speling", "spelling") as watch:
            watch.wait_for("start")
            self.cbctl("disable", "speling", "--reason", "it was meant", check=0)
            watch.wait_for("it was meant")
            watch.process.kill()
            self.assertEqual(watch.process.communicate()[1],
                             "cbctl: warning: there is no breaker speling; did you mean spelling?\n")

    def test_a_line_for_each_change(self):
        self.cbctl("disable", "old", "--reason", "from before", check=0)
        self.cbctl("enable", "quiet", check=0)
        with Lines(self.agent) as watch:
            self.assertIn("1 of 2 breakers are disabled", watch.wait_for("start")[0])
            watch.wait_for("disabled  old  ends in 23 h 59 min, from before (")
            self.cbctl("drift", "new", "0.5", check=0)
            watch.wait_for("created   new")
            self.cbctl("drift", "new", "0.5", check=0)
            watch.wait_for("failures  new  2 of 3 in a row")
            self.cbctl("drift", "new", "0.5", check=0)
            watch.wait_for("disabled  new  ends in 23 h 59 min, Drift exceeded threshold: 0.5000 > 0.2 (circuit_breaker)")
            self.cbctl("policy", "quiet", "failure_threshold=7", check=0)
            watch.wait_for("policy    quiet  drift > 0.2, 7 failures")
            self.cbctl("enable", "old", check=0)
            watch.wait_for("enabled   old  after ")
            self.postgres.psql("DELETE FROM cbshm.breaker WHERE name = 'quiet'")
            watch.wait_for("deleted   quiet")
            self.cbctl("disable", "old", "--reason", "again", "--until", "never", check=0)
            watch.wait_for("disabled  old  for good, again (")
            self.assertEqual(len(watch.lines()), 9)

    def test_json(self):
        self.cbctl("disable", "a", "--reason", "r", check=0)
        with Lines(self.agent, "--json") as watch:
            watch.wait_for('"a"')
            self.cbctl("disable", "b", "--reason", 'say "no"', "--for", "700ms", check=0)
            watch.wait_for('"enabled"')
            self.assertEqual(watch.events(), [("start", None), ("disabled", "a"), ("disabled", "b"), ("enabled", "b")])
            start, _, opened, closed = map(json.loads, watch.lines())
            self.assertEqual((start["disabled"], start["total"]), (1, 1))
            self.assertEqual(opened["state"]["reason"], 'say "no"')
            # The reader's clock decides, whether or not the agent has committed the recovery already.
            self.assertFalse(closed["state"]["is_open"])
            self.assertGreaterEqual(closed["time"], opened["state"]["disabled_until"][:23])

    def test_some_names(self):
        with Lines(self.agent, "--json", "mine", "later") as watch:
            watch.wait_for("start")
            self.cbctl("enable", "other", check=0)
            self.cbctl("disable", "later", "--reason", "r", check=0)
            self.cbctl("disable", "later", "--reason", "another", check=0)
            self.cbctl("enable", "mine", check=0)
            watch.wait_for('"mine"')
            events = watch.events()
            self.assertEqual(events[0], ("start", None))
            # Two disables within one look are one change.
            self.assertEqual(sorted(set(events[1:])), [("created", "mine"), ("disabled", "later")])
        self.assertIn("NAME must be", cbctl("watch", "a\nb", environment=self.agent.environment(), check=2).err)

    def test_the_agent_dies_and_comes_back(self):
        self.cbctl("enable", "b", check=0)
        with Lines(self.agent) as text, Lines(self.agent, "--json") as watch:
            watch.wait_for("start")
            text.wait_for("start")
            self.agent.kill9()
            self.assertIn("systemctl start cbagent", text.wait_for("cbagent is not running")[0])
            event = json.loads(watch.wait_for('"health"')[0])
            self.assertEqual((event["condition"], event["health"]["agent_alive"]), ("agent_down", False))
            self.agent.start()
            text.wait_for("agent and database are there")
            event = json.loads(watch.wait_for('"good"')[0])
            self.assertTrue(event["health"]["database_live"])
            self.cbctl("disable", "b", "--reason", "r", check=0)
            watch.wait_for('"disabled","name":"b"')

    def test_a_reader_that_goes_away_ends_it(self):
        with Lines(self.agent) as watch:
            watch.wait_for("start")
            watch.process.stdout.close()
            watch.process.wait(20)
            watch.process.stdout = None

    # ---- on a terminal ----

    def terminal(self, *words, rows=24, columns=80, **environment):
        inherited = {**self.agent.environment(), **environment}
        if "NO_COLOR" not in environment:
            inherited.pop("NO_COLOR", None)
        return Terminal([program("cbctl/cbctl"), "watch", *words], {**inherited, "TERM": environment.get("TERM", "xterm")},
                        rows, columns)

    def test_table(self):
        self.cbctl("disable", "costsim_v2", "--reason", "wrong totals", "--by", "ann", "--for", "2h", check=0)
        self.cbctl("enable", "aaa", check=0)
        with self.terminal() as terminal:
            terminal.wait_for(lambda t: t.shows("costsim_v2"))
            self.assertTrue(terminal.output.startswith("\x1b[?1049h"))
            page = terminal.page()
            self.assertIn("1 of 2 breakers disabled", page[0])
            self.assertIn("Agent running", page[1])
            self.assertRegex(page[4], r"^disabled  costsim_v2  1 h 59 min +wrong totals \(ann\)$")
            self.assertRegex(page[5], r"^enabled +aaa")
            self.cbctl("drift", "aaa", "0.9", check=0)
            terminal.wait_for(lambda t: t.shows("1 of 3"), what="the failure")
            self.cbctl("enable", "costsim_v2", check=0)
            terminal.wait_for(lambda t: t.shows("0 of 2 breakers disabled"), what="the enabling")
            # What has failures stands above what has none.
            self.assertIn("aaa", terminal.page()[4])
            self.agent.kill9()
            terminal.wait_for(lambda t: t.shows("cbagent is not running"), what="the agent's end")
            self.agent.start()
            terminal.wait_for(lambda t: t.shows("Agent running"), what="the agent's return")

    def test_the_terminal_is_given_back(self):
        for end, how in (("q", "a key"), ("\x03", "^C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")):
            with self.subTest(how=how), self.terminal() as terminal:
                terminal.wait_for(lambda t: t.shows("breaker"))
                self.assertFalse(terminal.attributes()[3] & termios.ECHO)
                if isinstance(end, str):
                    terminal.type(end)
                else:
                    terminal.process.send_signal(end)
                self.assertEqual(terminal.finish(), 0)
                self.assertTrue(terminal.output.endswith("\x1b[?25h\x1b[?1049l"), terminal.output[-80:])
                self.assertEqual(terminal.attributes(), terminal.before)

    def test_stopped_and_continued(self):
        with self.terminal() as terminal:
            terminal.wait_for(lambda t: t.shows("breaker"))
            terminal.process.send_signal(signal.SIGTSTP)
            terminal.wait_for(lambda t: t.output.endswith("\x1b[?1049l"), what="the end of the page")
            wait_for(lambda: "T" == open(f"/proc/{terminal.process.pid}/stat", encoding="ascii").read().split()[2], 20)
            self.assertEqual(terminal.attributes(), terminal.before)
            seen = len(terminal.output)
            terminal.process.send_signal(signal.SIGCONT)
            terminal.wait_for(lambda t: "\x1b[?1049h" in t.output[seen:] and t.output.endswith("\x1b[J"))

    def test_resize(self):
        for i in range(30):
            self.cbctl("enable", f"breaker {i:02}", check=0)
        with self.terminal(rows=40) as terminal:
            terminal.wait_for(lambda t: t.shows("breaker 29"))
            terminal.resize(10, 40)
            terminal.wait_for(lambda t: t.shows("and 25 more"), what="the smaller page")
            self.assertEqual(len(terminal.page()), 10)
            self.assertLess(max(map(columns, terminal.page())), 40)
            for rows, width in ((3, 20), (1, 1), (5, 10)):
                terminal.resize(rows, width)
                terminal.wait_for(lambda t, rows=rows, width=width: len(t.page()) <= rows and
                                  max(map(columns, t.page())) < max(width, 2), what=f"a page of {rows}x{width}")
            terminal.resize(50, 200)
            terminal.wait_for(lambda t: t.shows("breaker 29"), what="the larger page")

    def test_wide_names_stand_in_columns(self):
        for name in ("東京/検索", "cafe\u0301", "plain", "한국어 이름", "\U0001f980 crab"):
            self.cbctl("disable", name, "--reason", "@reason", check=0)
        with self.terminal(columns=100) as terminal:
            terminal.wait_for(lambda t: t.shows("5 of 5"))
            at = {columns(line.split("@reason")[0]) for line in terminal.page() if "@reason" in line}
            self.assertEqual(len(at), 1, terminal.page())
            self.assertEqual(sum("@reason" in line for line in terminal.page()), 5)
        lines = self.cbctl("list", check=0).out.splitlines()
        self.assertEqual(len({columns(line.split("ends in")[0]) for line in lines}), 1, lines)

    def test_long_texts_are_cut_and_escaped(self):
        nasty = "a\u202eb\u200bc\nd" + "界" * 60
        self.postgres.psql("INSERT INTO cbshm.breaker (name, disabled, disabled_by, disabled_reason) "
                           f"VALUES ('{'n' * 128}', true, 'x', '{nasty}')")
        with self.terminal() as terminal:
            terminal.wait_for(lambda t: t.shows("1 of 1"))
            line = terminal.page()[4]
            self.assertLess(columns(line), 80)
            self.assertIn("nnn...  ", line)
            self.assertTrue(line.rstrip().endswith("..."), line)
            self.assertIn("a\\u202eb", line)
            self.assertNotIn("\u202e", terminal.output)

    def test_colours(self):
        self.cbctl("disable", "c", "--reason", "r", check=0)
        with self.terminal() as terminal:
            terminal.wait_for(lambda t: t.shows("1 of 1"))
            self.assertIn("\x1b[1;31mdisabled\x1b[0m", terminal.output)
        with self.terminal(NO_COLOR="1") as terminal:
            terminal.wait_for(lambda t: t.shows("1 of 1"))
            self.assertNotRegex(terminal.output, "\x1b\\[[0-9;]*m")
        with self.terminal(TERM="dumb") as terminal:
            terminal.wait_for(lambda t: "disabled  c" in t.output)
            self.assertNotIn("\x1b", terminal.output)


class Nothing(unittest.TestCase):
    def test_no_segment(self):
        scratch = Scratch()
        self.addCleanup(scratch.cleanup)
        environment = {**os.environ, "CBSHM_SEGMENT": scratch.segment()}
        begun = time.monotonic()
        self.assertIn("there is no segment", cbctl("watch", environment=environment, check=3).err)
        self.assertLess(time.monotonic() - begun, 10)


if __name__ == "__main__":
    tap.main()
