#!/usr/bin/env python3
"""Bad input, refusals and failures: one clear line, the right exit code or errno, no hang, nothing left behind.

The store is cut off by a forwarder between mount and server; the disk that fills is a small tmpfs.
"""

import contextlib
import errno
import http.server
import os
import pathlib
import socket
import subprocess
import tempfile
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
    # Of its own each time: what is wrong with a cache directory is told before what is wrong with a store.
    cache = tempfile.mkdtemp(dir=scratch("refused"))
    argv = [TRIALFS, "mount", url, str(point), "--cache-dir", cache, *flags]
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
    line = refused(f"s3://{s3().bucket}/x", *at_weed(*bounded()), env=env, says="access denied")
    assert "check AWS_SECRET_ACCESS_KEY" in line, line


def test_unknown_access_key():
    env = {"AWS_ACCESS_KEY_ID": "nobody"}
    line = refused(f"s3://{s3().bucket}/x", *at_weed(*bounded()), env=env, says="access denied")
    assert "check AWS_ACCESS_KEY_ID" in line, line


def test_no_such_bucket_is_told_and_never_made():
    """SeaweedFS makes a bucket of any name that something is put into."""
    name = unique("no-such-bucket")
    for _ in range(3):
        line = refused(f"s3://{name}/x", *at_weed(*bounded()), says=f"{name}/x")
        assert "there is no such bucket; create it first, or check its name and --endpoint" in line, line
    assert name not in [bucket["Name"] for bucket in s3().client.list_buckets()["Buckets"]]


def test_endpoint_where_nobody_listens():
    endpoint = f"http://127.0.0.1:{servers.free_port()}"
    line = refused(f"s3://{s3().bucket}/x", "--endpoint", endpoint, "--region", "us-east-1", *bounded(),
                   says=endpoint)  # fmt: skip
    assert "nobody listens there (connection refused); check --endpoint" in line, line
    line = refused(f"{endpoint}/dav", *bounded(), says=endpoint)
    assert "nobody listens there (connection refused); check the URL" in line, line


def test_host_that_does_not_exist():
    endpoint = "http://no-such-host.invalid"
    line = refused(f"s3://{s3().bucket}/x", "--endpoint", endpoint, "--region", "us-east-1", *bounded())
    assert "the name of the host is not known; check --endpoint" in line, line
    line = refused(f"{endpoint}/dav", *bounded())
    assert "the name of the host is not known; check the URL" in line, line


def test_endpoint_that_never_answers():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        endpoint = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for url, flags in (
            (f"s3://{s3().bucket}/x", ["--endpoint", endpoint, "--region", "us-east-1"]),
            (f"{endpoint}/dav", []),
        ):
            line = refused(url, *flags, *bounded(), seconds=IO_TIMEOUT_SECONDS + GRACE_SECONDS)
            assert f"no answer within {IO_TIMEOUT_SECONDS}s; check" in line, line


def test_endpoint_of_something_else():
    for status, says in ((200, "no {} answers there"), (405, "no {} answers there"), (401, "access denied"),
                         (404, "create it first"), (500, "it answers, but fails: HTTP 500")):  # fmt: skip
        with web_server(status) as endpoint:
            line = refused(f"s3://{s3().bucket}/x", "--endpoint", endpoint, "--region", "us-east-1", *bounded())
            assert says.format("server of this kind") in line and "check" in line, line
            line = refused(f"{endpoint}/dav", *bounded())
            assert says.format("WebDAV server") in line and "check" in line, line


@contextlib.contextmanager
def web_server(status: int):
    """A server that says `status` and a page of HTML to everything."""

    class Page(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", "5")
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else b"<p>hi")

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PROPFIND = do_MKCOL = answer

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_directory_url_that_is_not_there():
    refused("file:///no/such/directory", says="there is no directory /no/such/directory; make it first")
    file = scratch("points") / "no-directory"
    file.write_text("")
    refused(f"file://{file}", says=f"{file} is a file; give a directory")


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


