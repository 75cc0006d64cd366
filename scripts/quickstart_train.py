"""A training run that survives being killed: pure Python, nothing of trialfs in it.

    python3 quickstart_train.py DIR [--die-at EPOCH]

Fits y = 3x - 1 by gradient descent and saves DIR/checkpoint_NNNNNN/ after each epoch, in three files.
--die-at kills the process with SIGKILL in the middle of writing that epoch's checkpoint, as a preempted
node would. Run again, it goes on from the last checkpoint: one that is there is whole.
"""

import argparse
import json
import os
import pathlib
import signal
import time

EPOCHS = 8
RATE = 0.1
POINTS = [(x / 10, 3 * x / 10 - 1) for x in range(-10, 11)]
PARTS = {"weights-0.bin": "a", "weights-1.bin": "b"}


def step(a: float, b: float) -> tuple[float, float]:
    """One epoch of 20 gradient steps on the mean squared error."""
    for _ in range(20):
        errors = [(a * x + b - y, x) for x, y in POINTS]
        a -= RATE * 2 * sum(e * x for e, x in errors) / len(errors)
        b -= RATE * 2 * sum(e for e, _ in errors) / len(errors)
    return a, b


def save(directory: pathlib.Path, epoch: int, weights: dict[str, float], die: bool):
    directory.mkdir(exist_ok=True)
    for name, which in PARTS.items():
        with open(directory / name, "w") as part:
            part.write(json.dumps(weights[which]).ljust(500_000))
            if die and which == "b":
                part.flush()
                print(f"epoch {epoch}: killed in the middle of {directory.name}/{name}", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
    (directory / "state.json").write_text(json.dumps({"epoch": epoch}))


def last_whole(root: pathlib.Path) -> tuple[int, dict[str, float]]:
    """Epochs done so far and the weights then, of the newest checkpoint."""
    for directory in sorted(root.glob("checkpoint_*"), reverse=True):
        epoch = json.loads((directory / "state.json").read_text())["epoch"]
        print(f"resumed from {directory.name}")
        return epoch + 1, {which: json.loads((directory / name).read_text()) for name, which in PARTS.items()}
    return 0, {"a": 0.0, "b": 0.0}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=pathlib.Path)
    parser.add_argument("--die-at", type=int)
    arguments = parser.parse_args()
    arguments.root.mkdir(parents=True, exist_ok=True)
    start, weights = last_whole(arguments.root)
    for epoch in range(start, EPOCHS):
        time.sleep(0.5)  # a real epoch takes its time
        weights["a"], weights["b"] = step(weights["a"], weights["b"])
        print(f"epoch {epoch}: y = {weights['a']:.3f}x {weights['b']:+.3f}", flush=True)
        save(arguments.root / f"checkpoint_{epoch:06}", epoch, weights, epoch == arguments.die_at)
    print(f"done after {EPOCHS} epochs")


if __name__ == "__main__":
    main()
