"""The work that is measured: one function a row of the table, and what each row is held against.

Every function returns figures by name; the caller divides those of one subject by those of its base
in the same round. What is read is checked. Content is made from a seed, so that no two rounds write
the same bytes. Owns the work and its check. Does not own mounts, rounds and tables.
"""

import hashlib
import json
import mmap
import os
import pathlib
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

MIB = 1 << 20
SETTLE_SECONDS_MAX = 180
now = time.perf_counter


class Content:
    """Bytes of a seed: blocks of 1 MiB that differ in their first 32 bytes, cheap to make and check."""

    def __init__(self, seed: int):
        self.seed, self.base = seed, random.Random(seed).randbytes(MIB)

    def block(self, name: str, i: int, size: int = MIB) -> bytes:
        return (hashlib.sha256(f"{self.seed}/{name}/{i}".encode()).digest() + self.base[32:size])[:size]

    def write(self, path, size: int, sync=None):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            for at in range(0, size, MIB):
                block = self.block(os.path.basename(path), at // MIB, min(MIB, size - at))
                assert os.write(fd, block) == len(block)
            if sync:
                sync(fd)
        finally:
            os.close(fd)

    def check(self, path, size: int):
        fd, got = os.open(path, os.O_RDONLY), 0
        try:
            while block := read_full(fd, MIB):
                want = self.block(os.path.basename(path), got // MIB, len(block))
                assert block == want, f"{path} differs in MiB {got // MIB}"
                got += len(block)
        finally:
            os.close(fd)
        assert got == size, f"{path} has {got} of {size} bytes"


def have_memory_at_hand(size: int):
    """Touches memory and gives it back to the kernel. The host of a virtual machine may take free
    memory away within seconds, and whoever comes next would pay for having it again."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
    memory.close()


def read_full(fd: int, size: int) -> bytes:
    pieces, got = [], 0
    while got < size and (piece := os.read(fd, size - got)):
        pieces.append(piece)
        got += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def checkpoint(scale: float = 1.0) -> dict[str, int]:
    """A checkpoint's files: one large, some shards, some small; 672 MiB at scale 1."""
    files = {"model.bin": int(512 * scale) * MIB}
    files |= {f"shard{i}.bin": max(1, int(16 * scale)) * MIB for i in range(8)}
    return files | {f"meta{i}.json": 4096 for i in range(20)}


def median(values):
    return sorted(values)[len(values) // 2]


def until_in_bucket(client, prefix: str, files: dict[str, int]):
    deadline = now() + SETTLE_SECONDS_MAX
    while now() < deadline:
        have = client.list(prefix)
        if all(have.get(prefix + name) == size for name, size in files.items()):
            return
        time.sleep(0.02)
    raise AssertionError(f"not all of {prefix} is in the bucket")


def save(run, tree, files) -> dict[str, float]:
    """Writes the files one after another; until all are closed, and until all are in the bucket."""
    directory = tree.path / run.fresh("save")
    directory.mkdir()
    sync = None if tree.is_mount else os.fsync
    start = now()
    for name, size in files.items():
        run.content.write(directory / name, size, sync)
    figures = {"closed_s": now() - start}
    if tree.is_mount:
        if tree.asynchronous:
            until_in_bucket(run.client, run.key(tree, directory.name + "/"), files)
        figures["durable_s"] = now() - start
    run.saved[tree.name] = directory.name
    return figures


def raw_save(run, files) -> dict[str, float]:
    """The raw client: the same bytes, 8 threads, parts of 8 MiB, from memory."""
    body = b"".join(run.content.block("raw", i) for i in range(8))
    start = now()
    name = run.fresh("raw")
    small = [n for n, size in files.items() if size <= 8 * MIB]
    for file, size in files.items():
        if size > 8 * MIB:
            run.client.put_parts(f"{name}/{file}", [body] * (size // len(body)))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: run.client.ask("PUT", f"{name}/{n}", body=body[: files[n]]), small))
    seconds = now() - start
    run.saved["raw"] = name
    return {"durable_s": seconds}


def restore(run, tree, files) -> dict[str, float]:
    """Reads what `save` wrote, on another node with an empty cache, and again there."""
    other = run.other(tree)
    directory = other.path / run.saved[tree.name]
    figures = {}
    for state in ("cold_s", "warm_s"):
        start = now()
        assert sorted(os.listdir(directory)) == sorted(files)
        for name, size in files.items():
            run.content.check(directory / name, size)
        figures[state] = now() - start
    return figures


def raw_restore(run, files) -> dict[str, float]:
    """The raw client: ranged GETs of 8 MiB at 8 streams of each file that has so much."""
    start = now()
    for name, size in files.items():
        run.client.get_ranges(f"{run.saved['raw']}/{name}", size)
    return {"cold_s": now() - start}


def small(run, tree, count, threads) -> dict[str, float]:
    """Files of 4 KiB each created, written and closed."""
    directory = tree.path / run.fresh("small")
    directory.mkdir()
    sync = None if tree.is_mount else os.fdatasync
    each = lambda i: run.content.write(directory / f"f{i}", 4096, sync)
    start = now()
    if threads == 1:
        for i in range(count):
            each(i)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(each, range(count)))
    seconds = now() - start
    if tree.is_mount and tree.asynchronous:
        files = {f"f{i}": 4096 for i in range(count)}
        until_in_bucket(run.client, run.key(tree, directory.name + "/"), files)
    return {"seconds": seconds, "per_s": count / seconds}


def raw_small(run, count, threads) -> dict[str, float]:
    name, body = run.fresh("raw"), run.content.block("small", 0, 4096)
    start = now()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda i: run.client.ask("PUT", f"{name}/f{i}", body=body), range(count)))
    seconds = now() - start
    return {"seconds": seconds, "per_s": count / seconds}


def many(run, tree, count) -> dict[str, float]:
    """`ls -l` of a directory that another tool filled, on a node that knows nothing; and stats."""
    other = run.other(tree)
    directory = other.path / run.many_directory(other, count)
    figures = {}
    for state in ("cold_s", "warm_s"):
        start = now()
        with os.scandir(directory) as entries:
            got = sum(1 for entry in entries if entry.stat())
        figures[state] = now() - start
        assert got == count, (got, count)
    names = [str(directory / f"k{random.randrange(count):06}") for _ in range(10_000)]
    start = now()
    for name in names:
        os.stat(name)
    figures["stats_per_s"] = len(names) / (now() - start)
    return figures


def raw_many(run, count) -> dict[str, float]:
    run.many_directory(None, count)
    start = now()
    assert len(run.client.list(f"many{count}/")) == count
    return {"cold_s": now() - start}


def visible(run, tree, count=30) -> dict[str, float]:
    """From close here until another node, which polls, reads the content."""
    other = run.other(tree)
    name = run.fresh("seen")
    (tree.path / name).mkdir()
    closed, seen, wrong = {}, {}, set()

    def sees(i):
        try:
            run.content.check(other.path / name / f"n{i}", 4096)
            return True
        except OSError:
            return False
        except AssertionError:
            wrong.add(i)
            return False

    def writes():
        for i in range(count):
            run.content.write(tree.path / name / f"n{i}", 4096)
            closed[i] = now()
            time.sleep(0.1)

    writer = threading.Thread(target=writes)
    writer.start()
    deadline = now() + 60
    while len(seen) < count and now() < deadline:
        for i in range(min(count, len(closed) + 1)):
            if i not in seen and sees(i):
                seen[i] = now()
        time.sleep(0.002)
    writer.join()
    late = [max(0.0, seen[i] - closed[i]) for i in seen]
    return {"p50_s": median(late), "wrong": len(wrong | set(range(count)) - seen.keys())}


def patches(run, tree, count=2000, size=64 * MIB) -> dict[str, float]:
    """Random writes of 4 KiB in a file of 64 MiB, and fsync."""
    directory = tree.path / run.fresh("patch")
    directory.mkdir()
    run.content.write(directory / "f", size)
    where = random.Random(run.content.seed)
    fd = os.open(directory / "f", os.O_RDWR)
    try:
        start = now()
        for _ in range(count):
            os.pwrite(fd, run.content.base[:4096], where.randrange(size // 4096) * 4096)
        os.fsync(fd)
        return {"seconds": now() - start}
    finally:
        os.close(fd)


def appends(run, tree, count=50, size=10 * MIB) -> dict[str, float]:
    """A record added to a log of 10 MiB, which is opened and closed for each."""
    directory = tree.path / run.fresh("log")
    directory.mkdir()
    run.content.write(directory / "log", size)
    start = now()
    for i in range(count):
        with open(directory / "log", "ab") as log:
            log.write(b"%063d\n" % i)
    seconds = now() - start
    assert os.stat(directory / "log").st_size == size + count * 64
    return {"each_s": seconds / count}


def renames(run, tree, count=100, size=MIB) -> dict[str, float]:
    """A directory of `count` files and one large one, in the bucket, to another name."""
    name = run.fresh("ren")
    (tree.path / name).mkdir()
    files = {f"f{i}": size for i in range(count)} | {"big": 28 * size}
    for file, n in files.items():
        run.content.write(tree.path / name / file, n)
    if tree.is_mount and tree.asynchronous:
        until_in_bucket(run.client, run.key(tree, name + "/"), files)
    start = now()
    os.rename(tree.path / name, tree.path / f"{name}-to")
    seconds = now() - start
    for file, n in files.items():
        run.content.check(tree.path / f"{name}-to" / file, n)
    return {"seconds": seconds}


def mounting(run, tree) -> dict[str, float]:
    """From starting the program to the first answered listing, with a cache directory of before."""
    if not tree.is_mount:
        return {}
    tree.stop()
    tree.start(fresh=False)
    return {"seconds": tree.mount_seconds}


def write_json(path: pathlib.Path, value):
    write_text(path, json.dumps(value, indent=1))


def write_text(path: pathlib.Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