def test_bytes_altered_on_the_cache_disk_are_never_read():
    here = Mount(unique("altered"))
    body = os.urandom(4 << 20)
    s3().put(f"{here.prefix}/f", body)

    def read_past_the_page_cache():
        with open(here.path / "f", "rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return f.read()

    for _ in range(2):
        assert read_past_the_page_cache() == body
    requests = here.requests()["get"]
    (block,) = (here.cache / "blocks").glob("*.block")
    with open(block, "r+b") as f:
        f.seek(1234567)
        f.write(bytes([body[1234567] ^ 1]))
    time.sleep(0.2)  # what was just checked is believed for 100 ms
    assert read_past_the_page_cache() == body
    assert here.status()["fs"]["read"]["corrupt_granules"] == 1
    assert here.requests()["get"] == requests + 1
    here.stop()


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


def sticky_then_mended(here: LineMount, path: pathlib.Path, number: int, before: bytes):
    """After a failed close: open and rename say so until the file is written again, store or no store."""
    renamed = path.with_name("renamed")
    raises(number, os.rename, path, renamed)
    raises(number, open, path, "rb")
    here.line.mend()
    eventually("the mount works again", lambda: recovers(here), 30, 0.2)
    key = f"{here.prefix}/{path.name}"
    for _ in range(2):
        raises(number, os.rename, path, renamed)
        raises(number, open, path, "rb")
        raises(number, open, path, "ab")
    assert not renamed.exists() and s3().get(key) == before, "it came to the bucket all the same"
    assert here.status()["fs"]["failed"] == [key], here.status()["fs"]
    path.write_bytes(b"second try")
    assert here.status()["fs"]["failed"] == []
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
    number = fails_with_storage_errno(os.close, os.dup(f.fileno()))
    raises(number, os.fsync, f.fileno())
    raises(number, f.close)  # and again from the last one
    assert s3().get(f"{here.prefix}/f") == b"first"
    sticky_then_mended(here, here.path / "f", number, b"first")
    here.stop()
    here.line.close()


def test_10_a_failed_fsync_is_repeated_until_more_is_written():
    here = LineMount(unique("fsync"), *bounded())
    (here.path / "f").write_bytes(b"first")
    with open(here.path / "f", "r+b", buffering=0) as f:
        f.write(b"FIR")
        here.line.cut()
        number = fails_with_storage_errno(os.fsync, f.fileno())
        here.line.mend()
        eventually("the mount works again", lambda: recovers(here), 30, 0.2)
        raises(number, os.fsync, f.fileno())
        assert s3().get(f"{here.prefix}/f") == b"first"
        f.write(b"S")
        os.fsync(f.fileno())
    assert s3().get(f"{here.prefix}/f") == b"FIRSt"
    assert (here.path / "f").read_bytes() == b"FIRSt"
    here.stop()
    here.line.close()


def test_10_what_failed_is_tried_once_more_at_unmount_but_never_over_another_nodes_content():
    here = LineMount(unique("last"), *bounded())
    for name in ("mine", "theirs"):
        (here.path / name).write_bytes(b"first")
    files = [open(here.path / name, "wb", buffering=0) for name in ("mine", "theirs", "new")]
    here.line.cut()
    for f in files:
        f.write(b"late")
        fails_with_storage_errno(f.close)
    s3().put(f"{here.prefix}/theirs", b"another node's")
    here.line.mend()
    done = run(TRIALFS, "unmount", here.path, ok=None, seconds=90, env=here.env)
    shown = done.stdout + done.stderr
    assert done.returncode != 0 and is_mounted(here.path) and "1 file" in shown, shown
    assert s3().get(f"{here.prefix}/theirs") == b"another node's"
    for name in ("mine", "new"):
        assert s3().get(f"{here.prefix}/{name}") == b"late"
    run(TRIALFS, "unmount", "--force", here.path, ok=None, seconds=90, env=here.env)
    here.process.wait(60)
    here.start()
    kept = list((here.cache / "quarantine").iterdir())
    assert [f.read_bytes() for f in kept] == [b"late"] and "theirs" in kept[0].name, kept
    assert (here.path / "theirs").read_bytes() == b"another node's"
    here.stop()
    here.line.close()


def test_a_forced_unmount_does_not_wait_for_an_upload_that_hangs_and_loses_nothing_acknowledged():
    here = LineMount(unique("forced"), "--durability", "local")
    (here.path / "before").write_bytes(b"before")
    closed, left_open = (open(here.path / name, "wb", buffering=0) for name in ("acknowledged", "open"))
    here.line.stall()
    body = os.urandom(20 << 20)
    assert closed.write(body) == len(body)
    closed.close()
    left_open.write(b"not closed")
    started = time.monotonic()
    done = run(TRIALFS, "unmount", "--force", here.path, ok=(1,), seconds=90, env=here.env)
    spent = time.monotonic() - started
    assert "not uploaded, kept in" in done.stderr and not is_mounted(here.path), done.stderr
    assert spent < 20, f"it waited {spent:.0f} s for a store that hangs"
    here.process.wait(30)
    with contextlib.suppress(OSError):
        left_open.close()
    assert s3().find(f"{here.prefix}/acknowledged") is None
    here.line.mend()
    here.start()
    eventually("what was acknowledged goes up", lambda: s3().find(f"{here.prefix}/acknowledged") == body, 60, 0.2)
    assert (here.path / "acknowledged").read_bytes() == body and (here.path / "before").read_bytes() == b"before"
    # Not even what nobody was promised: the end of a mount stands for the close of what was open.
    kept = [f.read_bytes() for f in here.cache.glob("quarantine/*")]
    assert b"not closed" in (*kept, s3().find(f"{here.prefix}/open")), kept
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


def test_after_a_kill_only_what_was_not_uploaded_is_said_to_be_lost():
    here = Mount(unique("told-apart"))
    for i in range(5):
        (here.path / f"closed{i}").write_bytes(b"in the bucket" * 1000)
    appended = open(here.path / "closed0", "ab", buffering=0)  # and not written
    rewritten = open(here.path / "closed1", "r+b", buffering=0)
    rewritten.write(b"IN")
    begun = open(here.path / "begun", "wb", buffering=0)
    begun.write(b"never closed")
    here.kill()
    for f in (appended, rewritten, begun):
        try:
            f.close()
        except OSError:
            pass  # its mount is gone
    here.start()
    status = here.status()
    assert status["fs"]["write"]["quarantined_files"] == 2, status
    kept = sorted(f.read_bytes() for f in (here.cache / "quarantine").iterdir())
    assert kept == [b"IN the bucket" + b"in the bucket" * 999, b"never closed"], kept
    for i in range(5):
        assert (here.path / f"closed{i}").read_bytes() == b"in the bucket" * 1000
    here.stop()


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
    here = Mount(unique("secrets"), "--log-level", "trace")
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
