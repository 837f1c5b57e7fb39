#!/usr/bin/env python3
# SPDX-License-Identifier: ISC
"""
Reads the shared-memory segment of cbshm without libcbshm: everything here is in cbshm-segment(5), and nothing else is needed.

    segment_reader.py [--segment /cbshm] [--owner cbagent] [--socket /run/cbshm/io.cbshm] [NAME...]

prints a line of JSON for each of the breakers, or for all. A start for readers in other languages: the functions are in the
order of the page.

It runs where a processor does not reorder loads (x86-64): Python has no fences. Every number that may change is read by one
aligned load of its size, which is what a memoryview of 'Q' or 'I' does. Python also refuses to map more than a file holds, so
the file is mapped again when it has grown; a language that can map total_size at once should do that.
"""
import argparse
import fcntl
import json
import mmap
import os
import pwd
import socket
import stat
import struct
import sys
import time
import uuid

NO_TIME = -2**63
MASK = 2**64 - 1

HEADER = {
    "magic": (0, "Q"), "byte_order": (8, "I"), "layout_major": (12, "H"), "layout_minor": (14, "H"),
    "layout_hash": (16, "Q"), "feature_compat": (24, "I"), "feature_incompat": (28, "I"), "header_size": (32, "I"),
    "record_size": (36, "I"), "capacity": (40, "I"), "index_size": (44, "I"), "index_offset": (48, "Q"),
    "words_offset": (56, "Q"), "records_offset": (64, "Q"), "total_size": (72, "Q"), "hash_key": (80, "2Q"),
    "boot_id": (96, "16s"), "state": (128, "Q"), "boot_epoch": (136, "Q"), "allocated": (144, "Q"),
    "breakers": (152, "Q"), "clock_offset": (160, "q"), "owner_pid": (168, "Q"),
    "restored_at": (176, "Q"), "index_word": (192, "Q"),
    "change_sequence": (256, "Q"), "heartbeat": (320, "Q"), "database_confirmed": (328, "Q"),
    "owner_word_offset": (384, "I"), "owner_mutex": (392, "56s"),
}
RECORD = {"sequence": (0, "Q"), "name_length": (8, "Q"), "name": (64, "128s"), "copies[0]": (192, "52Q"),
          "copies[1]": (608, "52Q")}
DETAIL = {
    "version": (0, "Q"), "opened_at": (8, "q"), "disabled_until": (16, "q"), "last_failure_at": (24, "q"),
    "updated_at": (32, "q"), "deadline": (40, "q"), "default_ttl": (48, "q"), "drift_threshold": (56, "d"),
    "failure_threshold": (64, "I"), "schema_error_threshold": (68, "I"), "consecutive_failures": (72, "I"),
    "flags": (76, "I"), "incident_id": (80, "16s"), "actor_length": (96, "H"), "reason_length": (98, "H"),
    "disabled_by": (104, "72s"), "disabled_reason": (176, "240s"),
}
STATES = {1: "recovering", 2: "live", 3: "disconnected", 4: "stopped", 5: "retired"}
DISABLED, HAS_TTL, AUTO_RECOVER, MOVED = 1, 2, 4, 16
TOMBSTONE = MASK
TRIES = 64


class NoSegment(Exception):
    """There is none, or none that can be believed."""


class Busy(Exception):
    """The record changed under every attempt; try again."""


def fields(table, data):
    """A structure as a dictionary."""
    found = {}
    for name, (offset, kind) in table.items():
        values = struct.unpack_from("=" + kind, data, offset)
        found[name] = values if len(values) > 1 else values[0]
    return found


# ---- whom to believe ----

def trusted_users(owner):
    trusted = {os.geteuid(), 0}
    try:
        trusted.add(int(owner) if owner.isdigit() else pwd.getpwnam(owner).pw_uid)
    except KeyError:
        pass
    return trusted


def open_trusted(path, trusted):
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NoSegment(f"{path}: {error.strerror}") from None
    return check_file(fd, path, trusted)


def check_file(fd, path, trusted):
    status = os.fstat(fd)
    if (not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_mode & 0o022
            or status.st_uid not in trusted):
        os.close(fd)
        raise NoSegment(f"{path} is not to be trusted")
    return fd


