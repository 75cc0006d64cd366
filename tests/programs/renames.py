#!/usr/bin/env python3
"""Renames of directories that are in the bucket, seen from other nodes.

Observers on a second mount list and read without pause while a directory of 1,000 files goes back and forth
between two names: both names 0, neither 0, a part 0. Then the mover's mount dies (SIGKILL) at random moments:
afterwards the old name or the new one is there, whole. And what a rename costs in requests.
"""

import errno
import os
import random
import subprocess
import sys
import threading
import time

from support import FULL, Mount, eventually, main, options, s3, unique

FILES = 1000 if FULL else 300
RENAMES = 20 if FULL else 4
OBSERVERS = 4
KILLS = 50 if FULL else 6
LEASE = "3s"


def fill(directory, files=FILES):
    (directory / "sub").mkdir(parents=True)
    for i in range(files):
        (directory / ("sub" if i % 2 else "") / f"f{i:04}").write_bytes(b"%d " % i * 20)


def count(directory) -> int:
    """Files by two listings. Either may find that the directory went."""
    return sum(name != "sub" for name in os.listdir(directory)) + len(os.listdir(directory / "sub"))


class Observer(threading.Thread):
    """Lists the parent, then what it showed, then reads a file of it."""

    def __init__(self, parent, names, files=FILES):
        super().__init__(daemon=True)
        self.parent, self.names, self.files = parent, set(names), files
        self.seen = {"looks": 0, "both": 0, "neither": 0, "part": 0, "wrong": 0}
        self.told = []
        self.ended = threading.Event()

    def wrong(self, what, told):
        self.seen[what] += 1
        self.told.append(told)

    def look(self):
        shown = self.names & set(os.listdir(self.parent))
        if len(shown) != 1:
            return self.wrong("both" if shown else "neither", f"{shown}")
        directory = self.parent / shown.pop()
        try:
            got = len(os.listdir(directory)) - 1
            if got != (self.files + 1) // 2:
                return self.wrong("part", f"{got} names in {directory.name}")
            got = len(os.listdir(directory / "sub"))
            if got != self.files // 2:
                return self.wrong("part", f"{got} names in {directory.name}/sub")
            i = random.randrange(self.files)
            body = (directory / ("sub" if i % 2 else "") / f"f{i:04}").read_bytes()
            if body != b"%d " % i * 20:
                self.wrong("wrong", f"{len(body)} bytes in {i}")
        except OSError as e:
            if e.errno not in (errno.ENOENT, errno.ESTALE):  # renamed since it was listed
                self.wrong("wrong", f"{e}")

    def run(self):
        while not self.ended.is_set():
            self.look()
            self.seen["looks"] += 1

    def stop(self):
        self.ended.set()
        self.join(120)
        assert not self.is_alive(), "an observer hangs"


