#!/usr/bin/env python3
"""What other trainers need of a filesystem (needs 12 to 22), on two nodes of one bucket."""

import concurrent.futures
import errno
import fcntl
import mmap
import os
import stat
import struct
import subprocess
import sys
import threading
import time

from nodes import (
    ATTRIBUTE_SECONDS, key, mounted, nodes, OFD_SETLK, places, raises, RENAME_EXCHANGE,
    RENAME_NOREPLACE, renameat2, same,
)  # fmt: skip
from support import eventually, main, s3


def test_12_rename_replaces_whole_on_both_nodes():
    a, b = places("n12")
    (a / "latest").write_bytes(b"old")
    stop, seen = threading.Event(), set()

    def look():
        while not stop.is_set():
            seen.add((b / "latest").read_bytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for i in range(20):
            (a / "tmp").write_bytes(b"%d" % i * 1000)
            os.rename(a / "tmp", a / "latest")
            same(b / "latest", b"%d" % i * 1000)
    finally:
        stop.set()
        watcher.join()
    assert seen <= {b"old"} | {b"%d" % i * 1000 for i in range(20)}, "a rename was seen half done"
    assert os.listdir(b) == ["latest"]


def test_12_rename_of_an_open_dirty_locked_file():
    a, b = places("n12-open")
    with open(a / "tmp.lock", "wb") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        f.write(b"half ")
        f.flush()
        os.rename(a / "tmp.lock", a / "manifest")
        f.write(b"whole")
    same(a / "manifest", b"half whole")
    same(b / "manifest", b"half whole")
    raises(errno.ENOENT, os.stat, b / "tmp.lock")
    (a / "x").write_bytes(b"x")
    with open(a / "manifest", "rb") as f:
        os.rename(a / "x", a / "manifest")
        assert f.read() == b"half whole"  # the handle keeps what it opened
    same(b / "manifest", b"x")


def test_12_rename_of_directories():
    a, b = places("n12-dirs")
    (a / "tmp" / "sub").mkdir(parents=True)
    for i in range(12):
        (a / "tmp" / f"f{i}").write_bytes(b"%d" % i)
    (a / "tmp" / "sub" / "deep").write_bytes(b"deep")
    (a / "step_1").mkdir()
    os.rename(a / "tmp", a / "step_1")  # over an empty directory
    for node in (a, b):
        assert sorted(os.listdir(node)) == ["step_1"]
        assert sorted(os.listdir(node / "step_1")) == sorted([f"f{i}" for i in range(12)] + ["sub"])
        assert (node / "step_1/sub/deep").read_bytes() == b"deep"
    (a / "other").mkdir()
    raises(errno.ENOTEMPTY, os.rename, a / "other", a / "step_1")
    raises(errno.EINVAL, os.rename, a / "step_1", a / "step_1" / "sub" / "x")
    (a / "file").write_bytes(b"f")
    raises(errno.ENOTDIR, os.rename, a / "other", a / "file")
    raises(errno.EISDIR, os.rename, a / "file", a / "other")
    os.rename(b / "step_1", b / "other" / "moved")
    same(a / "other/moved/sub/deep", b"deep")
    assert sorted(os.listdir(a)) == ["file", "other"]
    eventually("the old name is gone", lambda: not (a / "step_1").exists(), ATTRIBUTE_SECONDS + 1)


def test_12_rename_flags():
    a, _ = places("n12-flags")
    (a / "x").write_bytes(b"x")
    (a / "y").write_bytes(b"y")
    raises(errno.EEXIST, renameat2, a / "x", a / "y", RENAME_NOREPLACE)
    renameat2(a / "x", a / "z", RENAME_NOREPLACE)
    same(a / "z", b"x")
    assert sorted(os.listdir(a)) == ["y", "z"]
    if mounted():
        raises(errno.EINVAL, renameat2, a / "y", a / "z", RENAME_EXCHANGE)


def test_13_fsync_of_files_and_directories():
    a, _ = places("n13")
    with open(a / "f", "wb", buffering=0) as f:
        f.write(b"durable" * 1000)
        os.fsync(f.fileno())
        if mounted():  # fsync means in the bucket, close or not
            assert s3().get(key(a / "f")) == b"durable" * 1000
            before = nodes()[0].requests()
        os.fsync(f.fileno())
        os.fdatasync(f.fileno())
        directory = os.open(a, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(directory)
        os.close(directory)
        if mounted():  # with nothing to say it says nothing
            after = nodes()[0].requests()
            assert after["put"] == before["put"], (before, after)


def test_14_attributes_are_kept_without_another_upload():
    a, b = places("n14")
    (a / "model").write_bytes(b"weights" * 1000)
    (a / "dir").mkdir()
    os.symlink("model", a / "link")
    before = s3().client.head_object(Bucket=s3().bucket, Key=key(a / "model")) if mounted() else None
    when = 1_600_000_000_123_456_789
    for name, mode in (("model", 0o640), ("dir", 0o711)):
        os.chmod(a / name, mode)
        os.utime(a / name, ns=(when, when))
        if os.geteuid() == 0:
            os.chown(a / name, 1234, 5678)
        os.setxattr(a / name, "user.note", b"n\0\xff")
        os.setxattr(a / name, "user.gone", b"x")
        os.removexattr(a / name, "user.gone")

    def holds(root):
        for name, mode in (("model", 0o640), ("dir", 0o711)):
            seen = os.stat(root / name)
            assert stat.S_IMODE(seen.st_mode) == mode, f"{root}/{name}: mode {seen.st_mode:o}"
            assert seen.st_mtime_ns == when, f"{root}/{name}: mtime {seen.st_mtime_ns}"
            if os.geteuid() == 0:
                assert (seen.st_uid, seen.st_gid) == (1234, 5678)
            assert os.listxattr(root / name) == ["user.note"]
            assert os.getxattr(root / name, "user.note") == b"n\0\xff"
            raises(errno.ENODATA, os.getxattr, root / name, "user.absent")
        assert os.readlink(root / "link") == "model"

    holds(a)
    os.listdir(b)  # what a listing shows on the other node, it shows with its attributes
    eventually("attributes on the other node", lambda: os.stat(b / "model").st_mtime_ns == when, 5)
    holds(b)
    if mounted():
        nodes()[0].remount(fresh_cache=True)
        holds(a)
        after = s3().client.head_object(Bucket=s3().bucket, Key=key(a / "model"))
        assert after["LastModified"] == before["LastModified"] and after["ETag"] == before["ETag"]
    (a / "model").write_bytes(b"new weights")  # a rewrite keeps mode and xattrs, not the time
    assert stat.S_IMODE(os.stat(a / "model").st_mode) == 0o640
    assert os.getxattr(a / "model", "user.note") == b"n\0\xff"
    assert os.stat(a / "model").st_mtime_ns > when
    raises(errno.EEXIST, lambda: os.setxattr(a / "model", "user.note", b"", os.XATTR_CREATE))
    raises(errno.ENODATA, lambda: os.setxattr(a / "model", "user.no", b"", os.XATTR_REPLACE))


def test_15_writes_anywhere_and_reads_while_writing():
    a, b = places("n15")
    size = 5_000_000
    with open(a / "w", "wb+") as f:
        f.truncate(size)  # safetensors: full size first
        f.seek(size - 4)
        f.write(b"tail")
        f.seek(0)
        f.write(b"head")
        f.flush()
        with open(a / "w", "rb") as reader:
            assert reader.read(4) == b"head"
            reader.seek(size // 2)
            assert reader.read(4) == b"\0\0\0\0"
            reader.seek(-4, 2)
            assert reader.read() == b"tail"
    want = b"head" + b"\0" * (size - 8) + b"tail"
    same(b / "w", want)
    with open(b / "w", "rb+") as f:  # patch the middle of what is only in the bucket
        f.seek(1_000_001)
        f.write(b"patch")
    want = want[:1_000_001] + b"patch" + want[1_000_006:]
    same(a / "w", want)
    os.truncate(a / "w", 1_000_003)
    same(b / "w", want[:1_000_003])
    os.truncate(b / "w", 1_200_000)
    same(a / "w", want[:1_000_003] + b"\0" * (1_200_000 - 1_000_003))
    raises(errno.EINVAL, os.truncate, a / "w", -1)


def test_16_append_with_a_new_open_for_each_record():
    a, b = places("n16")
    want = b""
    for i in range(60):
        record = b"%d," % i * 50
        with open(a / "events.log", "ab") as f:
            f.write(record)
        want += record
        if i % 20 == 19:
            same(b / "events.log", want)
    descriptors = [os.open(a / "events.log", os.O_APPEND | os.O_WRONLY) for _ in range(2)]
    for i in range(20):  # two appenders of one node lose nothing of each other
        os.write(descriptors[i % 2], b"%02d" % i)
        want += b"%02d" % i
    for descriptor in descriptors:
        os.close(descriptor)
    same(a / "events.log", want)
    same(b / "events.log", want)


def test_17_symlink_and_exclusive_create_have_one_winner_between_nodes():
    a, b = places("n17")

    def exclusive(path):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    def link(path):
        os.symlink("owner", path)

    def won(take, path, start):
        start.wait()
        try:
            take(path)
            return 1
        except FileExistsError:
            return 0

    for take in (exclusive, link):
        for i in range(20):
            start = threading.Barrier(4)
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                roots = (a, b, a, b)
                wins = list(pool.map(lambda r: won(take, r / f"lock-{take.__name__}-{i}", start), roots))  # noqa: B023
            assert sum(wins) == 1, f"{take.__name__}: {sum(wins)} winners in round {i}"
    (b / "lock-link-0").unlink()

    def taken_again():  # whoever waits for a lock tries again; a name known here may be a second old
        try:
            os.symlink("next", a / "lock-link-0")
            return True
        except FileExistsError:
            return False

    eventually("the lock can be taken", taken_again, ATTRIBUTE_SECONDS + 1)
    assert os.readlink(b / "lock-link-0") == "next"


HOLD_LOCK = """
import fcntl, os, struct, sys
f = open(sys.argv[1], "r+b")
kind = sys.argv[2]
if kind == "flock": fcntl.flock(f, fcntl.LOCK_EX)
elif kind == "posix": fcntl.lockf(f, fcntl.LOCK_EX, 10, 0)
else: fcntl.fcntl(f, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 10, 0))
print("held", flush=True)
sys.stdin.read()
"""


def test_18_locks_hold_between_processes_of_a_node():
    a, _ = places("n18")
    (a / "f").write_bytes(b"0123456789abcdef")
    takers = {
        "flock": lambda f: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB),
        "posix": lambda f: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0),
        "ofd": lambda f: fcntl.fcntl(f, OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 10, 0)),
    }
    for kind, take in takers.items():
        other = subprocess.Popen(
            [sys.executable, "-c", HOLD_LOCK, a / "f", kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert other.stdout.readline() == b"held\n", kind
        with open(a / "f", "r+b") as f:
            raises(errno.EAGAIN, take, f)
            if kind == "posix":
                fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 6, 10)  # another range is free
            other.stdin.close()
            other.wait(10)
            take(f)  # a dead holder holds nothing


def test_19_inode_numbers_are_unique_and_stable():
    a, b = places("n19")
    names = [f"f{i}" for i in range(100)]
    for name in names:
        (a / name).write_bytes(b"")
    numbers = {name: os.stat(a / name).st_ino for name in names}
    assert len(set(numbers.values())) == len(names), "two files share a number"
    for entry in os.scandir(a):
        assert entry.inode() == numbers[entry.name], f"readdir and stat disagree on {entry.name}"
    (a / "f0").write_bytes(b"new content, same file")
    os.rename(a / "f1", a / "moved")
    assert os.stat(a / "f0").st_ino == numbers["f0"]
    assert os.stat(a / "moved").st_ino == numbers["f1"]
    os.symlink("f2", a / "to-f2")
    assert os.path.samefile(a / "f2", a / "to-f2") and not os.path.samefile(a / "f2", a / "f3")
    with open(a / "f3", "ab") as f:
        assert os.fstat(f.fileno()).st_ino == numbers["f3"]
    b_numbers = [os.stat(b / name).st_ino for name in names[2:]]
    assert len(set(b_numbers)) == len(b_numbers)


def test_20_directory_times_move_and_never_run_backwards():
    a, b = places("n20")
    last = {a: 0, b: 0}

    def look(root):
        now = os.stat(root).st_mtime_ns
        assert now >= last[root], f"the time of {root} ran back by {last[root] - now} ns"
        last[root] = now
        return now

    look(a)
    steps = [
        lambda: (a / "f").write_bytes(b"1"),
        lambda: (a / "d").mkdir(),
        lambda: os.rename(a / "f", a / "g"),
        lambda: os.symlink("g", a / "l"),
        lambda: (a / "g").unlink(),
        lambda: (a / "d").rmdir(),
    ]
    for number, step in enumerate(steps):
        before = look(a)
        time.sleep(0.01)  # more than a clock tick, so that a change can be told
        step()
        assert look(a) > before, f"step {number} left the directory's time as it was"
        look(b)
    # A store tells times to the second: what is made and uploaded within one is not older for it.
    eventually("a second has begun", lambda: time.time() % 1 < 0.1, pause=0.01)
    dirs = []
    for i in range(5):  # what sorts checkpoints by time must get them in order
        (a / f"checkpoint-{i}").mkdir()
        (a / f"checkpoint-{i}" / "f").write_bytes(b"x")
        dirs.append(a / f"checkpoint-{i}")
        time.sleep(0.01)
    times = [os.stat(d).st_mtime_ns for d in dirs]
    assert times == sorted(times), times
    if mounted():
        nodes()[0].remount()
        again = [os.stat(d).st_mtime_ns for d in dirs]
        assert again == times, f"after a remount: off by {[(y - x) / 1e9 for x, y in zip(times, again)]} s"


def test_21_maps_private_and_shared():
    a, b = places("n21")
    body = os.urandom(3_000_000)
    (a / "tensors").write_bytes(body)
    with open(b / "tensors", "rb") as f, mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as m:
        assert m[:] == body
    with open(a / "tensors", "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY) as m:
        m[0:4] = b"mine"
        assert m[:4] == b"mine"
    same(a / "tensors", body)
    with open(a / "tensors", "r+b") as f:
        with mmap.mmap(f.fileno(), 0) as m:
            m[1_000_000:1_000_006] = b"shared"
            with open(a / "tensors", "rb") as other:
                other.seek(1_000_000)
                assert other.read(6) == b"shared"
            m.flush()
    want = body[:1_000_000] + b"shared" + body[1_000_006:]
    same(a / "tensors", want)
    same(b / "tensors", want)
    with open(a / "grown", "w+b") as f:
        f.truncate(8192)
        with mmap.mmap(f.fileno(), 8192) as m:
            m[8190:8192] = b"ok"
    same(b / "grown", b"\0" * 8190 + b"ok")
    with open(a / "late", "w+b") as f:
        f.write(body)
        f.flush()
        m = mmap.mmap(f.fileno(), 0)
        m[5:9] = b"page"  # which is dirty from here on
    m[5:9] = b"late"  # nothing but the bytes tells of it
    m.close()
    want = body[:5] + b"late" + body[9:]
    eventually("the last store is seen", lambda: (b / "late").read_bytes() == want)


def test_22_many_small_writes_ask_the_store_nothing():
    a, _ = places("n22")
    before = nodes()[0].requests() if mounted() else {}
    with open(a / "log", "wb", buffering=0) as f:
        written = nodes()[0].requests() if mounted() else {}
        for _ in range(2000):
            f.write(b"x" * 100)
        if mounted():
            now = nodes()[0].requests()
            spent = sum(now.values()) - sum(written.values())
            assert spent <= 2, f"2,000 writes cost requests: {written} -> {now}"  # attributes of before
    assert (a / "log").stat().st_size == 200_000
    if mounted():
        after = nodes()[0].requests()
        assert after["put"] - before["put"] <= 2, (before, after)


def test_zz_both_nodes_unmount_cleanly():
    for node in nodes():
        node.stop()


if __name__ == "__main__":
    main(globals())
