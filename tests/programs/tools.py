#!/usr/bin/env python3
"""Everyday programs: tar, rsync, cp, git and sqlite3 live in a mount as in any directory.

After each, the same bytes are read back from the bucket at the natural keys by an S3 client.
"""

import functools
import os
import pathlib
import shutil
import sqlite3
import subprocess
import sys

from support import (
    Skip, assert_bucket_holds, eventually, main, run, s3, same_trees, scratch, tree,
)  # fmt: skip

FILES_MIN = 2000
FILE_BYTES_MAX = 256 << 10  # a source tree: many small files
WAL_ROWS = 300


@functools.cache
def source() -> pathlib.Path:
    """A source tree of some thousand files, from the crates that this project was built with,
    and what source trees rarely hold: links, empty things, modes, odd names."""
    root = scratch("source") / "tree"
    root.mkdir()
    registry = pathlib.Path(os.environ.get("CARGO_HOME", "~/.cargo")).expanduser() / "registry" / "src"
    count = 0
    for crate in sorted(registry.glob("*/*")):
        for path in sorted(crate.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.stat().st_size <= FILE_BYTES_MAX:
                to = root / crate.name / path.relative_to(crate)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, to)
                count += 1
        if count >= FILES_MIN:
            break
    if count < FILES_MIN:
        raise Skip(f"{registry} has only {count} files")
    odd = root / "odd names, = [and] ünïcode"
    (odd / "empty").mkdir(parents=True)
    (odd / "nothing").touch()
    (odd / "run me").write_text("#!/bin/sh\n")
    (odd / "run me").chmod(0o755)
    (odd / "secret").write_text("s")
    (odd / "secret").chmod(0o600)
    (odd / "large").write_bytes(os.urandom(20 << 20))
    (odd / "to file").symlink_to("run me")
    (odd / "to nowhere").symlink_to("not/there")
    (odd / "to directory").symlink_to("../odd names, = [and] ünïcode/empty")
    os.utime(odd / "nothing", ns=(10**18 + 1, 10**18 + 123456789))
    return root


@functools.cache
def archive() -> pathlib.Path:
    path = scratch("source") / "tree.tar"
    run("tar", "--format=pax", "-cf", path, "-C", source(), ".")
    return path


def in_bucket(here, at: pathlib.Path):
    if here.is_mount:
        assert_bucket_holds(at, f"{here.prefix}/{at.relative_to(here.path)}")


def nothing_to_move(source_tree, copy):
    done = run("rsync", "-a", "--itemize-changes", "--stats", f"{source_tree}/", f"{copy}/")
    changes = [line for line in done.stdout.splitlines() if line[:1] in "<>ch.*" and len(line.split(" ")[0]) == 11]
    assert not changes, f"rsync -a again would change {len(changes)} things: {changes[:10]}"
    assert "Number of regular files transferred: 0" in done.stdout, done.stdout


def test_tar_unpacks_a_source_tree():
    here = tree("tar")
    at = here.path / "unpacked"
    at.mkdir()
    run("tar", "-xpf", archive(), "-C", at)
    run("tar", "--compare", "-f", archive(), "-C", at)  # bytes, modes, owners and times
    same_trees(source(), at)
    in_bucket(here, at)
    here.stop()


def test_an_unpacked_tree_is_the_same_from_another_mount_and_after_remount():
    here = tree("tar-there")
    at = here.path / "unpacked"
    at.mkdir()
    run("tar", "-xpf", archive(), "-C", at)
    there = tree("tar-there", name="b")
    # Bytes and names at once; modes and times of what was changed last may follow in a moment.
    same_trees(source(), there.path / "unpacked")
    compare = ("tar", "--compare", "-f", archive(), "-C", there.path / "unpacked")
    eventually("the same modes and times", lambda: run(*compare, ok=None).returncode == 0, 30, 1)
    there.stop()
    if here.is_mount:
        here.remount(fresh_cache=True)
    run("tar", "--compare", "-f", archive(), "-C", at)
    shutil.rmtree(at)
    assert not at.exists()
    if here.is_mount:
        left = s3().keys(here.prefix)
        assert not left, f"rm -r left {len(left)} objects: {list(left)[:5]}"
    here.stop()


