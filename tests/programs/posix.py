#!/usr/bin/env python3
"""What POSIX programs want beside the needs of trainers: special files, ranges, room, true directories, permissions."""

import ctypes
import errno
import mmap
import os
import shutil
import socket
import stat
import subprocess
import sys

from nodes import FALLOC_FL_KEEP_SIZE, libc, mounted, nodes, places, raises, same
from support import Mount, eventually, main, tree, unique


def test_hard_links_are_refused_with_eperm():
    a, _ = places("links")
    (a / "f").write_bytes(b"f")
    if mounted():
        raises(errno.EPERM, os.link, a / "f", a / "g")
        assert os.listdir(a) == ["f"]


def test_fifos_sockets_and_devices_are_kept():
    a, b = places("special")
    os.mkfifo(a / "fifo", 0o600)
    with socket.socket(socket.AF_UNIX) as s:
        here = os.getcwd()
        os.chdir(a)  # a socket's path may have 108 bytes only
        s.bind("socket")
        os.chdir(here)
    kinds = {"fifo": stat.S_ISFIFO, "socket": stat.S_ISSOCK}
    if os.geteuid() == 0:
        os.mknod(a / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        kinds["null"] = stat.S_ISCHR
    for root in (a, b):
        for name, is_kind in kinds.items():
            seen = os.lstat(root / name)
            assert is_kind(seen.st_mode), f"{root}/{name} is {seen.st_mode:o}"
        if "null" in kinds:
            assert os.lstat(root / "null").st_rdev == os.makedev(1, 3)
    reader = os.open(a / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(a / "fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 10) == b"through"
    os.close(reader), os.close(writer)


def test_copy_file_range_seek_and_fallocate():
    a, b = places("ranges")
    body = os.urandom(2_500_000)
    (a / "from").write_bytes(body)
    with open(a / "from", "rb") as source, open(a / "to", "wb") as to:
        left = len(body)
        while left:
            copied = os.copy_file_range(source.fileno(), to.fileno(), left)
            assert copied > 0
            left -= copied
    same(b / "to", body)
    with open(a / "to", "r+b") as f:
        assert os.lseek(f.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(f.fileno(), 0, os.SEEK_HOLE) <= len(body)
        raises(errno.ENXIO, os.lseek, f.fileno(), len(body) + 1, os.SEEK_DATA)
        os.posix_fallocate(f.fileno(), 0, 3_000_000)
        assert os.fstat(f.fileno()).st_size == 3_000_000
        libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        kept = libc.fallocate(f.fileno(), FALLOC_FL_KEEP_SIZE, 0, 4_000_000)
        assert kept == 0 or ctypes.get_errno() == errno.EOPNOTSUPP
        assert os.fstat(f.fileno()).st_size == 3_000_000
    same(b / "to", body + b"\0" * 500_000)


def test_exec_with_an_open_file_that_it_closes_hangs_nobody():
    """execve closes a close-on-exec descriptor under a lock for which whoever reads /proc/<pid>/stat waits."""
    a, _ = places("exec")
    held = open(a / "held", "wb")
    held.write(b"begun")
    scripts = [
        subprocess.Popen([sys.executable, "-c", code, str(a / f"f{i}")])
        for i in range(4)
        for code in ("import os, sys; f = open(sys.argv[1], 'wb'); assert os.system('true') == 0",)
    ]
    for i in range(4):
        with open(a / f"log{i}", "wb") as log:
            loop = "for i in 1 2 3; do /bin/true; done > /dev/null; echo done"
            scripts.append(subprocess.Popen(["bash", "-c", loop], stdout=log))
    try:
        for script in scripts:
            assert script.wait(30) == 0
    finally:
        for script in scripts:
            script.kill()
    subprocess.run(["true"], close_fds=False, check=True, timeout=30)
    held.close()
    assert [(a / f"log{i}").read_text() for i in range(4)] == ["done\n"] * 4


def test_attributes_of_the_root_are_kept():
    if not mounted():
        return
    mount = Mount(unique("root"))
    other = None
    try:
        (mount.path / "f").write_bytes(b"f")
        os.chmod(mount.path, 0o1777)
        os.chown(mount.path, 12, 34)
        os.setxattr(mount.path, "user.team", b"blue")
        mount.stop()
        other = Mount(mount.prefix, name="b")
        assert os.listdir(other.path) == ["f"]
        eventually("the root is as it was made", lambda: os.stat(other.path).st_mode & 0o7777 == 0o1777, 5)
        assert (os.stat(other.path).st_uid, os.stat(other.path).st_gid) == (12, 34)
        assert os.getxattr(other.path, "user.team") == b"blue"
        other.stop()
    finally:
        mount.clear()
        if other:
            other.clear()


def test_statfs_has_room():
    a, _ = places("statfs")
    seen = os.statvfs(a)
    assert seen.f_bavail > 0 and seen.f_namemax == 255 and seen.f_bsize >= 512
    shutil.disk_usage(a)


def test_directories_are_true():
    a, b = places("dirs")
    (a / "d").mkdir()
    assert os.listdir(b / "d") == []  # an empty directory is seen, and stays
    (b / "d" / "f").write_bytes(b"x")
    raises(errno.ENOTEMPTY, os.rmdir, a / "d")
    raises(errno.ENOTDIR, os.rmdir, a / "d" / "f")
    raises(errno.EISDIR, os.unlink, a / "d")
    raises(errno.ENOTDIR, os.listdir, a / "d" / "f")
    raises(errno.ENOENT, os.mkdir, a / "no" / "d")
    raises(errno.EISDIR, open, a / "d", "wb")
    (a / "d" / "f").unlink()
    assert (b / "d").is_dir()  # the last file of a directory does not take it along
    (b / "d").rmdir()
    assert os.listdir(a) == []
    if mounted():
        raises(errno.ENOENT, os.stat, a / ".trialfs")
        assert ".trialfs" not in os.listdir(nodes()[0].path)


def test_permissions_are_checked_for_other_users():
    if os.geteuid() != 0:
        return
    here = tree("needs-users", "--allow-other")
    (here.path / "secret").write_bytes(b"s")
    (here.path / "secret").chmod(0o600)
    (here.path / "public").write_bytes(b"p")
    (here.path / "public").chmod(0o644)
    here.path.chmod(0o755)

    def as_nobody(*argv):
        return subprocess.run(argv, user=65534, group=65534, extra_groups=[], capture_output=True).returncode

    assert as_nobody("cat", here.path / "public") == 0
    assert as_nobody("cat", here.path / "secret") != 0
    assert as_nobody("touch", here.path / "new") != 0
    here.stop()
    if here.is_mount:
        private = tree("needs-private")
        (private.path / "f").write_bytes(b"x")
        private.path.joinpath("f").chmod(0o644)
        assert as_nobody("cat", private.path / "f") != 0, "without --allow-other nobody else enters"
        private.stop()


def test_a_reader_of_a_cached_file_sees_what_is_written_after_its_open():
    """It is open on the cached file itself, which the kernel reads; that file is then the writer's."""
    a, b = places("cached")
    body = os.urandom(3_000_000)
    (a / "f").write_bytes(body)
    same(b / "f", body)
    same(b / "f", body)
    with open(b / "f", "rb", buffering=0) as reader, open(b / "f", "rb", buffering=0) as other:
        assert reader.read(100) == body[:100]
        with open(b / "f", "ab") as log:
            log.write(b"tail")
        assert os.pread(reader.fileno(), 10, len(body)) == b"tail"
        same(a / "f", body + b"tail")
        with open(b / "f", "r+b") as patch:
            patch.write(b"head")
        assert os.pread(other.fileno(), 8, 0) == b"head" + body[4:8]
        (b / "f").write_bytes(b"anew")
        assert os.pread(other.fileno(), 10, 0) == b"anew"
    same(b / "f", b"anew")
    same(a / "f", b"anew")


def test_a_small_file_that_is_read_can_be_written_anew():
    """It rests no more from its own write, and the reader has the cached file itself."""
    a, _ = places("read")
    for body in (os.urandom(4096), os.urandom(3_000_000)):
        (a / "f").write_bytes(body)
        for i in range(100):
            (a / f"other{i}").write_bytes(b"more than rest for their next open")
        same(a / "f", body)
        with open(a / "f", "rb", buffering=0) as reader:
            assert reader.read(100) == body[:100]
            (a / "f").write_bytes(b"anew")
            assert os.pread(reader.fileno(), 10, 0) == b"anew"
        same(a / "f", b"anew")


def test_the_kernel_reads_ahead_a_mebibyte_at_a_time():
    """As far as its user may say so."""
    device = os.stat(nodes()[0].path).st_dev
    file = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    may = os.access(file, os.W_OK) and not os.statvfs("/sys").f_flag & os.ST_RDONLY
    with open(file) as f:
        assert int(f.read()) == (1024 if may else 128)


def test_a_reader_of_a_cached_file_keeps_it_when_it_goes():
    a, b = places("kept")
    bodies = {name: os.urandom(2_000_000) for name in ("unlinked", "renamed", "replaced", "elsewhere")}
    for name, body in bodies.items():
        (a / name).write_bytes(body)
        same(b / name, body)
    readers = {name: open(b / name, "rb", buffering=0) for name in bodies}
    (b / "unlinked").unlink()
    (b / "renamed").rename(b / "moved")
    (b / "new").write_bytes(b"new")
    (b / "new").rename(b / "replaced")
    (a / "elsewhere").write_bytes(b"by another node")
    same(b / "elsewhere", b"by another node")
    same(b / "replaced", b"new")
    same(b / "moved", bodies["renamed"])
    for name, reader in readers.items():
        assert os.pread(reader.fileno(), 3_000_000, 0) == bodies[name], name
        reader.close()


def test_what_a_program_has_mapped_stays_whatever_is_written_after():
    """The daemon uses the files again that were written here: not those that somebody maps or has open."""
    a, _ = places("mapped")
    bodies = {f"m{i}": os.urandom(5000) for i in range(20)}
    mapped, readers = {}, {}
    for name, body in bodies.items():
        with open(a / name, "wb+") as f:
            f.write(body)
            f.flush()
            mapped[name] = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
        readers[name] = open(a / name, "rb", buffering=0)
    # More than rest for their next open, several times: each is uploaded, and its file used again.
    for i in range(400):
        (a / f"other{i}").write_bytes(os.urandom(6000))
    for name, body in bodies.items():
        assert mapped[name][:] == body, name
        assert os.pread(readers[name].fileno(), 9000, 0) == body, name
        readers[name].close()
        mapped[name].close()
        same(a / name, body)


def test_zz_both_nodes_unmount_cleanly():
    for node in nodes():
        node.stop()


if __name__ == "__main__":
    main(globals())
