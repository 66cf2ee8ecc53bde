"""Runs one PostgreSQL program for `storage.server_cluster`: as an unprivileged account, and detached for good.

A script of its own, run by path (`python -I server_launch.py ACCOUNT WAY PROGRAM ARGUMENT...`), because both changes
must happen in a fresh process between fork and exec, which is not safe inside a caller with threads. Standard library
only; nothing of the project is imported here, and nothing else belongs here. It runs on POSIX only.

ACCOUNT is `-` (stay who we are) or an account's name. WAY is `wait` (become the program) or `detach` (own session, and
no child of the caller, so that the caller neither owns nor reaps it). Exit code 77: the account cannot be taken.
"""

import ctypes
import os
import struct
import sys

CANNOT_CHANGE_ACCOUNT = 77

# linux/prctl.h, linux/securebits.h, linux/capability.h
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522


def become(account: str) -> None:
    """Change from root to `account` for good, keeping only the right to pass file permissions (CAP_DAC_OVERRIDE).

    PostgreSQL refuses the user id 0, not the capability. With it the account reaches a home and binaries below a folder
    that only root may enter, and Docker grants it to root by default, unlike user namespaces. NO_SETUID_FIXUP makes
    access(2), which PostgreSQL asks about its own program file, see the capability too.

    Raises OSError or KeyError when the kernel or the account list says no.
    """
    import pwd  # not on Windows, where this module is imported for its constant

    entry = pwd.getpwnam(account)
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
    os.setgroups([])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    only = 1 << _CAP_DAC_OVERRIDE
    # two words each of effective, permitted, inheritable: the low 32 capabilities, then the high ones
    _check(libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), struct.pack("=6I", only, only, only, 0, 0, 0)))
    _check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main(account: str, way: str, command: list[str]) -> None:
    """Become `account`, detach where wanted, then become `command`; returns only in the parent of a detached one."""
    if account != "-":
        try:
            become(account)
        except (OSError, KeyError) as error:
            sys.stderr.write(f"{error}\n")
            sys.exit(CANNOT_CHANGE_ACCOUNT)
    if way == "detach":
        os.setsid()
        if os.fork() != 0:
            return
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