def ask_agent(path, name, trusted):
    """The descriptor that the agent hands out, for where the name leads to nothing: GetSegment of io.cbshm(7)."""
    call = {"method": "io.cbshm.GetSegment", "parameters": {"name": name}}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1)
        try:
            connection.connect(path)
            (_, user, _) = struct.unpack("=3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if user not in trusted:
                raise NoSegment(f"the server at {path} is not to be trusted")
            connection.sendall(json.dumps(call).encode() + b"\0")
            text, descriptors, _, _ = socket.recv_fds(connection, 65536, 16)
        except OSError as error:
            raise NoSegment(f"{path}: {error.strerror or error}") from None
    if len(descriptors) == 1 and fcntl.fcntl(descriptors[0], fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return check_file(descriptors[0], f"what {path} hands out", {user, 0})
    for fd in descriptors:
        os.close(fd)
    raise NoSegment(f"{path}: {text.decode(errors='replace')}")


def check_header(header, file_size):
    """Every measure, before anything else is touched. Raises NoSegment."""
    end = header["header_size"]
    right = (header["magic"] == 0x4745534d48534243 and header["byte_order"] == 0x01020304
             and header["layout_major"] == 1 and header["layout_hash"] == 0x000101c0040001a0
             and header["feature_incompat"] == 0 and header["state"] in STATES
             and 448 <= end <= file_size and header["record_size"] == 1024
             and 16 <= header["capacity"] <= 2**20 and header["allocated"] <= header["capacity"]
             and 2 * header["capacity"] <= header["index_size"] <= 2**24
             and header["index_size"] & (header["index_size"] - 1) == 0)
    for area, count, size in (("index_offset", header["index_size"], 8), ("words_offset", header["capacity"], 8),
                              ("records_offset", header["capacity"], 1024)):
        right = right and header[area] % 64 == 0 and end <= header[area] <= 2**40
        end = header[area] + count * size
    if not right or end > header["total_size"] or file_size < header["records_offset"] + header["allocated"] * 1024:
        raise NoSegment("no segment of this layout")


# ---- the segment ----

def siphash(key, data):
    """SipHash-2-4."""
    v = [key[0] ^ 0x736f6d6570736575, key[1] ^ 0x646f72616e646f6d, key[0] ^ 0x6c7967656e657261,
         key[1] ^ 0x7465646279746573]

    def rotate(x, n):
        return (x << n | x >> 64 - n) & MASK

    def rounds(count):
        for _ in range(count):
            v[0] = v[0] + v[1] & MASK
            v[1] = rotate(v[1], 13) ^ v[0]
            v[0] = rotate(v[0], 32)
            v[2] = v[2] + v[3] & MASK
            v[3] = rotate(v[3], 16) ^ v[2]
            v[0] = v[0] + v[3] & MASK
            v[3] = rotate(v[3], 21) ^ v[0]
            v[2] = v[2] + v[1] & MASK
            v[1] = rotate(v[1], 17) ^ v[2]
            v[2] = rotate(v[2], 32)

    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) & 255])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xff
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


