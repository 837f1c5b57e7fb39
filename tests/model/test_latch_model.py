# SPDX-License-Identifier: ISC
"""Checks the model of the latch with spin, and that the model notices when a step of the protocol is left out."""
import os
import re
import shutil
import subprocess
import tempfile
import unittest

from support import tap

MODEL = os.path.join(tap.source_dir(), "tests", "model", "latch.pml")


def errors(kills, *defines):
    with tempfile.TemporaryDirectory() as directory:
        def run(*command):
            return subprocess.run(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  check=True).stdout
        run("spin", "-a", f"-DKILLS={kills}", "-DREADERS=1", *defines, MODEL)
        run(os.environ.get("CC", "gcc"), "-O2", "-w", "-DSAFETY", "-o", "pan", "pan.c")
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


if __name__ == "__main__":
    tap.main()
