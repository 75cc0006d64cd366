#!/usr/bin/env python3
"""A hostile bucket: odd keys, records that lie, sizes out of this world. The mount shows what can be shown, and lives.
"""

import json
import os
import pathlib

from support import main, unique, work
from limits import SumsMount, Watch

ID = "01JD8Z3V5N6Q7R8S9TAVBWCXDY"
LONG = "n" * 255
EXBIBYTE = 1 << 60


def attrs(**entries) -> str:
    return json.dumps({"format": 1, "writer": ID, "nonce": "00", "entries": entries})


def entry(**more) -> dict:
    return {"kind": "File", "mode": 0o644, "uid": 0, "gid": 0, "at": 1, **more}


def test_a_hostile_bucket_is_shown_as_far_as_it_can_be_and_harms_nothing():
    here = SumsMount(unique("hostile"))
    p = here.prefix

    def put(key: str, body: str = "x", metadata=None, size=None):
        here.server.ask(put=[f"{p}/{key}", body, metadata or {}, size])

    try:
        before = outside()
        put("good/plain", "bytes")
        for odd in ("../x", "a//b", "./y", "good/../../z", "good/..", "good/a\x01b", "good/\n", "/rooted", "c/./d"):
            put(odd)
        put("/".join([LONG] * 3 + ["n" * (1024 - len(p) - 1 - 3 * 256)]))  # 1,024 bytes
        put("huge", "x", size=EXBIBYTE)
        put("good/negative", "x", size=(1 << 64) - 1)
        put("links/out", "../../../../../../etc/passwd", {"x-amz-meta-trialfs-kind": "symlink"})
        put("long-link", "t" * 5000, {"x-amz-meta-trialfs-kind": "symlink"})
        # Records of attributes: of 1 GiB, no JSON, a later format, names that leave, set-uid, sixty large ones.
        put(f"good/.trialfs/attrs.{ID[:-1]}A", "{", size=1 << 30)
        put(f"good/.trialfs/attrs.{ID[:-1]}B", "not json")
        put(f"good/.trialfs/attrs.{ID[:-1]}C", '{"format": 99}')
        put(f"good/.trialfs/attrs.{ID[:-1]}D", attrs(**{"../x": entry(), "a/b": entry(), "": entry()}))
        put(f"good/.trialfs/attrs.{ID[:-1]}E", "[" * 100_000)
        for n in range(60):
            put(f"wide/.trialfs/attrs.{ID[:-2]}{n:02d}", "{", size=60 << 20)
        put("wide/f")
        # Transactions: no JSON, later formats, manifests that name what is outside, absurd sizes.
        child = "txn.checkpoint_000001"
        for name, body, size in (
            (f"{child}.{ID}", "{", None), (f"{child}.{ID}.0", "[" * 50_000, None),
            (f"{child}.seal.1", '{"format": 2, "record": "seal"}', None), (f"{child}.seal.2", "x", 1 << 40),
            (f"{child}.done.99999999999999999999", "{}", None), ("txn.%2e%2e.seal.1", "{}", None),
            ("txn...seal.1", "{}", None), (f"{child}.seal.18446744073709551615", "{}", None),
        ):  # fmt: skip
            put(f"runs/.trialfs/{name}", body, size=size)
        put("runs/checkpoint_000001/f", "visible?")
        with Watch(here) as watch:
            assert (here.path / "good" / "plain").read_bytes() == b"bytes"
            assert "plain" in os.listdir(here.path / "good")
            walked = walk(here.path)
            # A listing does not tell a link of which no record speaks from a file; whoever opens it is told.
            touch(here.path / "links" / "out")
            assert os.readlink(here.path / "links" / "out") == "../../../../../../etc/passwd"
            for path in ("huge", "good/negative", "long-link", "links/out", "wide/f", "runs", "runs/checkpoint_000001"):
                touch(here.path / path)
            assert not (here.path / "good" / "plain").stat().st_mode & 0o6000
        watch.show(f"a hostile bucket of {walked} names")
        now = here.status()
        assert now["fs"]["odd_keys"] >= 5, now["fs"]["odd_key_names"]
        assert now["panics"] == 0
        (here.path / "good" / "new").write_bytes(b"still works")
        assert (here.path / "good" / "new").read_bytes() == b"still works"
        assert outside() == before, "something was written outside of the mount's own directories"
        here.stop()
    finally:
        here.clear()


def touch(path: pathlib.Path):
    """Whatever it is, it answers."""
    try:
        os.lstat(path)
        if path.is_dir():
            os.listdir(path)
        else:
            with open(path, "rb") as f:
                f.read(4096)
                f.seek(1 << 50)
                f.read(4096)
    except OSError:
        pass


def walk(root: pathlib.Path) -> int:
    count = 0
    for directory, directories, files in os.walk(root, onerror=lambda e: None):
        assert pathlib.Path(directory).is_relative_to(root)
        assert ".." not in directories + files and not any("/" in name for name in directories + files)
        count += len(directories) + len(files)
    return count


def outside() -> set:
    """What lies about the mount point and the cache directory."""
    return {str(p) for d in ("mnt", "cache") for p in (work() / d).parent.iterdir()} | set(os.listdir("/etc"))


if __name__ == "__main__":
    main(globals(), needs_mount=True)
