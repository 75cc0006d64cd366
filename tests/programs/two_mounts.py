#!/usr/bin/env python3
"""Two mounts of one bucket: random steps on either, checked on both against a model after every step.

Close-to-open is the promise: when a call has returned on one node, every open and readdir that starts later
on any node sees it. With --strict every other call does, too; without it, a name that a node knows may be a
second old, so that a call may say EEXIST, EISDIR or ENOTDIR for so long: it is tried again. The
seed is printed; --seed N plays it again.
"""

import errno
import os
import pathlib
import random
import shutil
import time

from support import FULL, main, options, s3, tree

# SeaweedFS looks two minutes after a removal whether the directory is empty, and then removes what has its
# name by now, a file as well. No walk lasts so long.
STEPS = 80
SEEDS = tuple(range(1, 26)) if FULL else (1, 2)
NAMES = ("a", "b", "c", "d e", "ünï")
DEPTH_MAX = 3
NAME_SECONDS = 1.5  # a second, and what the call itself takes


class Model:
    """The tree as it must be: path -> bytes, or None for a directory. The root is ''."""

    def __init__(self):
        self.nodes: dict[str, bytes | None] = {"": None}

    def directories(self):
        return [p for p, v in self.nodes.items() if v is None]

    def files(self):
        return [p for p, v in self.nodes.items() if v is not None]

    def children(self, path: str):
        base = path + "/" if path else ""
        return sorted(p[len(base) :] for p in self.nodes if p and p.startswith(base) and "/" not in p[len(base) :])

    def under(self, path: str):
        return [p for p in self.nodes if p == path or p.startswith(path + "/")]

    def move(self, source: str, to: str):
        for path in self.under(to):
            del self.nodes[path]
        for path in self.under(source):
            self.nodes[to + path[len(source) :]] = self.nodes.pop(path)


