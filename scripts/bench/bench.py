#!/usr/bin/env python3
"""Measures trialfs beside its peers over one S3 server, and prints the table. See bench.sh.

    bench.py [--rounds N] [--rows ROW,...] [--subjects NAME,...] [--latency MS] [--quick] [--out DIR]

Rounds are interleaved: in each, every subject does every row, in an order that turns. A ratio is
taken between figures of one round; the table shows medians. Subjects: plain trialfs trialfs-local
rclone juicefs s3fs. Rows: save restore small small16 many visible patches appends renames mounting.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import traceback

import raw
import subjects
import work
from subjects import servers

MIB = work.MIB
# What one subject leaves on the disk in a round: its save and the rest in the store, and in two caches.
ROUND_BYTES = 2 << 30
# Rows that move much, and the memory that each subject finds at hand for them.
HEAVY_ROWS, HEAVY_BYTES = ("save", "restore"), 2 << 30
# What each row shows: figure, what it is held against, whether more is better, words.
SHOWN = {
    "save": [("closed_s", "plain", "save, all closed, s"), ("durable_s", "raw", "save, all in the bucket, s")],
    "restore": [("cold_s", "raw", "restore, other node, cold, s"), ("warm_s", "plain", "restore, warm, s")],
    "small": [("per_s", "plain", "4 KiB files made, 1 thread, per s")],
    "small16": [("per_s", "raw", "4 KiB files made, 16 threads, per s")],
    "many": [
        ("cold_s", "raw", "`ls -l` of many, cold, s"),
        ("warm_s", None, "the same, warm, s"),
        ("stats_per_s", "plain", "stats of known names, per s"),
    ],
    "visible": [
        ("p50_s", None, "seen on another node after close, p50, s"),
        ("wrong", None, "of these seen with wrong content first, or not within a minute"),
    ],
    "patches": [("seconds", None, "2,000 random 4 KiB writes in 64 MiB and fsync, s")],
    "appends": [("each_s", None, "append to a log of 10 MiB, opened for each, s")],
    "renames": [("seconds", None, "rename of a directory of 101 files, s")],
    "mounting": [("seconds", None, "from `mount` to the first `ls`, s")],
}


class Store:
    def __init__(self, endpoint: str):
        self.endpoint, self.bucket = endpoint, servers.BUCKET
        self.key, self.secret = servers.KEY, servers.SECRET


class Run:
    """One run's server, mounts and figures."""

    def __init__(self, options, home: pathlib.Path, endpoint: str, delayed: str):
        self.options, self.home = options, home
        self.store = Store(delayed)
        self.client = raw.Client(delayed, servers.BUCKET, servers.KEY, servers.SECRET)
        self.near = raw.Client(endpoint, servers.BUCKET, servers.KEY, servers.SECRET)
        self.content, self.saved, self.number = work.Content(1), {}, 0
        self.made: set[int] = set()
        self.others: dict[str, subjects.Mount] = {}

    def fresh(self, word: str) -> str:
        self.number += 1
        return f"{word}{self.number}"

    def key(self, tree, rest: str) -> str:
        return rest

    def other(self, tree):
        """The same bucket on another node, which knows nothing yet."""
        if not tree.is_mount:
            return tree
        self.close_other(tree)
        other = type(tree)(self.home, self.store, "b")
        self.others[tree.name] = other
        other.start()
        return other

    def close_other(self, tree):
        if tree.name in self.others:
            self.others.pop(tree.name).stop()

    def many_directory(self, tree, count: int) -> str:
        """A directory of `count` keys: in the bucket by another tool, or where the tree keeps names."""
        name = f"many{count}"
        if tree is not None and (not tree.is_mount or tree.name == "juicefs"):
            (tree.path / name).mkdir(exist_ok=True)
            for i in range(count):
                path = tree.path / name / f"k{i:06}"
                path.exists() or path.touch()
        elif count not in self.made:
            with work.ThreadPoolExecutor(8) as pool:
                put = lambda i: self.near.ask("PUT", f"{name}/k{i:06}", body=b"x" * (i % 100))
                list(pool.map(put, range(count)))
            self.made.add(count)
        return name


