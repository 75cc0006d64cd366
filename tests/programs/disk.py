#!/usr/bin/env python3
"""The cache disk fails: it is full, or gives EIO. Clean data makes room, dirty data stays, the mount lives.

The disk is a small file system of the test's own: tmpfs where it fills, ext4 over a loop device where it is
shut down (EXT4_IOC_SHUTDOWN), after which all of its input and output is EIO.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import struct
import time

from support import Mount, Skip, detach, eventually, main, run, s3, scratch, unique
from proxied import ProxiedMount

IO_TIMEOUT_SECONDS = 4
GRACE_SECONDS = 12
EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2


def bounded(*more):
    return ("--io-timeout", f"{IO_TIMEOUT_SECONDS}s", *more)


@contextlib.contextmanager
def tmpfs(mib: int):
    if os.geteuid() != 0:
        raise Skip("a small disk wants root")
    path = scratch(f"tmpfs-{mib}-{time.monotonic_ns()}")
    run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", path)
    try:
        yield path
    finally:
        detach(path)


@contextlib.contextmanager
def ext4(mib: int):
    if os.geteuid() != 0:
        raise Skip("a loop device wants root")
    image = scratch("images") / f"{time.monotonic_ns()}.img"
    with open(image, "wb") as f:
        f.truncate(mib << 20)
    run("mkfs.ext4", "-q", "-F", image)
    path = scratch(f"ext4-{time.monotonic_ns()}")
    try:
        run("mount", "-o", "loop", image, path)
    except AssertionError as e:
        raise Skip(f"no loop device here: {e}") from e
    try:
        yield path
    finally:
        detach(path)
        image.unlink()


def shut_down(path: pathlib.Path):
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(fd)


def read_cold(path: pathlib.Path) -> bytes:
    with open(path, "rb") as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return f.read()


def fails(call, *args, with_errno) -> float:
    started = time.monotonic()
    try:
        call(*args)
    except OSError as e:
        assert e.errno in with_errno, f"{errno.errorcode.get(e.errno)} from a disk that fails"
        return time.monotonic() - started
    raise AssertionError("it succeeded on a disk that fails")


def test_a_full_disk_gives_up_clean_data_and_never_dirty_data():
    with tmpfs(96) as disk:
        here = ProxiedMount(unique("full"), *bounded(), cache=disk / "cache")
        clean = os.urandom(30 << 20)
        s3().put(f"{here.prefix}/clean", clean)
        assert read_cold(here.path / "clean") == clean
        cached = here.status()["fs"]["read"]["cache_bytes"]
        assert cached > 20 << 20, cached
        dirty = os.urandom(20 << 20)
        held = open(here.path / "dirty", "wb", buffering=0)
        more = open(here.path / "more", "wb", buffering=0)
        here.proxy.set(away="503")  # from here on nothing can go up
        held.write(dirty)
        # Somebody else fills the disk, to the last page.
        with open(disk / "filler", "wb", buffering=0) as f, contextlib.suppress(OSError):
            while True:
                f.write(bytes(1 << 20))
        took = fails(fill, more, with_errno={errno.ENOSPC})
        assert took < 3 * IO_TIMEOUT_SECONDS + GRACE_SECONDS, f"{took:.1f} s until ENOSPC"
        (disk / "filler").unlink()
        here.proxy.set(away=None)
        eventually("the store is back", lambda: writes(here.path / "probe"), 30, 0.2)
        held.close()  # every dirty byte is still there
        assert s3().get(f"{here.prefix}/dirty") == dirty
        assert read_cold(here.path / "clean") == clean
        os.unlink(here.path / "more")
        more.close()
        here.stop()


def fill(f):
    for _ in range(90):
        f.write(os.urandom(1 << 20))


def writes(path: pathlib.Path) -> bool:
    try:
        path.write_bytes(b"p")
        return True
    except OSError:
        return False


def test_eio_of_the_disk_poisons_the_file_and_not_the_mount():
    with ext4(128) as disk:
        here = Mount(unique("eio"), *bounded(), cache=disk / "cache")
        body, old = os.urandom(3 << 20), b"old content"
        s3().put(f"{here.prefix}/cached", body)
        assert read_cold(here.path / "cached") == body
        (here.path / "f").write_bytes(old)
        f = open(here.path / "f", "r+b", buffering=0)
        f.write(os.urandom(300_000))
        for n in range(4):  # nothing of it may be had from the page cache
            s3().put(f"{here.prefix}/new{n}", body)
        shut_down(disk)
        run("sync", ok=None)
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("1")
        # What can be read without the disk is read.
        for n in range(4):
            assert read_cold(here.path / f"new{n}") == body, n
        assert read_cold(here.path / "cached") == body
        assert sorted(os.listdir(here.path)) == ["cached", "f", "new0", "new1", "new2", "new3"]
        # What must be staged is not acknowledged, unless its bytes did reach the bucket.
        written = None
        try:
            f.write(b"more")
            f.close()
            written = s3().get(f"{here.prefix}/f")
        except OSError as e:
            assert e.errno == errno.EIO, e
            assert s3().get(f"{here.prefix}/f") == old
        assert written is None or len(written) == 300_004, len(written)
        fails((here.path / "another").write_bytes, b"x", with_errno={errno.EIO, errno.ENOSPC})
        assert "another" not in s3().keys(here.prefix)
        os.mkdir(here.path / "d")  # needs no disk
        os.unlink(here.path / "new0")
        assert here.status()["fs"]["read"]["disk_errors"] > 0
        run("umount", "-l", here.path)
        here.clear()


if __name__ == "__main__":
    main(globals(), needs_mount=True)
