"""What is compared: a plain directory, trialfs, and its peers, each as a tree to work in.

Owns how each is mounted, what its processes cost, and how it goes away again. Does not own the work.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import servers  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRIALFS = os.environ.get("TRIALFS", str(ROOT / "target" / "release" / "trialfs"))
MOUNT_SECONDS_MAX = 60
END_SECONDS_MAX = 120


def is_mounted(path) -> bool:
    with open("/proc/self/mountinfo") as f:
        return any(line.split()[4] == str(path) for line in f)


def descendants(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        for task in pathlib.Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                pass
    return found


class Plain:
    """A directory of the same disk."""

    name, is_mount = "plain", False

    def __init__(self, home: pathlib.Path, store):
        self.path = home / "plain"
        self.path.mkdir(parents=True, exist_ok=True)

    def start(self):
        pass

    stop = start


class Mount:
    """A mounted file system: `node` names one of several mounts of the same bucket."""

    name, is_mount = "", True
    asynchronous = False  # closed before it is in the bucket

    def __init__(self, home: pathlib.Path, store, node: str = "a"):
        self.home, self.store, self.node = home, store, node
        self.path = home / f"{self.name}-{node}"
        self.cache = home / "cache" / f"{self.name}-{node}"
        self.log = home / "log" / f"{self.name}-{node}.log"
        self.process, self.mount_seconds = None, 0.0

    def argv(self) -> list[str]:
        raise NotImplementedError

    def prepare(self):
        pass

    def env(self) -> dict[str, str]:
        return {}

    def start(self, fresh: bool = True):
        if fresh:
            shutil.rmtree(self.cache, ignore_errors=True)
        for directory in (self.path, self.cache, self.log.parent):
            directory.mkdir(parents=True, exist_ok=True)
        self.prepare()
        keys = {"AWS_ACCESS_KEY_ID": self.store.key, "AWS_SECRET_ACCESS_KEY": self.store.secret}
        env = {**os.environ, **keys, "AWS_REGION": "us-east-1", **self.env()}
        started = time.perf_counter()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env,
                preexec_fn=servers.die_with_parent(signal.SIGTERM),
            )  # fmt: skip
        while not is_mounted(self.path):
            gone = self.process.poll() is not None
            if gone or time.perf_counter() - started > MOUNT_SECONDS_MAX:
                raise RuntimeError(f"{self.name} did not mount:\n{self.log.read_text()[-1500:]}")
            time.sleep(0.002)
        os.listdir(self.path)
        self.mount_seconds = time.perf_counter() - started

    def stop(self):
        if self.process is None:
            return
        deadline = time.monotonic() + END_SECONDS_MAX
        while is_mounted(self.path) and time.monotonic() < deadline:
            if subprocess.run(["fusermount3", "-u", self.path], capture_output=True).returncode:
                time.sleep(0.1)
        if is_mounted(self.path):
            subprocess.run(["fusermount3", "-uz", self.path], capture_output=True)
        try:
            self.process.wait(END_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def cpu_seconds(self) -> float:
        ticks = 0
        for pid in descendants(self.process.pid):
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def peak_mib(self) -> float:
        peak = 0
        for pid in descendants(self.process.pid):
            for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
                peak += int(line.split()[1]) if line.startswith("VmHWM") else 0
        return peak / 1024


class Trialfs(Mount):
    name = "trialfs"
    durability = "close"

    def argv(self):
        return [
            TRIALFS, "mount", f"s3://{self.store.bucket}", str(self.path), "--foreground",
            "--endpoint", self.store.endpoint, "--region", "us-east-1",
            "--cache-dir", str(self.cache), *self.flags(),
        ]  # fmt: skip

    def flags(self) -> list[str]:
        return os.environ.get("TRIALFS_FLAGS", "").split()


class TrialfsLocal(Trialfs):
    name = "trialfs-local"
    asynchronous = True

    def flags(self):
        return [*super().flags(), "--durability", "local"]


class Rclone(Mount):
    """With the settings that make it quickest to show and to upload."""

    name = "rclone"
    asynchronous = True

    def argv(self):
        return [
            str(servers.VENV_BIN / "rclone"), "mount", f"s:{self.store.bucket}", str(self.path),
            "--vfs-cache-mode", "full", "--cache-dir", str(self.cache), "--dir-cache-time", "1s",
            "--vfs-write-back", "100ms", "--transfers", "16", "--s3-upload-concurrency", "8",
        ]  # fmt: skip

    def env(self):
        remote = {"TYPE": "s3", "PROVIDER": "SeaweedFS", "ENDPOINT": self.store.endpoint, "REGION": "us-east-1"}
        remote |= {"ACCESS_KEY_ID": self.store.key, "SECRET_ACCESS_KEY": self.store.secret}
        return {"RCLONE_CONFIG": "/dev/null"} | {f"RCLONE_CONFIG_S_{k}": v for k, v in remote.items()}


class JuiceFs(Mount):
    """Its names are in a database on this machine, which the latency does not reach."""

    name = "juicefs"

    def database(self) -> str:
        return f"sqlite3://{self.home}/juicefs.db"

    def prepare(self):
        if pathlib.Path(self.home, "juicefs.db").exists():
            return
        format = [
            str(servers.VENV_BIN / "juicefs"), "format", "--storage", "s3", "--trash-days", "0",
            "--bucket", f"{self.store.endpoint}/juicefs", "--access-key", self.store.key,
            "--secret-key", self.store.secret, self.database(), "bench",
        ]  # fmt: skip
        with open(self.log, "ab") as log:
            subprocess.run(format, check=True, stdout=log, stderr=log)

    def argv(self):
        return [
            str(servers.VENV_BIN / "juicefs"), "mount", self.database(), str(self.path),
            "--cache-dir", str(self.cache), "--no-usage-report", "--metrics", "127.0.0.1:0",
            "--backup-meta", "0", "--no-syslog",
        ]  # fmt: skip


class S3fs(Mount):
    name = "s3fs"

    def prepare(self):
        self.password = self.home / "s3fs.password"
        self.password.write_text(f"{self.store.key}:{self.store.secret}")
        self.password.chmod(0o600)

    def argv(self):
        options = f"url={self.store.endpoint},use_path_request_style,passwd_file={self.password}"
        options += f",use_cache={self.cache},parallel_count=8,multipart_size=16"
        return ["s3fs", self.store.bucket, str(self.path), "-f", "-o", options]


KINDS = {kind.name: kind for kind in (Plain, Trialfs, TrialfsLocal, Rclone, JuiceFs, S3fs)}
