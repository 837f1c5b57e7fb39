# SPDX-License-Identifier: ISC
"""
The manual and the code name the same things: each option, command, key, function, constant, method and error that there
is stands in its page, and a page names nothing that does not exist.

Elsewhere: the SQL functions (tests/sql/test_manual.py), the metrics (tests/integration/test_metrics.py), the log's
events (test_log.sh), the examples (tests/integration/test_examples.py).
"""
import glob
import os
import re
import subprocess
import tempfile
import unittest

from support import tap
from support.agent import program

TOP = tap.source_dir()


def source(*path):
    with open(os.path.join(TOP, *path), encoding="utf-8") as file:
        return file.read()


def output(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def macro(name, text):
    """The words behind each `.name` at the beginning of a line, or `name` within one."""
    found = []
    for line in text.splitlines():
        if line.startswith("."):
            words = line[1:].split()
            if name in words:
                found += [word for word in words[words.index(name) + 1:] if word != ","]
    return found


class Page:
    """A manual page: sections, and the heads of the items of its lists."""

    def __init__(self, name):
        self.name = name
        self.text = source("man", name)
        # An item whose head takes several lines: on one.
        joined = re.sub(r"^\.It Xo\n(.*?)^\.Xc\n", lambda head: ".It " + " ".join(
            line.removeprefix(".") for line in head[1].splitlines()) + "\n", self.text, flags=re.M | re.S)
        self.sections = dict(re.findall(r"^\.Sh (.*?)\n(.*?)(?=^\.Sh |\Z)", joined, re.M | re.S))

    def items(self, *sections, depth=1):
        """(head, body) of the items at this depth of nesting."""
        found = []
        for section in sections:
            level = 0
            for line in self.sections[section].splitlines():
                level += line.startswith(".Bl ")
                if line.startswith(".It ") and level == depth:
                    found.append([line[4:], ""])
                elif found and level >= depth:
                    found[-1][1] += line + "\n"
                level -= line == ".El"
        return found

    def names(self):
        return macro("Nm", self.sections["NAME"])


class Compare(unittest.TestCase):
    def same(self, what, code, page):
        """Two sets are the same; says which side lacks what."""
        code, page = set(code), set(page)
        self.assertTrue(code, f"no {what} found in the code: has its form changed?")
        lacks = [f"lacks {each}" for each in sorted(code - page)] + [f"has {each}, which does not exist" for each in
                                                                    sorted(page - code)]
        self.assertFalse(lacks, f"{what}: the manual " + "; ".join(lacks))


class Cbctl(Compare):
    PAGE = Page("cbctl.1")

    @classmethod
    def setUpClass(cls):
        sections = [section for section, text in cls.PAGE.sections.items() if "\n.It Cm " in text]
        cls.help = output(program("cbctl/cbctl"), "--help")
        cls.commands = re.findall(r"^[A-Z ][a-z ]{5}  ([a-z][a-z-]+)  ", cls.help, re.M)
        cls.described = {}
        for head, body in cls.PAGE.items(*sections):
            if head.split()[0] == "Cm":
                cls.described.setdefault(head.split()[1], ["", ""])
                cls.described[head.split()[1]][0] += head
                cls.described[head.split()[1]][1] += body

    def test_commands(self):
        self.same("commands", self.commands, self.described)

    def test_options(self):
        for command in self.commands:
            usage = " ".join(output(program("cbctl/cbctl"), command, "--help").split("\n\n")[0].split())
            options = re.findall(r"--([a-z-]+)", usage)
            head = self.described.get(command, [""])[0]
            with self.subTest(command=command):
                named = re.findall(r"Fl -([a-z-]+)", head)
                if options or named:
                    self.same(f"options of {command} in its head", options, named)

    def test_options_for_all(self):
        self.same("options for all commands", set(re.findall(r"--([a-z]+)", self.help)) | {"help", "version"},
                  [word.lstrip("-") for head, _ in self.PAGE.items("DESCRIPTION") for word in macro("Fl", ".It " + head)
                   if len(word.lstrip("-")) > 1 and word.startswith("-")])

    def test_error_words(self):
        text = "\n".join(source(path) for path in sorted(glob.glob(os.path.join(TOP, "cbctl", "*.c"))))
        words = re.findall(r"\{CBSHM_ERR_[A-Z_]+, \"([a-z_]+)\", STATUS", text)
        words += re.findall(r"\bfail\(\s*[A-Z_a-z0-9]+,\s*\"([a-z_]+)\"", text)
        words += ["usage"]
        listed = []
        for head, body in self.PAGE.items("EXIT STATUS"):
            listed += [word for word in macro("Li", body) if re.fullmatch("[a-z_]+", word)]
        self.same("error words", words, listed)

    def test_exit_statuses(self):
        self.same("exit statuses", re.findall(r"STATUS_[A-Z_]+ = (\d)", source("cbctl", "cbctl.h")),
                  [head for head, _ in self.PAGE.items("EXIT STATUS")])

    def test_all_pages_name_commands_that_exist(self):
        """`cbctl WORD`, and the options behind it, in any page, in README and in the agent's log."""
        for path in [*glob.glob(os.path.join(TOP, "man", "*.[1-8]")), os.path.join(TOP, "README.md"),
                     *glob.glob(os.path.join(TOP, "agent", "*.c"))]:
            for command, rest in re.findall(r"(?:`|\$ |Ql |\t|^    |run |with )cbctl ([a-z][a-z-]*)([^`;|\n]*)", source(path)):
                with self.subTest(path=os.path.basename(path), command=command):
                    self.assertIn(command, self.commands)
                    usage = output(program("cbctl/cbctl"), command, "--help").split("\n\n")[0]
                    for option in re.findall(r" --([a-z-]+)", rest):
                        self.assertIn("--" + option, usage + "--json --socket --segment")

    def test_environment(self):
        text = "".join(source(path) for path in glob.glob(os.path.join(TOP, "cbctl", "*.c")) +
                       glob.glob(os.path.join(TOP, "libcbshm", "*.c")))
        variables = set(re.findall(r"getenv\(\"([A-Z_]+)\"\)", text)) | set(re.findall(r"\"(CBSHM_[A-Z]+)\"", text))
        listed = set(macro("Ev", self.PAGE.sections["ENVIRONMENT"]))
        self.same("variables", variables - {"CBSHM_SQL"}, listed - {"PGHOST", "PGDATABASE", "PGUSER", "...", "TZ"})

    def test_policy_keys(self):
        keys = re.findall(r"\{\"([a-z_]+)\", CBSHM_POLICY_", source("cbctl", "cmd_policy.c"))
        self.same("keys of a policy", keys, re.findall(r"^\.It Cm ([a-z_]+) Ns = ", self.described["policy"][1], re.M))

    def test_watch_events(self):
        text = source("cbctl", "cmd_watch.c")
        events = set(re.findall(r"(?:print_line|json_event)\(look, \"([a-z]+)\"", text)) | set(
            re.findall(r"return[^;]*?\"([a-z]+)\"", text[text.index("*difference("):text.index("tell_breakers(")]))
        self.same("events of watch", events | {"enabled"},
                  [word for line in re.findall(r"^\.It Li (.*)", self.described["watch"][1], re.M)
                   for word in line.replace(",", " ").split()])


class Cbagent(Compare):
    def test_options(self):
        text = output(program("agent/cbagent"), "--help")
        options = re.findall(r"^  -([a-zA-Z]), --([a-z]+)", text, re.M)
        page = Page("cbagent.8")
        self.same("options", [word for pair in options for word in pair],
                  [word.lstrip("-") for head, _ in page.items("DESCRIPTION") if head.startswith("Fl ")
                   for word in head.split()[1:] if word not in (",", "Ar", "file")])

    def test_configuration(self):
        page = Page("cbagent.conf.5")
        keys = [f"[{section}] {key}" for section, key in
                re.findall(r"^\t\{\"([a-z]+)\", \"([a-z_]+)\", key_", source("agent", "config.c"), re.M)]
        described = []
        for part in page.sections["DESCRIPTION"].split("\n.Ss ")[1:]:
            described += [f"{part.splitlines()[0]} {key}" for key in re.findall(r"^\.It Sy ([a-z_]+)", part, re.M)]
        self.same("keys", keys, described)

    def test_example_of_the_configuration(self):
        """The file to begin with names keys that exist."""
        text = source("systemd", "cbagent.conf.example")
        keys = set(re.findall(r"^\t\{\"[a-z]+\", \"([a-z_]+)\", key_", source("agent", "config.c"), re.M))
        for key in re.findall(r"^[;# ]*([a-z_]+) = ", text, re.M):
            self.assertIn(key, keys)


class Library(Compare):
    """Section 3."""

    @classmethod
    def setUpClass(cls):
        cls.header = source("include", "cbshm.h")
        cls.code = re.sub(r"/\*.*?\*/", "", cls.header, flags=re.S)
        cls.pages = [Page(os.path.basename(path)) for path in sorted(glob.glob(os.path.join(TOP, "man", "cbshm_*.3")))]
        cls.overview = Page("libcbshm.3")
        cls.all = re.sub(r"^\.Dt .*", "", "\n".join(page.text for page in [*cls.pages, cls.overview]), flags=re.M)

    def prototypes(self):
        """{name: (type, [arguments])} of the header."""
        found = {}
        flat = " ".join(self.code.split())
        for kind, name, arguments in re.findall(
                r"(?:CBSHM_PUBLIC(?: CBSHM_MUST_CHECK)?|static inline) ([a-z_0-9 ]+?[ *]+)(cbshm_[a-z_]+)"
                r"\(((?:[^()]|\([^()]*\))*)\)(?: __attribute__\(\([a-z_, 0-9()]*\)\))?(?:;| \{)", flat):
            arguments = re.split(r",\s*(?![^()]*\))", arguments)
            found[name] = (kind.strip(), [" ".join(argument.split()) for argument in arguments])
        return found

    def synopsis(self, page):
        found = {}
        for kind, name, arguments in re.findall(r"^\.Ft (.*)\n\.Fo (\w+)\n((?:\.Fa .*\n)+)\.Fc", page.sections["SYNOPSIS"], re.M):
            found[name] = (kind.strip('"'), [argument[4:].strip('"') for argument in arguments.splitlines()])
        return found

    def test_functions(self):
        exported = re.findall(r"\b(cbshm_[a-z_]+);", source("libcbshm", "cbshm.sym"))
        self.assertLessEqual(set(exported), set(self.prototypes()))
        names = [name for page in self.pages for name in page.names()]
        self.same("functions", self.prototypes(), names)
        self.assertEqual(len(names), len(set(names)), f"a function in two pages: {sorted(names)}")

    def test_prototypes(self):
        prototypes = self.prototypes()
        for page in self.pages:
            described = self.synopsis(page)
            with self.subTest(page=page.name):
                self.assertEqual(page.names()[0], page.name.removesuffix(".3"), "a page is called after its first function")
                self.assertEqual(sorted(page.names()), sorted(described), "NAME and SYNOPSIS")
                for name, prototype in described.items():
                    self.assertEqual(prototype, prototypes.get(name), name)

    def test_the_overview_leads_to_all(self):
        self.same("functions in libcbshm(3)", set(self.prototypes()) - {"cbshm_check_slow"},
                  [word for word in macro("Xr", self.overview.sections["DESCRIPTION"]) if word.startswith("cbshm_")])

    def test_errors(self):
        errors = re.findall(r"\b(CBSHM_ERR_[A-Z_]+)\s*=", self.code)
        self.same("errors", errors, [word for head, _ in self.overview.items("RETURN VALUES")
                                     for word in macro("Er", ".It " + head)])

    def test_constants(self):
        constants = set(re.findall(r"^#define (CBSHM_[A-Z0-9_]+)", self.code, re.M)) | set(
            re.findall(r"\b(CBSHM_[A-Z0-9_]+)\s*=", self.code))
        constants -= {"CBSHM_H", "CBSHM_PUBLIC", "CBSHM_MUST_CHECK", "CBSHM_LIKELY", "CBSHM_OK"}
        sizes = {"CBSHM_NAME_MAX", "CBSHM_ACTOR_SIZE", "CBSHM_REASON_SIZE"}  # told in bytes
        environment = {"CBSHM_SEGMENT", "CBSHM_SOCKET", "CBSHM_OWNER"}
        self.same("constants", constants - sizes, set(re.findall(r"\b(CBSHM_[A-Z0-9_]+)", self.all)) - environment - sizes)

    def test_fields(self):
        structs = dict(re.findall(r"^struct (cbshm_[a-z_]+) \{\n(.*?)^\};", self.code, re.M | re.S))
        self.assertGreater(len(structs), 6)
        words = set(re.findall(r"\b[a-z_]+\b", "\n".join(re.findall(r"^\.(?:It )?Fa .*", self.all, re.M))))
        for struct, body in structs.items():
            if struct == "cbshm_breaker":  # the library's own
                continue
            for field in re.findall(r"(\w+)(?:\[\w+\])?;", body):
                with self.subTest(struct=struct, field=field):
                    self.assertTrue(field in words or field == "reserved", f"{field} stands in no page")


class Segment(Compare):
    def test_layout(self):
        """The tables of cbshm-segment(5) are what segment.h asserts."""
        header, page = source("include", "cbshm", "segment.h"), Page("cbshm-segment.5").text
        for table, struct in (("Header", "segment_header"), ("Record", "record"), ("Detail", "detail")):
            section = re.search(rf"^\.Ss {table}\n(.*?)(?=^\.S[sh] )", page, re.S | re.M)[1]
            code = re.findall(rf"^CBSHM_OFFSET\(cbshm_{struct}, (\w+), (\d+)\)", header, re.M)
            rows = [(field, offset) for offset, field in re.findall(r"^\.It (\d+) Ta \S+ Ta (\w+)", section, re.M)]
            self.same(table, code, [row for row in rows if row != ("copies", "608")])
        for version in ("MAJOR", "MINOR"):
            number = re.search(rf"^#define CBSHM_LAYOUT_{version}\s+(\d+)", header, re.M)[1]
            self.assertIn(f"layout_{version.lower()}, {number}:", re.findall(r"layout_m\w+, \d+:", page))


class Varlink(Compare):
    PAGE = Page("io.cbshm.7")
    TEXT = source("agent", "io.cbshm.varlink")

    def described(self):
        parts = self.PAGE.sections["DESCRIPTION"].split("\n.Ss ")
        return {part.splitlines()[0]: part for part in parts}

    def test_methods(self):
        methods = {name: re.findall(r"(\w+):", parameters) for name, parameters in
                   re.findall(r"^method (\w+)\((.*?)\)\s*->", self.TEXT, re.M | re.S)}
        part = self.described()["Methods"]
        described = {line.split()[0]: line.split()[1:] for line in re.findall(r"^\.It Fn (.*)", part, re.M)}
        named = set(re.findall(r"^\.Fn (\w+)$", part, re.M))  # "Reset is another name for it."
        self.same("methods", methods, set(described) | named)
        for name, parameters in described.items():
            self.assertEqual(parameters, methods[name], name)

    def test_errors(self):
        self.same("errors", re.findall(r"^error (\w+)", self.TEXT, re.M),
                  re.findall(r"^\.It Er (\w+)", self.described()["Errors"], re.M))

    def test_parameters_and_results(self):
        """Each member of a call and of a reply is told about."""
        words = set(re.findall(r"\w+", self.PAGE.text))
        members = set(re.findall(r"(\w+):", "\n".join(re.findall(r"^(?:method|error) .*", self.TEXT, re.M))))
        self.assertFalse(members - words, "io.cbshm(7) lacks these")


class Pages(Compare):
    def test_all_are_installed(self):
        self.same("pages", [f"man/{os.path.basename(path)}" for path in glob.glob(os.path.join(TOP, "man", "*.[1-8]"))],
                  re.findall(r"\bman/[\w.-]+\.[1-8]\b", source("Makefile.am")))

    def test_each_function_has_a_page_of_its_name(self):
        with tempfile.TemporaryDirectory() as root:
            make = ["make", "-s", "-C", tap.build_dir(), "DESTDIR=" + root]
            environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE") and key != "MFLAGS"}
            run = lambda *targets: subprocess.run([*make, *targets], env=environment, stdout=subprocess.DEVNULL, check=True)
            run("install-man")
            run("install-data-hook")
            installed = {os.path.basename(path): path for path in glob.glob(root + "/**/man3/*.3", recursive=True)}
            for name in re.findall(r"\b(cbshm_[a-z_]+);", source("libcbshm", "cbshm.sym")):
                with open(installed[name + ".3"], encoding="utf-8") as file:
                    text = file.read()
                if text.startswith(".so man3/"):
                    self.assertIn(f"\n.Nm {name}", source("man", text.split("/")[1].strip()))
                else:
                    self.assertIn(f"\n.Nm {name}", text)
            run("uninstall-hook")
            run("uninstall-man")
            self.assertEqual(glob.glob(root + "/**/man3/*.3", recursive=True), [])

    def test_all_can_be_found(self):
        """From cbshm(7), in as many steps as it takes."""
        pages = {os.path.basename(path): Page(os.path.basename(path)) for path in glob.glob(os.path.join(TOP, "man", "*.[1-8]"))}
        found, rest = set(), ["cbshm.7"]
        while rest:
            name = rest.pop()
            if name in pages and name not in found:
                found.add(name)
                rest += [f"{to}.{section}" for to, section in re.findall(r"\bXr (\S+) (\d)", pages[name].text)]
        self.assertEqual(found, set(pages))


if __name__ == "__main__":
    tap.main()
