"""Two nodes of one bucket, and how tests of them speak: places, errnos, bytes.

With --dir both are one plain directory.
"""

import ctypes
import errno
import functools
import os
import pathlib
import stat

from support import options, tree

ATTRIBUTE_SECONDS = 1.0  # how old a stat of a known name may be on another node
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
FALLOC_FL_KEEP_SIZE = 1
OFD_SETLK = 37

libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def nodes():
    a, b = tree("needs", name="a"), tree("needs", name="b")
    a.kept = b.kept = True
    return a, b


def places(name: str) -> tuple[pathlib.Path, pathlib.Path]:
    """One new directory, as each node sees it."""
    a, b = nodes()
    (a.path / name).mkdir()
    return a.path / name, b.path / name


def mounted() -> bool:
    return not options().dir


def key(path: pathlib.Path) -> str:
    a, b = nodes()
    base = a if path.is_relative_to(a.path) else b
    return f"{base.prefix}/{path.relative_to(base.path)}"


def raises(number: int, call, *args):
    try:
        call(*args)
    except OSError as e:
        assert e.errno == number, f"{errno.errorcode[number]} expected, got {e!r}"
        return
    raise AssertionError(f"{errno.errorcode[number]} expected, but it succeeded")


def same(path: pathlib.Path, want: bytes):
    got = path.read_bytes()
    if got != want:
        at = next((i for i, (x, y) in enumerate(zip(got, want)) if x != y), min(len(got), len(want)))
        raise AssertionError(
            f"{path}: {len(got)} bytes, not {len(want)}, or other ones: at {at} {got[at:at + 8]!r}, not {want[at:at + 8]!r}"
        )


def check(condition, text: str = ""):
    assert condition, text


def renameat2(source, to, flags):
    if libc.renameat2(-100, os.fsencode(source), -100, os.fsencode(to), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
