#!/usr/bin/env python3
"""How the cost of trialfs grows: with the size of a save, the number of files, the number of writers.

    curves.py [--quick] [--out DIR]      one round each

A slope is the exponent between the first and the last point: 1 is proportional, under 1 better.
What the disk has no room for is left out, and said.
"""

import argparse
import math
import os
import pathlib
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor

import bench
import subjects
import work
from subjects import servers

MIB = work.MIB
# A save lies in the staging directory, in the store, and for a moment in the page cache's way.
COPIES_ON_DISK = 3


def save_sizes(run, tree, sizes):
    for size in sizes:
        free = shutil.disk_usage(run.home).free
        if size * COPIES_ON_DISK * MIB > free:
            print(f"curves: no room for a save of {size} MiB ({free // MIB} MiB free)", file=sys.stderr)
            return
        yield size, work.save(run, tree, {"model.bin": size * MIB})["durable_s"]
        shutil.rmtree(tree.path / run.saved[tree.name])


def file_counts(run, tree, counts):
    for count in counts:
        made = work.small(run, tree, count, 16)["seconds"]
        directory = max(tree.path.glob("small*"), key=lambda path: path.stat().st_mtime)
        other = run.other(tree)
        start = work.now()
        with os.scandir(other.path / directory.name) as entries:
            assert sum(1 for entry in entries if entry.stat()) == count
        yield count, made, work.now() - start
        run.close_other(tree)


def writer_counts(run, tree, counts):
    for count in counts:
        name = run.fresh("writers")
        (tree.path / name).mkdir()
        write = lambda i: run.content.write(tree.path / name / f"w{i}", 8 * MIB)
        start = work.now()
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(write, range(max(count, 16))))
        yield count, max(count, 16) * 8 / (work.now() - start)
        shutil.rmtree(tree.path / name)


def slope(points) -> float:
    (x0, y0), (x1, y1) = points[0], points[-1]
    return math.log(y1 / y0) / math.log(x1 / x0) if x1 != x0 and y0 > 0 and y1 > 0 else 0.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    options, _ = parser.parse_known_args()
    options.seed, options.latency = int.from_bytes(os.urandom(3)), 0
    sizes = [64, 256] if options.quick else [64, 256, 1024, 4096, 16384]
    counts = [10, 100, 1000] if options.quick else [10, 100, 1000, 10_000, 100_000]
    writers = [1, 4, 16] if options.quick else [1, 4, 16, 64]
    home, curves = pathlib.Path(tempfile.mkdtemp(prefix="trialfs-bench-")), {}
    servers.end_on_signal()
    try:
        with servers.Servers(home / "servers", ["weed"]) as up:
            endpoint = up.env["TRIALFS_TEST_S3"].rsplit("/", 1)[0]
            run = bench.Run(options, home, endpoint, endpoint)
            run.content = work.Content(options.seed)
            tree = subjects.Trialfs(home, run.store)
            tree.start()
            try:
                saves = list(save_sizes(run, tree, sizes))
                files = list(file_counts(run, tree, counts))
                several = list(writer_counts(run, tree, writers))
            finally:
                for mount in [*run.others.values(), tree]:
                    mount.stop()
        curves["save of one file, s by MiB"] = saves
        curves["4 KiB files made by 16 threads, s by count"] = [(n, made) for n, made, _ in files]
        curves["`ls -l` on another node, cold, s by count"] = [(n, seen) for n, _, seen in files]
        curves["files of 8 MiB written at once, MiB/s by writers"] = several
    finally:
        shutil.rmtree(home, ignore_errors=True)
    lines = ["| how it grows | points | slope |", "| --- | --- | --- |"]
    for name, points in curves.items():
        text = ", ".join(f"{x:,}: {y:.3g}" for x, y in points)
        lines.append(f"| {name} | {text} | {slope(points):.2f} |")
    print("\n".join(lines))
    if options.out:
        work.write_json(options.out / "curves.json", curves)
        work.write_text(options.out / "curves.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
