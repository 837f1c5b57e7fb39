# SPDX-License-Identifier: ISC
"""Checks the models of the latch with spin, and that they notice when a step or a barrier of the protocol is left out."""
import os
import re
import shutil
import subprocess
import tempfile
import unittest

from support import tap

MODELS = os.path.join(tap.source_dir(), "tests", "model")


def errors(kills, *defines, model="latch.pml"):
    with tempfile.TemporaryDirectory() as directory:
        def run(*command):
            return subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  check=True).stdout
        run("spin", "-a", f"-DKILLS={kills}", "-DREADERS=1", *defines, os.path.join(MODELS, model))
        # An error is found soon; only the proof is worth optimising for.
        run(os.environ.get("CC", "gcc"), "-O0" if defines else "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c")
        output = run("./pan", "-m1000000")
        return int(re.search(r"errors: (\d+)", output).group(1))


@unittest.skipUnless(shutil.which("spin") and shutil.which(os.environ.get("CC", "gcc")), "spin or gcc is not installed")
class LatchModel(unittest.TestCase):
    def test_every_interleaving_with_two_kills(self):
        self.assertEqual(errors(2), 0)

    def test_each_step_is_needed(self):
        for step in ("ODD", "WORD_FIRST", "EVEN", "RECOVERY", "NO_RECHECK"):
            with self.subTest(step):
                self.assertGreater(errors(1, f"-DBREAK_{step}"), 0)

    def test_weak_memory_with_a_kill(self):
        self.assertEqual(errors(1, model="weak.pml"), 0)

    def test_each_barrier_is_needed(self):
        for barrier in ("FENCE=2", "FENCE=6", "RELEASE=1", "RELEASE=4", "RELEASE=5", "R1", "R2", "R4"):
            with self.subTest(barrier):
                self.assertGreater(errors(0, f"-DWITHOUT_{barrier}", model="weak.pml"), 0)
        for barrier in ("RELEASE=8", "FENCE=9"):
            with self.subTest(f"recovery, {barrier}"):
                self.assertGreater(errors(1, f"-DWITHOUT_{barrier}", model="weak.pml"), 0)


if __name__ == "__main__":
    tap.main()
