# SPDX-License-Identifier: ISC
"""unittest results as TAP.

Not a test framework: unittest runs the tests, this writes down what came of them, one line a case, so
that the test driver counts every case, skips included. A test says `self.skipTest("why")`.
"""
import os
import sys
import time
import traceback
import unittest

SkipTest = unittest.SkipTest
_TAP = sys.stdout


def note(text):
    """Prints lines of diagnosis ("# ...")."""
    for line in str(text).splitlines() or [""]:
        print("#", line, file=_TAP, flush=True)


class _Result(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.number = 0
        self.failed = 0
        self.bad_subtests = 0
        self.started = time.monotonic()

    def _line(self, ok, test, directive=""):
        self.number += 1
        self.failed += not ok
        name = test.id().replace("__main__.", "").replace("#", "")
        print(f"{'ok' if ok else 'not ok'} {self.number} - {name}{directive}", file=_TAP, flush=True)

    def startTest(self, test):
        super().startTest(test)
        self.bad_subtests = 0
        self.started = time.monotonic()

    def stopTest(self, test):
        seconds = time.monotonic() - self.started
        if seconds > 1:
            note(f"{seconds:.1f} s")
        super().stopTest(test)

    def addSuccess(self, test):
        if not self.bad_subtests:
            self._line(True, test)

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.bad_subtests += 1
            note("".join(traceback.format_exception(*err)))
            self._line(False, subtest)

    def _failure(self, test, err):
        note("".join(traceback.format_exception(*err)))
        self._line(False, test)

    addFailure = _failure
    addError = _failure

    def addSkip(self, test, reason):
        self._line(True, test, " # SKIP " + " ".join(str(reason).split()).replace("#", ""))

    def addExpectedFailure(self, test, err):
        self._line(False, test)  # fix it, or drop the test

    def addUnexpectedSuccess(self, test):
        self._line(False, test)


def main():
    """Runs the test cases of the calling script, or those named as arguments, and exits: 0, or 1 on failure."""
    module = sys.modules["__main__"]
    loader = unittest.TestLoader()
    if len(sys.argv) > 1:
        suite = loader.loadTestsFromNames(sys.argv[1:], module)
    else:
        suite = loader.loadTestsFromModule(module)
    if suite.countTestCases() == 0:
        print("Bail out! no tests", file=_TAP, flush=True)
        sys.exit(1)
    # What a test or a library prints must not be taken for a result.
    sys.stdout = sys.stderr
    result = _Result()
    suite.run(result)
    print(f"1..{result.number}", file=_TAP, flush=True)
    _TAP.flush()
    sys.stderr.flush()
    sys.exit(1 if result.failed else 0)


def source_dir():
    """The top of the source tree."""
    here = os.path.dirname(os.path.abspath(__file__))
    return os.environ.get("CBSHM_SOURCE_DIR") or os.path.dirname(os.path.dirname(here))


def build_dir():
    """The top of the build tree: $CBSHM_BUILD_DIR, else the current directory if it is one."""
    return os.environ.get("CBSHM_BUILD_DIR") or os.getcwd()