def measure(run: Run, row: str, tree) -> dict[str, float]:
    quick = run.options.quick
    if row in HEAVY_ROWS:
        work.have_memory_at_hand(HEAVY_BYTES // (8 if quick else 1))
    files = work.checkpoint(0.125 if quick else 1.0)
    count = 200 if quick else 1000
    name = tree if isinstance(tree, str) else None
    if name == "raw":
        bases = {
            "save": lambda: work.raw_save(run, files),
            "restore": lambda: work.raw_restore(run, files),
            "small": lambda: work.raw_small(run, count, 1),
            "small16": lambda: work.raw_small(run, count, 16),
            "many": lambda: work.raw_many(run, 10 * count),
        }
        return bases[row]() if row in bases else {}
    rows = {
        "save": lambda: work.save(run, tree, files),
        "restore": lambda: work.restore(run, tree, files),
        "small": lambda: work.small(run, tree, count, 1),
        "small16": lambda: work.small(run, tree, count, 16),
        "many": lambda: work.many(run, tree, 10 * count),
        "visible": lambda: work.visible(run, tree),
        "patches": lambda: work.patches(run, tree),
        "appends": lambda: work.appends(run, tree),
        "renames": lambda: work.renames(run, tree),
        "mounting": lambda: work.mounting(run, tree),
    }
    return rows[row]()


def cost(tree) -> dict[str, float]:
    return {"cpu_s": tree.cpu_seconds(), "peak_mib": tree.peak_mib()}


def rounds(run: Run, figures: dict):
    options = run.options
    trees = {name: subjects.KINDS[name](run.home, run.store) for name in options.subjects}
    try:
        for number in range(options.rounds):
            run.content = work.Content(options.seed + number)
            turn = number % len(options.subjects)
            order = ["raw"] + options.subjects[turn:] + options.subjects[:turn]
            done = {}
            for name in order:
                tree = trees.get(name, name)
                if name in trees:
                    tree.start()
                    if tree.is_mount and not number:
                        (tree.path / run.fresh("warm")).mkdir()
                for row in options.rows:
                    if row == "mounting" and name in trees and tree.is_mount:
                        done[name, "cost"] = cost(tree)
                    try:
                        done[name, row] = measure(run, row, tree)
                    except Exception as error:
                        done[name, row] = {"error": f"{type(error).__name__}: {error}"[:200]}
                        traceback.print_exc()
                    if name in trees and tree.is_mount:
                        run.close_other(tree)
                    if done[name, row]:
                        text = {k: round(v, 4) if isinstance(v, float) else v for k, v in done[name, row].items()}
                        print(f"round {number + 1} {name} {row}: {text}", file=sys.stderr, flush=True)
                if name in trees and tree.is_mount:
                    done.setdefault((name, "cost"), cost(tree))
                if name in trees:
                    tree.stop()
            for (name, row), got in done.items():
                for figure, value in got.items():
                    figures.setdefault(f"{row}.{figure}", {}).setdefault(name, []).append(value)
    finally:
        for tree in [*run.others.values(), *trees.values()]:
            tree.stop()


def numbers(values) -> list[float]:
    return [v for v in values if isinstance(v, (int, float))]


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def cell(values) -> str:
    got = numbers(values)
    return number(work.median(got)) if got else "-"


def ratio(mine, base) -> str:
    pairs = [a / b for a, b in zip(mine, base) if isinstance(a, float) and isinstance(b, float) and b]
    return f" ({work.median(pairs):.2g}x)" if pairs else ""


def table(figures: dict, options) -> str:
    columns = ["raw", *options.subjects]
    lines = ["| | " + " | ".join(["raw client" if c == "raw" else c for c in columns]) + " |"]
    lines.append("|" + " --- |" * (len(columns) + 1))
    shown = [(f"{row}.{f}", base, words) for row in options.rows for f, base, words in SHOWN[row]]
    shown += [("cost.cpu_s", None, "CPU of the node that writes, s"), ("cost.peak_mib", None, "its peak memory, MiB")]
    for key, base, words in shown:
        got = figures.get(key, {})
        held = got.get(base, [])
        cells = [cell(got.get(c, [])) + (ratio(got.get(c, []), held) if c != base else "") for c in columns]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def delay_program(home: pathlib.Path) -> str:
    source = pathlib.Path(__file__).with_name("delay.rs")
    subprocess.run(["rustc", "-O", "-o", str(home / "delay"), str(source)], check=True)
    return str(home / "delay")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=lambda text: text.split(","), default=list(SHOWN))
    names = lambda text: text.split(",")
    parser.add_argument("--subjects", type=names, default=["plain", "trialfs", "trialfs-local", "rclone", "juicefs", "s3fs"])
    parser.add_argument("--latency", type=float, default=0, help="milliseconds of round trip to the store")
    parser.add_argument("--quick", action="store_true", help="an eighth of the bytes, a fifth of the files")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3)))
    parser.add_argument("--out", type=pathlib.Path, help="where results.json goes")
    options = parser.parse_args()
    home = pathlib.Path(tempfile.mkdtemp(prefix="trialfs-bench-"))
    need = ROUND_BYTES * options.rounds * (1 + len(options.subjects)) // (8 if options.quick else 1)
    if (free := shutil.disk_usage(home).free) < need:
        home.rmdir()
        sys.exit(f"bench: {home.parent} has {free >> 30} GiB free and this takes {need >> 30}; see TMPDIR, --rounds")
    figures, proxy = {}, None
    servers.end_on_signal()
    try:
        with servers.Servers(home / "servers", ["weed"]) as up:
            endpoint = up.env["TRIALFS_TEST_S3"].rsplit("/", 1)[0]
            delayed = endpoint
            if options.latency:
                port = servers.free_port()
                argv = [delay_program(home), str(port), endpoint.rsplit(":", 1)[1], str(options.latency / 2)]
                proxy = subprocess.Popen(argv, preexec_fn=servers.die_with_parent())
                delayed = f"http://127.0.0.1:{port}"
            run = Run(options, home, endpoint, delayed)
            if "juicefs" in options.subjects:
                servers.s3_client(endpoint).create_bucket(Bucket="juicefs")
            rounds(run, figures)
    finally:
        if proxy:
            proxy.terminate()
        shutil.rmtree(home, ignore_errors=True)
    print(table(figures, options))
    if options.out:
        name = f"results-{options.latency:g}ms"
        results = {"figures": figures, "rounds": options.rounds, "latency_ms": options.latency}
        work.write_json(options.out / f"{name}.json", results)
        work.write_text(options.out / f"{name}.md", table(figures, options) + "\n")


if __name__ == "__main__":
    main()
