#!/usr/bin/env python3
"""Copies inside a mount: by the store itself where that pays, by the kernel elsewhere, right everywhere."""

import errno
import os
import pathlib

from support import Mount, main, run, s3, scratch, unique

SIZE = 40 << 20  # five parts
# What the kernel writes by itself is copied by it.
DIRECT = "--no-passthrough"


def content() -> bytes:
    return os.urandom(SIZE + 12345)


def filled(name: str, body: bytes, *flags: str) -> Mount:
    prefix = unique(name)
    s3().put(f"{prefix}/a", body)
    return Mount(prefix, *flags)


def counts(here) -> dict[str, int]:
    return here.status()["fs"]["write"]


def copy_range(source: int, to: int, size: int, at: int = 0):
    done = 0
    while done < size:
        copied = os.copy_file_range(source, to, size - done, at + done, at + done)
        assert copied > 0, f"nothing more at {at + done}"
        done += copied


def assert_holds(here, name: str, body: bytes):
    """In the mount, and in the bucket."""
    assert (here.path / name).read_bytes() == body, f"{name} reads otherwise"
    assert s3().get(f"{here.prefix}/{name}") == body, f"{name} is otherwise in the bucket"


def assert_moved_by_the_store(before: dict, after: dict, parts: int, bytes_max: int = 0):
    spent = {k: after[k] - before[k] for k in before}
    assert spent["parts_copied"] >= parts, spent
    assert spent["bytes_sent"] <= bytes_max and spent["bytes_fetched"] <= bytes_max, spent


def test_cp_inside_the_mount_moves_no_bytes():
    body = content()
    here = filled("copy-cp", body, DIRECT)
    before, requests = counts(here), here.requests()
    run("cp", here.path / "a", here.path / "b")
    assert_moved_by_the_store(before, counts(here), 3)
    spent = {k: n - requests[k] for k, n in here.requests().items()}
    assert spent["get"] == spent["part"] == 0, spent
    assert_holds(here, "b", body)
    (here.path / "b").unlink()
    (here.path / "b").write_bytes(b"x" * SIZE)  # and over a file that was something else
    before = counts(here)
    run("cp", here.path / "a", here.path / "b")
    assert_moved_by_the_store(before, counts(here), 3)
    assert_holds(here, "b", body)
    assert_holds(here, "a", body)
    here.stop()


def test_a_copy_is_read_and_changed_before_its_close():
    body = bytearray(content())
    here = filled("copy-changed", bytes(body), DIRECT)
    before = counts(here)
    with open(here.path / "a", "rb") as source, open(here.path / "b", "w+b", buffering=0) as to:
        copy_range(source.fileno(), to.fileno(), len(body))
        assert os.pread(to.fileno(), 1000, 20 << 20) == body[20 << 20 : (20 << 20) + 1000]
        os.pwrite(to.fileno(), b"patch", 5)
        body[5:10] = b"patch"
        assert os.pread(to.fileno(), 20, 0) == body[:20]
    assert_moved_by_the_store(before, counts(here), 3, bytes_max=18 << 20)
    assert_holds(here, "b", bytes(body))
    here.stop()


def source_goes(name: str, how):
    """A copy is what its source was, whatever becomes of that before the copy is closed."""
    body = bytearray(content())
    here = filled(name, bytes(body), DIRECT)
    with open(here.path / "b", "w+b", buffering=0) as to:
        with open(here.path / "a", "rb") as source:
            copy_range(source.fileno(), to.fileno(), len(body))
        how(here.path / "a")
        assert os.pread(to.fileno(), 100, 30 << 20) == body[30 << 20 : (30 << 20) + 100]
        os.pwrite(to.fileno(), b"patch", 17 << 20)
        body[17 << 20 : (17 << 20) + 5] = b"patch"
    assert_holds(here, "b", bytes(body))
    here.stop()


def test_a_copy_outlives_its_source_that_is_removed():
    source_goes("copy-unlink", lambda a: a.unlink())


def test_a_copy_outlives_its_source_that_is_rewritten():
    source_goes("copy-rewrite", lambda a: a.write_bytes(b"something else" * (2 << 20)))


def test_a_copy_outlives_its_source_that_is_renamed():
    source_goes("copy-rename", lambda a: a.rename(a.with_name("c")))


def test_a_source_that_another_tool_replaced_is_never_half_of_a_copy():
    old, new = content(), content()
    here = filled("copy-foreign", old, DIRECT)
    with open(here.path / "a", "rb") as source, open(here.path / "b", "wb", buffering=0) as to:
        s3().put(f"{here.prefix}/a", new)
        try:
            copy_range(source.fileno(), to.fileno(), len(old))
            got = None
        except OSError as e:
            got = e.errno
    if got is None:
        assert (here.path / "b").read_bytes() in (old, new)
    else:
        assert got in (errno.ESTALE, errno.EIO), errno.errorcode[got]
    here.stop()


def ranges(*flags: str):
    body = content()
    here = filled("copy-ranges" + "".join(flags), body, *flags)
    out = bytearray(b"z" * 1000)
    (here.path / "b").write_bytes(bytes(out))
    with open(here.path / "a", "rb") as source, open(here.path / "b", "r+b", buffering=0) as to:
        for at_in, at_out, size in ((0, 500, 3 << 20), (1 << 20, 0, 100), (30 << 20, 4 << 20, 10 << 20)):
            done = 0
            while done < size:
                done += os.copy_file_range(
                    source.fileno(), to.fileno(), size - done, at_in + done, at_out + done
                )
            out.extend(bytes(max(0, at_out + size - len(out))))
            out[at_out : at_out + size] = body[at_in : at_in + size]
        assert os.copy_file_range(source.fileno(), to.fileno(), 10, len(body), 0) == 0, "past the end"
    assert_holds(here, "b", bytes(out))
    # The first 20 MiB and 7 bytes, and then all that follows.
    with open(here.path / "a", "rb") as source, open(here.path / "c", "wb", buffering=0) as to:
        copy_range(source.fileno(), to.fileno(), (20 << 20) + 7)
        copy_range(source.fileno(), to.fileno(), len(body) - (20 << 20) - 7, (20 << 20) + 7)
    assert_holds(here, "c", body)
    with open(here.path / "c", "r+b", buffering=0) as file:  # within one file
        copied = os.copy_file_range(file.fileno(), file.fileno(), 1000, 0, 2000)
        body = body[:2000] + body[:copied] + body[2000 + copied :]
    assert_holds(here, "c", body)
    here.stop()


def test_any_range_is_copied_right():
    ranges(DIRECT)


def test_any_range_is_copied_right_where_the_kernel_passes_through():
    ranges()


def test_small_files_and_files_being_written_are_copied_right():
    here = filled("copy-small", b"tiny", DIRECT)
    run("cp", here.path / "a", here.path / "b")
    assert_holds(here, "b", b"tiny")
    body = content()
    with open(here.path / "w", "wb", buffering=0) as source:
        source.write(body)
        run("cp", here.path / "w", here.path / "x")  # the bucket has not what is copied
    assert_holds(here, "x", body)
    local = pathlib.Path(scratch("copy-out")) / "out"
    run("cp", here.path / "x", local)
    assert local.read_bytes() == body
    here.stop()


if __name__ == "__main__":
    main(globals(), needs_mount=True)
