"""Checkpoint directories on real mounts of one S3 bucket: shown whole or not at all.

Each test is a promise of the contract (points 3 to 5) or a disaster. Leases are short here; nothing
else differs from a mount's defaults.
"""

import errno
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import support
from proxied import ProxiedMount
from support import Mount, eventually, main, run, s3, scratch, unique

PYTHON = sys.executable
LEASE = "2s"
ORBAX = ("--rule", "orbax")
# Of many checkpoints so many are read again and again; all are counted at each step.
RECENT = 30
FILES = 20


def two(name: str, *flags: str):
    prefix = unique(name)
    a = Mount(prefix, "--lease", LEASE, *flags, name="a")
    b = Mount(prefix, "--lease", LEASE, *flags, name="b")
    return prefix, a, b


def write(directory: pathlib.Path, files: int = FILES, size: int = 4096, stamp: bytes = b"x"):
    directory.mkdir()
    for n in range(files):
        (directory / f"file{n:03}").write_bytes(stamp * size)


def names(directory: pathlib.Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def state(path: pathlib.Path) -> str:
    return os.getxattr(path, "user.trialfs.state").decode()


def visible(directory: pathlib.Path, files: int = FILES):
    return eventually(f"{directory} is committed", lambda: len(names(directory)) == files)


def test_a_directory_appears_whole_and_only_after_it_is_quiet():
    prefix, a, b = two("whole")
    directory = a.path / "checkpoint_000001"
    directory.mkdir()
    for n in range(FILES):
        (directory / f"file{n:03}").write_bytes(b"x" * 4096)
        assert s3().keys(prefix) == {}, "an S3 client sees an object before the commit"
        assert "checkpoint_000001" not in names(b.path)
        assert (b.path / "checkpoint_000001").is_dir(), "other ranks must be able to enter"
    assert len(names(directory)) == FILES, "the writer sees its own files at once"
    assert state(directory) == "open"
    visible(b.path / "checkpoint_000001")
    assert "checkpoint_000001" in names(b.path)
    for n in range(FILES):
        assert (b.path / "checkpoint_000001" / f"file{n:03}").read_bytes() == b"x" * 4096
    eventually("published", lambda: len(s3().keys(prefix)) == FILES)
    eventually("settled", lambda: state(directory) == "published")
    assert a.status()["fs"]["pending"]["files"] == 0
    a.stop()
    b.stop()


def test_big_files_and_directories_below_and_links_and_empty_ones():
    prefix, a, b = two("deep")
    directory = a.path / "checkpoint_000002"
    (directory / "model" / "shards").mkdir(parents=True)
    (directory / "empty").mkdir()
    (directory / "model" / "shards" / "big").write_bytes(os.urandom(40 << 20))
    (directory / "model" / "zero").write_bytes(b"")
    (directory / "small").write_bytes(b"small")
    os.symlink("small", directory / "latest")
    os.chmod(directory / "small", 0o640)
    other = b.path / "checkpoint_000002"
    visible(other, 4)
    support.same_trees(directory, other)
    assert os.readlink(other / "latest") == "small"
    assert names(other / "empty") == []
    eventually("its mode", lambda: (other / "small").stat().st_mode & 0o777 == 0o640)
    a.remount(fresh_cache=True)
    support.same_trees(directory, other)
    a.stop()
    b.stop()


def test_a_rewrite_shows_the_old_content_until_its_commit():
    prefix, a, b = two("rewrite")
    directory, other = a.path / "checkpoint_000003", b.path / "checkpoint_000003"
    write(directory, stamp=b"1")
    visible(other)
    held = open(directory / "hold", "wb")  # an open file keeps the rule from firing
    for n in range(FILES):
        (directory / f"file{n:03}").write_bytes(b"2" * 4096)
        assert (other / f"file{n:03}").read_bytes() == b"1" * 4096
    (directory / "file000").unlink()
    assert "file000" not in names(directory) and not (directory / "file000").exists()
    assert len(names(other)) == FILES
    held.close()
    eventually("the rewrite is committed", lambda: "hold" in names(other))
    assert "file000" not in names(other)
    for n in range(1, FILES):
        assert (other / f"file{n:03}").read_bytes() == b"2" * 4096
    a.stop()
    b.stop()


def test_a_killed_writer_publishes_nothing_and_the_retry_holds_none_of_it():
    prefix, a, b = two("killed")
    directory = a.path / "checkpoint_000004"
    script = (
        "import os,sys,time\n"
        f"d={str(directory)!r}\n"
        "os.mkdir(d)\n"
        "for n in range(5): open(f'{d}/dead{n}','wb').write(b'dead'*1000)\n"
        "print('between', flush=True); time.sleep(1000)\n"
    )
    writer = subprocess.Popen([PYTHON, "-c", script], stdout=subprocess.PIPE)
    writer.stdout.readline()
    writer.kill()
    writer.wait()
    eventually("torn", lambda: not directory.exists())
    assert s3().keys(prefix) == {} and "checkpoint_000004" not in names(b.path)
    write(directory)
    other = b.path / "checkpoint_000004"
    visible(other)
    assert all(name.startswith("file") for name in names(other)), names(other)
    assert a.status()["fs"]["write"]["quarantined_files"] == 5
    a.stop()
    b.stop()


def is_gone(look) -> bool:
    try:
        return not look()
    except OSError as error:
        assert error.errno in (errno.ENOENT, errno.ESTALE), error
        return True


def test_half_a_checkpoint_is_not_shown_while_it_is_taken_away():
    """The store is slow to hear of a killed writer; who looks meanwhile is not shown what it left."""
    a = ProxiedMount(unique("dying"))
    slow_s = 5
    looks = {
        "listed": lambda name, inside: name in names(a.path),
        "found": lambda name, inside: (a.path / name).exists(),
        "listed within": lambda name, inside: names(a.path / name),
        "its file found": lambda name, inside: os.stat("whole", dir_fd=inside),
        "its file opened": lambda name, inside: os.close(os.open("whole", os.O_RDONLY, dir_fd=inside)) is None,
    }
    for lost, (what, look) in enumerate(looks.items(), 1):
        name = f"checkpoint_{lost:06}"
        script = (
            "import os, sys\n"
            f"d={str(a.path / name)!r}\n"
            "os.mkdir(d); f=open(f'{d}/cut','wb'); f.write(b'x'*1000); f.flush()\n"
            "open(f'{d}/whole','wb').write(b'x'*1000)\n"
            "sys.stdin.read(); os.kill(os.getpid(), 9)\n"
        )
        a.proxy.set(delay_ms=0)
        writer = subprocess.Popen([PYTHON, "-c", script], stdin=subprocess.PIPE)
        eventually("two files are there", lambda: len(names(a.path / name)) == 2)
        inside = os.open(a.path / name, os.O_RDONLY)
        a.proxy.set(delay_ms=1000 * slow_s, delayed="PUT")
        killed = time.monotonic()
        writer.communicate()
        assert writer.returncode == -signal.SIGKILL
        eventually("the mount knows", lambda: a.status()["fs"]["checkpoints"]["lost"] == lost, pause=0)
        assert time.monotonic() < killed + slow_s, "too late to see anything"
        # By its name the kernel knows what it was told within the last second; a listing is new.
        seconds = 0 if what.startswith("listed") else 1.5
        eventually(f"{what}, it is not shown", lambda: is_gone(lambda: look(name, inside)), seconds)
        os.close(inside)
    a.proxy.set(delay_ms=0)
    eventually("all in quarantine", lambda: a.status()["fs"]["write"]["quarantined_files"] == 2 * len(looks))
    a.stop()


def test_a_killed_rewrite_leaves_the_old_content_and_the_rank_that_lives_is_told():
    prefix, a, b = two("rewritten")
    directory = a.path / "checkpoint_000005"
    write(directory, stamp=b"1")
    visible(b.path / directory.name)
    eventually("published", lambda: state(directory) == "published")
    living = open(directory / "living", "wb", buffering=0)
    living.write(b"2" * 5000)
    script = (
        "import os\n"
        f"d={str(directory)!r}\n"
        "open(f'{d}/file000','wb').write(b'2'*4096)\n"
        "f=open(f'{d}/file001','wb'); f.write(b'2'*4096); f.flush(); os.kill(os.getpid(), 9)\n"
    )
    run(PYTHON, "-c", script, ok=(-signal.SIGKILL,))
    eventually("lost", lambda: a.status()["fs"]["checkpoints"]["lost"] == 1)
    for mount in (a, b):
        assert whole(mount.path / directory.name, FILES, 4096) == b"1" * 4096, mount.name
    try:
        living.close()
        raise AssertionError("a close of what is lost returned")
    except OSError as error:
        assert error.errno == errno.EIO, error
    eventually("all in quarantine", lambda: a.status()["fs"]["write"]["quarantined_files"] == 3)
    a.remount(fresh_cache=True)
    assert whole(directory, FILES, 4096) == b"1" * 4096
    a.stop()
    b.stop()


def test_a_dead_mount_leaves_no_half_directory_and_others_clear_it():
    prefix, a, b = two("deadmount")
    directory, other = a.path / "checkpoint_000005", b.path / "checkpoint_000005"
    held = subprocess.Popen(
        [PYTHON, "-c", f"import os,time; os.mkdir({str(directory)!r})\n"
         f"f=open({str(directory / 'part')!r},'wb'); f.write(b'p'*100); f.flush(); print('ready',flush=True); time.sleep(1000)"],
        stdout=subprocess.PIPE,
    )
    held.stdout.readline()
    a.kill()
    held.kill()
    held.wait()
    support.detach(a.path)
    assert "checkpoint_000005" not in names(b.path) and s3().keys(prefix) == {}
    eventually("the dead one's directory is gone", lambda: not other.exists(), 30)
    write(other)
    eventually("the retry is there", lambda: len(s3().keys(prefix)) == FILES)
    a.start()
    visible(directory)
    a.stop()
    b.stop()


def test_two_ranks_of_one_directory_appear_together():
    prefix, a, b = two("ranks")
    c = Mount(prefix, "--lease", LEASE, name="c")
    one, two_, seen = (m.path / "checkpoint_000006" for m in (a, b, c))
    one.mkdir()
    os.makedirs(two_, exist_ok=True)
    slow = open(two_ / "rank1", "wb")
    (one / "rank0").write_bytes(b"0")
    slow.write(b"1")
    time.sleep(1)  # well past the idle time of the first
    assert s3().keys(prefix) == {} and "checkpoint_000006" not in names(c.path)
    slow.close()
    visible(seen, 2)
    assert (seen / "rank0").read_bytes() == b"0" and (seen / "rank1").read_bytes() == b"1"
    for mount in (a, b, c):
        mount.stop()


def test_a_snapshot_commits_what_it_names_before_it_is_seen():
    prefix, a, b = two("snapshot")
    run_dir, other = a.path / "run", b.path / "run"
    run_dir.mkdir()
    name = "checkpoint_2026-01-02_03-04-05.678901"
    write(run_dir / name)
    time.sleep(1)  # no idleness commits it: only the snapshot does
    assert name not in names(other)
    body = '{"checkpoint_results": [{"checkpoint_dir_name": "%s"}]}' % name
    (run_dir / ".snap.tmp").write_text(body)
    (run_dir / "checkpoint_manager_snapshot.json").write_text(body)
    assert (other / "checkpoint_manager_snapshot.json").read_text() == body
    assert len(names(other / name)) == FILES, "a pointer before what it points to"
    a.stop()
    b.stop()


def test_a_directory_renamed_to_its_final_name_is_there_when_rename_returns():
    prefix, a, b = two("renamed", *ORBAX)
    write(a.path / "ckpt.orbax-checkpoint-tmp-7")
    (a.path / "ckpt.orbax-checkpoint-tmp-7" / "item.orbax-checkpoint-tmp-8").mkdir()
    (a.path / "ckpt.orbax-checkpoint-tmp-7" / "item.orbax-checkpoint-tmp-8" / "data").write_bytes(b"d" * 100)
    os.rename(a.path / "ckpt.orbax-checkpoint-tmp-7" / "item.orbax-checkpoint-tmp-8", a.path / "ckpt.orbax-checkpoint-tmp-7" / "item")
    assert names(b.path) == [] and not (b.path / "ckpt").exists()
    os.rename(a.path / "ckpt.orbax-checkpoint-tmp-7", a.path / "ckpt")
    assert names(b.path) == ["ckpt"]
    assert len(names(b.path / "ckpt")) == FILES + 1
    assert (b.path / "ckpt" / "item" / "data").read_bytes() == b"d" * 100
    support.same_trees(a.path / "ckpt", b.path / "ckpt")
    a.stop()
    b.stop()


def test_dcp_commits_at_its_metadata():
    prefix, a, b = two("dcp")
    directory, other = a.path / "step-10", b.path / "step-10"
    directory.mkdir()
    for n in range(3):
        (directory / f"__{n}_0.distcp").write_bytes(b"t" * 5000)
    time.sleep(1)
    assert names(other) == [] and s3().keys(prefix) == {}
    (directory / ".metadata.tmp").write_bytes(b"meta")
    os.rename(directory / ".metadata.tmp", directory / ".metadata")
    visible(other, 4)
    assert (other / ".metadata").read_bytes() == b"meta"
    a.stop()
    b.stop()


def test_dcp_ranks_on_three_mounts():
    prefix, a, b = two("dcpranks")
    c = Mount(prefix, "--lease", LEASE, name="c")
    mounts = [a, b, c]
    for step in range(3):
        for rank, mount in enumerate(mounts):  # each rank makes the directory, as torch does
            directory = mount.path / f"step-{step}"
            directory.mkdir(exist_ok=True)
            with open(directory / f"__{rank}_0.distcp", "wb") as shard:
                shard.write(bytes([65 + rank]) * 100_000)
        assert not [k for k in s3().keys(prefix) if k.startswith(f"step-{step}/")]
        meta = a.path / f"step-{step}" / ".metadata.tmp"
        meta.write_bytes(b"meta")
        os.rename(meta, meta.with_name(".metadata"))
        for mount in mounts:
            directory = mount.path / f"step-{step}"
            visible(directory, 4)
            for rank in range(3):
                assert (directory / f"__{rank}_0.distcp").read_bytes() == bytes([65 + rank]) * 100_000
    for mount in mounts:
        mount.stop()


def test_a_rank_syncs_a_directory_that_another_writes_and_waits_for_nobody():
    """tensorstore syncs every directory above what it wrote, also those that another host made."""
    prefix, a, b = two("syncdir", "--commit-wait", "3s", *ORBAX)
    tmp = "5.orbax-checkpoint-tmp"
    (a.path / tmp).mkdir()
    (a.path / tmp / "f").write_bytes(b"f")
    started = time.monotonic()
    directory = os.open(b.path / tmp, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    assert time.monotonic() - started < 1, "who only syncs a directory waits for its commit"
    try:
        raise AssertionError(f"{os.listdir(directory)} is listed before its commit")
    except OSError as e:
        assert e.errno == errno.ETIMEDOUT, e
    os.rename(a.path / tmp, a.path / "5")
    os.close(directory)
    eventually("whole", lambda: names(b.path / "5") == ["f"])
    a.stop()
    b.stop()


def test_orbax_hosts_on_two_mounts():
    prefix, a, b = two("orbaxhosts", *ORBAX)
    c = Mount(prefix, "--lease", LEASE, *ORBAX, name="c")
    tmp = "5.orbax-checkpoint-tmp-1234"
    (a.path / tmp).mkdir()
    (a.path / tmp / "default.orbax-checkpoint-tmp-99").mkdir()
    assert (b.path / tmp).is_dir(), "the other host must find what the first made"
    for host, mount in enumerate((a, b)):
        item = mount.path / tmp / "default.orbax-checkpoint-tmp-99"
        item.mkdir(exist_ok=True)
        (item / f"ocdbt.process_{host}").mkdir()
        (item / f"ocdbt.process_{host}" / "d").write_bytes(bytes([48 + host]) * 50_000)
    assert names(c.path) == [] and s3().keys(prefix) == {}
    os.rename(a.path / tmp / "default.orbax-checkpoint-tmp-99", a.path / tmp / "default")
    (a.path / tmp / "_METADATA").write_text("{}")
    os.rename(a.path / tmp, a.path / "5")

    def there(mount):
        root = mount.path / "5"
        return [str(p.relative_to(root)) for p in sorted(root.rglob("*")) if p.is_file()]

    want = ["_METADATA", "default/ocdbt.process_0/d", "default/ocdbt.process_1/d"]
    for mount in (c, a, b):
        eventually(f"whole on {mount.name}", lambda m=mount: there(m) == want)
        # A host that took part finds out by its own look.
        eventually(f"one name on {mount.name}", lambda m=mount: names(m.path) == ["5"])
    for mount in (a, b, c):
        mount.stop()


def test_hf_commits_quiet_after_its_state_and_at_rename():
    prefix, a, b = two("hf")
    write(a.path / "tmp-checkpoint-500", 4)
    os.rename(a.path / "tmp-checkpoint-500", a.path / "checkpoint-500")
    assert s3().keys(prefix) == {}
    (a.path / "checkpoint-500" / "trainer_state.json").write_text("{}")
    visible(b.path / "checkpoint-500", 5)
    write(a.path / "checkpoint-1000", 4)
    (a.path / "checkpoint-1000" / "trainer_state.json").write_text("{}")
    assert "checkpoint-1000" not in names(b.path)
    (a.path / "checkpoint-1000" / "rng_state_0.pth").write_bytes(b"r")
    visible(b.path / "checkpoint-1000", 6)
    shutil.rmtree(a.path / "checkpoint-500")
    assert names(b.path) == ["checkpoint-1000"]
    for mount in (a, b):
        mount.stop()


def test_rmdir_of_the_parent_does_not_take_a_save_of_another_node_away():
    prefix, a, b = two("parent")
    (a.path / "exp").mkdir()
    directory = a.path / "exp" / "checkpoint_000001"
    directory.mkdir()
    with open(directory / "f", "wb") as f:
        f.write(b"1")
        try:
            (b.path / "exp").rmdir()
            raise AssertionError("rmdir of a directory in which another node saves")
        except OSError as error:
            assert error.errno == errno.ENOTEMPTY, error
    visible(b.path / "exp" / "checkpoint_000001", 1)
    a.stop()
    b.stop()


def refused(number: int, action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        assert error.errno == number, error
    else:
        raise AssertionError(f"{action.__name__}{arguments} was not refused")


def test_a_rename_of_the_parent_loses_no_save():
    prefix, a, b = two("parentmove", "--commit-idle", "1m")
    (a.path / "exp").mkdir()
    write(a.path / "exp" / "checkpoint_000001", 3)
    os.rename(a.path / "exp", a.path / "exp2")  # complete: it is committed first
    assert len(names(b.path / "exp2" / "checkpoint_000001")) == 3
    with open(a.path / "exp2" / "checkpoint_000001" / "held", "wb") as held:
        held.write(b"h")
        refused(errno.EBUSY, os.rename, a.path / "exp2", a.path / "exp3")
        refused(errno.EBUSY, os.rename, b.path / "exp2", b.path / "exp3")
    fd = os.open(a.path / "exp2" / "checkpoint_000001", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    assert len(names(b.path / "exp2" / "checkpoint_000001")) == 4
    assert a.status()["fs"]["checkpoints"]["lost"] == 0
    a.stop()
    b.stop()


def test_a_committed_directory_has_one_name_after_its_rename():
    prefix, a, b = two("onename", "--commit-idle", "1m")
    write(a.path / "checkpoint_000001", 3)
    run(support.TRIALFS, "commit", a.path / "checkpoint_000001")
    (a.path / "checkpoint_000001" / "file000").write_bytes(b"new")  # a rewrite, not committed yet
    os.rename(a.path / "checkpoint_000001", a.path / "checkpoint_000002")
    for mount in (a, b):
        eventually(f"one name on {mount.name}", lambda m=mount: names(m.path) == ["checkpoint_000002"], 5)
        assert len(names(mount.path / "checkpoint_000002")) == 3
        assert (mount.path / "checkpoint_000002" / "file000").read_bytes() == b"new"
    with open(a.path / "checkpoint_000002" / "held", "wb") as held:
        held.write(b"h")
        refused(errno.EBUSY, os.rename, a.path / "checkpoint_000002", a.path / "plain")
    run(support.TRIALFS, "commit", a.path / "checkpoint_000002")
    os.rename(a.path / "checkpoint_000002", a.path / "plain")
    for mount in (a, b):
        eventually(f"one name on {mount.name}", lambda m=mount: names(m.path) == ["plain"], 5)
        assert len(names(mount.path / "plain")) == 4
    a.stop()
    b.stop()


def test_ranks_that_end_at_once_are_committed_and_agree_on_a_name():
    prefix, a, b = two("agree")
    for mount in (a, b):
        (mount.path / "checkpoint_000001").mkdir(exist_ok=True)
    for mount, word in ((a, b"a"), (b, b"b")):
        for name in ("x", "y", mount.name[-1]):
            (mount.path / "checkpoint_000001" / name).write_bytes(word)
    eventually("committed, though nobody looks", lambda: len(s3().keys(prefix)) == 4, 20)
    for mount in (a, b):
        mount.settle()
    for name in ("x", "y"):
        want = s3().get(f"{prefix}/checkpoint_000001/{name}")
        for mount in (a, b):
            assert (mount.path / "checkpoint_000001" / name).read_bytes() == want, mount.name
    a.stop()
    b.stop()


def test_another_node_or_a_later_mount_may_rename_to_the_final_name():
    prefix, a, b = two("othernode", *ORBAX)
    write(a.path / "7.orbax-checkpoint-tmp-1", 3)
    os.rename(b.path / "7.orbax-checkpoint-tmp-1", b.path / "7")
    for mount in (b, a):
        eventually(f"there on {mount.name}", lambda m=mount: len(names(m.path / "7")) == 3, 10)
    write(a.path / "8.orbax-checkpoint-tmp-1", 3)
    a.remount()
    os.rename(a.path / "8.orbax-checkpoint-tmp-1", a.path / "8")
    for mount in (a, b):
        eventually(f"there on {mount.name}", lambda m=mount: len(names(m.path / "8")) == 3, 10)
    a.stop()
    b.stop()


def test_a_killed_child_does_not_tear_what_its_parent_closed():
    prefix, a, b = two("child")
    directory = a.path / "checkpoint_000001"
    directory.mkdir()
    script = (
        "import os, signal, sys, time\n"
        f"f = open({str(directory / 'x')!r}, 'wb'); f.write(b'x' * 1000); f.flush()\n"
        "child = os.fork()\n"
        "if child == 0: time.sleep(1000)\n"
        "f.close(); os.kill(child, signal.SIGKILL); os.waitpid(child, 0)\n"
    )
    run(PYTHON, "-c", script)
    visible(b.path / "checkpoint_000001", 1)
    assert (b.path / "checkpoint_000001" / "x").read_bytes() == b"x" * 1000
    a.stop()
    b.stop()


def test_rmdir_of_a_directory_that_another_node_writes_is_refused():
    prefix, a, b = two("rmdir")
    directory = a.path / "checkpoint_000001"
    directory.mkdir()
    with open(directory / "x", "wb") as f:
        f.write(b"x")
        refused(errno.ENOTEMPTY, os.rmdir, b.path / "checkpoint_000001")
    visible(b.path / "checkpoint_000001", 1)
    a.stop()
    b.stop()


def test_an_open_through_a_symlink_goes_where_it_leads_now():
    prefix, a, b = two("link")
    for n in range(5):
        (a.path / f"{n}").write_text(f"{n}")
        os.symlink(f"{n}", a.path / "latest.tmp")
        os.rename(a.path / "latest.tmp", a.path / "latest")
        assert (b.path / "latest").read_text() == f"{n}"
        if n:
            (a.path / f"{n - 1}").unlink()
    a.stop()
    b.stop()


def test_an_explicit_commit_says_what_it_committed():
    prefix, a, b = two("explicit", "--rule", "mine:ckpt-<n>,sign=DONE,without-sign=hide")
    write(a.path / "ckpt-1")
    done = run(support.TRIALFS, "commit", a.path / "ckpt-1")
    assert f"{FILES} files" in done.stdout, done.stdout
    assert len(names(b.path / "ckpt-1")) == FILES
    plain = a.path / "plain"
    plain.mkdir()
    refused = run(support.TRIALFS, "commit", plain, ok=(1,))
    assert "no checkpoint directory" in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
    write(a.path / "ckpt-2")
    os.setxattr(a.path / "ckpt-2", "user.trialfs.commit", b"1")
    assert len(names(b.path / "ckpt-2")) == FILES
    a.stop()
    b.stop()


def test_the_script_for_plain_pytorch():
    sys.path.insert(0, str(support.ROOT / "scripts"))
    import trialfs_commit

    prefix, a, b = two("script", "--commit-idle", "1m")
    with trialfs_commit.saved(a.path / "checkpoint_000001") as directory:
        (directory / "model.pt").write_bytes(b"m" * 1000)
        (directory / "optimizer.pt").write_bytes(b"o" * 1000)
        assert trialfs_commit.state(directory) == "open" and names(b.path) == []
    assert names(b.path / "checkpoint_000001") == ["model.pt", "optimizer.pt"]
    assert trialfs_commit.state(a.path / "checkpoint_000001") == "published"
    try:
        with trialfs_commit.saved(a.path / "checkpoint_000002") as directory:
            (directory / "model.pt").write_bytes(b"m" * 1000)
            raise KeyError
    except KeyError:
        pass
    assert names(a.path) == names(b.path) == ["checkpoint_000001"]
    with trialfs_commit.saved(scratch("plain") / "checkpoint_000001") as directory:
        (directory / "model.pt").write_bytes(b"m")
    a.stop()
    b.stop()


def test_fsync_of_the_directory_commits_it():
    prefix, a, b = two("fsync", "--commit-idle", "1m")
    write(a.path / "checkpoint_000007")
    assert names(b.path) == []
    fd = os.open(a.path / "checkpoint_000007", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    assert len(names(b.path / "checkpoint_000007")) == FILES
    a.stop()
    b.stop()


def test_unmount_commits_what_is_whole_and_keeps_what_is_empty():
    prefix, a, b = two("unmount", "--commit-idle", "1m")
    write(a.path / "checkpoint_000008")
    (a.path / "checkpoint_000009").mkdir()
    a.stop()
    assert len(names(b.path / "checkpoint_000008")) == FILES
    assert names(b.path) == ["checkpoint_000008", "checkpoint_000009"]
    b.stop()


def test_removing_one_before_and_after_its_commit():
    prefix, a, b = two("removed", "--commit-idle", "1s")
    directory, other = a.path / "checkpoint_000010", b.path / "checkpoint_000010"
    write(directory)
    shutil.rmtree(directory)
    assert names(a.path) == []
    write(directory, 3)
    visible(other, 3)
    shutil.rmtree(other)
    assert names(b.path) == [] and names(a.path) == []
    eventually("gone from the bucket", lambda: s3().keys(prefix) == {})
    a.stop()
    b.stop()


def test_appends_and_patches_before_and_after_the_commit():
    prefix, a, b = two("append")
    directory = a.path / "checkpoint_000011"
    directory.mkdir()
    with open(directory / "log", "wb") as f:
        f.write(b"1" * 1000)
    with open(directory / "log", "ab") as f:
        f.write(b"2" * 1000)
    with open(directory / "log", "r+b") as f:
        f.seek(500)
        f.write(b"3" * 100)
    want = b"1" * 500 + b"3" * 100 + b"1" * 400 + b"2" * 1000
    assert (directory / "log").read_bytes() == want
    other = b.path / "checkpoint_000011"
    visible(other, 1)
    assert (other / "log").read_bytes() == want
    with open(directory / "log", "ab") as f:
        f.write(b"4")
    eventually("the append", lambda: (other / "log").read_bytes() == want + b"4")
    a.stop()
    b.stop()


def test_from_the_last_close_to_visible_at_most_4_requests():
    prefix = unique("budget")
    a = Mount(prefix, "--commit-idle", "3s", "--lease", "5m", name="a")  # no renewal in between
    directory = a.path / "checkpoint_000012"
    write(directory)
    time.sleep(1)  # the attributes of the directory itself are recorded by now
    before = a.requests()
    eventually("committed", lambda: state_without_requests(prefix), 30)
    after = a.requests()
    used = {k: after[k] - before.get(k, 0) for k in after if after[k] != before.get(k, 0)}
    seal = {k: v for k, v in used.items() if k not in ("complete",)}
    print(f"    {used}")
    # The swap, at most two LISTs, the seal, by which it is visible; the done comes after.
    assert used.get("complete") == FILES and sum(seal.values()) - 1 <= 4, used
    a.stop()


def state_without_requests(prefix: str) -> bool:
    """Asks the bucket and not the mount."""
    pages = s3().client.list_objects_v2(Bucket=s3().bucket, Prefix=f"{prefix}/.trialfs/txn.")
    return any(".done." in item["Key"] for item in pages.get("Contents", []))


SAVER = """
import os, sys
base, first, last, files = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
for n in range(first, last):
    d = os.path.join(base, f"checkpoint_{n:06}")
    os.makedirs(d, exist_ok=True)
    stamp = b"%06d-%08d;" % (n, os.getpid())
    with open(os.path.join(d, "file000"), "wb") as f:
        for i in range(1, files):
            with open(os.path.join(d, f"file{i:03}"), "wb") as g:
                g.write(stamp * 100)
        f.write(stamp * 100)
    print(n, flush=True)
"""


def save(base: pathlib.Path, first: int, last: int, files: int) -> subprocess.Popen:
    argv = [PYTHON, "-c", SAVER, str(base), str(first), str(last), str(files)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def whole(directory: pathlib.Path, files: int, size: int = 1600) -> bytes | None:
    """The one stamp of a whole checkpoint; None where there is none; fails on half of one."""
    try:
        found = names(directory)
    except TimeoutError:
        return None  # somebody is at it, and nothing was ever committed
    if not found:
        return None
    assert len(found) == files, f"{directory.name}: {len(found)} of {files} files"
    stamps = {(directory / name).read_bytes() for name in found}
    assert len(stamps) == 1, f"{directory.name} mixes {[s[:16] for s in stamps]}"
    stamp = stamps.pop()
    assert len(stamp) == size and stamp == stamp[:16] * (size // 16), f"{directory.name}: torn bytes"
    return stamp


def whole_in_bucket(prefix: str, files: int):
    counts: dict[str, int] = {}
    for key in s3().keys(prefix):
        name = key.split("/")[0]
        counts[name] = counts.get(name, 0) + 1
    bad = {name: n for name, n in counts.items() if n != files}
    assert not bad, f"the client sees parts: {bad}"
    return set(counts)


def stamp_of(body: bytes) -> bytes:
    """The one line that a whole file repeats; fails on a torn or mixed one."""
    line = body[:16]
    assert len(body) == 1600 and body == line * 100, f"torn or mixed: {body[:16]}.. of {len(body)} bytes"
    return line


class Watch:
    """Looks without pause, from a mount or as a raw S3 client, and notes what must not be."""

    def __init__(self, prefix: str, base: pathlib.Path, files: int):
        self.prefix, self.base, self.files = prefix, base, files
        self.stop = threading.Event()
        self.problems: list[str] = []
        self.mount = self.client = self.before_seal = self.published = self.read = 0
        self.threads = [threading.Thread(target=self.run, args=(look,)) for look in (self.by_mount, self.by_client)]
        for thread in self.threads:
            thread.start()

    def run(self, look):
        rng = random.Random(1)
        while not self.stop.is_set():
            try:
                look(rng)
            except Exception as problem:  # noqa: BLE001 - whatever goes wrong here is one
                self.problems.append(f"{look.__name__}: {problem!r}")

    def by_mount(self, rng):
        for name in sorted(names(self.base))[-6:]:
            here = self.base / name
            found = os.listdir(here)
            if len(found) != self.files:
                self.problems.append(f"mount: {name} with {len(found)} files")
            stamps = {stamp_of((here / file).read_bytes()) for file in rng.sample(found, min(4, len(found)))}
            # One that is written again may change between two opens, but is of its own round.
            if len(stamps) > (2 if name.endswith("0") else 1) or any(s[:6] != name[-6:].encode() for s in stamps):
                self.problems.append(f"mount: {name} mixes {stamps}")
            self.mount += 1

    def keys(self, below: str) -> list[str]:
        pages = s3().client.get_paginator("list_objects_v2").paginate(Bucket=s3().bucket, Prefix=f"{self.prefix}/{below}")
        return [item["Key"][len(self.prefix) + 1 :] for page in pages for item in page.get("Contents", [])]

    def by_client(self, rng):
        """Records, objects, records: objects only of what the later LIST shows sealed, and all of what
        the earlier one shows published."""
        earlier = self.keys(".trialfs/txn.")
        begun = {key.split(".")[2] for key in earlier}
        for name in sorted(begun)[-3:]:
            done = [key for key in earlier if key.startswith(f".trialfs/txn.{name}.done.")]
            objects = self.keys(f"{name}/")
            later = self.keys(f".trialfs/txn.{name}.")
            sealed = any(f"txn.{name}.seal." in key for key in later)
            if objects and not sealed:
                self.problems.append(f"client: {name} has {len(objects)} objects and no seal")
            if done and len(objects) != self.files:
                self.problems.append(f"client: {name} is published with {len(objects)} objects")
            for key in rng.sample(objects, min(2, len(objects))):
                stamp_of(s3().get(f"{self.prefix}/{key}"))
                self.read += 1
            self.before_seal += not sealed
            self.published += bool(done)
            self.client += 1

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def test_readers_and_a_raw_client_never_see_a_part():
    wanted, files = (10_000 if support.FULL else 300), 40
    prefix, a, b = two("loop", "--commit-idle", "50ms")
    watch = Watch(prefix, b.path, files)
    n = 0
    try:
        while (watch.mount < wanted or watch.client < wanted) and not watch.problems:
            # Every tenth is written a second time.
            for _ in range(2 if n % 10 == 0 else 1):
                assert save(a.path, n, n + 1, files).wait() == 0
            n += 1
        visible(b.path / f"checkpoint_{n - 1:06}", files)
    finally:
        watch.end()
    print(
        f"    {n} checkpoints of {files} files; {watch.mount} observations by a mount, {watch.client} by a client"
        f" ({watch.before_seal} before the seal, {watch.published} when published), {watch.read} objects read;"
        f" {len(watch.problems)} problems"
    )
    assert not watch.problems, watch.problems[:5]
    whole_in_bucket(prefix, files)
    a.stop()
    b.stop()


def test_a_writer_killed_at_random_points_leaves_only_whole_checkpoints():
    kills, files = (200 if support.FULL else 12), 12
    rng = random.Random(support.options().seed or 1)
    prefix, a, b = two("kills", "--commit-idle", "100ms", "--commit-wait", "2s")
    sealed: set[int] = set()
    n = 0
    for _ in range(kills):
        writer = save(a.path, n, n + 1000, files)
        got = writer.stdout.readline()
        assert got
        time.sleep(rng.random() * 0.4)
        writer.kill()
        rest = writer.stdout.read().split()
        writer.wait()
        done = [int(x) for x in (got, *rest)]
        # What was closed long before the kill is sealed; the attempt that was cut is not there.

        def decided():
            here = a.status()["fs"]["checkpoints"]
            left = [name for name in here["names"] if names(a.path / name.split("/")[-1])]
            return not left and not here["waiting"]

        eventually("everything is decided", decided, 60)
        for number in range(n, done[-1] + 2):
            found = whole(b.path / f"checkpoint_{number:06}", files)
            if found:
                sealed.add(number)
        n = done[-1] + 1  # the retry goes into the name of the dead attempt
    whole_in_bucket(prefix, files)
    writer = save(a.path, n, n + 1, files)
    assert writer.wait() == 0
    visible(b.path / f"checkpoint_{n:06}", files)
    found = whole(b.path / f"checkpoint_{n:06}", files)
    assert found and f"{writer.pid:08}".encode() in found, "the retry holds a file of the dead"
    print(f"    {kills} kills, {n} checkpoints saved, {len(sealed)} seen sealed")
    a.stop()
    b.stop()


def test_a_mount_killed_at_random_points_leaves_only_whole_checkpoints():
    kills, files = (50 if support.FULL else 4), 12
    rng = random.Random(support.options().seed or 1)
    prefix, a, b = two("mountkills", "--commit-idle", "100ms", "--commit-wait", "5s")
    n, sealed = 0, set()
    for _ in range(kills):
        writer = save(a.path, n, n + 1000, files)
        assert writer.stdout.readline()
        time.sleep(rng.random() * 0.6)
        for name in names(b.path)[-RECENT:]:
            if whole(b.path / name, files):
                sealed.add(name)
        a.kill()
        writer.kill()
        done = [int(x) for x in writer.stdout.read().split()] or [n]
        writer.wait()
        support.detach(a.path)
        a.start()
        n = done[-1] + 2

        def all_whole():
            return all(whole(b.path / name, files) for name in names(b.path)[-RECENT:])

        eventually("only whole ones", all_whole, 60)
        assert sealed <= set(names(b.path)), "a sealed checkpoint is gone"
        assert sealed <= whole_in_bucket(prefix, files)
    print(f"    {kills} kills, {len(sealed)} sealed checkpoints, all still whole")
    a.stop()
    b.stop()


if __name__ == "__main__":
    main(globals(), needs_mount=True)
