#!/usr/bin/env python3
"""Bad input, refusals and failures: one clear line, the right exit code or errno, no hang, nothing left behind.

The store is cut off by a forwarder between mount and server; the disk that fills is a small tmpfs.
"""

import errno
import os
import pathlib
import socket
import subprocess
import threading
import time

from support import (
    TRIALFS, Mount, Skip, daemons_of, detach, eventually, is_mounted, main, run, s3, scratch, servers, unique,
)  # fmt: skip

IO_TIMEOUT_SECONDS = 4
# What may pass beyond the stated bound: process start, one last attempt, a loaded machine.
GRACE_SECONDS = 12
STORAGE_ERRNOS = {errno.EIO, errno.ETIMEDOUT, errno.EROFS}


def refused(url: str, *flags, point: pathlib.Path | None = None, says: str = "", env=None, seconds=GRACE_SECONDS):
    """`trialfs mount` in the background must fail: non-zero, in time, in one line, leaving nothing."""
    point = point or scratch("refused") / "mnt"
    if not point.exists() and point.name == "mnt":
        point.mkdir()
    mounted_before = is_mounted(point)
    argv = [TRIALFS, "mount", url, str(point), "--cache-dir", str(scratch("refused") / "cache"), *flags]
    started = time.monotonic()
    done = run(*argv, seconds=seconds + 60, ok=None, env={**os.environ, **s3().env, **(env or {})})
    took = time.monotonic() - started
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    shown = "\n".join(lines)
    assert done.returncode not in (0, 101) and done.returncode > 0, f"exit {done.returncode}: {shown}"
    assert took < seconds, f"took {took:.1f} s, not under {seconds}: {shown}"
    assert len(lines) == 1, f"one clear line expected:\n{shown}"
    assert "panicked" not in shown and len(lines[0]) < 400, shown
    assert says.lower() in shown.lower(), f"'{says}' expected in: {shown}"
    assert s3().secret not in shown
    assert is_mounted(point) == mounted_before
    if not mounted_before:
        eventually("no daemon stays", lambda: not daemons_of(point), 5)
    return lines[0]


def at_weed(*more) -> list[str]:
    return ["--endpoint", s3().endpoint, "--region", "us-east-1", *more]


def bounded(*more) -> list[str]:
    return ["--io-timeout", f"{IO_TIMEOUT_SECONDS}s", *more]


def raises(number: int, call, *args):
    try:
        call(*args)
    except OSError as e:
        assert e.errno == number, e
    else:
        raise AssertionError(f"{errno.errorcode[number]} expected, but it succeeded")


def fails_with_storage_errno(call, *args, within=IO_TIMEOUT_SECONDS + GRACE_SECONDS) -> int:
    started = time.monotonic()
    try:
        call(*args)
    except OSError as e:
        took = time.monotonic() - started
        assert e.errno in STORAGE_ERRNOS, f"{errno.errorcode.get(e.errno)} for a failure of the store"
        assert took < within, f"{took:.1f} s until the error"
        return e.errno
    raise AssertionError("it succeeded though the store was not there")


# ---- mounts that must not come to be -------------------------------------------------------------


def test_urls_that_make_no_sense():
    for url in ("nonsense", "ftp://host/x", "s3://", "s3:///prefix", "gs://", "file://relative/path", ""):
        refused(url, *at_weed())


def test_prefix_that_leaves_the_bucket():
    refused("s3://bucket/a/../../b", *at_weed())


def test_wrong_secret():
    env = {"AWS_SECRET_ACCESS_KEY": "wrong"}
    refused(f"s3://{s3().bucket}/x", *at_weed(*bounded()), env=env, seconds=IO_TIMEOUT_SECONDS + GRACE_SECONDS)


def test_no_such_bucket():
    says = "no-such-bucket-here"
    refused(f"s3://{says}/x", *at_weed(*bounded()), says=says, seconds=IO_TIMEOUT_SECONDS + GRACE_SECONDS)


def test_endpoint_where_nobody_listens():
    endpoint = f"http://127.0.0.1:{servers.free_port()}"
    refused(f"s3://{s3().bucket}/x", "--endpoint", endpoint, "--region", "us-east-1", *bounded(),
            seconds=IO_TIMEOUT_SECONDS + GRACE_SECONDS)  # fmt: skip