def test_rsync_moves_nothing_the_second_time():
    here = tree("rsync")
    at = here.path / "copy"
    run("rsync", "-a", f"{source()}/", f"{at}/")
    nothing_to_move(source(), at)
    in_bucket(here, at)
    if here.is_mount:
        here.remount()
        nothing_to_move(source(), at)
    here.stop()


def test_cp_copies_whole_trees_into_and_inside_the_mount():
    here = tree("cp")
    run("cp", "-a", source(), here.path / "one")
    run("cp", "-a", here.path / "one", here.path / "two")
    run("diff", "-r", "--no-dereference", source(), here.path / "two")
    nothing_to_move(source(), here.path / "two")
    in_bucket(here, here.path / "two")
    run("mv", here.path / "two", here.path / "three")
    run("diff", "-r", "--no-dereference", source(), here.path / "three")
    in_bucket(here, here.path / "three")
    here.stop()


def test_git_commits_and_checks_a_repository():
    here = tree("git")
    repo = here.path / "repo"
    home = scratch("git-home")
    env = {
        **os.environ, "HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.com",
        "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.com",
    }  # fmt: skip
    git = functools.partial(run, "git", "-C", repo, env=env)
    crates = [p for p in sorted(source().iterdir()) if p.is_dir()][:12]
    repo.mkdir()
    git("init", "-q", "-b", "main")
    for crate in crates:
        shutil.copytree(crate, repo / crate.name, symlinks=True)
    git("add", "-A", "-f")
    git("commit", "-q", "-m", "all of it")
    git("fsck", "--full", "--strict")
    assert git("status", "--porcelain").stdout == ""
    git("checkout", "-q", "-b", "other")
    (repo / "new").write_text("new\n")
    git("add", "new")
    git("commit", "-q", "-m", "one more")
    git("checkout", "-q", "main")
    assert not (repo / "new").exists()
    git("merge", "-q", "other")
    git("repack", "-a", "-d", "-q")
    git("fsck", "--full", "--strict")
    assert git("status", "--porcelain").stdout == ""
    in_bucket(here, repo)
    clone = scratch("git-clone") / "clone"
    run("git", "clone", "-q", repo, clone, env=env)
    for crate in crates:
        same_trees(crate, clone / crate.name)
    here.stop()


SQL_WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for i in range(int(sys.argv[2])):
    db.execute("begin immediate")
    db.execute("insert into runs(who, i, note) values (?, ?, ?)", (sys.argv[3], i, "x" * (i % 500)))
    db.execute("commit")
"""


def sqlite_in(mode: str, rows: int):
    here = tree(f"sqlite-{mode}")
    path = here.path / "runs.db"
    db = sqlite3.connect(path, isolation_level=None)
    assert db.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
    db.execute("create table runs(id integer primary key, who text, i int, note text)")
    writers = [
        subprocess.Popen([sys.executable, "-c", SQL_WRITER, str(path), str(rows), who], stdin=subprocess.DEVNULL)
        for who in ("a", "b")
    ]
    codes = [w.wait(timeout=300) for w in writers]
    assert codes == [0, 0], codes
    assert db.execute("select count(*) from runs").fetchone() == (2 * rows,)
    db.execute("begin")
    db.execute("delete from runs")
    db.execute("rollback")
    assert db.execute("select count(*), count(distinct i) from runs").fetchone() == (2 * rows, rows)
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    db.close()
    done = run("sqlite3", path, "pragma integrity_check; select count(*) from runs;")
    assert done.stdout.split() == ["ok", str(2 * rows)], done.stdout
    if here.is_mount:
        copy = scratch("sqlite") / f"{mode}.db"
        copy.write_bytes(s3().get(f"{here.prefix}/runs.db"))
        raw = sqlite3.connect(copy)
        assert raw.execute("pragma integrity_check").fetchone() == ("ok",)
        assert raw.execute("select count(*) from runs").fetchone() == (2 * rows,)
        raw.close()
    here.stop()


def test_sqlite_with_a_rollback_journal():
    sqlite_in("delete", 40)


def test_sqlite_with_wal_and_two_processes():
    sqlite_in("wal", WAL_ROWS)


if __name__ == "__main__":
    main(globals())