def observed(parents, names, act):
    observers = [Observer(parent, names) for parent in parents for _ in range(OBSERVERS // 2)]
    for observer in observers:
        observer.start()
    try:
        act()
    finally:
        for observer in observers:
            observer.stop()
    seen = {key: sum(o.seen[key] for o in observers) for key in observers[0].seen}
    print(f"    {seen}", flush=True)
    told = [line for o in observers for line in o.told][:5]
    bad = {key: n for key, n in seen.items() if key != "looks" and n}
    assert not bad, f"{bad}: {told}"
    assert seen["looks"] > 0


def test_observers_see_one_name_and_all_of_it():
    prefix = unique("observed")
    a, b = Mount(prefix, name="a"), Mount(prefix, name="b")
    c = Mount(prefix, "--read-only", name="c")
    fill(a.path / "old")
    took = []

    def back_and_forth():
        for i in range(RENAMES):
            names = ("old", "new") if i % 2 == 0 else ("new", "old")
            started = time.monotonic()
            os.rename(a.path / names[0], a.path / names[1])
            took.append(time.monotonic() - started)
            assert count(a.path / names[1]) == FILES
            time.sleep(0.5)  # some looks at this state, too

    observed([b.path, c.path], ("old", "new"), back_and_forth)
    print(f"    renames of {FILES} files took {', '.join(f'{t * 1000:.0f}' for t in took)} ms", flush=True)
    for mount in (c, b, a):
        mount.stop()
    assert set(s3().keys(prefix)) == {f"old/{'sub/' if i % 2 else ''}f{i:04}" for i in range(FILES)}


def test_a_rename_costs_a_few_requests_for_any_size():
    prefix = unique("cost")
    here = Mount(prefix)
    fill(here.path / "old", 101)
    os.listdir(here.path / "old")
    before = here.requests()
    at = time.monotonic()
    os.rename(here.path / "old", here.path / "new")
    took = time.monotonic() - at
    after = here.requests()
    spent = {k: after[k] - before[k] for k in after if after[k] != before[k]}
    print(f"    {took * 1000:.0f} ms; with what the background did by then: {spent}", flush=True)
    assert spent["put"] <= 8 and spent["list"] <= 20, spent
    here.stop()


def test_a_directory_with_a_key_that_has_no_name_is_shown_once_after_its_rename():
    prefix = unique("odd")
    here = Mount(prefix)
    (here.path / "oq" / "d").mkdir(parents=True)
    (here.path / "oq" / "d" / "ok").write_bytes(b"ok")
    s3().put(f"{prefix}/oq/d/c\x02x", b"odd")
    assert os.listdir(here.path / "oq" / "d") == ["ok"]
    os.rename(here.path / "oq" / "d", here.path / "oq" / "e")
    there = Mount(prefix, name="b")
    for mount in (here, there):
        eventually(f"only e at {mount.name}", lambda m=mount: os.listdir(m.path / "oq") == ["e"], 5)
        assert (mount.path / "oq" / "e" / "ok").read_bytes() == b"ok"
        assert not (mount.path / "oq" / "d").exists()
    assert set(s3().keys(prefix)) == {"oq/e/ok", "oq/e/c\x02x"}
    there.stop()
    here.stop()


def test_another_node_works_in_it_at_once():
    prefix = unique("works")
    a, b = Mount(prefix, name="a"), Mount(prefix, name="b")
    fill(a.path / "run", 40)
    (a.path / "there").mkdir()
    os.rename(a.path / "run", a.path / "there" / "run 2")
    new = b.path / "there" / "run 2"
    assert count(new) == 40 and not (b.path / "run").exists()
    (new / "f0000").unlink()
    (new / "f0002").write_bytes(b"over")
    os.rename(new / "sub" / "f0001", b.path / "out")
    (b.path / "run").mkdir()  # waits until the old is gone
    (b.path / "run" / "f0000").write_bytes(b"again")
    for mount in (a, b):
        new = mount.path / "there" / "run 2"
        eventually("38 files", lambda n=new: count(n) == 38)
        assert not (new / "f0000").exists() and (new / "f0002").read_bytes() == b"over"
        assert (mount.path / "out").read_bytes() == b"1 " * 20
        assert os.listdir(mount.path / "run") == ["f0000"]
    b.stop()
    a.stop()


def test_a_renamed_checkpoint_is_right_at_both_names():
    prefix = unique("checkpoint")
    a, b = Mount(prefix, name="a"), Mount(prefix, name="b")

    def save(at, word):
        at.mkdir()
        for i in range(20):
            (at / f"part{i}").write_bytes(word * 100)
        a.settle()

    save(a.path / "checkpoint_000001", b"one")
    os.rename(a.path / "checkpoint_000001", a.path / "checkpoint_000002")
    assert len(os.listdir(b.path / "checkpoint_000002")) == 20
    assert not (b.path / "checkpoint_000001").exists()
    save(a.path / "checkpoint_000001", b"two")
    for mount in (a, b):
        for name, word in (("checkpoint_000001", b"two"), ("checkpoint_000002", b"one")):
            at = mount.path / name
            assert sorted(os.listdir(at)) == sorted(f"part{i}" for i in range(20)), name
            assert all((at / f"part{i}").read_bytes() == word * 100 for i in range(20)), name
    b.stop()
    a.stop()


def test_a_dead_mover_leaves_the_old_or_the_new():
    rng = random.Random(options().seed or 1)
    prefix = unique("dead")
    b = Mount(prefix, "--lease", LEASE, name="b")
    files, outcome = 60, {"old": 0, "new": 0}
    here = "old"
    fill(b.path / here, files)
    for round in range(KILLS):
        a = Mount(prefix, "--lease", LEASE, name=f"a{round}")
        to = "new" if here == "old" else "old"
        assert os.listdir(a.path) == [here]
        mover = subprocess.Popen(
            [sys.executable, "-c", "import os, sys; os.rename(*sys.argv[1:])", a.path / here, a.path / to],
            stderr=subprocess.DEVNULL,
        )
        time.sleep(rng.uniform(0.0, 0.4))  # the moment of its death
        a.kill()
        a.clear()
        mover.wait(60)
        names = os.listdir(b.path)
        assert len(names) == 1, f"round {round}: {names}"
        assert count(b.path / names[0]) == files, f"round {round}: a part in {names}"
        outcome["old" if names[0] == here else "new"] += 1
        here = names[0]

        def clear():
            pages = s3().client.get_paginator("list_objects_v2").paginate(Bucket=s3().bucket, Prefix=f"{prefix}/")
            keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
            return not any(".from." in key or ".into." in key or "/moving." in key for key in keys)

        eventually("others finished it, or gave it up", clear, 60)
        assert os.listdir(b.path) == [here] and count(b.path / here) == files
        want = {f"{here}/{'sub/' if i % 2 else ''}f{i:04}" for i in range(files)}
        assert set(s3().keys(prefix)) == want, f"round {round}"
    print(f"    {outcome}", flush=True)
    b.stop()


if __name__ == "__main__":
    main(globals(), needs_mount=True)