def test_endpoint_that_never_answers():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        refused(f"s3://{s3().bucket}/x", "--endpoint", endpoint, "--region", "us-east-1", *bounded(),
                seconds=2 * IO_TIMEOUT_SECONDS + GRACE_SECONDS)  # fmt: skip


def test_directory_url_that_is_not_there():
    refused("file:///no/such/directory")


def test_mount_point_that_is_missing_or_no_directory():
    missing = scratch("points") / "missing"
    refused(f"s3://{s3().bucket}/x", *at_weed(), point=missing, says="missing")
    assert not missing.exists()
    file = scratch("points") / "file"
    file.write_text("")
    refused(f"s3://{s3().bucket}/x", *at_weed(), point=file, says="file")


def test_mount_point_that_is_busy():
    here = Mount(unique("busy"))
    (here.path / "f").write_bytes(b"kept")
    line = refused(here.url, *at_weed(), point=here.path)
    assert "mounted" in line or "busy" in line, line
    assert (here.path / "f").read_bytes() == b"kept"
    here.stop()


def test_cache_directory_in_use_names_the_daemon():
    here = Mount(unique("cache-owner"))
    point = scratch("cache-owner") / "mnt"
    point.mkdir()
    done = run(TRIALFS, "mount", here.url, point, "--cache-dir", here.cache, *at_weed(), ok=None,
               env={**os.environ, **s3().env})  # fmt: skip
    assert done.returncode > 0 and str(here.process.pid) in done.stderr, done.stdout + done.stderr
    assert not is_mounted(point)
    here.stop()


def test_options_that_do_not_parse():
    for flags in (["--io-timeout", "soon"], ["--umask", "9"], ["--no-such-flag"], ["--cache-size", "-1"]):
        done = run(TRIALFS, "mount", "memory://", scratch("options"), *flags, ok=None)
        assert done.returncode == 2, f"{flags}: exit {done.returncode} {done.stderr}"
        assert not is_mounted(scratch("options"))


def test_unmount_and_status_of_what_is_not_mounted():
    for verb in ("unmount", "status"):
        done = run(TRIALFS, verb, scratch("not-mounted"), ok=None, seconds=30)
        lines = (done.stdout + done.stderr).strip().splitlines()
        assert done.returncode > 0 and len(lines) == 1, f"{verb}: exit {done.returncode}, {lines}"
        assert "not-mounted" in lines[0], lines


# ---- mounts that meet refusals -------------------------------------------------------------------


def test_a_read_only_bucket_can_be_read_and_refuses_writes_loudly():
    prefix = unique("reader")
    s3().put(f"{prefix}/f", b"readable")
    reader = {
        "AWS_ACCESS_KEY_ID": os.environ.get("TRIALFS_TEST_S3_READER_KEY", servers.READ_ONLY_KEY),
        "AWS_SECRET_ACCESS_KEY": os.environ.get("TRIALFS_TEST_S3_READER_SECRET", servers.READ_ONLY_SECRET),
    }
    try:
        Mount(prefix, *bounded(), env=reader)
        raise AssertionError("mounted for writing what can't be written")
    except AssertionError as e:
        assert "mount with --read-only" in str(e), e
    here = Mount(prefix, "--read-only", *bounded(), env=reader)
    assert os.listdir(here.path) == ["f"]
    assert (here.path / "f").read_bytes() == b"readable"
    raises(errno.EROFS, (here.path / "new").write_bytes, b"x")
    raises(errno.EROFS, os.mkdir, here.path / "d")
    raises(errno.EROFS, os.unlink, here.path / "f")
    assert s3().get(f"{prefix}/f") == b"readable"
    here.stop()


