# SPDX-License-Identifier: ISC
"""
The segment on a processor that reorders: built for aarch64, its instructions looked at, and its tests run by qemu.

qemu shows that the code works there, but on the memory of this machine; what the barriers are for is shown by
tests/model/weak.pml, and that they are there by the instructions.
"""
import os
import re
import shutil
import subprocess
import tempfile
import unittest

from support import tap

TARGET = "aarch64-linux-gnu"
CC = f"{TARGET}-gcc"
OBJDUMP = f"{TARGET}-objdump"
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
SOURCE = tap.source_dir()
COMMON = ["tests/support/segment.c", "tests/torture/truth.c", "tests/torture/alone.c", "agent/segment_file.c",
          "agent/segment_writer.c", *(f"libcbshm/{name}.c" for name in (
              "attach", "boot", "check", "descriptor", "error", "hash", "health", "index", "lookup", "name", "state", "validate", "wait"))]

# Loads and stores of the payload are those of 64 bits; of texts also pairs.
KINDS = ((r"ldap?r\b|ldar\b", "acquire"), (r"stlr\b", "release"), (r"dmb\s+ish$", "fence"), (r"dmb\s+ishld", "load-fence"),
         (r"ld[rp]\b", "load"), (r"st[rp]\b", "store"))


def compile_into(directory, output, sources, *flags):
    subprocess.run([CC, "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-DHAVE_CONFIG_H", f"-I{tap.build_dir()}",
                    f"-I{SOURCE}", f"-I{SOURCE}/include", *flags, "-o", os.path.join(directory, output),
                    *(os.path.join(SOURCE, source) for source in sources)], check=True, capture_output=True, text=True)


def kinds(listing, function):
    """The memory instructions of a function, in order."""
    body = re.search(rf"<{function}>:\n(.*?)(?:\n\n|\Z)", listing, re.S).group(1)
    found = []
    for line in body.splitlines():
        instruction = line.split("\t", 1)[-1].strip()
        if "[sp" in instruction:
            continue  # saved registers
        for pattern, kind in KINDS:
            if re.match(pattern, instruction):
                found.append(kind)
                break
    return found


@unittest.skipUnless(shutil.which(CC), f"{CC} is not installed")
class Instructions(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with tempfile.TemporaryDirectory() as directory:
            compile_into(directory, "barriers.o", ["tests/torture/barriers.c"], "-c")
            cls.listing = subprocess.run([OBJDUMP, "-d", "--no-show-raw-insn", os.path.join(directory, "barriers.o")],
                                         stdout=subprocess.PIPE, text=True, check=True).stdout

    def in_order(self, function, *expected):
        """Each of these, in this order; a loop's own loads and stores may come in between."""
        found = kinds(self.listing, function)
        rest = iter(found)
        self.assertTrue(all(kind in rest for kind in expected), f"{function}: {' '.join(found)}, not {' '.join(expected)}")
        return found

    def test_write(self):
        # W1 to W7; a plain store before the first fence would be a payload that readers may take for whole.
        found = self.in_order("asm_latch_write", "release", "fence", "store", "release", "release", "fence", "store")
        self.assertEqual((found.count("release"), found.count("fence")), (3, 2))
        self.assertNotIn("store", found[:found.index("fence")])

    def test_read(self):
        # R3 to R5: nothing of the copy is loaded after the fence, but for the sequence.
        found = self.in_order("asm_latch_read", "load", "load-fence", "load")
        self.assertEqual(found[found.index("load-fence"):], ["load-fence", "load"])

    def test_read_deadline(self):
        self.in_order("asm_latch_read_deadline", "acquire", "load", "load-fence", "load")

    def test_slot_reuse(self):
        found = self.in_order("asm_slot_free", "release", "fence", "store")
        self.assertNotIn("store", found[:found.index("fence")])

    def test_check(self):
        # Two acquire loads and a comparison; no barrier, no store.
        found = kinds(self.listing, "asm_check")
        self.assertIn("acquire", found)
        self.assertFalse({"store", "release", "fence", "load-fence"} & set(found), found)


@unittest.skipUnless(shutil.which(CC) and QEMU, f"{CC} or qemu-aarch64 is not installed")
class Emulated(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory()
        cls.objects = []
        for number, source in enumerate(COMMON):
            compile_into(cls.directory.name, f"{number}.o", [source], "-c")
            cls.objects.append(os.path.join(cls.directory.name, f"{number}.o"))

    @classmethod
    def tearDownClass(cls):
        cls.directory.cleanup()

    def run_one(self, program, *arguments):
        compile_into(self.directory.name, program, [f"tests/torture/{program}.c", *self.objects], "-static",
                     "-Wl,--wrap=segment_owner_take,--wrap=segment_owner_release")
        done = subprocess.run([QEMU, os.path.join(self.directory.name, program), *arguments], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=False, timeout=300)
        tap.note("\n".join(line for line in done.stdout.splitlines() if line.startswith("# ")))
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_torn_reads(self):
        self.run_one("torn_reads", "1", "2")

    def test_upheaval(self):
        self.run_one("upheaval", "50000", "1")


if __name__ == "__main__":
    tap.main()
