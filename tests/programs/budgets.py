#!/usr/bin/env python3
"""What a call costs in requests to the store, held by the daemon's own counts (`status --json`).

warm stat 0; cold stat at most 2 per path component not yet known; open of a known file 1; readdir one LIST
per page; a 4 KiB create-write-close 1 PUT beyond its lookup; a rewrite with the same content no PUT, one that
only grew its tail; and an idle mount asks nothing.
"""

import os
import time

from support import Mount, eventually, main, run, s3, unique

KEYS_PER_PAGE = 1000


def cost(mount, action) -> dict[str, int]:
    """Requests that `action` made, by operation, zeros left out."""
    before = mount.requests()
    action()
    after = mount.requests()
    return {k: after[k] - before.get(k, 0) for k in after if after[k] != before.get(k, 0)}


def total(spent: dict[str, int]) -> int:
    return sum(spent.values())


def fill(prefix: str, names) -> str:
    """Objects of another tool under a new prefix."""
    prefix = unique(prefix)
    for name in names:
        s3().put(f"{prefix}/{name}", b"x" * 4096)
    return prefix




def test_a_warm_stat_asks_nothing():
    here = Mount(fill("warm", ["d/f"]))
    os.stat(here.path / "d" / "f")

    def warm():
        deadline = time.monotonic() + 0.5  # within the second for which attributes hold
        while time.monotonic() < deadline:
            os.stat(here.path / "d" / "f")

    os.stat(here.path / "d" / "f")
    spent = cost(here, warm)
    assert total(spent) <= 2, f"warm stats cost {spent}"  # one lookup may fall on the second's end
    here.stop()


def test_a_cold_stat_asks_at_most_two_per_component():
    here = Mount(fill("cold", ["a/b/c/f", "g"]))
    spent = cost(here, lambda: os.stat(here.path / "g"))
    assert 1 <= total(spent) <= 2, f"one component cost {spent}"
    spent = cost(here, lambda: os.stat(here.path / "a" / "b" / "c" / "f"))
    assert 1 <= total(spent) <= 8, f"four components cost {spent}"
    spent = cost(here, lambda: os.path.exists(here.path / "a" / "b" / "c" / "absent"))
    assert total(spent) <= 2 + 6, f"an absent name cost {spent}"  # parents may need a fresh look
    here.stop()


def test_an_open_of_a_known_file_asks_once():
    here = Mount(fill("open", ["f"]))
    assert (here.path / "f").read_bytes() == b"x" * 4096
    os.stat(here.path / "f")

    def again():
        with open(here.path / "f", "rb") as f:
            assert f.read() == b"x" * 4096

    spent = cost(here, again)
    assert total(spent) == 1, f"an open of a known, cached file cost {spent}"
    here.stop()


def test_an_open_of_a_large_file_is_the_first_get_of_its_bytes():
    here = Mount(fill("first", []))
    bodies = [os.urandom(4 << 20), os.urandom(4 << 20)]
    s3().put(f"{here.prefix}/f", bodies[0])
    assert os.listdir(here.path) == ["f"] and os.stat(here.path / "f").st_size == 4 << 20

    def read():
        assert (here.path / "f").read_bytes() == bodies[-1]

    def read_first():
        assert (here.path / "f").read_bytes() == bodies[0]

    spent = cost(here, read_first)
    assert spent.get("get") == 1 and not spent.get("head"), f"a cold read of 4 MiB cost {spent}"
    s3().put(f"{here.prefix}/f", bodies[1])
    read()  # what was known is void, and is found to be
    here.stop()


def test_a_whole_cached_file_is_read_by_the_kernel_alone():
    body = os.urandom(3 << 20)
    here = Mount(fill("whole", []))
    s3().put(f"{here.prefix}/f", body)
    assert (here.path / "f").read_bytes() == body
    before = here.status()["fs"]["read"]["read_bytes"]

    def again():
        assert (here.path / "f").read_bytes() == body

    spent = cost(here, again)
    assert total(spent) == 1, f"an open of a whole cached file cost {spent}"
    if os.geteuid() == 0:
        assert here.status()["fs"]["read"]["read_bytes"] == before, "its reads came to the daemon"
    here.stop()


