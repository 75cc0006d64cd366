#!/usr/bin/env python3
"""The same small life of a tree on every kind of store: copied in, listed, changed, renamed, found after a remount.

A store whose variable is not set is left out, which fails under CI=true.
"""

import errno
import os
import pathlib

from support import Mount, Skip, main, run, same_trees, scratch, unique


def sample() -> pathlib.Path:
    root = scratch("sample") / "tree"
    if not root.exists():
        (root / "sub" / "deeper").mkdir(parents=True)
        (root / "a b, = [c] ünï").write_bytes(b"odd name")
        (root / "empty").touch()
        (root / "sub" / "small").write_bytes(os.urandom(5000))
        (root / "sub" / "deeper" / "large").write_bytes(os.urandom(20 << 20))
    return root


def live(url: str, name: str, *flags: str, env=None):
    here = Mount(unique(f"store-{name}"), *flags, url=url, env=env)
    others = sorted(os.listdir(here.path))  # an export may be shared with other tests
    copy = here.path / "copy"
    run("cp", "-r", sample(), copy)
    same_trees(sample(), copy)
    run("ls", "-lR", here.path)
    with open(copy / "sub" / "small", "ab") as f:
        f.write(b"appended")
    with open(copy / "sub" / "deeper" / "large", "r+b") as f:
        f.seek(10_000_000)
        f.write(b"patched")
    (copy / "empty").write_bytes(b"no more")
    (copy / "later").mkdir()
    os.rename(copy / "sub", copy / "later" / "sub")
    try:
        os.rmdir(copy / "later")
        raise AssertionError("a directory that is not empty was removed")
    except OSError as e:
        assert e.errno == errno.ENOTEMPTY, e
    here.remount(fresh_cache=True)
    assert sorted(os.listdir(copy)) == sorted(["a b, = [c] ünï", "empty", "later"]), os.listdir(copy)
    small, large = (sample() / "sub" / "small").read_bytes(), bytearray((sample() / "sub/deeper/large").read_bytes())
    large[10_000_000:10_000_007] = b"patched"
    assert (copy / "later" / "sub" / "small").read_bytes() == small + b"appended"
    assert (copy / "later" / "sub" / "deeper" / "large").read_bytes() == large
    assert (copy / "empty").read_bytes() == b"no more"
    run("rm", "-r", copy)
    assert sorted(os.listdir(here.path)) == others
    here.stop()


def server(variable: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise Skip(f"{variable} is not set; scripts/test.sh starts the servers")
    return value


def test_directory():
    root = scratch("directory") / "root"
    root.mkdir()
    live(f"file://{root}", "directory")
    assert not [p for p in root.rglob("*") if p.is_file() and ".trialfs" not in p.parts]


def test_s3_that_ignores_conditions():
    endpoint, bucket = server("TRIALFS_TEST_RCLONE_S3").rsplit("/", 1)
    keys = {k: os.environ[k] for k in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    # The environment names it here: Mount's own --endpoint is SeaweedFS's.
    here_url = f"S3://{bucket}/{unique('no-conditions')}"
    live(here_url, "no-conditions", "--endpoint", endpoint, "--region", "us-east-1", env=keys)
    file_by_file(f"s3://{bucket}/{unique('no-commits')}", "--endpoint", endpoint, "--region", "us-east-1", env=keys)


def file_by_file(url: str, *flags: str, env=None):
    """Where nothing can be committed at once the mount says so, and checkpoints are plain directories."""
    here = Mount(unique("file-by-file"), *flags, url=url, env=env)
    warned = [line for line in here.status()["warnings"] if "checkpoint directories" in line]
    assert len(warned) == 1, here.status()["warnings"]
    directory = here.path / "checkpoint_000001"
    directory.mkdir()
    (directory / "model").write_bytes(b"m")
    assert here.status()["fs"]["checkpoints"]["open"] == 0
    here.remount(fresh_cache=True)
    assert (directory / "model").read_bytes() == b"m"
    here.stop()


def test_azure():
    endpoint, container = server("TRIALFS_TEST_AZURE").rsplit("/", 1)
    keys = {k: os.environ[k] for k in ("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_KEY")}
    live(f"az://{container}/{unique('azure')}", "azure", "--endpoint", endpoint, env=keys)


def test_google_cloud_storage():
    """On fake-gcs-server; tests/gcs.rs mounts the emulator, which has what this one lacks."""
    endpoint, bucket = server("TRIALFS_TEST_GCS").rsplit("/", 1)
    here_url = f"gs://{bucket}/{unique('gcs')}"
    live(here_url, "gcs", env={"STORAGE_EMULATOR_HOST": endpoint.removeprefix("http://")})


def webdav(variable: str, name: str):
    url = server(variable)
    credentials, host = url.removeprefix("http://").rstrip("/").split("@")
    user, password = credentials.split(":")
    env = {"TRIALFS_WEBDAV_USER": user, "TRIALFS_WEBDAV_PASSWORD": password}
    live(f"http://{host}/", name, env=env)


def test_webdav_of_rclone():
    webdav("TRIALFS_TEST_DAV_RCLONE", "dav-rclone")


def test_webdav_of_apache():
    webdav("TRIALFS_TEST_DAV_APACHE", "dav-apache")


if __name__ == "__main__":
    main(globals(), needs_mount=True)
