#!/usr/bin/env python3
"""fio with verify=crc32c: four jobs at once, sequential and random; each block is read back and checked."""

import json

from support import FULL, main, run, tree

MIB = 256 if FULL else 48


def fio(here, name: str, pattern: str, block: str):
    here.path.joinpath(name).mkdir()
    done = run(
        "fio", "--output-format=json", f"--directory={here.path / name}", f"--name={name}",
        f"--rw={pattern}", f"--bs={block}", f"--size={MIB}m", "--numjobs=4", "--ioengine=psync",
        "--verify=crc32c", "--verify_state_save=0", "--verify_fatal=1", "--do_verify=1", "--fallocate=none",
        "--end_fsync=1", "--randseed=7", seconds=1200,
    )  # fmt: skip
    text = done.stdout[done.stdout.index("{") :]
    jobs = json.loads(text)["jobs"]
    assert len(jobs) == 4
    for job in jobs:
        assert job["error"] == 0, f"{job['jobname']}: error {job['error']}"
        wrote, read = job["write"]["io_bytes"], job["read"]["io_bytes"]
        assert wrote == read == MIB << 20, f"wrote {wrote} bytes, verified {read}"


def test_sequential_blocks_verify():
    here = tree("fio-seq")
    fio(here, "sequential", "write", "128k")
    here.stop()


def test_random_blocks_verify():
    here = tree("fio-rand")
    fio(here, "random", "randwrite", "4k")
    here.stop()


def test_blocks_verify_from_another_mount():
    """What one mount wrote, another reads from the bucket and checks."""
    here = tree("fio-other")
    there = tree("fio-other", name="b")
    common = [
        "fio", "--name=other", "--rw=write", "--bs=64k", f"--size={MIB}m", "--numjobs=4",
        "--ioengine=psync", "--verify=crc32c", "--verify_state_save=0", "--verify_fatal=1", "--fallocate=none", "--randseed=8",
    ]  # fmt: skip
    run(*common, "--do_verify=0", f"--directory={here.path}", seconds=600)
    run(*common, "--verify_only=1", f"--directory={there.path}", seconds=600)
    there.stop()
    here.stop()


if __name__ == "__main__":
    main(globals())
