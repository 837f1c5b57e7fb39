# SPDX-License-Identifier: ISC
"""Runs a command under the restrictions of cbagent.service, as far as they can be had without systemd.

    confine.py UNIT [--user NAME] [--writable DIRECTORY]... -- COMMAND...

The file system is read-only but for the directories and /dev/shm; no new privileges; no capabilities; the system calls that
the unit's SystemCallFilter= leaves out kill the process, and so do memory that is writable and executable, and
sockets of other families. The process stays the same, so that its parent knows its pid. Ends with 77 if the machine cannot do it.

With --user it must be root, and becomes that user at the end. Without it makes a user namespace, in which other users
have no names.
"""
import argparse
import ctypes
import errno
import mmap
import os
import pwd
import re
import socket
import subprocess
import sys

_libc = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_MOUNT_ATTR_RDONLY = 1
_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP = 38, 24
_KILL_PROCESS, _ALLOW = 0x80000000, 0x7FFF0000
_EQ, _MASKED_EQ = 4, 7
CANNOT = 77


def _do(what, result):
    if result < 0:
        number = ctypes.get_errno()
        print(f"confine: {what}: {os.strerror(number)}", file=sys.stderr)
        sys.exit(CANNOT if number in (errno.EPERM, errno.ENOSYS, errno.ENOSPC, errno.EINVAL) else 1)


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def _read_only(path, on):
    attr = _MountAttr(set=_MOUNT_ATTR_RDONLY if on else 0, clear=0 if on else _MOUNT_ATTR_RDONLY)
    _do(f"mount_setattr {path}", _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, path.encode(), _AT_RECURSIVE if on else 0,
                                               ctypes.byref(attr), ctypes.sizeof(attr)))


def _write(path, text):
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _own_name_spaces():
    user, group = os.getuid(), os.getgid()
    _do("unshare", _libc.unshare(_NEWNS if user == 0 else _NEWNS | _NEWUSER))
    if user != 0:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")


def _protect_file_system(writable):
    _do("make the mounts private", _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
    for path in writable:
        _do(f"bind {path}", _libc.mount(path.encode(), path.encode(), None, _MS_BIND, None))
    _read_only("/", True)
    for path in writable:
        _read_only(path, False)


def settings(unit, key):
    """The values of a key in a unit file, in their order."""
    with open(unit, encoding="utf-8") as file:
        return [line.split("=", 1)[1].strip() for line in file if line.startswith(key + "=")]


def _members(group):
    """The system calls of a group as systemd knows it."""
    if not group.startswith("@"):
        return {group}
    said = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager", group], capture_output=True, text=True,
                          check=True).stdout
    names = re.findall(r"^ +([@a-z0-9_-]+)$", said, re.MULTILINE)
    return set().union(*(_members(name) for name in names))


def allowed_calls(unit):
    """What SystemCallFilter= of the unit leaves, and what systemd always adds to it."""
    allowed = _members("@default")
    for value in settings(unit, "SystemCallFilter"):
        for word in value.lstrip("~").split():
            if value.startswith("~"):
                allowed -= _members(word)
            else:
                allowed |= _members(word)
    return allowed


class _Argument(ctypes.Structure):
    _fields_ = [("number", ctypes.c_uint), ("comparison", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def _filter_calls(allowed):
    seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(_KILL_PROCESS)))

    def rule(name, *arguments):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # else this machine has no such call
            array = (_Argument * max(1, len(arguments)))(*arguments)
            if seccomp.seccomp_rule_add_array(context, ctypes.c_uint32(_ALLOW), number, len(arguments), array) != 0:
                sys.exit(f"confine: no rule can be made for {name}")

    for name in sorted(allowed - {"socket", "mmap", "mprotect"}):
        rule(name)
    for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):  # RestrictAddressFamilies=
        rule("socket", _Argument(0, _EQ, family, 0))
    for bits in (0, mmap.PROT_WRITE, mmap.PROT_EXEC):  # MemoryDenyWriteExecute=
        rule("mmap", _Argument(2, _MASKED_EQ, mmap.PROT_WRITE | mmap.PROT_EXEC, bits))
    rule("mprotect", _Argument(2, _MASKED_EQ, mmap.PROT_EXEC, 0))
    if seccomp.seccomp_load(context) != 0:
        sys.exit("confine: the filter of system calls cannot be loaded")


def _become(user):
    entry = pwd.getpwnam(user)
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    os.setgroups(os.getgrouplist(user, entry.pw_gid))
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("unit")
    parser.add_argument("--user")
    parser.add_argument("--writable", action="append", default=[])
    parser.add_argument("command", nargs="+")
    given = parser.parse_args()
    allowed = allowed_calls(given.unit)
    _own_name_spaces()
    _protect_file_system([*given.writable, "/dev/shm"])
    if given.user:
        _become(given.user)
    _do("no new privileges", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    os.umask(0o077)
    _filter_calls(allowed)
    os.execvp(given.command[0], given.command)


if __name__ == "__main__":
    main()
