"""What the program tests share: mounts, plain directories in their place, the S3 view, and a runner.

Owns processes and mount points: whatever a test starts here ends with it, even when it is killed.
Does not own servers (scripts/servers.py) nor any promise; those stand in the tests.

Every test runs alone: `python3 tests/programs/NAME.py [--dir DIR] [PATTERN]`. With --dir it runs in
a plain directory, as the reference that the same test must pass. Without TRIALFS_TEST_S3 it starts
its own SeaweedFS. TRIALFS names the binary (default target/debug/trialfs).
"""

import argparse
import atexit
import concurrent.futures
import ctypes
import filecmp
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import servers  # noqa: E402

TRIALFS = os.environ.get("TRIALFS", str(ROOT / "target" / "debug" / "trialfs"))
TOOLS = servers.HOME / "bin"
FULL = bool(os.environ.get("TRIALFS_TEST_FULL"))

MOUNT_SECONDS_MAX = 60
UNMOUNT_SECONDS_MAX = 150
MNT_DETACH = 2


class Skip(Exception):
    """This machine lacks what the test needs. Under CI=true that is a failure."""


def eventually(what: str, condition, seconds: float = 30, pause: float = 0.02):
    """Waits for `condition` to give something true and returns it."""
    deadline = time.monotonic() + seconds
    while True:
        got = condition()
        if got:
            return got
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)


def run(*argv, seconds: float = 300, ok=(0,), **options) -> subprocess.CompletedProcess:
    """Runs a program to its end; any exit code not in `ok` fails the test with what it printed."""
    options.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run(
        [str(a) for a in argv], capture_output=True, text=True, timeout=seconds, errors="replace", **options
    )
    if ok is not None and done.returncode not in ok:
        tail = (done.stdout[-3000:] + done.stderr[-3000:]).strip()
        raise AssertionError(f"{' '.join(map(str, argv))} exited {done.returncode}:\n{tail}")
    return done


def is_mounted(path) -> bool:
    """Without touching the file system itself, which may hang."""
    want = str(path).replace(" ", "\\040")
    with open("/proc/self/mountinfo") as f:
        return any(line.split()[4] == want for line in f)


def detach(path):
    """Takes away a mount point whatever its daemon does."""
    ctypes.CDLL(None, use_errno=True).umount2(str(path).encode(), MNT_DETACH)


def daemons_of(path: pathlib.Path) -> list[int]:
    """Processes whose arguments name `path`."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(path).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


class Plain:
    """A directory of the machine's own, where a mount would stand."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    is_mount = False

    def settle(self):
        pass

    def stop(self):
        pass


