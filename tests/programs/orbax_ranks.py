#!/usr/bin/env python3
"""Orbax with JAX on the CPU: hosts save one checkpoint after another, each through its own mount.

Each host is a process in a mount namespace of its own, where the same path leads to its own mount, as on two nodes.
Another mount lists and reads meanwhile, and sees each checkpoint whole or not at all.
"""

import faulthandler
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading

from support import Mount, Skip, eventually, main, s3, scratch, unique, work

STEPS = 4
ROWS, COLUMNS = 512, 256
HOST_SECONDS_MAX = 90


def host(number: int, hosts: int, ocdbt: bool, port: int, directory: str):
    """One host: saves each step, then restores the last and compares its shards."""
    faulthandler.dump_traceback_later(HOST_SECONDS_MAX - 10)  # where it hangs, if it does
    import jax
    import numpy as np
    import orbax.checkpoint as ocp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if hosts > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", hosts, number)
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
    shape = (hosts * ROWS, COLUMNS)

    def state(step: int):
        whole = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape) + step
        return {"w": jax.make_array_from_callback(shape, sharding, lambda at: whole[at])}

    like = {"w": jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)
    with ocp.CheckpointManager(directory, item_handlers=handler) as manager:
        for step in range(STEPS):
            manager.save(step, args=ocp.args.PyTreeSave(state(step)))
            manager.wait_until_finished()
            assert manager.latest_step() == step, manager.all_steps()
        for step in (STEPS - 1, 0):
            into = ocp.checkpoint_utils.construct_restore_args(like)
            found = manager.restore(step, args=ocp.args.PyTreeRestore(like, restore_args=into))
            for got, want in zip(found["w"].addressable_shards, state(step)["w"].addressable_shards):
                assert np.array_equal(got.data, want.data), f"host {number}: step {step} came back with other values"
    print(f"host {number} restored")


def files_below(directory: pathlib.Path) -> dict[str, int]:
    found = {}
    for parent, _, names in os.walk(directory):
        for name in names:
            path = pathlib.Path(parent, name)
            found[str(path.relative_to(directory))] = len(path.read_bytes())
    return found


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def saved_and_watched(name: str, count: int, ocdbt: bool, *flags: str):
    if os.geteuid() != 0 or not shutil.which("unshare"):
        raise Skip("a mount namespace for each host wants root and unshare")
    prefix = unique(name)
    mounts = [Mount(prefix, "--lease", "5s", *flags, name=f"host{n}") for n in range(count)]
    watcher = Mount(prefix, "--lease", "5s", *flags, name="watcher")
    shared, port = scratch(name) / "storage", free_port()
    shared.mkdir()
    seen: list[tuple[str, dict[str, int]]] = []
    problems, ended, hosts = [], threading.Event(), []

    def watch():
        try:
            while not ended.is_set():
                for name in filter(str.isdigit, os.listdir(watcher.path)):
                    seen.append((name, files_below(watcher.path / name)))
        except BaseException as e:
            problems.append(e)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        for number, mount in enumerate(mounts):
            enter = 'mount --bind "$0" "$1" && shift && exec "$@"'
            log = (work() / "log" / f"{name}{number}").open("wb")
            what = ["host", str(number), str(count), str(int(ocdbt)), str(port), shared]
            hosts.append(subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", enter, mount.path, shared, sys.executable, __file__, *what],
                stdout=log, stderr=log, env={**os.environ, "JAX_PLATFORMS": "cpu"},
            ))  # fmt: skip
        for number, process in enumerate(hosts):
            try:
                code = process.wait(HOST_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                code = "not"
            text = (work() / "log" / f"{name}{number}").read_text(errors="replace")
            assert code == 0, f"host {number} exited {code}:\n{text[-3000:]}"
        steps = [str(step) for step in range(STEPS)]
        eventually("every step is there", lambda: sorted(os.listdir(watcher.path)) == steps)
    finally:
        ended.set()
        watching.join()
        for process in hosts:
            process.kill()
            process.wait()
    assert not problems, problems
    whole = {step: files_below(mounts[0].path / step) for step in steps}
    partial = [(name, set(whole[name]) ^ set(found)) for name, found in seen if found != whole[name]]
    assert not partial, f"a part of a checkpoint was seen: {partial[:3]}"
    assert {name for name, _ in seen} == set(steps), "not every step was looked at"
    for mount in (*mounts, watcher):
        mount.stop()
    keys = s3().keys(prefix)
    for step, found in whole.items():
        for name, size in found.items():
            assert keys.get(f"{step}/{name}") == size, f"{step}/{name} in the bucket"
    print(f"    {count} hosts, {STEPS} steps of {len(whole['0'])} files, {len(seen)} looks from another node, 0 partial")


def test_one_host():
    saved_and_watched("one", 1, True)


def test_one_host_whose_directory_is_hidden_until_its_rename():
    saved_and_watched("hidden", 1, True, "--rule", "orbax")


def test_two_hosts():
    saved_and_watched("two", 2, False)


def test_two_hosts_whose_parts_are_merged():
    saved_and_watched("merged", 2, True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["host"]:
        number, count, ocdbt, port = map(int, sys.argv[2:6])
        host(number, count, bool(ocdbt), port, sys.argv[6])
    else:
        main(globals(), needs_mount=True)