def test_a_listing_asks_once_per_page():
    few = Mount(fill("list", [f"f{i:03}" for i in range(50)]))
    spent = cost(few, lambda: os.listdir(few.path))
    assert spent == {"list": 1}, f"50 names cost {spent}"

    def stat_all():
        for entry in os.scandir(few.path):
            assert entry.stat().st_size == 4096

    spent = cost(few, stat_all)
    assert total(spent) <= 1, f"a listing with a stat of each of 50 names cost {spent}"
    few.stop()
    count = 2 * KEYS_PER_PAGE + 100
    many = Mount(fill("pages", [f"f{i:05}" for i in range(count)]))
    names = []
    spent = cost(many, lambda: names.extend(os.listdir(many.path)))
    assert len(names) == count
    assert spent == {"list": 3}, f"{count} names cost {spent}"
    many.stop()


def test_a_small_file_costs_one_put_beyond_its_lookup():
    here = Mount(unique("create"))
    (here.path / "first").write_bytes(b"x" * 4096)  # whatever a mount does once is done
    (here.path / "d").mkdir()

    def create():
        (here.path / "d" / "f").write_bytes(b"x" * 4096)

    spent = cost(here, create)
    assert spent.get("put", 0) == 1, f"create-write-close cost {spent}"
    assert total(spent) <= 1 + 2, f"create-write-close cost {spent}"
    def create_in_new():
        (here.path / "new").mkdir()
        (here.path / "new" / "f").write_bytes(b"x" * 4096)

    spent = cost(here, create_in_new)  # a directory just made is known to be empty
    assert spent.get("put", 0) == 2 and total(spent) <= 2 + 2, f"mkdir and a file in it cost {spent}"
    spent = cost(here, create)  # over what is there
    assert spent.get("put", 0) <= 1 and total(spent) <= 1 + 2, f"a rewrite cost {spent}"
    for line in "new", "over what is there":
        spent = cost(here, lambda: run("sh", "-c", f"echo {line} > {here.path}/d/redirected"))
        assert spent.get("put", 0) == 1 and total(spent) <= 1 + 2, f"a redirection cost {spent}"
    here.stop()


def test_a_hundred_small_files_cost_a_hundred_puts():
    here = Mount(unique("hundred"))

    def create():
        for i in range(100):
            (here.path / f"f{i}").write_bytes(b"x" * 4096)

    spent = cost(here, create)
    assert 100 <= spent.get("put", 0) <= 102, f"100 creates cost {spent}"
    # Lookups until a listing pays, and that one again in each second.
    assert total(spent) <= 100 + 30, f"100 creates cost {spent}"
    here.stop()


def test_a_file_written_anew_with_what_it_held_sends_nothing():
    here = Mount(unique("again"))
    bodies = {"small": os.urandom(5000), "part": os.urandom(9 << 20), "parts": os.urandom(40 << 20)}
    for name, body in bodies.items():
        (here.path / name).write_bytes(body)
    sent = here.status()["fs"]["write"]["bytes_sent"]

    def again():
        for name, body in bodies.items():
            (here.path / name).write_bytes(body)

    spent = cost(here, again)
    assert not {"put", "part", "part_copy", "complete"} & spent.keys(), f"identical rewrites cost {spent}"
    assert here.status()["fs"]["write"]["bytes_sent"] == sent
    for name, body in bodies.items():
        assert s3().get(f"{here.prefix}/{name}") == body
    here.stop()