class Segment:
    """One attached segment; look() and names() follow it when it is replaced."""

    def __init__(self, name="/cbshm", owner="cbagent", agent="/run/cbshm/io.cbshm"):
        self._name = name
        self._trusted = trusted_users(owner)
        self._agent = agent
        self._attach()

    def _open(self):
        path = "/dev/shm" + self._name
        if os.path.lexists(path):
            return open_trusted(path, self._trusted)
        return ask_agent(self._agent, self._name, self._trusted)

    def _attach(self):
        fd = self._open()
        try:
            header = fields(HEADER, os.pread(fd, 4096, 0).ljust(448, b"\0"))
            size = os.fstat(fd).st_size
            check_header(header, size)
            self.header = header
            self._identity = os.fstat(fd)
            self._map(fd, size)
        finally:
            os.close(fd)

    def _map(self, fd, size):
        memory = memoryview(mmap.mmap(fd, size, prot=mmap.PROT_READ))
        self._size = size
        self._words = memory.cast("Q")  # of 8 bytes each
        self._halves = memory.cast("I")

    def _load(self, offset):
        return self._words[offset // 8]

    def value(self, name):
        """A field of the header that changes."""
        return fields(HEADER, self._words[:56].tobytes())[name]

    def allocated(self):
        """The slots whose records may be touched: the file is mapped again if it has grown."""
        allocated = min(self._load(144), self.header["capacity"])
        if self.header["records_offset"] + allocated * 1024 > self._size and not self._follow():
            allocated = (self._size - self.header["records_offset"]) // 1024
        return allocated

    def _follow(self):
        """What stands under the name now: another segment, or this one, longer. False if there is nothing new."""
        old = self._identity, self._size
        try:
            self._attach()
        except NoSegment:
            return False
        return (self._identity.st_ino, self._size) != (old[0].st_ino, old[1])

    def agent_alive(self):
        offset = self._halves[384 // 4]
        if offset % 4 or offset > 448 - 4:
            return False
        owner = self._halves[offset // 4]
        return owner & 0x3fffffff != 0 and not owner & 0x40000000

    # ---- index ----

    def _word(self, slot):
        return self._load(self.header["words_offset"] + 8 * slot)

    def _slot_name(self, slot, generation):
        """The name, if the slot still has this generation after it has been read."""
        at = (self.header["records_offset"] + 1024 * slot) // 8
        length, name = self._words[at + 1], self._words[at + 8:at + 24].tobytes()
        if self._word(slot) >> 6 & 0x3ffffff != generation or not 1 <= length <= 128:
            return None
        return name[:length]

    def _find(self, name):
        """(slot, generation), or None."""
        allocated = self.allocated()
        hashed = siphash(self.header["hash_key"], name)
        mask = self.header["index_size"] - 1
        for step in range(mask + 1):
            bucket = self._load(self.header["index_offset"] + 8 * ((hashed & 0xffffffff) + step & mask))
            if bucket == 0:
                return None
            slot = (bucket & 0xffffffff) - 1
            if bucket == TOMBSTONE or bucket >> 32 != hashed >> 32 or slot >= allocated:
                continue
            generation = self._word(slot) >> 6 & 0x3ffffff
            if generation and self._slot_name(slot, generation) == name:
                return slot, generation
        return None

    # ---- record ----

    def _detail(self, slot, generation):
        """(word, detail) that belong together; (None, None) if the slot is another's by now."""
        at = (self.header["records_offset"] + 1024 * slot) // 8
        for _ in range(TRIES):
            sequence = self._words[at]
            word = self._word(slot)
            for copy in (sequence & 1, 0) if sequence & 1 else (0,):
                start = at + 24 + 52 * copy
                data = self._words[start:start + 52].tobytes()
                if self._words[at] != sequence:
                    break
                detail = fields(DETAIL, data)
                if detail["version"] & 0xffffffff == word >> 32:
                    return (word, detail) if word >> 6 & 0x3ffffff == generation else (None, None)
            if word >> 6 & 0x3ffffff != generation:
                return None, None
        raise Busy

    def look(self, name):
        """A breaker's state as a dictionary, or None if there is no such breaker."""
        key = name.encode()
        for _ in range(TRIES):
            found = self._find(key)
            if (self._word(found[0]) if found else self._load(192)) & MOVED and self._follow():
                continue
            if not found:
                return None
            word, detail = self._detail(*found)
            if detail:
                return state(name, word, detail)
        raise Busy

    def names(self):
        """Those that are there."""
        if self._load(192) & MOVED:
            self._follow()
        found = []
        for slot in range(self.allocated()):
            generation = self._word(slot) >> 6 & 0x3ffffff
            name = self._slot_name(slot, generation) if generation else None
            if name:
                found.append(name.decode())
        return found


def state(name, word, detail):
    """What a word and its details say at this moment."""
    opened = bool(word & DISABLED)
    over = (word & (DISABLED | HAS_TTL | AUTO_RECOVER) == DISABLED | HAS_TTL | AUTO_RECOVER
            and detail["deadline"] <= time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def moment(field):
        return None if detail[field] == NO_TIME else detail[field]

    def text(field, length):
        return detail[field][:min(detail[length], len(detail[field]))].decode()

    return {
        "name": name, "disabled": opened and not over, "row_disabled": opened, "version": detail["version"],
        "opened_at": moment("opened_at"), "disabled_until": moment("disabled_until"),
        "last_failure_at": moment("last_failure_at"), "updated_at": moment("updated_at"),
        "consecutive_failures": detail["consecutive_failures"],
        "incident_id": str(uuid.UUID(bytes=detail["incident_id"])) if opened and any(detail["incident_id"]) else None,
        "disabled_by": text("disabled_by", "actor_length") if opened else "",
        "disabled_reason": text("disabled_reason", "reason_length") if opened else "",
        "drift_threshold": detail["drift_threshold"], "failure_threshold": detail["failure_threshold"],
        "schema_error_threshold": detail["schema_error_threshold"], "default_ttl": detail["default_ttl"],
        "auto_recover": bool(detail["flags"] & 2),
    }


def main():
    parser = argparse.ArgumentParser(description="Read the segment of cbshm.")
    parser.add_argument("--segment", default=os.environ.get("CBSHM_SEGMENT") or "/cbshm")
    parser.add_argument("--owner", default=os.environ.get("CBSHM_OWNER") or "cbagent")
    parser.add_argument("--socket", default=os.environ.get("CBSHM_SOCKET") or "/run/cbshm/io.cbshm")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args()
    try:
        segment = Segment(options.segment, options.owner, options.socket)
    except NoSegment as error:
        sys.exit(f"segment_reader: {error}")
    for name in options.names or sorted(segment.names()):
        print(json.dumps(segment.look(name) or {"name": name, "disabled": False, "version": None}))


if __name__ == "__main__":
    main()
