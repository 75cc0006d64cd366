#!/usr/bin/env python3
"""POSIX as pjdfstest sees it: nothing fails that pjdfstest.exclude does not excuse with a reason."""

import grp
import os
import pathlib
import pwd
import re

from support import TOOLS, Skip, main, options, run, scratch, tree, work

EXCLUSIONS = pathlib.Path(__file__).with_name("pjdfstest.exclude")
CASES = 398

# Two users that every Debian has, so that none must be made.
USERS = (("nobody", "nogroup"), ("daemon", "daemon"))

CONFIG = """
[features]
posix_fallocate = {}
utimensat = {}
utime_now = {}
%s
[settings]
naptime = 0.01
[dummy_auth]
entries = [%s]
"""


def excluded() -> dict[str, str]:
    """Case -> reason; a line without a reason is an error in the list."""
    found = {}
    for line in EXCLUSIONS.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        case, _, reason = line.partition(" ")
        assert reason.strip(), f"pjdfstest.exclude: {case} has no reason"
        assert case not in found, f"pjdfstest.exclude: {case} stands there twice"
        found[case] = reason.strip()
    return found


def config() -> pathlib.Path:
    try:
        for user, group in USERS:
            pwd.getpwnam(user), grp.getgrnam(group)
    except KeyError as e:
        raise Skip(f"no user or group {e}") from None
    # POSIX leaves a renamed file's ctime open; Linux's own file systems change it.
    features = "rename_ctime = {}"
    path = scratch("pjdfstest") / "pjdfstest.toml"
    path.write_text(CONFIG % (features, ", ".join(f'["{u}", "{g}"]' for u, g in USERS)))
    return path


def outcomes(text: str) -> dict[str, str]:
    """Case -> ok, FAILED or skipped. Other lines are the reasons of failures."""
    found = re.findall(r"^(\S+::\S+|\S+)\s+(ok|FAILED|skipped)$", text, re.MULTILINE)
    return dict(found)


def test_pjdfstest_fails_nothing_that_is_not_excused():
    if os.geteuid() != 0:
        raise Skip("pjdfstest switches users, so it wants root")
    reasons = {} if options().dir else excluded()
    elsewhere = scratch("pjdfstest-elsewhere")  # a second file system, for EXDEV
    with_exdev = os.stat("/dev/shm").st_dev != os.stat(elsewhere).st_dev
    other = ["-s", "/dev/shm"] if with_exdev else []
    # A short mount point: the path of a socket has at most 107 bytes.
    here = tree("pjdfstest", "--allow-other", "--umask", "000", at=work() / "p")
    here.path.chmod(0o755)
    done = run(
        TOOLS / "pjdfstest", "-c", config(), *other, "-p", here.path,
        seconds=1500, ok=None, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    seen = outcomes(done.stdout)
    log = scratch("pjdfstest") / "output"
    log.write_text(done.stdout + done.stderr)
    failed = {case for case, outcome in seen.items() if outcome == "FAILED"}
    skipped = sum(outcome == "skipped" for outcome in seen.values())
    print(f"  pjdfstest: {len(seen) - len(failed) - skipped} ok, {skipped} skipped, {len(failed)} failed")
    for case in sorted(failed - reasons.keys()):
        detail = re.search(rf"^{re.escape(case)}\s+FAILED\n\s+(.*(?:\n\s+.*)*)", done.stdout, re.M)
        print(f"    {case}: {detail.group(1)[:300] if detail else ''}")
    assert len(seen) == CASES, f"{len(seen)} cases ran, not {CASES}; see {log}"
    assert not failed - reasons.keys(), f"{len(failed - reasons.keys())} unexcused failures; see {log}"
    stale = reasons.keys() - failed
    assert not stale, f"excused but not failing: {sorted(stale)}"
    here.stop()


if __name__ == "__main__":
    main(globals())
