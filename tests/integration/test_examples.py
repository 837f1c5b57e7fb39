# SPDX-License-Identifier: ISC
"""
The examples of the manual pages are run as they stand: programs in C, commands of a shell, configurations; and the
runbook's restore from a backup. The SQL of cbshm-sql(7) is run by tests/sql/test_manual.py, the Python of io.cbshm(7) by
test_socket.py.
"""
import glob
import os
import re
import subprocess
import unittest

from support import tap
from support.agent import Agent, program, wait_for
from support.postgres import AGENT_USER, Postgres, bindir

MAN = os.path.join(tap.source_dir(), "man")
ESCAPES = {"\\(dq": '"', "\\(aq": "'", "\\e": "\\", "\\&": "", "\\-": "-"}


def page(name):
    with open(os.path.join(MAN, name), encoding="utf-8") as file:
        return file.read()


def plain(text):
    """What the reader sees of literal text."""
    return re.sub(r"\\(?:\((?:dq|aq)|[e&-])", lambda escape: ESCAPES[escape[0]], text)


def section(name, title):
    return re.search(rf"^\.Sh {title}\n(.*?)(?=^\.Sh |\Z)", page(name), re.M | re.S)[1]


def literal(text):
    return [plain(block) for block in re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", text, re.M | re.S)]


def commands(text):
    """The commands for a shell: `.Dl $ ...`, and literal text, that which stands behind "$ " or all."""
    found = []
    for line, block in re.findall(r"^\.Dl \$ ([^\n]*)|^\.Bd -literal.*?\n(.*?)^\.Ed", text, re.M | re.S):
        if line.strip():
            found.append(plain(line))
        elif block.startswith("$ "):
            found += [each[2:] for each in plain(block).splitlines() if each.startswith("$ ")]
        elif block:
            found.append(plain(block))
    return found


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres()
        cls.addClassCleanup(cls.postgres.close)
        cls.postgres.migrate()
        cls.agent = Agent(cls.postgres)
        cls.addClassCleanup(cls.agent.close)
        cls.directory = cls.postgres.scratch.directory("examples")
        # What the examples run that is not ours to run here.
        for name in ("new_path", "old_path", "systemctl", "journalctl"):
            path = os.path.join(cls.directory, name)
            with open(path, "w", encoding="utf-8") as file:
                file.write("#!/bin/sh\n")
            os.chmod(path, 0o755)

    def shell(self, command, status=(0,)):
        environment = {**self.agent.environment(), **self.postgres.environment(), "LC_ALL": "C.UTF-8",
                       "CBSHM_SQL_DIR": os.path.join(tap.source_dir(), "sql"), "PATH": os.pathsep.join(
            [self.directory, os.path.dirname(program("cbctl/cbctl")), bindir(), os.environ["PATH"]])}
        endless = "cbctl watch --json" in command
        command = command.replace("host=db dbname=cbshm user=postgres", self.postgres.conninfo())
        done = subprocess.run(["timeout", "2" if endless else "60", "bash", "-c", command], env=environment,
                              cwd=self.directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, check=False)
        self.assertIn(done.returncode, (124,) if endless else status, f"{command}\n{done.stderr}")
        self.assertEqual("" if "warning" in done.stderr else done.stderr, "", command)
        return done.stdout

    def need(self, *tools):
        for tool in tools:
            if subprocess.run(["which", tool], stdout=subprocess.DEVNULL, check=False).returncode != 0:
                self.skipTest(f"{tool} is not installed")


class Examples(Case):
    def run_all(self, name, title, least):
        found = commands(section(name, title))
        self.assertGreaterEqual(len(found), least)
        for command in found:
            with self.subTest(command=command):
                self.shell(command)

    def test_cbctl(self):
        self.need("jq")
        self.run_all("cbctl.1", "EXAMPLES", 7)

    def test_cbshm(self):
        self.run_all("cbshm.7", "EXAMPLES", 3)

    def test_psql_instead_of_migrate(self):
        self.postgres.psql("CREATE DATABASE by_hand ENCODING 'UTF8' TEMPLATE template0", db="postgres")
        script, = [each for each in literal(section("cbshm-sql.7", "DESCRIPTION")) if each.startswith("for file")]
        self.shell("exec 2>/dev/null; export PGDATABASE=by_hand; " + script.replace(
            "/usr/local/share/cbshm/sql", os.path.join(tap.source_dir(), "sql")))
        self.assertIn("schema is up to date", self.shell("PGDATABASE=by_hand cbctl migrate"))

    def test_what_the_helps_show(self):
        self.need("jq")
        helps = [self.shell("cbctl --help")]
        names = re.findall(r"^[A-Z ][a-z ]{5}  ([a-z][a-z-]+)  ", helps[0], re.M)
        shown = 0
        for name in names:
            text = self.shell(f"cbctl {name} --help")
            for example in re.findall(r"^Example:\n((?:  .*\n)+)", text, re.M):
                with self.subTest(example=example):
                    self.shell(re.sub(r"host=\S+ dbname=cbshm user=postgres", self.postgres.conninfo(), example))
                    shown += 1
        self.assertGreater(shown, 3)

    def test_programs(self):
        """Section 3: each page has a program, which compiles without a warning and runs."""
        with open(os.path.join(tap.build_dir(), "Makefile"), encoding="utf-8") as file:
            values = dict(re.findall(r"^(CC|CFLAGS|LDFLAGS) = (.*)$", file.read(), re.M))
        self.agent.cbctl("enable", "costsim_v2", check=0)
        for path in sorted(glob.glob(os.path.join(MAN, "cbshm_*.3"))):
            name = os.path.basename(path)
            with self.subTest(page=name):
                example, = literal(section(name, "EXAMPLES"))
                source = os.path.join(self.directory, "example.c")
                with open(source, "w", encoding="utf-8") as file:
                    file.write(example)
                flags = [values["CC"], values["CFLAGS"], "-std=c11 -Wall -Wextra -Werror", "-I",
                         os.path.join(tap.source_dir(), "include")]
                built = subprocess.run(
                    " ".join([*flags, "-c -o", self.directory + "/example.o", source, "&& ./libtool --silent --tag=CC --mode=link",
                              values["CC"], values["CFLAGS"], values["LDFLAGS"], "-o", self.directory + "/example",
                              self.directory + "/example.o libcbshm/libcbshm.la"]), shell=True, cwd=tap.build_dir(),
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
                self.assertEqual(built.returncode, 0, built.stdout)
                self.assertNotEqual(self.shell("./example") + "x", "")

    def test_engines(self):
        """The engines in examples/ compile where they are copied to: they need nothing but what is installed."""
        for path in glob.glob(os.path.join(tap.source_dir(), "examples", "*.c")):
            with self.subTest(path=path):
                built = subprocess.run(
                    ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I",
                     os.path.join(tap.source_dir(), "include"), path], cwd=self.directory,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
                self.assertEqual(built.returncode, 0, built.stdout)

    def test_configurations(self):
        """The groups may not exist here."""
        with open(os.path.join(tap.source_dir(), "systemd", "cbagent.conf.example"), encoding="utf-8") as file:
            examples = [file.read(), *literal(section("cbagent.conf.5", "EXAMPLES"))]
        self.assertEqual(len(examples), 2)
        for example in examples:
            path = os.path.join(self.directory, "example.conf")
            with open(path, "w", encoding="utf-8") as file:
                file.write(re.sub(r"^(\w*group = ).*", r"\g<1>0", example, flags=re.M))
            done = subprocess.run([program("agent/cbagent"), "--check", "--config", path], stderr=subprocess.PIPE, text=True,
                                  check=False)
            self.assertEqual((done.returncode, done.stderr), (0, ""))


class Runbook(Case):
    """What cbshm(7) tells the person on call to do."""

    def part(self, title):
        return re.search(rf"^\.Ss {title}\n(.*?)(?=^\.S[sh] |\Z)", section("cbshm.7", "RUNBOOK"), re.M | re.S)[1]

    def test_simple_commands(self):
        self.need("jq")
        self.agent.cbctl("drift", "costsim_v2", "0.5", check=0)
        text = section("cbshm.7", "RUNBOOK").split(".Ss Restore")[0]
        self.assertGreater(len(commands(text)), 4)
        for command in commands(text):
            with self.subTest(command=command):
                self.shell(command)

    def test_restore(self):
        """A decision that the backup does not have is found again."""
        self.need("jq", "comm")
        keep, renew, *compare = commands(self.part("Restore from a backup"))
        dump = os.path.join(self.directory, "dump")
        self.agent.cbctl("disable", "both", "--reason", "r", check=0)
        self.agent.cbctl("disable", "closed since", "--reason", "r", check=0)
        self.shell(f"pg_dump -Fc -f {dump} cbshm")
        self.agent.cbctl("enable", "closed since", check=0)
        self.agent.cbctl("disable", "opened since", "--reason", "r", check=0)
        self.shell(keep)
        key = self.postgres.value("SELECT key FROM cbshm.secret")
        self.shell(f"pg_restore --clean -d cbshm {dump}")
        self.assertEqual(self.postgres.value("SELECT key FROM cbshm.secret"), key)
        self.shell(renew)
        self.assertNotEqual(self.postgres.value("SELECT key FROM cbshm.secret"), key)
        self.agent.restart()
        wait_for(lambda: self.agent.cbctl("check", "opened since").status == 0, what="the restored state")
        *first, last = compare
        for command in first:
            self.shell(command)
        self.assertEqual(self.shell(last), "opened since\n")
        self.assertEqual(self.shell(last.replace("-23", "-13")), "closed since\n")
        self.assertIn("on 1 of 1 host", self.agent.cbctl("disable", "opened since", "--reason", "again", "--wait", check=0).out)
        self.agent.cbctl("check", "opened since", check=1)
        self.restored_elsewhere(dump)

    def restored_elsewhere(self, dump):
        """A server that has not had cbshm before: with the roles, which are not in the dump, an agent works there."""
        with Postgres() as other:
            other.psql("CREATE ROLE cbshm_owner; CREATE ROLE cbshm_agent; CREATE ROLE cbshm_reader; "
                       f"CREATE ROLE {AGENT_USER} LOGIN IN ROLE cbshm_agent")
            self.shell(f"pg_restore -d '{other.conninfo()}' {dump}")
            with Agent(other) as agent:
                self.assertTrue(agent.is_open("both"))
                agent.cbctl("enable", "both", "--wait", check=0)


if __name__ == "__main__":
    tap.main()