class Walk:
    """One seeded walk over two roots."""

    def __init__(self, seed: int, roots, strict: bool):
        self.strict = strict
        self.random = random.Random(seed)
        self.roots = roots
        self.model = Model()
        self.told: list[str] = []

    def pick(self, paths):
        return self.random.choice(sorted(paths)) if paths else None

    def new_path(self):
        shallow = [d for d in self.model.directories() if d.count("/") < DEPTH_MAX - 1]
        parent = self.pick(shallow)
        name = self.random.choice(NAMES)
        return f"{parent}/{name}" if parent else name

    def body(self) -> bytes:
        size = self.random.choice((0, 1, 100, 5000, 70_000, 1_500_000))
        return self.random.randbytes(size)

    def step(self):
        node = self.random.randrange(2)
        kinds = (
            ["write"] * 5 + ["append"] * 2 + ["patch"] * 2 + ["truncate", "exclusive"] + ["rename"] * 4
            + ["unlink"] * 2 + ["mkdir"] * 3 + ["rmdir"] * 2 + ["look"] * 2
        )  # fmt: skip
        kind = self.random.choice(kinds)
        self.node = node
        getattr(self, kind)(self.roots[node])

    def say(self, text: str):
        self.told.append(f"{'ab'[self.node]} {text}")

    def fresh(self, call, *args, stale=(errno.EEXIST, errno.EISDIR, errno.ENOTDIR)):
        """A call on a name that may have changed its kind or gone; a node that is not strict may know the old
        one for a second more, and the kernel then refuses without asking."""
        deadline = time.monotonic() + NAME_SECONDS
        while True:
            try:
                return call(*args)
            except OSError as e:
                if self.strict or e.errno not in stale or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def expect(self, number: int, call, *args, others: tuple[int, ...] = ()):
        try:
            call(*args)
        except OSError as e:
            assert e.errno in (number, *others), f"{errno.errorcode[number]} expected, got {e!r}"
        else:
            raise AssertionError(f"{errno.errorcode[number]} expected, but it succeeded")

    def write(self, root: pathlib.Path):
        path, body = self.new_path(), self.body()
        self.say(f"write {path} {len(body)}")
        if self.model.nodes.get(path, b"") is None:
            return self.expect(errno.EISDIR, open, root / path, "wb")
        self.fresh((root / path).write_bytes, body)
        self.model.nodes[path] = body

    def exclusive(self, root):
        path, body = self.new_path(), self.body()
        self.say(f"exclusive {path} {len(body)}")
        if path in self.model.nodes:
            return self.expect(errno.EEXIST, open, root / path, "xb")
        with self.fresh(open, root / path, "xb") as f:
            f.write(body)
        self.model.nodes[path] = body

    def append(self, root):
        path, body = self.pick(self.model.files()), self.body()
        if path is None:
            return
        self.say(f"append {path} {len(body)}")
        with open(root / path, "ab") as f:
            f.write(body)
        self.model.nodes[path] += body

    def patch(self, root):
        path, body = self.pick(self.model.files()), self.body()
        if path is None:
            return
        old = self.model.nodes[path]
        at = self.random.randint(0, len(old) + 1000)
        self.say(f"patch {path} at {at} {len(body)}")
        with open(root / path, "r+b") as f:
            f.seek(at)
            f.write(body)
        if body:
            old = old.ljust(at, b"\0")
            self.model.nodes[path] = old[:at] + body + old[at + len(body) :]

    def truncate(self, root):
        path = self.pick(self.model.files())
        if path is None:
            return
        old = self.model.nodes[path]
        size = self.random.randint(0, len(old) + 5000)
        self.say(f"truncate {path} {size}")
        os.truncate(root / path, size)
        self.model.nodes[path] = old[:size].ljust(size, b"\0")

    def rename(self, root):
        source, to = self.pick([p for p in self.model.nodes if p]), self.new_path()
        if source is None:
            return
        self.say(f"rename {source} -> {to}")
        nodes = self.model.nodes
        call = (os.rename, root / source, root / to)
        if source == to:
            return os.rename(*call[1:])
        if to.startswith(source + "/"):
            return self.expect(errno.EINVAL, *call)
        deepest = max(p.count("/") for p in self.model.under(source)) - source.count("/")
        if nodes[source] is None and to.count("/") + deepest >= DEPTH_MAX + 2:
            return
        if to in nodes and source.startswith(to + "/"):
            # The kernel says ENOTEMPTY of any source, if it has the names at hand.
            others = () if nodes[source] is None else (errno.EISDIR,)
            return self.expect(errno.ENOTEMPTY, *call, others=others)
        if to in nodes and nodes[to] is None and nodes[source] is not None:
            return self.expect(errno.EISDIR, *call)
        if to in nodes and nodes[to] is not None and nodes[source] is None:
            return self.expect(errno.ENOTDIR, *call)
        if to in nodes and nodes[to] is None and self.model.children(to):
            return self.expect(errno.ENOTEMPTY, *call)
        self.fresh(*call)
        self.model.move(source, to)

    def unlink(self, root):
        path = self.pick(self.model.files())
        if path is None:
            return
        self.say(f"unlink {path}")
        (root / path).unlink()
        del self.model.nodes[path]

    def mkdir(self, root):
        path = self.new_path()
        self.say(f"mkdir {path}")
        if path in self.model.nodes:
            return self.expect(errno.EEXIST, os.mkdir, root / path)
        self.fresh(os.mkdir, root / path)
        self.model.nodes[path] = None

    def rmdir(self, root):
        path = self.pick([d for d in self.model.directories() if d])
        if path is None:
            return
        self.say(f"rmdir {path}")
        if self.model.children(path):
            return self.expect(errno.ENOTEMPTY, os.rmdir, root / path)
        os.rmdir(root / path)
        del self.model.nodes[path]

    def look(self, root):
        path = self.new_path()
        self.say(f"look {path}")
        if path in self.model.nodes:
            return os.stat(root / path)
        deadline = time.monotonic() + (0 if self.strict else NAME_SECONDS)
        while (root / path).exists():
            assert time.monotonic() < deadline, f"'{path}' is still there"
            time.sleep(0.05)

    def check(self):
        """Every name, kind, size and byte, on both nodes."""
        for which, root in zip("ab", self.roots, strict=True):
            for path, body in self.model.nodes.items():
                at = root / path if path else root
                if body is None:
                    assert sorted(os.listdir(at)) == self.model.children(path), (
                        f"{which}: listing of '{path}' is {sorted(os.listdir(at))}, not {self.model.children(path)}"
                    )
                else:
                    got = at.read_bytes()
                    assert got == body, f"{which}: '{path}' reads {len(got)} bytes, not {len(body)}, or other ones"
                    with open(at, "rb") as f:
                        assert os.fstat(f.fileno()).st_size == len(body), f"{which}: size of '{path}'"


def walk(seed: int, *flags: str):
    name = f"two-{seed}{flags[0] if flags else ''}"
    a, b = tree(name, *flags, name="a"), tree(name, *flags, name="b")
    print(f"    seed {seed} {' '.join(flags)}", flush=True)
    it = Walk(seed, (a.path, b.path), bool(flags) or not a.is_mount)
    for number in range(STEPS):
        try:
            it.step()
            it.check()
        except (AssertionError, OSError) as e:
            history = "\n      ".join(it.told[-12:])
            raise AssertionError(f"seed {seed}, step {number}: {e}\n    the last steps:\n      {history}") from e
    if a.is_mount:
        want = {p: len(v) for p, v in it.model.nodes.items() if v is not None}
        assert s3().keys(a.prefix) == want, "the bucket does not hold the model"
    b.stop()
    for name in os.listdir(a.path):
        at = a.path / name
        shutil.rmtree(at) if at.is_dir() else at.unlink()
    if a.is_mount:
        assert not s3().keys(a.prefix)
    a.stop()


def seeds():
    return [options().seed] if options().seed is not None else SEEDS


def test_random_steps_on_two_nodes_agree_with_the_model():
    for seed in seeds():
        walk(seed)


def test_random_steps_on_two_strict_nodes_agree_with_the_model():
    for seed in seeds():
        walk(seed, "--strict")


if __name__ == "__main__":
    main(globals())