class Mount:
    """`trialfs mount --foreground` as a child of this process, mounted until stop().

    Two mounts of one `prefix` are two nodes: each has its own cache directory. `flags` go to the
    command line, `env` over the environment.
    """

    is_mount = True

    def __init__(self, prefix: str, *flags: str, name: str = "a", env=None, url=None, cache=None, at=None):
        self.prefix = prefix
        self.url = url or f"s3://{s3().bucket}/{prefix}"
        self.name = f"{prefix.replace('/', '_')}-{name}"
        self.path = at or work() / "mnt" / self.name
        self.cache = cache or work() / "cache" / self.name
        self.log = work() / "log" / f"{self.name}.log"
        self.flags = list(flags)
        self.env = {**os.environ, **s3().env, **(env or {})}
        self.process = None
        self.start()

    def argv(self, *extra) -> list[str]:
        store = ["--endpoint", s3().endpoint, "--region", "us-east-1"] if self.url.startswith("s3:") else []
        return [TRIALFS, "mount", self.url, str(self.path), "--cache-dir", str(self.cache), *store, *self.flags, *extra]

    def start(self):
        for directory in (self.path, self.cache, self.log.parent):
            if not is_mounted(directory):  # a dead mount can't even be looked at
                directory.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.argv("--foreground"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                preexec_fn=servers.die_with_parent(signal.SIGTERM),
            )
        live.append(self)

        def up():
            if self.process.poll() is not None:
                raise AssertionError(f"mount exited {self.process.returncode}:\n{self.tail()}")
            return is_mounted(self.path) and os.path.isdir(self.path)  # a dead one is no directory

        try:
            eventually(f"{self.url} mounted at {self.path}", up, MOUNT_SECONDS_MAX)
        except BaseException:
            self.clear()
            raise
        self.mount_seconds = time.monotonic() - started

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def stop(self):
        """A clean unmount: uploads finish, the daemon exits 0, nothing stays mounted."""
        try:
            run(TRIALFS, "unmount", self.path, seconds=UNMOUNT_SECONDS_MAX, env=self.env)
            assert not is_mounted(self.path), f"{self.path} is still mounted after unmount"
            code = self.process.wait(UNMOUNT_SECONDS_MAX)
            assert code == 0, f"the daemon exited {code}:\n{self.tail()}"
        finally:
            self.clear()

    def remount(self, fresh_cache: bool = False):
        try:
            self.stop()
        finally:  # a failure must not take the mount from the tests behind
            if fresh_cache:
                shutil.rmtree(self.cache)
            self.start()

    def kill(self):
        """SIGKILL, as the machine's OOM killer would."""
        self.process.kill()
        self.process.wait()

    def clear(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if is_mounted(self.path):
            detach(self.path)
        if self in live:
            live.remove(self)

    def settle(self):
        """Waits until every checkpoint directory that was written here is committed or given up."""

        def settled():
            now = self.status()["fs"]["checkpoints"]
            return now["open"] == 0 and now["waiting"] == 0

        eventually("every checkpoint is committed", settled, 60)

    def status(self) -> dict:
        """What the daemon says of itself."""
        text = run(TRIALFS, "status", self.path, "--json", seconds=30, env=self.env).stdout
        return json.loads(text)["mounts"][0]["daemon"]

    def requests(self) -> dict[str, int]:
        """Requests sent to the store so far, by operation."""
        counts = self.status()["fs"]["requests"]
        return {k: v for k, v in counts.items() if k not in ("errors", "retries")}


class S3:
    """The bucket as any S3 client sees it."""

    def __init__(self, env: dict[str, str]):
        self.endpoint, self.bucket = env["TRIALFS_TEST_S3"].rsplit("/", 1)
        self.key, self.secret = env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]
        self.env = {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}
        self.client = servers.s3_client(self.endpoint, self.key, self.secret)

    def keys(self, prefix: str) -> dict[str, int]:
        """Natural keys under `prefix/` with their sizes, relative; ours and `dir/` markers left out."""
        found, base = {}, prefix.rstrip("/") + "/"
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=base)
        for page in pages:
            for item in page.get("Contents", []):
                key = item["Key"][len(base) :]
                if ".trialfs" not in key.split("/") and key and not key.endswith("/"):
                    found[key] = item["Size"]
        return found

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def find(self, key: str) -> bytes | None:
        """The object, or None where there is none: what LIST says of many pages is not always whole."""
        try:
            return self.get(key)
        except self.client.exceptions.NoSuchKey:
            return None

    def put(self, key: str, body: bytes = b"", **options):
        return self.client.put_object(Bucket=self.bucket, Key=key, Body=body, **options)


def assert_bucket_holds(tree: pathlib.Path, prefix: str):
    """Every regular file of `tree` is an object at its natural key with its bytes, and no other is."""
    want = {}
    for directory, _, files in os.walk(tree):
        for name in files:
            path = pathlib.Path(directory, name)
            if path.is_file() and not path.is_symlink():
                want[str(path.relative_to(tree))] = path.read_bytes()
    links = {
        str(pathlib.Path(d, n).relative_to(tree))
        for d, dirs, files in os.walk(tree)
        for n in dirs + files
        if pathlib.Path(d, n).is_symlink()
    }
    have = {k: v for k, v in s3().keys(prefix).items() if k not in links}
    lost, extra = want.keys() - have.keys(), have.keys() - want.keys()
    assert not lost and not extra, f"keys lost: {sorted(lost)[:5]}, keys nobody wrote: {sorted(extra)[:5]}"
    for key, body in want.items():
        got = s3().get(f"{prefix}/{key}")
        assert got == body, f"{key}: {len(got)} bytes in the bucket, {len(body)} written, or not the same"


def same_trees(a: pathlib.Path, b: pathlib.Path):
    """Same names, kinds and bytes."""
    diff = filecmp.dircmp(a, b, ignore=[])
    assert not diff.left_only and not diff.right_only, f"{a} and {b}: {diff.left_only} {diff.right_only}"
    _, unequal, unread = filecmp.cmpfiles(a, b, diff.common_files, shallow=False)
    assert not unequal and not unread, f"{a} and {b} differ in {unequal + unread}"
    for name in diff.common_dirs:
        same_trees(a / name, b / name)


# ---- one process's state: its options, its work directory, its live mounts ----------------------

live: list = []
_options: argparse.Namespace | None = None
_work: pathlib.Path | None = None
_s3: S3 | None = None
_own_servers: servers.Servers | None = None


