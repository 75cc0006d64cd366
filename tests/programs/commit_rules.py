"""Every sign by which a checkpoint directory is committed, and what happens where it never comes.

The presets and a user's rules on real mounts, one test for each line of the README's table and each
fallback; and trainers' own sequences of calls with their ranks on two and three mounts.
"""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import support
from support import Mount, eventually, main, run, s3, scratch, unique

LEASE = "2s"
QUIET = 1.0  # well past the idle time


def mounts(name: str, *flags: str, count: int = 2):
    prefix = unique(name)
    return prefix, [Mount(prefix, "--lease", LEASE, *flags, name="abcd"[n]) for n in range(count)]


def fill(directory: pathlib.Path, *files: str, body: bytes = b"x" * 1000):
    directory.mkdir(parents=True, exist_ok=True)
    for name in files:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(body)


def names(directory: pathlib.Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def state(path: pathlib.Path) -> str:
    return os.getxattr(path, "user.trialfs.state").decode()


def hidden(prefix: str, mount: Mount, name: str):
    assert name not in names(mount.path), f"{name} is listed elsewhere"
    assert not [k for k in s3().keys(prefix) if k.startswith(f"{name}/")], f"an S3 client sees {name}"


def refused(number: int, action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        assert error.errno == number, error
    else:
        raise AssertionError(f"{action.__name__}{arguments} was not refused")


def stop(all_mounts):
    for mount in all_mounts:
        mount.stop()


def test_what_has_no_exact_sign_is_committed_after_commit_max():
    prefix, (a, b) = mounts("max", "--commit-max", "3s", "--rule", "mine:save-<n>,sign=DONE")
    for name in ("checkpoint-5", "save-1"):
        fill(a.path / name, "one", "two")
    exact = "checkpoint_2026-01-02_03-04-05.6"
    fill(a.path / exact, "one")
    time.sleep(QUIET)
    for name in ("checkpoint-5", "save-1", exact):
        hidden(prefix, b, name)
    for name in ("checkpoint-5", "save-1"):
        eventually(f"{name} by its age", lambda n=name: names(b.path / n) == ["one", "two"], 20)
    time.sleep(3)
    hidden(prefix, b, exact)
    stop((a, b))


def test_a_clean_unmount_commits_what_has_no_exact_sign_and_an_explicit_commit_the_rest():
    prefix, (a, b) = mounts("clean", "--rule", "mine:save-<n>,sign=DONE", "--rule", "shy:shy-<n>,sign=DONE,without-sign=hide", "--rule", "orbax")
    for name in ("checkpoint-5", "save-1", "shy-1", "7.orbax-checkpoint-tmp-1", "checkpoint_2026-01-02_03-04-05.6"):
        fill(a.path / name, "one", "two")
    a.stop()
    assert names(b.path) == ["checkpoint-5", "save-1"], names(b.path)
    a.start()
    for name in ("shy-1", "checkpoint_2026-01-02_03-04-05.6"):
        assert state(a.path / name) == "prepared", state(a.path / name)
        done = run(support.TRIALFS, "commit", a.path / name)
        assert "2 files" in done.stdout, done.stdout
        assert names(b.path / name) == ["one", "two"]
    stop((a, b))


def test_rules_from_a_file_and_the_outermost_owns():
    file = scratch("rules") / "rules"
    file.write_text("# ours\nsaves:save-<n>,idle=1s,sign=DONE\n")
    prefix, (a, b) = mounts("nested", "--rules", str(file))
    fill(a.path / "save-3", "checkpoint_000001/a", "checkpoint-4/trainer_state.json", "step/__0_0.distcp")
    (a.path / "save-3" / "step" / ".metadata.tmp").write_bytes(b"m")
    os.rename(a.path / "save-3" / "step" / ".metadata.tmp", a.path / "save-3" / "step" / ".metadata")
    time.sleep(3)  # past every inner rule's time
    hidden(prefix, b, "save-3")
    (a.path / "save-3" / "DONE").write_bytes(b"")
    eventually("the outer sign", lambda: names(b.path / "save-3") == ["DONE", "checkpoint-4", "checkpoint_000001", "step"])
    assert names(b.path / "save-3" / "step") == [".metadata", "__0_0.distcp"]
    stop((a, b))


def test_a_reader_of_what_was_never_committed_waits_and_then_times_out():
    prefix, (a, b) = mounts("wait", "--commit-wait", "2s")
    name = "checkpoint_2026-01-02_03-04-05.6"
    fill(a.path / name, "rank0")
    assert (b.path / name).is_dir(), "other ranks must be able to enter"
    started = time.monotonic()
    refused(errno.ETIMEDOUT, os.listdir, b.path / name)
    waited = time.monotonic() - started
    assert 1.5 < waited < 20, f"{waited:.1f} s"
    fill(b.path / name, "rank1")  # a rank may write in it, all the same
    (a.path / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_results": [{"checkpoint_dir_name": "%s"}]}' % name)
    assert names(b.path / name) == ["rank0", "rank1"]
    stop((a, b))


def metadata(directory: pathlib.Path):
    (directory / ".metadata.tmp").write_bytes(b"meta")
    os.rename(directory / ".metadata.tmp", directory / ".metadata")


def killed_while_writing(directory: pathlib.Path, name: str):
    script = (
        "import os, sys\n"
        f"f = open({str(directory / name)!r}, 'wb'); f.write(b'half'); f.flush()\n"
        "print('ready', flush=True); sys.stdin.read()\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait()


def test_states_from_dirty_to_torn():
    prefix, (a, b) = mounts("states")
    with open(a.path / "plain", "wb") as plain:
        plain.write(b"x")
        plain.flush()
        assert state(a.path / "plain") == "dirty"
    assert state(a.path / "plain") == "published"
    directory = a.path / "step"
    fill(directory, "__0_0.distcp")
    assert state(directory) == "open" and state(b.path / "step") == "open"
    eventually("quiet, without its sign", lambda: state(directory) == "prepared")
    metadata(directory)
    assert state(directory) == "published" and len(names(b.path / "step")) == 2
    killed_while_writing(directory, "__0_0.distcp")
    eventually("torn", lambda: state(directory) == "torn")
    assert (b.path / "step" / "__0_0.distcp").read_bytes() == b"x" * 1000, "a killed process replaced something"
    stop((a, b))


def test_who_writes_on_in_a_save_that_lost_a_part_is_told():
    prefix, (a, b) = mounts("told")
    directory = a.path / "step"
    fill(directory, "__0_0.distcp")
    eventually("quiet", lambda: state(directory) == "prepared")
    held = subprocess.Popen(
        [sys.executable, "-c", f"f = open({str(b.path / 'step' / '__1_0.distcp')!r}, 'wb'); f.write(b'1'); f.flush()\n"
         "print('ready', flush=True); import time; time.sleep(1000)"],
        stdout=subprocess.PIPE,
    )
    held.stdout.readline()
    b.kill()
    held.kill()
    held.wait()
    support.detach(b.path)

    def lost():
        try:
            (directory / ".metadata.tmp").write_bytes(b"m")
            os.rename(directory / ".metadata.tmp", directory / ".metadata")
        except OSError as error:
            return error.errno in (errno.EIO, errno.ETIMEDOUT)
        raise AssertionError("a save without its second rank was committed")

    eventually("the loss is told", lost, 60)
    assert not s3().keys(prefix), "half a save is visible"
    b.start()
    retry = (
        f"import os; d = {str(directory)!r}\nos.makedirs(d, exist_ok=True)\n"
        "open(d + '/__0_0.distcp', 'wb').write(b'new')\nopen(d + '/.metadata.tmp', 'wb').write(b'new')\n"
        "os.rename(d + '/.metadata.tmp', d + '/.metadata')\n"
    )
    run(sys.executable, "-c", retry)
    assert names(b.path / "step") == [".metadata", "__0_0.distcp"]
    stop((a, b))


def in_parallel(*actions):
    errors = []

    def act(action):
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - shown by the test
            errors.append(error)

    threads = [threading.Thread(target=act, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a rank hangs"
    assert not errors, errors


def ranks(prefix: str, writers, watcher: Mount, name: str, write, sign, count: int):
    """Every rank writes its part at once, then one gives the sign; another mount only watches."""
    done, problems = threading.Event(), []

    def watch():
        while not done.is_set():
            found = names(watcher.path / name) if name in names(watcher.path) else []
            if len(found) not in (0, count):
                problems.append(f"{len(found)} of {count} files of {name}")

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        in_parallel(*(lambda n=n: write(n, writers[n].path / name) for n in range(len(writers))))
        assert not [k for k in s3().keys(prefix) if k.startswith(f"{name}/")], f"an S3 client sees {name}"
        sign(writers[0].path / name)
        for mount in (*writers, watcher):
            eventually(f"whole on {mount.name}", lambda m=mount: len(names(m.path / name)) == count)
    finally:
        done.set()
        watching.join()
    assert not problems, problems[:3]


def test_ray_train_ranks_on_three_mounts_and_the_snapshot_of_the_controller():
    prefix, (*writers, watcher) = mounts("train", count=4)
    for n in range(3):
        name = f"checkpoint_2026-01-02_03-04-0{n}.000001"

        def write(rank, directory):
            directory.mkdir(parents=True, exist_ok=True)
            for i in range(8):
                (directory / f"rank{rank}-{i}.pt").write_bytes(bytes([65 + rank]) * 20_000)

        def sign(directory):
            body = '{"checkpoint_results": [{"checkpoint_dir_name": "%s"}]}' % directory.name
            (writers[2].path / "checkpoint_manager_snapshot.json").write_text(body)
            assert len(names(watcher.path / directory.name)) == 24, "a pointer before what it points to"

        ranks(prefix, writers, watcher, name, write, sign, 24)
    stop((*writers, watcher))


def test_torch_dcp_ranks_on_three_mounts_again_and_again_into_one_directory():
    prefix, (*writers, watcher) = mounts("dcp", count=4)

    def write(rank, directory):
        directory.mkdir(parents=True, exist_ok=True)
        for i in range(2):
            with open(directory / f"__{rank}_{i}.distcp", "wb") as shard:
                shard.write(bytes([round_]) * 50_000)
                os.fsync(shard.fileno())

    for round_ in range(1, 5):
        if round_ == 1:
            ranks(prefix, writers, watcher, "step", write, metadata, 7)
        else:
            in_parallel(*(lambda n=n: write(n, writers[n].path / "step") for n in range(3)))
            metadata(writers[0].path / "step")
        for mount in (*writers, watcher):  # the rename returns when every node sees it
            for rank in range(3):
                body = (mount.path / "step" / f"__{rank}_1.distcp").read_bytes()
                assert body == bytes([round_]) * 50_000, f"round {round_}: {mount.name} reads {body[:1]}"
    stop((*writers, watcher))


def test_hf_ranks_on_two_mounts():
    # Rank 1 has no sign of its own: rank 0's is one for both.
    prefix, (*writers, watcher) = mounts("hf", count=3)

    def write(rank, directory):
        directory.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
                (directory / name).write_bytes(b"h" * 30_000)
        (directory / f"rng_state_{rank}.pth").write_bytes(b"r" * 500)

    ranks(prefix, writers, watcher, "checkpoint-500", write, lambda d: (d / "trainer_state.json").write_text("{}"), 6)
    stop((*writers, watcher))


def test_what_was_frozen_beside_another_is_committed_after_commit_max_if_no_sign_comes():
    prefix, (a, b, watcher) = mounts("never", "--commit-max", "6s", count=3)
    for rank, mount in enumerate((a, b)):
        fill(mount.path / "checkpoint-500", f"rng_state_{rank}.pth")
    eventually("frozen", lambda: state(a.path / "checkpoint-500") == "prepared", 20)
    hidden(prefix, watcher, "checkpoint-500")
    whole = ["rng_state_0.pth", "rng_state_1.pth"]
    eventually("by its age", lambda: names(watcher.path / "checkpoint-500") == whole, 30)
    stop((a, b, watcher))


def test_lightning_into_a_directory_of_a_users_rule():
    prefix, (a, b) = mounts("lightning", "--rule", "pl:epoch=*,idle=500ms")
    directory = a.path / "epoch=3-step=40"
    directory.mkdir()
    body = os.urandom(200_000)
    for name in ("last.ckpt", "best.ckpt"):  # O_TRUNC, copied from TMPDIR, then utimens and chmod
        with open(directory / name, "wb") as file:
            file.write(body)
        os.utime(directory / name, (1_700_000_000, 1_700_000_000))
        os.chmod(directory / name, 0o644)
    eventually("committed", lambda: names(b.path / "epoch=3-step=40") == ["best.ckpt", "last.ckpt"])
    assert (b.path / "epoch=3-step=40" / "best.ckpt").read_bytes() == body
    stop((a, b))


def test_gc_tells_and_leaves_what_is_young():
    prefix, (a, b) = mounts("gc")
    fill(a.path / "step", "__0_0.distcp")
    eventually("quiet", lambda: state(a.path / "step") == "prepared")
    said = run(support.TRIALFS, "gc", b.path, "--dry-run")
    assert "0 directories; 1 undecided" in said.stdout, said.stdout
    said = run(support.TRIALFS, "gc", b.path, "--older-than", "1h")
    assert "0 directories; 1 undecided" in said.stdout, said.stdout
    metadata(a.path / "step")
    assert len(names(b.path / "step")) == 2
    refused_plain = run(support.TRIALFS, "gc", scratch("plain"), ok=(1,))
    assert "not a trialfs mount" in refused_plain.stderr
    stop((a, b))


if __name__ == "__main__":
    main(globals(), needs_mount=True)
