#!/usr/bin/env python3
"""A bucket that other tools filled mounts as it is, and what POSIX can't name never breaks a listing."""

import os
import shutil
import stat
import time

from support import Mount, eventually, main, run, s3, scratch, unique

# Keys that no path can be: left out of listings, counted in `status`.
UNNAMEABLE = ("a//b", "../up", "d/./x", "tab\there", "d/new\nline", "/lead", "d/..")


def test_markers_and_implied_directories_are_directories():
    prefix = unique("markers")
    for key in ("marked/", "marked/f", "empty/", "implied/deep/f", "plain"):
        s3().put(f"{prefix}/{key}", b"" if key.endswith("/") else b"x")
    here = Mount(prefix)
    assert sorted(os.listdir(here.path)) == ["empty", "implied", "marked", "plain"]
    assert os.listdir(here.path / "marked") == ["f"]
    assert os.listdir(here.path / "empty") == []
    assert os.listdir(here.path / "implied" / "deep") == ["f"]
    for name in ("empty", "implied", "marked"):
        assert (here.path / name).is_dir()
    os.unlink(here.path / "marked" / "f")
    assert (here.path / "marked").is_dir()
    for name in ("marked", "empty"):
        os.rmdir(here.path / name)
        assert not (here.path / name).exists()
    here.stop()
    assert s3().keys(prefix) == {"implied/deep/f": 1, "plain": 1}


def test_keys_that_posix_cannot_name_are_left_out_and_counted():
    prefix = unique("unnameable")
    s3().put(f"{prefix}/good", b"g")
    s3().put(f"{prefix}/d/good", b"g")
    placed = []
    for key in UNNAMEABLE:
        try:
            s3().put(f"{prefix}/{key}", b"x")
            placed.append(key)
        except Exception as e:  # some servers refuse some of them
            print(f"    not placed: {key!r} ({type(e).__name__})")
    stored = {
        item["Key"] for page in s3().client.get_paginator("list_objects_v2").paginate(Bucket=s3().bucket, Prefix=prefix)
        for item in page.get("Contents", [])
    }  # fmt: skip
    placed = [key for key in placed if f"{prefix}/{key}" in stored]  # some normalize them
    print(f"    as they are in the bucket: {placed}")
    here = Mount(prefix)
    names = os.listdir(here.path)
    assert "good" in names and "d" in names, names
    for name in names + os.listdir(here.path / "d"):
        assert name not in ("", ".", "..") and "\t" not in name and "\n" not in name and "/" not in name
    assert "good" in os.listdir(here.path / "d")
    assert (here.path / "d" / "good").read_bytes() == b"g"
    for key in placed:  # reading on is safe, wherever it leads
        run("find", here.path, "-ls", seconds=60)
    if placed:
        status = here.status()["fs"]
        assert status["odd_keys"] >= 1 and status["odd_key_names"], status
    here.stop()


def test_an_object_that_is_also_a_prefix_breaks_nothing():
    prefix = unique("both")
    s3().put(f"{prefix}/f", b"object")
    s3().put(f"{prefix}/f/x", b"under")
    s3().put(f"{prefix}/good", b"g")
    here = Mount(prefix)
    names = os.listdir(here.path)
    assert len(names) == len(set(names)) and "good" in names, names
    if "f" in names:
        seen = os.stat(here.path / "f")
        if stat.S_ISDIR(seen.st_mode):
            assert os.listdir(here.path / "f") == ["x"]
        else:
            assert (here.path / "f").read_bytes() == b"object"
    assert (here.path / "good").read_bytes() == b"g"
    here.stop()
    assert s3().get(f"{prefix}/f") == b"object" and s3().get(f"{prefix}/f/x") == b"under"


def test_a_directory_that_another_tool_emptied_can_be_removed_with_what_is_recorded_of_it():
    """Its records alone keep it in every LIST, though it is none: it could be neither seen nor removed."""
    prefix = unique("emptied")
    here, there = Mount(prefix), Mount(prefix, name="b")
    for name in "looked-at", "alone/deep", "alone", "busy":
        (here.path / name).mkdir(parents=True, exist_ok=True)
        (here.path / name / "f").write_bytes(b"x")
        (here.path / name / "f").chmod(0o600)
        os.fsync(directory := os.open(here.path / name, os.O_RDONLY))
        os.close(directory)
    for key in "looked-at/", "looked-at/f", "alone/deep/", "alone/deep/f", "busy/":
        s3().client.delete_object(Bucket=s3().bucket, Key=f"{prefix}/{key}")
    assert "looked-at" in os.listdir(there.path)
    time.sleep(1.1)  # for so long a name just listed may be believed
    if not (there.path / "looked-at").exists():  # some stores show an empty directory instead
        assert "looked-at" not in os.listdir(there.path), "a name that every listing shows and no stat finds"
    else:
        os.rmdir(there.path / "looked-at")
    assert "deep" in os.listdir(there.path / "alone")
    os.unlink(there.path / "alone" / "f")
    os.rmdir(there.path / "alone")  # unseen: nothing has looked at what is in it
    check_gone(there.path / "alone")
    assert os.stat(there.path / "busy" / "f").st_mode & 0o777 == 0o600, "records of a directory that lives"
    shutil.rmtree(here.path / "busy")
    here.stop()
    there.stop()
    left = [key for key in every_key(prefix) if not key.startswith(f"{prefix}/.trialfs/")]
    assert left == [], left


def check_gone(path):  # a name just listed may be believed for a second
    eventually(f"{path} is gone", lambda: not path.exists(), 10)


def every_key(prefix: str) -> list[str]:
    pages = s3().client.get_paginator("list_objects_v2").paginate(Bucket=s3().bucket, Prefix=f"{prefix}/")
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def test_an_object_changed_behind_the_mount_is_read_whole_or_not_at_all():
    prefix = unique("behind")
    old, new = b"o" * 9_000_000, b"n" * 9_000_000
    s3().put(f"{prefix}/f", old)
    here = Mount(prefix)
    assert (here.path / "f").read_bytes() == old
    s3().put(f"{prefix}/f", new)
    assert (here.path / "f").read_bytes() == new  # a new open sees it at once
    with open(here.path / "f", "rb", buffering=0) as f:
        first = f.read(1000)
        s3().put(f"{prefix}/f", old)
        try:
            rest = b""
            while piece := f.read(1 << 20):
                rest += piece
            assert set(first + rest) == {ord("n")}, "two versions in one read"
        except OSError as e:
            assert e.errno == 116, e  # ESTALE: the version that was opened is gone
    s3().client.delete_object(Bucket=s3().bucket, Key=f"{prefix}/f")
    try:
        open(here.path / "f", "rb").close()
        raise AssertionError("a deleted object still opens")
    except FileNotFoundError:
        pass
    here.stop()


def test_a_store_written_through_the_mount_is_plain_to_other_tools():
    prefix = unique("plain")
    here = Mount(prefix)
    for name, size in (("small", 10), ("empty", 0), ("large", 40 << 20)):
        body = os.urandom(size)
        (scratch("plain") / name).write_bytes(body)
        run("cp", scratch("plain") / name, here.path / name)
    here.stop()
    for name in ("small", "empty", "large"):
        assert s3().get(f"{prefix}/{name}") == (scratch("plain") / name).read_bytes()


if __name__ == "__main__":
    main(globals(), needs_mount=True)
