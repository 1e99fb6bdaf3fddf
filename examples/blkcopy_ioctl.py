#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Copies ranges of a volume under `blkcopy mount`: the calls of include/blkcopy.h for Python.

    blkcopy_ioctl.py FILE SRC:DST:LEN...
    blkcopy_ioctl.py --from SOURCE [--durable] [--offload-only] FILE SRC:DST:LEN...

Prints how far each range came. Exit code 0: all copied; 1: not all; 2: not begun.
"""

import argparse
import ctypes
import os
import sys

RANGES_MAX, FROM_RANGES_MAX = 511, 510
DURABLE, OFFLOAD_ONLY = 1, 2
_WRITE, _READ = 1, 2


def _ioc(direction, number, size):
    return direction << 30 | size << 16 | 0x12 << 8 | number


class Range(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("src", "dst", "len", "comp_len")]


class Ranges(ctypes.Structure):
    """Head of BLKCOPY(n); n of Range follow."""

    _fields_ = [("nr_range", ctypes.c_uint64), ("reserved", ctypes.c_uint64)]


class From(ctypes.Structure):
    """Head of BLKCOPY_FROM(n); n of Range follow."""

    _fields_ = [
        ("nr_range", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("token", ctypes.c_uint8 * 16),
    ]


def BLKCOPY(n):
    return _ioc(_READ | _WRITE, 129, ctypes.sizeof(Ranges) + n * ctypes.sizeof(Range))


BLKCOPY_SOURCE = _ioc(_READ, 200, 16)


def BLKCOPY_FROM(n):
    return _ioc(_READ | _WRITE, 201, ctypes.sizeof(From) + n * ctypes.sizeof(Range))


# Not fcntl.ioctl: it throws the buffer's answer away in some versions when the call fails, and comp_len is in it.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]


def _ioctl(fd, number, argument):
    """0, or the errno."""
    return 0 if _libc.ioctl(fd, number, ctypes.byref(argument)) == 0 else ctypes.get_errno()


def token(fd):
    """A token for BLKCOPY_FROM: it stands for this open file until its last descriptor closes."""
    out = (ctypes.c_uint8 * 16)()
    why = _ioctl(fd, BLKCOPY_SOURCE, out)
    if why:
        raise OSError(why, os.strerror(why))
    return bytes(out)


def copy(fd, ranges, source=None, flags=0):
    """Copies (src, dst, len) within fd, or from the file of the token `source`. Returns (errno or 0, [comp_len, ..])."""
    n = len(ranges)
    head, most = (Ranges, RANGES_MAX) if source is None else (From, FROM_RANGES_MAX)
    if not 1 <= n <= most or (flags and source is None):
        raise ValueError("1 to %d ranges; flags need a source" % most)

    class Argument(ctypes.Structure):
        _fields_ = [("head", head), ("ranges", Range * n)]

    argument = Argument()
    argument.head.nr_range = n
    if source is not None:
        argument.head.flags = flags
        argument.head.token[:] = source
    for entry, (src, dst, length) in zip(argument.ranges, ranges):
        entry.src, entry.dst, entry.len = src, dst, length
    why = _ioctl(fd, BLKCOPY(n) if source is None else BLKCOPY_FROM(n), argument)
    return why, [entry.comp_len for entry in argument.ranges]


def main():
    parser = argparse.ArgumentParser(description="Copies ranges of a volume under `blkcopy mount`.")
    parser.add_argument("--from", dest="source", metavar="SOURCE")
    parser.add_argument("--durable", action="store_const", const=DURABLE, default=0)
    parser.add_argument("--offload-only", action="store_const", const=OFFLOAD_ONLY, default=0)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("ranges", metavar="SRC:DST:LEN", nargs="+")
    args = parser.parse_args()
    try:
        ranges = [tuple(int(number) for number in text.split(":")) for text in args.ranges]
        if any(len(entry) != 3 for entry in ranges):
            raise ValueError("a range is SRC:DST:LEN")
        to = os.open(args.file, os.O_RDWR)
        # Open until the end: the token stands for it.
        source = None if args.source is None else token(os.open(args.source, os.O_RDONLY))
        why, done = copy(to, ranges, source, args.durable | args.offload_only)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for (src, dst, length), comp_len in zip(ranges, done):
        print("%d:%d:%d %d" % (src, dst, length, comp_len))
    if why:
        print("%s: %s" % (args.file, os.strerror(why)), file=sys.stderr)
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main())