def options() -> argparse.Namespace:
    global _options
    if _options is None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--dir", type=pathlib.Path, help="a plain directory instead of a mount")
        parser.add_argument("--seed", type=int, default=None)
        parser.add_argument("pattern", nargs="?", default="")
        _options = parser.parse_args()
    return _options


def work() -> pathlib.Path:
    """A directory of this run: mount points, caches, logs, scratch. Kept when a test fails."""
    global _work
    if _work is None:
        base = os.environ.get("TRIALFS_TEST_DIR")
        if base:
            pathlib.Path(base).mkdir(parents=True, exist_ok=True)
        _work = pathlib.Path(tempfile.mkdtemp(prefix="t-" if base else "trialfs-", dir=base))
        _work.chmod(0o755)  # other users enter mounts made with --allow-other
    return _work


def scratch(name: str) -> pathlib.Path:
    path = work() / "scratch" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def s3() -> S3:
    global _s3, _own_servers
    if _s3 is None:
        env = dict(os.environ)
        if "TRIALFS_TEST_S3" not in env:
            _own_servers = servers.Servers(work() / "servers", ["weed"])
            _own_servers.__enter__()
            env.update(_own_servers.env)
        _s3 = S3(env)
    return _s3


def tree(prefix: str, *flags: str, name: str = "a", at=None):
    """A mount of `prefix`, or with --dir a directory of that name: the same one for every `name`."""
    if options().dir:
        return Plain(options().dir / prefix)
    return Mount(unique(prefix), *flags, name=name, at=at)


def unique(prefix: str) -> str:
    """One bucket serves many runs; no run meets what another left."""
    return f"{prefix}-{work().name[-8:]}"


def clear_up():
    for mount in list(live):
        mount.clear()
    if _own_servers:
        _own_servers.__exit__()


def run_apart(name: str) -> subprocess.CompletedProcess:
    """One test of this program in a process of its own, with the same options."""
    argv = [sys.executable, sys.argv[0], *(["--seed", str(options().seed)] if options().seed else []), name]
    return subprocess.run(argv, capture_output=True, text=True, errors="replace", preexec_fn=servers.die_with_parent())


def main_at_once(names: list[str]):
    """Each test in a process of its own, all at the same time: for those that mostly wait."""
    os.environ.update(s3().env, TRIALFS_TEST_S3=f"{s3().endpoint}/{s3().bucket}")
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        for done in concurrent.futures.as_completed([pool.submit(run_apart, name) for name in names]):
            lines = (done.result().stderr + done.result().stdout).splitlines()
            found = re.findall(r"(\d+) (passed|failed|skipped)", lines.pop() if lines else "")
            for number, verdict in found or [(1, "failed")]:
                counts[verdict] += int(number)
            print("\n".join(lines), flush=True)
    clear_up()
    if _work:
        shutil.rmtree(_work, ignore_errors=True)
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    print(f"{counts['passed']} passed, {counts['failed']} failed{skipped}", flush=True)
    sys.exit(1 if counts["failed"] or sum(counts.values()) < len(names) else 0)


def main(namespace: dict, needs_mount: bool = False, at_once: bool = False):
    """Runs each `test_*` of a file, in order or `at_once`, prints a line for each and 'N passed, N failed'."""
    if needs_mount and options().dir:
        sys.exit("this test asks for a mount; it has no --dir")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    atexit.register(clear_up)
    wanted = [name for name in namespace if name.startswith("test_") and options().pattern in name]
    if at_once and len(wanted) > 1:
        main_at_once(wanted)
    passed, failed, skipped = 0, 0, 0
    for name in wanted:
        started = time.monotonic()
        try:
            namespace[name]()
            verdict, passed = "ok", passed + 1
        except Skip as e:
            verdict = f"skipped: {e}"
            if os.environ.get("CI") == "true":
                verdict, failed = f"FAILED: can't run here: {e}", failed + 1
            else:
                skipped += 1
        except Exception:
            verdict, failed = "FAILED", failed + 1
            traceback.print_exc()
        for mount in list(live):
            if not getattr(mount, "kept", False):
                mount.clear()
        print(f"  {name[5:]:<60} {verdict}  {time.monotonic() - started:.1f} s", flush=True)
    clear_up()
    if not failed and _work:
        shutil.rmtree(_work, ignore_errors=True)
    elif failed:
        print(f"logs: {work()}/log")
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""), flush=True)
    sys.exit(1 if failed or not passed + skipped else 0)