def test_a_read_only_mount_changes_nothing():
    prefix = unique("read-only")
    s3().put(f"{prefix}/d/f", b"readable")
    here = Mount(prefix, "--read-only")
    assert (here.path / "d" / "f").read_bytes() == b"readable"
    for call, *args in (
        ((here.path / "new").write_bytes, b"x"), (os.unlink, here.path / "d" / "f"), (os.mkdir, here.path / "e"),
        (os.rename, here.path / "d", here.path / "e"), (os.chmod, here.path / "d" / "f", 0o600),
        (os.truncate, here.path / "d" / "f", 1), (os.symlink, "x", here.path / "l"),
    ):  # fmt: skip
        try:
            call(*args)
        except OSError as e:
            assert e.errno == errno.EROFS, e
        else:
            raise AssertionError(f"{call} went through a read-only mount")
    here.stop()
    assert s3().keys(prefix) == {"d/f": 8}


def small_disk(mib: int) -> pathlib.Path:
    if os.geteuid() != 0:
        raise Skip("a small disk wants root")
    path = scratch(f"disk-{mib}")
    run("mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", path)
    return path


def test_a_full_cache_disk_is_told_and_the_mount_lives():
    disk = small_disk(24)
    prefix = unique("full")
    body = os.urandom(60 << 20)
    s3().put(f"{prefix}/large", body)
    here = None
    try:
        here = Mount(prefix, *bounded(), cache=disk)
        # Reading more than the disk holds works: what is clean makes room.
        assert (here.path / "large").read_bytes() == body
        try:
            with open(here.path / "over", "wb") as f:
                for at in range(0, len(body), 1 << 20):
                    f.write(body[at : at + (1 << 20)])
        except OSError as e:
            assert e.errno == errno.ENOSPC, e
            assert "over" not in s3().keys(prefix), "a part of a file in the bucket"
            (here.path / "over").unlink(missing_ok=True)
        else:  # it went up while it was written: then all of it is there
            assert s3().get(f"{prefix}/over") == body
        (here.path / "small").write_bytes(b"still here" * 1000)
        assert s3().get(f"{prefix}/small") == b"still here" * 1000
        here.stop()
    finally:
        if here:
            here.clear()
        detach(disk)


# ---- the store goes away -------------------------------------------------------------------------


class Line:
    """A TCP forwarder to the server that can be cut, stalled and mended."""

    def __init__(self):
        host, port = s3().endpoint.removeprefix("http://").split(":")
        self.target = (host, int(port))
        self.state = "up"
        self.pairs: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.state == "cut":
                client.close()
                continue
            server = socket.create_connection(self.target)
            self.pairs += [client, server]
            for source, to in ((client, server), (server, client)):
                threading.Thread(target=self.pump, args=(source, to), daemon=True).start()

    def pump(self, source, to):
        try:
            while data := source.recv(65536):
                while self.state == "stalled":
                    time.sleep(0.02)
                if self.state == "cut":
                    break
                to.sendall(data)
        except OSError:
            pass
        for end in (source, to):
            end.close()

    def cut(self):
        self.state = "cut"
        for end in self.pairs:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.pairs.clear()

    def stall(self):
        self.state = "stalled"

    def mend(self):
        self.state = "up"

    def close(self):
        self.cut()
        self.listener.close()


class LineMount(Mount):
    """A mount whose server is behind a line that tests cut."""

    def __init__(self, prefix: str, *flags):
        self.line = Line()
        super().__init__(prefix, *flags)

    def argv(self, *extra):
        return [self.line.endpoint if a == s3().endpoint else a for a in super().argv(*extra)]


def sticky_then_mended(here: LineMount, path: pathlib.Path, body: bytes):
    """After a failed close: open, fsync and rename fail too, as long as the bytes are not in the bucket."""
    renamed = path.with_name("renamed")
    fails_with_storage_errno(os.rename, path, renamed)
    fails_with_storage_errno(open, path, "rb")
    here.line.mend()
    try:
        os.rename(path, renamed)  # may try the upload again, but must not lie
        assert s3().get(f"{here.prefix}/renamed") == body, "renamed without its bytes"
    except OSError as e:
        assert e.errno in STORAGE_ERRNOS, e
    eventually("the mount works again", lambda: recovers(here), 30, 0.2)
    path.write_bytes(b"second try")
    assert path.read_bytes() == b"second try"
    assert s3().get(f"{here.prefix}/{path.name}") == b"second try"


