#!/usr/bin/env python3
"""The command line as a stranger uses it: mount in the background, status, unmount, help, users."""

import errno
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess

from support import (
    TRIALFS, Mount, Skip, daemons_of, detach, eventually, is_mounted, main, run, s3, scratch, unique, work,
)  # fmt: skip

NOBODY = 65534


class Background:
    """`trialfs mount` as typed: it returns when the mount answers."""

    def __init__(self, url: str, *flags, name: str, env: dict | None = None, **options):
        self.point = work() / "mnt" / name
        self.point.mkdir(parents=True)
        self.env = {**os.environ, **s3().env, "XDG_CACHE_HOME": str(scratch(name) / "cache"), **(env or {})}
        self.options = options
        if user := options.get("user"):
            for path in (self.point, scratch(name)):
                os.chown(path, user, user)
        store = ["--endpoint", s3().endpoint, "--region", "us-east-1"] if url.startswith("s3") else []
        self.done = run(TRIALFS, "mount", url, self.point, *store, *flags, ok=None, seconds=90, env=self.env, **options)

    def trialfs(self, *argv, **more):
        return run(TRIALFS, *argv, env=self.env, seconds=150, **self.options, **more)

    def unmount(self):
        self.trialfs("unmount", self.point)
        assert not is_mounted(self.point)
        eventually("the daemon ends", lambda: not daemons_of(self.point), 10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if is_mounted(self.point):
            detach(self.point)


def test_help_is_for_a_stranger():
    text = run(TRIALFS, "--help").stdout
    for word in ("mount", "unmount", "status"):
        assert re.search(rf"^\s+{word}\b", text, re.M), f"--help does not list {word}"
    text = run(TRIALFS, "mount", "--help").stdout
    flags = (
        "--foreground", "--read-only", "--allow-other", "--uid", "--gid", "--umask", "--cache-dir",
        "--cache-size", "--memory-limit", "--io-timeout", "--endpoint", "--region", "--strict",
    )  # fmt: skip
    for flag in flags:
        assert flag in text, f"mount --help does not tell of {flag}"
    for scheme in ("s3://", "gs://", "az://", "https://", "file://"):
        assert scheme in text, f"mount --help does not show {scheme}"
    assert re.search(r"120\s*s", text), "mount --help does not state the default of --io-timeout"
    version = run(TRIALFS, "--version").stdout
    assert re.fullmatch(r"trialfs \d+\.\d+\.\d+\S*\n", version), version


def test_mount_answers_when_it_returns_and_unmount_leaves_nothing():
    prefix = unique("background")
    with Background(f"s3://{s3().bucket}/{prefix}", name="background") as here:
        assert here.done.returncode == 0, here.done.stderr
        assert is_mounted(here.point)
        (here.point / "f").write_bytes(b"x" * 5_000_000)
        text = here.trialfs("status", here.point).stdout
        assert str(here.point) in text and prefix in text, text
        every = here.trialfs("status").stdout
        assert str(here.point) in every, every
        status = json.loads(here.trialfs("status", here.point, "--json").stdout)
        assert [m["mount_point"] for m in status["mounts"]] == [str(here.point)], status
        assert status["mounts"][0]["daemon"]["fs"]["requests"]["put"] >= 1, status
        here.unmount()
    assert s3().get(f"{prefix}/f") == b"x" * 5_000_000


def test_commit_of_a_directory_elsewhere_is_refused_and_marks_nothing():
    elsewhere = scratch("elsewhere")
    done = run(TRIALFS, "commit", elsewhere, ok=(1,))
    assert "not on a trialfs mount" in done.stderr, done
    assert os.listxattr(elsewhere) == []


def test_a_mount_over_a_killed_one_is_never_seen_with_the_note_of_the_dead():
    mount = Mount(unique("note"))
    try:
        for _ in range(10):
            mount.kill()
            mount.clear()
            mount.process = subprocess.Popen(
                mount.argv("--foreground"), stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=mount.env
            )
            eventually("it is mounted", lambda: is_mounted(mount.path), 30, pause=0)
            noted = [note for note in notes() if note["mount_point"] == str(mount.path)]
            assert [note["pid"] for note in noted] == [mount.process.pid], noted
            run(TRIALFS, "status", mount.path, "--json")  # and whoever asks so early is answered
        mount.stop()
    finally:
        mount.clear()


def notes() -> list[dict]:
    return [json.loads(note.read_text()) for note in pathlib.Path("/run/trialfs").glob("*.json")]


def test_an_unmount_from_inside_names_the_shell_and_not_itself():
    here = Mount(unique("inside"))
    script = f"cd {here.path}; {TRIALFS} unmount .; exit $?"
    done = run("sh", "-c", script, ok=(1,), env=here.env)
    assert "busy: sh (pid" in done.stderr and "trialfs (pid" not in done.stderr, done.stderr
    here.stop()


def test_a_mount_keeps_no_lock_and_no_pipe_of_the_script_that_made_it():
    point, lock = work() / "mnt" / "script", scratch("script") / "lock"
    point.mkdir(parents=True)
    url = f"s3://{s3().bucket}/{unique('script')}"
    flags = f"--endpoint {s3().endpoint} --region us-east-1 --cache-dir {scratch('script')}/cache"
    script = f"exec 9>{lock}; flock -n 9; {TRIALFS} mount {url} {point} {flags}"
    run("bash", "-ec", script, env={**os.environ, **s3().env}, seconds=90)
    try:
        run("flock", "-n", lock, "true")
    finally:
        run(TRIALFS, "unmount", point)


def test_default_cache_directories_differ_by_mount():
    prefix = unique("caches")
    with Background(f"s3://{s3().bucket}/{prefix}/a", name="cache-a") as a:
        env = {"XDG_CACHE_HOME": a.env["XDG_CACHE_HOME"]}
        with Background(f"s3://{s3().bucket}/{prefix}/b", name="cache-b", env=env) as b:
            assert a.done.returncode == 0 and b.done.returncode == 0, a.done.stderr + b.done.stderr
            (a.point / "f").write_bytes(b"a")
            (b.point / "f").write_bytes(b"b")
            assert (a.point / "f").read_bytes() == b"a"
            b.unmount()
        a.unmount()


def test_owner_and_umask_are_what_was_asked():
    prefix = unique("owner")
    s3().put(f"{prefix}/d/f", b"x")
    here = Mount(prefix, "--uid", "1234", "--gid", "5678", "--umask", "027")
    for name, mode in (("d", 0o750), ("d/f", 0o640)):
        seen = os.stat(here.path / name)
        assert (seen.st_uid, seen.st_gid) == (1234, 5678), (name, seen)
        assert stat.S_IMODE(seen.st_mode) == mode, f"{name}: {seen.st_mode:o}"
    here.stop()


def test_a_file_url_is_mounted_through_the_directory():
    root = scratch("store") / "root"
    (root / "old").mkdir(parents=True)
    (root / "old" / "f").write_bytes(b"was there")
    with Background(f"file://{root}", name="file-url") as here:
        assert here.done.returncode == 0, here.done.stderr
        assert (here.point / "old" / "f").read_bytes() == b"was there"
        (here.point / "new").write_bytes(b"n" * 1000)
        assert (root / "new").read_bytes() == b"n" * 1000
        os.rename(here.point / "old", here.point / "moved")
        assert (root / "moved" / "f").read_bytes() == b"was there"
        here.unmount()
    assert sorted(p.name for p in root.iterdir() if not p.name.startswith(".")) == ["moved", "new"]


def test_an_ordinary_user_mounts_through_fusermount():
    if os.geteuid() != 0:
        raise Skip("becoming another user wants root")
    if stat.S_IMODE(os.stat("/dev/fuse").st_mode) & 0o666 != 0o666:
        os.chmod("/dev/fuse", 0o666)  # as udev has it on every desktop and server
    binary = scratch("user") / "trialfs"
    shutil.copy(TRIALFS, binary)  # the build may stand where others can't look
    prefix = unique("user")
    global_binary, globals()["TRIALFS"] = TRIALFS, str(binary)
    try:
        with Background(
            f"s3://{s3().bucket}/{prefix}", name="user", user=NOBODY, group=NOBODY, extra_groups=[],
            env={"HOME": str(scratch("user"))},
        ) as here:  # fmt: skip
            assert here.done.returncode == 0, here.done.stderr
            script = f"cd {here.point} && echo hello > f && mkdir d && mv f d/g && cat d/g && ls -l d"
            done = subprocess.run(
                ["sh", "-ec", script], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True
            )
            assert done.returncode == 0 and "hello" in done.stdout, done.stderr
            here.unmount()
    finally:
        globals()["TRIALFS"] = global_binary
    assert s3().get(f"{prefix}/d/g") == b"hello\n"


def test_an_ordinary_user_is_told_whose_mount_it_is_and_who_may_end_it():
    if os.geteuid() != 0:
        raise Skip("becoming another user wants root")
    binary = scratch("other") / "trialfs"
    shutil.copy(TRIALFS, binary)
    for flags in ([], ["--allow-other"]):
        here = Mount(unique("roots"), *flags, name=f"roots{len(flags)}")
        for force in ([], ["--force"]):
            done = run(binary, "unmount", *force, here.path, user=NOBODY, group=NOBODY, extra_groups=[], ok=(1,))
            assert "was mounted by root" in done.stderr and f"trialfs unmount {here.path}" in done.stderr, done.stderr
            assert done.stderr.count("\n") == 1 and is_mounted(here.path), done.stderr
        here.stop()


def test_the_root_of_a_bucket_mounts():
    name = unique("root-bucket").replace("_", "0")
    s3().client.create_bucket(Bucket=name)
    s3().client.put_object(Bucket=name, Key="top", Body=b"t")
    here = Mount(name, url=f"s3://{name}")
    (here.path / "d").mkdir()
    (here.path / "d" / "f").write_bytes(b"f")
    assert sorted(os.listdir(here.path)) == ["d", "top"]
    assert s3().client.get_object(Bucket=name, Key="d/f")["Body"].read() == b"f"
    here.stop()


def test_a_lifecycle_that_ends_uploads_too_soon_is_warned_of():
    bucket = unique("lifecycle").replace("_", "0")
    s3().client.create_bucket(Bucket=bucket)
    for days, warned in ((2, True), (7, False)):
        abort = {"DaysAfterInitiation": days}
        rule = {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": "runs/"}, "AbortIncompleteMultipartUpload": abort}
        s3().client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
        with Background(f"s3://{bucket}/runs/a", name=f"lifecycle-{days}") as here:
            assert here.done.returncode == 0, here.done.stderr
            told = [line for line in here.done.stderr.splitlines() if "lifecycle ends uploads after 2 days" in line]
            assert bool(told) == warned, here.done.stderr
            status = json.loads(here.trialfs("status", here.point, "--json").stdout)
            assert ("lifecycle" in str(status["mounts"][0]["daemon"]["warnings"])) == warned, status
            here.unmount()


def test_writers_that_nobody_can_watch_are_told_of():
    """A daemon in a pid namespace of its own: /proc speaks of others, and we have no number there."""
    if not shutil.which("unshare"):
        raise Skip("unshare is not installed")
    point, cache = scratch("namespace") / "mnt", scratch("namespace") / "cache"
    point.mkdir()
    log = (scratch("namespace") / "log").open("w+")
    inside = ["unshare", "--pid", "--fork", "--kill-child", TRIALFS, "mount", "memory://", point, "--foreground"]
    daemon = subprocess.Popen([*inside, "--cache-dir", cache], stdout=log, stderr=log)
    try:
        eventually("the mount answers", lambda: is_mounted(point))

        def degraded():
            return json.loads(run(TRIALFS, "status", point, "--json").stdout)["mounts"][0]["daemon"]["fs"]["degraded"]

        assert ["/proc" in line for line in degraded()] == [True], degraded()
        assert "/proc is not of this pid namespace" in pathlib.Path(log.name).read_text()
        (point / "f").write_bytes(b"f")
        assert any("processes of another pid namespace" in line for line in degraded()), degraded()
        assert "killed one is" in run(TRIALFS, "status", point).stdout
        assert (point / "f").read_bytes() == b"f"
    finally:
        detach(point)
        daemon.kill()
        daemon.wait()


def test_memory_is_a_store_for_a_try():
    with Background("memory://", name="memory") as here:
        assert here.done.returncode == 0, here.done.stderr
        (here.point / "d").mkdir()
        (here.point / "d" / "f").write_bytes(b"f")
        assert (here.point / "d" / "f").read_bytes() == b"f"
        try:
            os.link(here.point / "d" / "f", here.point / "g")
        except OSError as e:
            assert e.errno == errno.EPERM
        here.unmount()


if __name__ == "__main__":
    main(globals(), needs_mount=True)
