# SPDX-License-Identifier: ISC
"""The segment as cbshm-segment(5) describes it: examples/segment_reader.py knows nothing else, and must agree with libcbshm."""
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import unittest

from support import tap
from support.agent import Agent, wait_for
from support.postgres import Postgres
from support.probe import Probe

READER = os.path.join(tap.source_dir(), "examples", "segment_reader.py")


def load_reader():
    spec = importlib.util.spec_from_file_location("segment_reader", READER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reader = load_reader()
C_TYPES = {"Q": "uint64_t", "q": "int64_t", "I": "uint32_t", "H": "uint16_t", "d": "double", "2Q": "uint64_t[2]",
           "52Q": "uint64_t[52]"}


def page_tables():
    """The tables of offsets in the manual page, in its order: {field: (offset, type)}."""
    tables = {}
    with open(os.path.join(tap.source_dir(), "man", "cbshm-segment.5"), encoding="utf-8") as page:
        for line in page:
            title = re.match(r"\.Ss (\w+)$", line)
            row = re.match(r"\.It (\d+) Ta (\S+) Ta ([a-z_]+(?:\[\d\])?)", line)
            if title:
                table = tables.setdefault(title.group(1), {})
            elif row and "_t" in row.group(2) or row and row.group(2) == "double":
                table[row.group(3)] = (int(row.group(1)), row.group(2))
    return tables


class Page(unittest.TestCase):
    def test_the_reader_has_the_offsets_of_the_page(self):
        tables = page_tables()
        for title, table in (("Header", reader.HEADER), ("Record", reader.RECORD), ("Detail", reader.DETAIL)):
            mine = {name: (offset, C_TYPES.get(kind) or f"uint8_t[{kind[:-1]}]") for name, (offset, kind) in table.items()}
            self.assertEqual(mine, tables[title], title)

    def test_siphash(self):
        # The example of the authors' paper: key 00 01 .. 0f, message 00 01 .. 0e.
        self.assertEqual(reader.siphash((0x0706050403020100, 0x0f0e0d0c0b0a0908), bytes(range(15))), 0xa129ca6149be45e5)


class Live(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres().migrate()
        cls.agent = Agent(cls.postgres)
        cls.probe = Probe(cls.agent)

    @classmethod
    def tearDownClass(cls):
        cls.probe.close()
        cls.agent.close()
        cls.postgres.close()

    def segment(self):
        return reader.Segment(self.agent.segment, self.agent.environment()["CBSHM_OWNER"])

    def same(self, segment, name):
        """The record as both readers have it."""
        mine = segment.look(name)
        state = self.probe.fields(f"state {name}")
        self.assertEqual(
            (mine["version"], mine["disabled"], mine["row_disabled"], mine["consecutive_failures"], mine["incident_id"] or "",
             mine["disabled_by"], mine["disabled_reason"]),
            (int(state["version"]), state["disabled"] == "1", state["row"] == "1", int(state["failures"]),
             state["incident"], state["by"], state["reason"]))
        self.assertEqual(mine["disabled_until"], None if int(state["until"]) == reader.NO_TIME else int(state["until"]))
        return mine

    def test_every_kind_of_breaker(self):
        cbctl = self.agent.cbctl
        cbctl("drift", "page/closed", "0.9", check=0)
        cbctl("disable", "page/open", "--reason", "nothing but ASCII", "--until", "never", check=0)
        cbctl("disable", "page/ttl", "--reason", "gr\u00fc\u00dfe " * 40, "--by", "\u65e5" * 40, "--for", "1h", check=0)
        cbctl("disable", "page/past", "--reason", "short", "--for", "1s", check=0)
        cbctl("policy", "page/past", "auto_recover=off", check=0)
        cbctl("policy", "page/policy", "drift_threshold=0.75", "failure_threshold=7", "schema_error_threshold=9",
              "default_ttl=90s", check=0)
        long_name = "page/" + "x" * 123
        cbctl("drift", long_name, "0.1", check=0)
        segment = self.segment()
        self.assertEqual(self.same(segment, "page/closed")["consecutive_failures"], 1)
        self.assertTrue(self.same(segment, "page/open")["disabled"])
        self.assertLessEqual(len(self.same(segment, "page/ttl")["disabled_reason"].encode()), 240)
        self.same(segment, long_name)
        policy = self.same(segment, "page/policy")
        self.assertEqual([policy[field] for field in ("drift_threshold", "failure_threshold", "schema_error_threshold",
                                                      "default_ttl", "auto_recover")], [0.75, 7, 9, 90_000_000, True])
        self.assertIsNone(segment.look("page/unknown"))
        self.assertTrue(segment.agent_alive())
        self.assertEqual(segment.value("state"), 2)
        names = segment.names()
        self.assertEqual(len(names), len(set(names)))
        self.assertLessEqual({"page/closed", "page/open", "page/ttl", long_name}, set(names))

    def test_a_ttl_ends(self):
        self.agent.cbctl("disable", "page/short", "--reason", "soon over", "--for", "2s", check=0)
        segment = self.segment()
        self.assertTrue(segment.look("page/short")["disabled"])
        wait_for(lambda: not segment.look("page/short")["disabled"])
        self.assertEqual(self.probe.ask("check page/short").split()[0], "enabled")

    def test_while_it_changes(self):
        segment = self.segment()
        stop = threading.Event()

        def change():
            with self.agent.connect() as client:
                for i in range(10**6):
                    if stop.is_set():
                        break
                    client.call("io.cbshm.Disable", name="page/busy", reason=f"reason {i} " * (i % 20 + 1))
                    client.call("io.cbshm.Enable", name="page/busy")

        thread = threading.Thread(target=change)
        thread.start()
        try:
            wait_for(lambda: segment.look("page/busy"))
            seen, before = set(), 0
            while len(seen) < 150:
                mine = segment.look("page/busy")
                self.assertGreaterEqual(mine["version"], before)
                before = mine["version"]
                seen.add(before)
                self.assertEqual(mine["disabled"], mine["incident_id"] is not None)
                words = set(mine["disabled_reason"].split())
                self.assertLessEqual(len(words - {"reason", "r", "re", "rea", "reas", "reaso"}), 2)  # the last may be cut
                self.assertLessEqual(int(self.probe.fields("state page/busy")["version"]), segment.look("page/busy")["version"])
        finally:
            stop.set()
            thread.join()
        self.same(segment, "page/busy")

    def test_growth_and_replacement(self):
        segment = self.segment()
        names = [f"page/grow-{i}" for i in range(1100)]
        self.postgres.psql("INSERT INTO cbshm.breaker (name) SELECT 'page/grow-' || i FROM generate_series(0, 1099) i")
        # The capacity is 1024, so that the agent needs another one.
        self.agent.config["segment"]["capacity"] = "4096"
        self.agent.write_config()
        self.agent.restart()
        wait_for(lambda: segment.look(names[-1]))
        for name in names[::50]:
            self.same(segment, name)
        self.assertEqual(segment.value("state"), 2)

    def test_as_a_program(self):
        self.agent.cbctl("disable", "page/program", "--reason", "printed", check=0)
        done = subprocess.run([sys.executable, READER, "page/program", "page/nobody"], env=self.agent.environment(),
                              stdout=subprocess.PIPE, text=True, check=True)
        one, nobody = map(json.loads, done.stdout.splitlines())
        self.assertEqual((one["disabled"], one["disabled_reason"]), (True, "printed"))
        self.assertEqual(nobody, {"name": "page/nobody", "disabled": False, "version": None})
        done = subprocess.run([sys.executable, READER, "--segment", "/cbshm-not-there"], stderr=subprocess.PIPE, text=True,
                              check=False)
        self.assertEqual((done.returncode, "Traceback" in done.stderr), (1, False))


if __name__ == "__main__":
    tap.main()
