#!/usr/bin/env python3
"""What Ray needs of a filesystem (needs 1 to 9 and 11; need 10, failures, stands in failures.py), on two nodes of one
bucket. What is ours alone (EILSEQ, the length of keys) is asked of mounts only."""

import concurrent.futures
import errno
import os
import shutil
import stat
import subprocess
import tempfile
import threading

from nodes import check, key, mounted, nodes, places, raises, same
from support import eventually, main, s3


def test_01_mkdir_races_between_nodes_end_in_one_directory():
    a, b = places("n01")
    for i in range(10):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            roots = [a, b] * 4
            list(pool.map(lambda r, i=i: os.makedirs(r / f"run-{i}" / "rank" / "x", exist_ok=True), roots))
        for root in (a, b):
            assert (root / f"run-{i}/rank/x").is_dir()
            raises(errno.EEXIST, os.mkdir, root / f"run-{i}")


def test_02_truncate_over_an_existing_file_at_any_time():
    a, b = places("n02")
    for i, body in enumerate((b"first " * 1000, b"second", b"", b"third " * 300_000, b"4")):
        node = (a, b)[i % 2]
        (node / "checkpoint_000001").mkdir(exist_ok=True)
        (node / "state.json").write_bytes(body)
        same(a / "state.json", body)
        same(b / "state.json", body)


def test_03_empty_files_are_seen_once_closed():
    a, b = places("n03")
    (a / ".validate_storage_marker").touch()
    assert (b / ".validate_storage_marker").stat().st_size == 0
    same(b / ".validate_storage_marker", b"")
    assert os.listdir(b) == [".validate_storage_marker"]
    if mounted():
        assert s3().get(key(a / ".validate_storage_marker")) == b""


def test_04_what_is_closed_is_seen_by_the_other_node_at_once():
    a, b = places("n04")
    for i in range(20):
        here, there = ((a, b), (b, a))[i % 2]
        name = f"f{i}"
        check(not (there / name).exists())  # a negative answer must not be remembered
        (here / name).write_bytes(b"%d" % i * (i + 1))
        assert (there / name).stat().st_size == len(b"%d" % i * (i + 1))
        same(there / name, b"%d" % i * (i + 1))
        assert name in os.listdir(there)
        (here / name).write_bytes(b"again")
        same(there / name, b"again")
        (there / name).unlink()
        raises(errno.ENOENT, open, here / name)
        assert name not in os.listdir(here)


def test_05_a_record_is_never_in_the_bucket_before_what_was_closed_earlier():
    a, _ = places("n05")
    if not mounted():
        return
    done, wrong, looks = threading.Event(), [], [0]
    base = f"{nodes()[0].prefix}/n05"

    def look():
        while not done.is_set():
            # Records first: one that is there promises that its data is, too.
            records = [k for k in s3().keys(base) if k.startswith("record")]
            data = s3().keys(base)
            wrong.extend(r for r in records if data.get(r.replace("record", "data")) != 300_000)
            looks[0] += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    for i in range(25):
        (a / f"data-{i}").write_bytes(b"d" * 300_000)
        (a / f"record-{i}").write_bytes(b"{}")
    done.set()
    watcher.join()
    assert looks[0] > 2 and not wrong, (looks, wrong)


def test_06_a_rewrite_replaces_at_close_and_not_before():
    a, b = places("n06")
    old, new = b"old" * 50_000, b"newer" * 100_000
    (a / "model.pt").write_bytes(old)
    with open(a / "model.pt", "wb") as f:
        f.write(new[:1000])
        f.flush()
        if mounted():
            same(b / "model.pt", old)
            assert s3().get(key(a / "model.pt")) == old
        assert (a / "model.pt").stat().st_size == 1000  # the writer's own node sees its bytes
        f.write(new[1000:])
    same(b / "model.pt", new)
    if mounted():
        assert s3().get(key(a / "model.pt")) == new
        with open(a / "fresh", "wb") as f:
            f.write(b"x")
            f.flush()
            assert "n06/fresh" not in s3().keys(nodes()[0].prefix), "an object before close"
        assert s3().get(key(a / "fresh")) == b"x"


def test_06_a_redirected_program_that_has_written_nothing_yet_does_not_empty_the_old_file():
    """The shell opens the file, gives it the number 1 and closes the number it came under: no end."""
    a, b = places("n06-redirected")
    (a / "log").write_bytes(b"of the run before")
    for script, new in (
        ("exec > {}; read go; echo new", b"new\n"),  # a close by the shell itself
        ("{{ sh -c 'read go'; echo newer; }} > {}", b"newer\n"),  # and one by a child that inherited it
        ("exec > {}; read go", b""),
    ):
        old = (a / "log").read_bytes()
        command = ["bash", "-c", script.format(a / "log")]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as shell:
            eventually("the shell has emptied it", lambda: (a / "log").stat().st_size == 0)
            for _ in range(20):
                same(b / "log", old) if mounted() else None
            shell.stdin.write(b"go\n")
        assert shell.returncode == 0
        same(b / "log", new)
        if mounted():
            assert s3().get(key(a / "log")) == new
    with subprocess.Popen(["bash", "-c", f"exec > {a}/log; read go"], stdin=subprocess.PIPE) as shell:
        eventually("the shell waits", lambda: (a / "log").stat().st_size == 0)
        twin = os.open(a / "log", os.O_WRONLY)  # with another handle open, a close is a close
        os.close(twin)
        same(b / "log", b"")
        shell.stdin.close()


