# SPDX-License-Identifier: ISC
"""Completion of cbctl in bash: what it offers for a line, and what a Tab does to one on a real terminal."""
import os
import re
import subprocess
import unittest

from support import tap
from support.agent import Agent, cbctl, program
from support.postgres import Postgres
from support.terminal import Terminal

SCRIPT = os.path.join(tap.source_dir(), "cbctl", "completion", "cbctl")

# Has bash itself take the line apart, as it does before it calls the function: words end at $COMP_WORDBREAKS, too.
OFFER = r"""
source "$1"
line=$2
COMP_LINE=$line COMP_POINT=${#line} COMP_WORDS=() COMP_CWORD=0
token='^([[:blank:]]*)(([^][:blank:]:=@\"'\''\\]|\\.)+|[:=@]+|"[^"]*"?|'\''[^'\'']*'\''?)'
rest=$line
while [[ $rest =~ $token ]]; do
	COMP_WORDS+=("${BASH_REMATCH[2]}")
	rest=${rest:${#BASH_REMATCH[0]}}
done
[[ -z ${rest//[[:blank:]]/} ]] || { echo "not understood: $rest" >&2; exit 2; }
[[ -z $rest ]] || COMP_WORDS+=('')
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_cbctl
((${#COMPREPLY[@]} == 0)) || printf '%s\n' "${COMPREPLY[@]}"
"""

NAMES = ["plain", "with space", "with space too", "tenant-42/search", "it's", 'say "hi"', "a:b", "a:c", "me@home", "k=v",
         "$HOME`x`;", "back\\slash", "(paren)", "東京/検索", "-dash", "star*"]


class Completion(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres()
        cls.addClassCleanup(cls.postgres.close)
        cls.postgres.migrate()
        cls.agent = Agent(cls.postgres)
        cls.addClassCleanup(cls.agent.close)
        for name in NAMES:
            cls.agent.cbctl("enable", "--", name, check=0)
        cls.environment = {**cls.agent.environment(), "LC_ALL": "C.UTF-8", "NO_COLOR": "1",
                           "PATH": os.path.dirname(program("cbctl/cbctl")) + ":" + os.environ["PATH"]}

    def offer(self, line):
        done = subprocess.run(["bash", "-c", OFFER, "bash", SCRIPT, line], env=self.environment, stdout=subprocess.PIPE,
                              text=True, check=True)
        return done.stdout.splitlines()

    def test_commands_and_options(self):
        self.assertEqual(self.offer("cbctl dis"), ["disable"])
        self.assertIn("--all", self.offer("cbctl incidents --a"))
        self.assertEqual(self.offer("cbctl policy plain drift"), ["drift_threshold="])
        self.assertEqual(self.offer("cbctl policy --fleet auto"), ["auto_recover="])
        self.assertEqual(self.offer("cbctl disable plain --until n"), ["never"])
        self.assertEqual(self.offer("cbctl disable plain --reason "), [])
        self.assertEqual(self.offer("cbctl --segment " + self.agent.segment[:-1]), [self.agent.segment])

    def test_all_that_there_is(self):
        """Each command, and each option of each command, as the helps have them."""
        commands = re.findall(r"^[A-Z ][a-z ]{5}  ([a-z][a-z-]+)  ", cbctl("--help").out, re.MULTILINE)
        self.assertGreater(len(commands), 10)
        self.assertEqual(sorted(self.offer("cbctl ")), sorted(commands))
        for command in commands:
            with self.subTest(command=command):
                usage = cbctl(command, "--help").out.split("\n\n")[0]
                self.assertEqual(sorted(self.offer(f"cbctl {command} --")), sorted(
                    {"--socket", "--segment", "--json", "--help", *re.findall(r"--[a-z-]+", usage)}))

    def test_names(self):
        everywhere = {name for name in NAMES if not name.startswith("-")}
        for command in ("check", "status", "list", "watch", "disable", "enable", "reset", "drift", "schema-error",
                        "incidents", "policy"):
            with self.subTest(command=command):
                self.assertEqual(len(self.offer(f"cbctl {command} ")), len(everywhere))
        self.assertEqual(self.offer("cbctl check plain "), [])
        self.assertEqual(self.offer("cbctl --json check pl"), ["plain"])
        self.assertEqual(self.offer("cbctl status plain ten"), ["tenant-42/search"])
        self.assertEqual(self.offer("cbctl check -- -d"), ["-dash"])
        self.assertEqual(self.offer("cbctl --segment /no-such-segment check pl"), [])

    def test_quoting(self):
        for line, expected in (("wi", ["with\\ space", "with\\ space\\ too"]), ("with\\ s", ["with\\ space", "with\\ space\\ too"]),
                               ("'with s", ["with space", "with space too"]), ('"with s', ["with space", "with space too"]),
                               ("it", ["it\\'s"]), ('"it', ["it's"]), ("'it", ["it'\\''s"]), ("sa", ['say\\ \\"hi\\"']),
                               ('"sa', ['say \\"hi\\"']), ("a:", ["b", "c"]), ("a", ["a:b", "a:c"]), ("'a:", ["a:b", "a:c"]),
                               ("me@", ["@home"]), ("k=", ["v"]), ("\\$H", ["\\$HOME\\`x\\`\\;"]), ("back", ["back\\\\slash"]),
                               ("\\(", ["\\(paren\\)"]), ("東", ["東京/検索"]), ("st", ["star\\*"])):
            with self.subTest(line=line):
                self.assertEqual(self.offer("cbctl check " + line), expected)

    def test_the_shell_gets_the_name_back(self):
        """Each offer, put where the cursor was, is one word for the shell, and that word is the name."""
        for begin in ("", "'", '"'):
            offers = self.offer("cbctl check " + begin)
            words = subprocess.run(["bash", "-c", "\n".join(f"printf '%s\\n' {begin}{offer}{begin}" for offer in offers)],
                                   stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
            self.assertEqual(words, sorted(name for name in NAMES if not name.startswith("-")))

    def test_tab_on_a_terminal(self):
        terminal = self.enterContext(Terminal(
            ["bash", "--norc", "--noprofile", "-i"],
            {**self.environment, "INPUTRC": "/dev/null", "PS1": "ready> ", "HISTFILE": ""}, columns=500))
        terminal.wait_for(lambda t: "ready> " in t.output)
        terminal.type(f"source {SCRIPT}\r")
        for typed, name in (("wi\t\\ t\t", "with space too"), ("'with space t\t", "with space too"), ("ten\t", "tenant-42/search"),
                            ("it\t", "it's"), ("'say \t", 'say "hi"'), ('"it\t', "it's"), ("a:b\t", "a:b"), ("a\tc\t", "a:c"), ("me@\t", "me@home"),
                            ("\\$\t", "$HOME`x`;"), ("東\t", "東京/検索")):
            with self.subTest(typed=typed):
                seen = len(terminal.output)
                terminal.type(f"cbctl check {typed}\r")
                terminal.wait_for(lambda t, seen=seen: " is enabled" in t.output[seen:].replace("ready> ", ""))
                self.assertIn(f"\n{name} is enabled\r\n", terminal.output[seen:].replace("\x1b[?2004l\r", ""))


if __name__ == "__main__":
    tap.main()
