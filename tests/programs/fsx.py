#!/usr/bin/env python3
"""fsx: random reads, writes, maps, truncates and copies of one file, every byte checked, five seeds."""

import pathlib

from support import FULL, TOOLS, main, options, run, scratch, tree

OPERATIONS = 100_000 if FULL else 10_000
SEEDS = (1, 2, 3, 4, 5)
CONFIG = pathlib.Path(__file__).with_name("fsx.toml")


def test_fsx_reads_what_it_wrote():
    here = tree("fsx")
    for seed in [options().seed] if options().seed else SEEDS:
        file = here.path / f"fsx-{seed}"
        run(
            TOOLS / "fsx", "-q", "-f", CONFIG, "-N", OPERATIONS, "-S", seed,
            "-P", scratch("fsx"), file, seconds=1800,
        )  # fmt: skip
        print(f"    seed {seed}: {OPERATIONS} operations")
    here.stop()


def test_fsx_of_the_lowest_common_denominator_without_mmap():
    """The same with plain reads and writes alone, and a close between most: the upload at each."""
    config = scratch("fsx") / "close.toml"
    config.write_text("[weights]\nclose_open = 5\nread = 10\nwrite = 10\nmapread = 0\nmapwrite = 0\ntruncate = 5\n")
    here = tree("fsx-close")
    run(
        TOOLS / "fsx", "-q", "-f", config, "-N", OPERATIONS // 5, "-S", 6,
        "-P", scratch("fsx"), here.path / "fsx", seconds=1800,
    )  # fmt: skip
    here.stop()


if __name__ == "__main__":
    main(globals())