def test_a_file_that_grew_sends_its_tail():
    here = Mount(unique("grown"))
    for name in ("log", "anew"):
        (here.path / name).write_bytes(body := os.urandom(10 << 20))
        sent = here.status()["fs"]["write"]["bytes_sent"]

        def grow():
            if name == "log":
                with open(here.path / name, "ab") as f:
                    f.write(b"tail")
            else:
                (here.path / name).write_bytes(body + b"tail")

        spent = cost(here, grow)
        assert not spent.get("put") and spent["part"] == spent["part_copy"] == 1, f"a tail cost {spent}"
        assert here.status()["fs"]["write"]["bytes_sent"] - sent == 4
        assert s3().get(f"{here.prefix}/{name}") == body + b"tail"
    here.stop()


def test_an_append_to_a_log_costs_one_upload_of_its_tail():
    body, tails = os.urandom(10 << 20), [b"%063d\n" % i for i in range(20)]
    here = Mount(unique("appended"))
    (here.path / "log").write_bytes(body)
    sent = here.status()["fs"]["write"]["bytes_sent"]

    def append():
        for tail in tails:
            with open(here.path / "log", "ab") as log:
                log.write(tail)

    spent = cost(here, append)
    assert spent["complete"] == spent["part"] == len(tails) and not spent.get("put"), f"{len(tails)} appends: {spent}"
    assert here.status()["fs"]["write"]["bytes_sent"] - sent == sum(map(len, tails))
    assert s3().get(f"{here.prefix}/log") == body + b"".join(tails)
    here.stop()


def test_appends_to_a_log_under_durability_local_share_their_uploads():
    body, tails = os.urandom(20 << 20), [b"%063d\n" % i for i in range(50)]
    here = Mount(unique("appended-local"), "--durability", "local")
    (here.path / "log").write_bytes(body)
    eventually("the log is in the bucket", lambda: s3().find(f"{here.prefix}/log") == body)
    sent = here.status()["fs"]["write"]["bytes_sent"]

    def append():
        for tail in tails:
            with open(here.path / "log", "ab") as log:
                log.write(tail)
            time.sleep(0.1)  # so that whoever sends ahead would
        whole = body + b"".join(tails)
        eventually("the lines are in the bucket", lambda: s3().find(f"{here.prefix}/log") == whole)

    spent = cost(here, append)
    uploads = spent.get("complete", 0) + spent.get("put", 0)
    assert uploads <= 4, f"{len(tails)} appends: {spent}"  # one in 5 s
    sent = here.status()["fs"]["write"]["bytes_sent"] - sent
    assert sent == sum(map(len, tails)), f"{sent} bytes sent of {len(tails)} lines: {spent}"
    here.stop()


def test_stats_of_many_known_names_cost_listings_and_not_a_request_each():
    names = [f"f{i:04}" for i in range(300)]
    here = Mount(fill("storm", [f"d/{name}" for name in names]))
    for _ in os.scandir(here.path / "d"):
        pass
    time.sleep(1.1)  # what the listing told is too old to be believed

    def stats():
        for name in names:
            os.stat(here.path / "d" / name)

    spent = cost(here, stats)
    assert total(spent) <= 40, f"300 stats cost {spent}"
    here.stop()


def test_an_idle_mount_asks_nothing():
    here = Mount(fill("idle", ["f"]))
    (here.path / "f").read_bytes()
    eyes = here.requests()
    time.sleep(3)  # the measurement itself: three seconds of nothing
    assert here.requests() == eyes
    here.stop()


def test_what_the_daemon_counts_is_what_the_store_was_asked():
    """The counts are honest: known traffic of 20 reads by ranged GET of 20 objects."""
    here = Mount(fill("honest", [f"f{i}" for i in range(20)]))

    def read():
        for i in range(20):
            (here.path / f"f{i}").read_bytes()

    spent = cost(here, read)
    assert spent.get("get", 0) >= 20 or total(spent) >= 20, spent
    assert total(spent) <= 20 * 4 + 2, f"20 cold reads cost {spent}"
    here.stop()


if __name__ == "__main__":
    main(globals(), needs_mount=True)
