#!/usr/bin/env python3
"""The daemon's memory, descriptors and CPU under loads that are larger than it: within its limits, and printed.

A large save goes to a server that keeps checksums only (scripts/sums_server.py), so that no disk bounds it.
"""

import json
import os
import pathlib
import random
import resource
import subprocess
import sys
import threading
import time
import zlib

from support import FULL, ROOT, Mount, eventually, main, s3, scratch, servers, unique

SAVE_BYTES = (64 << 30) if FULL else (1 << 30)
SAVE_FILES = 8
ENTRIES = 100_000
OPEN_FILES = 10_000
MEMORY_LIMIT = 512 << 20  # the default of --memory-limit
# The program itself, its threads' stacks and what the allocator keeps of what was freed.
MEMORY_SLACK = 128 << 20
BLOCK_BYTES = 1 << 20
SEED = 20264


class SumsServer:
    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "scripts" / "sums_server.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, preexec_fn=servers.die_with_parent(),
        )  # fmt: skip
        self.endpoint = f"http://127.0.0.1:{json.loads(self.process.stdout.readline())['port']}"

    def ask(self, **command) -> dict:
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.kill()
        self.process.wait()


class SumsMount(Mount):
    def __init__(self, prefix: str, *flags):
        self.server = SumsServer()
        super().__init__(prefix, *flags)

    def argv(self, *extra):
        return [self.server.endpoint if a == s3().endpoint else a for a in super().argv(*extra)]

    def clear(self):
        super().clear()
        self.server.close()


class Watch:
    """Peak memory and descriptors of a daemon while it lasts, and the CPU it took."""

    def __init__(self, mount: Mount):
        self.pid = mount.process.pid
        self.before, self.started = self.cpu(), time.monotonic()
        self.peak, self.files = 0, 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.look)

    def __enter__(self):
        pathlib.Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the peak from here on
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        self.seconds = time.monotonic() - self.started
        self.cpu_seconds = self.cpu() - self.before

    def look(self):
        while not self.ended.wait(0.1):
            for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    self.peak = max(self.peak, int(line.split()[1]) << 10)
            self.files = max(self.files, len(os.listdir(f"/proc/{self.pid}/fd")))

    def cpu(self) -> float:
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def show(self, name: str, more: str = ""):
        print(f"    {name}: peak memory {self.peak >> 20} MiB of {MEMORY_LIMIT >> 20}, {self.files} descriptors, "
              f"{self.cpu_seconds:.1f} s of CPU in {self.seconds:.1f} s{more}", flush=True)  # fmt: skip
        assert self.peak < MEMORY_LIMIT + MEMORY_SLACK, f"{name}: {self.peak >> 20} MiB"


def block(file: int, number: int, base: bytes) -> bytes:
    """Seeded, and no two alike."""
    return file.to_bytes(8, "little") + number.to_bytes(8, "little") + base[16:]


def test_a_save_larger_than_memory():
    here = SumsMount(unique("save"))
    base = random.Random(SEED).randbytes(BLOCK_BYTES)
    blocks = SAVE_BYTES // SAVE_FILES // BLOCK_BYTES
    try:
        with Watch(here) as watch:
            for n in range(SAVE_FILES):
                with open(here.path / f"shard{n}", "wb", buffering=0) as f:
                    for i in range(blocks):
                        f.write(block(n, i, base))
        compared = 0
        for n in range(SAVE_FILES):
            told = here.server.ask(sums=f"{here.prefix}/shard{n}")
            assert told["size"] == blocks * BLOCK_BYTES, told["size"]
            at = 0
            for size, crc in told["sums"]:
                assert size % BLOCK_BYTES == 0
                ours = 0
                for i in range(at, at + size // BLOCK_BYTES):
                    ours = zlib.crc32(block(n, i, base), ours)
                assert ours == crc, f"shard{n}: the part at block {at} has other bytes"
                at += size // BLOCK_BYTES
                compared += size
        gib = SAVE_BYTES / (1 << 30)
        watch.show(f"a save of {gib:g} GiB", f", {watch.cpu_seconds / gib:.2f} s of CPU a GiB, {compared} bytes compared")
        here.stop()
    finally:
        here.clear()


def test_a_directory_of_a_hundred_thousand_entries():
    here = SumsMount(unique("wide"))
    try:
        here.server.ask(fill=[f"{here.prefix}/d/", ENTRIES])
        with Watch(here) as watch:
            names = os.listdir(here.path / "d")
            assert len(names) == ENTRIES and len(set(names)) == ENTRIES
            with os.scandir(here.path / "d") as found:
                assert sum(entry.stat().st_size for entry in found) == ENTRIES
        watch.show(f"a directory of {ENTRIES} entries", f", {here.status()['fs']['inodes']} inodes")
        here.stop()
    finally:
        here.clear()


def test_ten_thousand_files_being_written_at_once():
    here = SumsMount(unique("open"))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(OPEN_FILES, hard - 1000)
    try:
        (here.path / "d").mkdir()
        with Watch(here) as watch:
            files = [os.open(here.path / "d" / f"f{i}", os.O_WRONLY | os.O_CREAT) for i in range(count)]
            for i, fd in enumerate(files):
                os.write(fd, b"%08d" % i)
            in_parallel(files, os.close)
        names = os.listdir(here.path / "d")
        assert len(names) == count, len(names)
        for i in range(0, count, 97):
            told = here.server.ask(sums=f"{here.prefix}/d/f{i}")
            assert told["sums"] == [[8, zlib.crc32(b"%08d" % i)]], (i, told)
        watch.show(f"{count} files being written at once")
        here.stop()
    finally:
        here.clear()


def test_past_each_count_programs_wait_and_none_fails():
    flags = ("--file-limit", "16", "--upload-limit", "4", "--request-limit", "8", "--dirty-limit", "1MiB")
    here = SumsMount(unique("counts"), *flags)
    try:
        def write(number: int):
            with open(here.path / f"f{number}", "wb", buffering=0) as f:
                f.write(b"%08d" % number * 4096)

        in_parallel(list(range(1000)), write, workers=64)
        assert len(os.listdir(here.path)) == 1000
        for number in range(0, 1000, 37):
            told = here.server.ask(sums=f"{here.prefix}/f{number}")
            assert told["sums"] == [[32768, zlib.crc32(b"%08d" % number * 4096)]], told
        now = here.status()
        write_status, requests = now["fs"]["write"], now["kernel_requests"]
        assert (write_status["staged_files_max"], write_status["uploads_max"]) == (16, 4)
        assert (requests["waiting_max"], write_status["dirty_bytes_max"]) == (8, 1 << 20)
        assert now["panics"] == 0
        here.stop()
    finally:
        here.clear()


def test_names_not_in_use_make_room_for_others():
    limit, count = 2_000, 10_000
    here = SumsMount(unique("names"), "--inode-limit", str(limit))
    try:
        here.server.ask(fill=[f"{here.prefix}/d/", count])
        most = 0
        for number in range(count):
            os.stat(here.path / "d" / f"{number:08d}")
            if number % 500 == 0:
                most = max(most, here.status()["fs"]["inodes"])
        assert most <= limit, most
        print(f"    {count} names met, at most {most} of {limit} known at a time")
        here.stop()
    finally:
        here.clear()


def in_parallel(items: list, work, workers: int = 32):
    problems = []

    def some(start: int):
        try:
            for item in items[start::workers]:
                work(item)
        except BaseException as e:
            problems.append(e)

    threads = [threading.Thread(target=some, args=(i,)) for i in range(workers)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not problems, problems[:3]


if __name__ == "__main__":
    main(globals(), needs_mount=True)