def recovers(here) -> bool:
    try:
        (here.path / "probe").write_bytes(b"p")
        return True
    except OSError:
        return False


def test_10_a_store_that_is_away_for_a_moment_is_not_noticed():
    here = LineMount(unique("moment"))
    (here.path / "f").write_bytes(b"x" * 100_000)
    here.line.cut()
    threading.Timer(2, here.line.mend).start()  # the outage: two seconds
    (here.path / "g").write_bytes(b"y" * 100_000)
    assert s3().get(f"{here.prefix}/g") == b"y" * 100_000
    here.stop()
    here.line.close()


def test_10_a_store_that_is_gone_is_an_error_at_close_and_sticks():
    here = LineMount(unique("gone"), *bounded())
    (here.path / "f").write_bytes(b"first")
    f = open(here.path / "f", "wb", buffering=0)
    f.write(b"lost")
    here.line.cut()
    fails_with_storage_errno(os.close, os.dup(f.fileno()))
    fails_with_storage_errno(f.close)  # and again from the last one
    assert s3().get(f"{here.prefix}/f") == b"first"
    sticky_then_mended(here, here.path / "f", b"lost")
    here.stop()
    here.line.close()


def test_10_a_store_that_stalls_is_an_error_within_the_bound():
    here = LineMount(unique("stall"), *bounded())
    s3().put(f"{here.prefix}/cold", b"c" * 1000)
    here.line.stall()
    fails_with_storage_errno((here.path / "new").write_bytes, b"x")
    fails_with_storage_errno((here.path / "cold").read_bytes)  # never ENOENT for a timeout
    fails_with_storage_errno(os.listdir, here.path)
    here.line.mend()
    eventually("the mount works again", lambda: recovers(here), 30, 0.2)
    assert (here.path / "cold").read_bytes() == b"c" * 1000
    here.stop()
    here.line.close()


# ---- daemons that die ----------------------------------------------------------------------------


def test_a_killed_daemon_leaves_a_mount_point_that_mount_takes_over_and_unmount_clears():
    here = Mount(unique("killed"))
    (here.path / "f").write_bytes(b"closed is kept")
    here.kill()
    assert is_mounted(here.path)
    here.start()
    assert (here.path / "f").read_bytes() == b"closed is kept"
    here.kill()
    run(TRIALFS, "unmount", here.path, seconds=30, env=here.env)
    assert not is_mounted(here.path)
    here.clear()


def test_sigterm_finishes_uploads_and_unmounts():
    here = Mount(unique("sigterm"))
    for i in range(20):
        (here.path / f"f{i}").write_bytes(b"x" * 100_000)
    here.process.terminate()
    assert here.process.wait(60) == 0, here.tail()
    assert not is_mounted(here.path)
    assert len(s3().keys(here.prefix)) == 20
    here.clear()


def test_secrets_are_nowhere_to_be_read():
    here = Mount(unique("secrets"))
    (here.path / "f").write_bytes(b"x")
    places = {
        "arguments": pathlib.Path(f"/proc/{here.process.pid}/cmdline").read_bytes(),
        "log": here.log.read_bytes(),
        "status": run(TRIALFS, "status", here.path, "--json", env=here.env).stdout.encode(),
    }
    for where, text in places.items():
        assert s3().secret.encode() not in text, f"the secret stands in the {where}"
    assert here.cache.stat().st_mode & 0o077 == 0, f"the cache directory is {here.cache.stat().st_mode:o}"
    here.stop()


def test_a_directory_held_open_makes_unmount_say_so_or_wait():
    here = Mount(unique("held"))
    (here.path / "d").mkdir()
    holder = subprocess.Popen(["sleep", "60"], cwd=here.path / "d")
    try:
        done = run(TRIALFS, "unmount", here.path, ok=None, seconds=90, env=here.env)
        if done.returncode != 0:
            assert "sleep" in done.stderr or str(holder.pid) in done.stderr, done.stderr
            assert is_mounted(here.path)
    finally:
        holder.kill()
        holder.wait()
    if is_mounted(here.path):
        here.stop()
    here.clear()


if __name__ == "__main__":
    main(globals(), needs_mount=True)