def test_07_eight_writers_of_one_process():
    a, b = places("n07")
    bodies = {f"part-{i}": os.urandom(3_000_000 + i) for i in range(16)}

    def copy(item):
        with open(a / item[0], "wb") as f:
            for at in range(0, len(item[1]), 1 << 20):
                f.write(item[1][at : at + (1 << 20)])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(copy, bodies.items()))
    for name, body in bodies.items():
        same(b / name, body)


def test_08_listings_are_whole_and_a_directory_is_removed_in_one_breath():
    a, b = places("n08")
    names = {f"trial_{i:04}" for i in range(300)}
    (a / "exp").mkdir()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: (a / "exp" / n).write_bytes(n.encode()), names))
    assert set(os.listdir(b / "exp")) == names
    for entry in os.scandir(b / "exp"):
        assert entry.is_file() and entry.stat().st_size == 10
    with open(b / "exp" / "trial_0001", "rb") as held:
        raises(errno.ENOTEMPTY, os.rmdir, b / "exp")
        for name in os.listdir(b / "exp"):
            os.unlink(b / "exp" / name)
        os.rmdir(b / "exp")  # no .fuse_hidden stands in the way
        assert held.read() == b"trial_0001"
    raises(errno.ENOENT, os.stat, b / "exp")
    raises(errno.ENOENT, os.listdir, a / "exp")


def test_09_an_open_file_survives_its_unlink():
    a, _ = places("n09")
    with open(a / "f", "wb+") as f:
        f.write(b"before")
        f.flush()
        os.unlink(a / "f")
        f.write(b" after")
        f.seek(0)
        assert f.read() == b"before after"
        assert os.fstat(f.fileno()).st_nlink == 0
        assert os.listdir(a) == []
    assert os.listdir(a) == []
    with tempfile.TemporaryFile(dir=a) as f:  # its size is what was written, also once it has no name
        f.write(b"x" * 1000)
        assert f.seek(0, os.SEEK_END) == 1000 == os.fstat(f.fileno()).st_size
        f.truncate(10)
        assert os.fstat(f.fileno()).st_size == 10
    (a / "replaced").write_bytes(b"old")
    with open(a / "replaced", "ab+") as f:
        (a / "new").write_bytes(b"new")
        os.rename(a / "new", a / "replaced")
        f.write(b" and more")
        f.flush()
        assert os.fstat(f.fileno()).st_size == len(b"old and more")
        f.seek(0)
        assert f.read() == b"old and more"
    (a / "g").write_bytes(b"uploaded" * 200_000)
    with open(a / "g", "rb") as f:
        os.unlink(a / "g")
        assert f.read() == b"uploaded" * 200_000
    with open(a / "again", "wb") as f:  # a new file of the name is another file
        f.write(b"one")
        os.unlink(a / "again")
        (a / "again").write_bytes(b"two")
    same(a / "again", b"two")


def test_11_names():
    a, b = places("n11")
    good = [
        "PPO_env_lr=0.001,layers=[64, 64]_2024-01-01", "x" * 255, "é" * 127, "日本語", "a b", " lead", "trail ",
        "dot.", "...", "%41", "a+b", "a?b", "a#b", "a&b", "a:b", 'a"b', "a'b", "a*b", "<a>", "$a", "~a",
        "a;b", "a|b", "{a}", "^a", "`a", "@a", "!a", "-rf", "😀", "e\u0301", "\u00e9", "..a", ".a", "a%2Fb",
    ]  # fmt: skip
    for i, name in enumerate(good):
        (a / name).write_bytes(b"%d" % i)
    assert sorted(os.listdir(b)) == sorted(good), set(os.listdir(b)) ^ set(good)
    for i, name in enumerate(good):
        same(b / name, b"%d" % i)
        if mounted():
            assert s3().get(f"{nodes()[0].prefix}/n11/{name}") == b"%d" % i, name
    for name in good:
        (b / name).rename(b / (name[:120] + "~2"))
    assert len(os.listdir(a)) == len(good)
    raises(errno.ENAMETOOLONG, os.mkdir, a / ("x" * 256))
    raises(errno.ENAMETOOLONG, os.stat, a / ("x" * 256))
    if mounted():
        for bad in (b"tab\there", b"line\nbreak", b"\x01", b"\x7f", b"not utf-8 \xff", b"half \xc3"):
            path = os.fsencode(a) + b"/" + bad
            raises(errno.EILSEQ, os.mkdir, path)
            raises(errno.EILSEQ, os.open, path, os.O_CREAT | os.O_WRONLY)
            raises(errno.EILSEQ, os.symlink, b"x", path)
            raises(errno.EILSEQ, os.rename, os.fsencode(a / "a b~2"), path)


def test_11_a_path_longer_than_a_key_may_be_is_refused():
    a, _ = places("n11-deep")
    if not mounted():
        return
    deep, level = a, "d" * 200
    for _ in range(4):
        deep = deep / level
        deep.mkdir()
    length = len(key(deep)) + 1
    fits = deep / ("f" * min(255, 1024 - length))
    fits.write_bytes(b"x")
    assert s3().get(key(fits)) == b"x"
    assert len(key(fits)) in (1024, length + 255)
    over = deep / ("d" * (1024 - length - 2))
    over.mkdir()
    raises(errno.ENAMETOOLONG, os.open, over / "toolong", os.O_CREAT | os.O_WRONLY)
    raises(errno.ENAMETOOLONG, os.mkdir, over / "toolong")
    raises(errno.ENAMETOOLONG, os.symlink, "x", over / "toolong")
    raises(errno.ENAMETOOLONG, os.rename, fits, over / "toolong")
    shutil.rmtree(a / level)


def test_zz_both_nodes_unmount_cleanly():
    for node in nodes():
        node.stop()


if __name__ == "__main__":
    main(globals())
