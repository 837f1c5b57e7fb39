# SPDX-License-Identifier: ISC
"""Checks the models of latch, index and replacement with spin, and that they notice when a step or a barrier is left out.

With CBSHM_MODEL_LONG=1 (`make model`) also what takes minutes: more kills, and two threads that share a handle.
"""
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor

from support import tap

LONG = os.environ.get("CBSHM_MODEL_LONG")
MODELS = os.path.join(tap.source_dir(), "tests", "model")


def errors(kills, *defines, model="latch.pml"):
    with tempfile.TemporaryDirectory() as directory:
        def run(*command):
            return subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  check=True).stdout
        run("spin", "-a", f"-DKILLS={kills}", "-DREADERS=1", *defines, os.path.join(MODELS, model))
        # An error is found soon; only the proof is worth optimising for.
        optimise = "-O0" if "BREAK" in " ".join(defines) or "WITHOUT" in " ".join(defines) else "-O2"
        run(os.environ.get("CC", "gcc"), optimise, "-w", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c")
        output = run("./pan", "-m1000000")
        return int(re.search(r"errors: (\d+)", output).group(1))


@unittest.skipUnless(shutil.which("spin") and shutil.which(os.environ.get("CC", "gcc")), "spin or gcc is not installed")
class LatchModel(unittest.TestCase):
    def test_every_interleaving_with_two_kills(self):
        self.assertEqual(errors(2), 0)

    def all_found(self, runs):
        """Each (kills, definitions, model) has an error. Two at a time: compilers take most of it."""
        def look(run):
            kills, defines, model = run
            return errors(kills, *(f"-D{define}" for define in defines.split()), model=model)
        with ThreadPoolExecutor(2) as pool:
            for run, found in zip(runs, pool.map(look, runs)):
                self.assertGreater(found, 0, run)

    def test_each_step_is_needed(self):
        self.all_found([(1, f"BREAK_{step}", "latch.pml") for step in ("ODD", "WORD_FIRST", "EVEN", "RECOVERY", "NO_RECHECK")])

    def test_weak_memory_with_a_kill(self):
        self.assertEqual(errors(1, model="weak.pml"), 0)

    def test_each_barrier_is_needed(self):
        barriers = ("FENCE=2", "FENCE=6", "RELEASE=1", "RELEASE=4", "RELEASE=5", "R1", "R2", "R4")
        self.all_found([(0, f"WITHOUT_{barrier}", "weak.pml") for barrier in barriers]
                       + [(1, f"WITHOUT_{barrier}", "weak.pml") for barrier in ("RELEASE=8", "FENCE=9")])

    def test_index_without_a_kill(self):
        self.assertEqual(errors(0, "-DCHECKS=1", model="index.pml"), 0)

    def test_each_step_of_the_index_is_needed(self):
        # The release of a bucket is not among them: who comes too early for it finds the index word changed after it.
        steps = ("WITHOUT_FENCE=1", "WITHOUT_ACQUIRE", "WITHOUT_RELEASE=2", "BREAK_NO_RECHECK", "BREAK_NO_GENERATION",
                 "BREAK_TOMBSTONE")
        self.all_found([(0, f"{step} CHECKS=1", "index.pml") for step in steps] + [(1, "BREAK_RECOVERY", "index.pml")])

    @unittest.skipUnless(LONG, "takes minutes: make model")
    def test_index_with_a_kill(self):
        self.assertEqual(errors(1, model="index.pml"), 0)
        steps = ("WITHOUT_RELEASE=4", "BREAK_ANNOUNCE_FIRST", "BREAK_INDEX_WORD_LATE", "BREAK_NEWEST_GENERATION",
                 "BREAK_RECOVERY_UNSAID")
        self.all_found([(1, step, "index.pml") for step in steps])

    @unittest.skipUnless(LONG, "takes minutes: make model")
    def test_threads_that_share_a_handle(self):
        self.assertEqual(errors(0, "-DTHREADS", "-DCHECKS=1", model="index.pml"), 0)
        self.all_found([(0, "BREAK_INDEX_BIT THREADS CHECKS=1", "index.pml"),
                        (0, "BREAK_GENERATIONS THREADS CHECKS=1 CHANGES=4", "index.pml")])

    @unittest.skipUnless(LONG, "takes minutes: make model")
    def test_more_kills(self):
        for model in ("latch.pml", "weak.pml", "replace.pml"):
            self.assertEqual(errors(3 if model == "latch.pml" else 2, model=model), 0, model)

    def test_replacement_with_a_kill(self):
        self.assertEqual(errors(1, model="replace.pml"), 0)

    def test_each_step_of_a_replacement_is_needed(self):
        steps = ("NAME_FIRST", "NO_RECHECK", "LEFT_TO_ANOTHER", "WAIT_UNTIL_RETIRED")
        self.all_found([(1, f"BREAK_{step}", "replace.pml") for step in steps])


if __name__ == "__main__":
    tap.main()
