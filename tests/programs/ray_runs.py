#!/usr/bin/env python3
"""Ray Tune and Ray Train with `storage_path` on a mount give what they give on a plain directory.

Each run is made twice, on the mount and on a directory of the machine, with the same seeds; then metrics,
names of files and bytes of checkpoints are compared. With --dir both are plain.
"""

import functools
import json
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# Workers are torn down in order, not killed in the middle of what they write.
os.environ.setdefault("RAY_DISABLE_MEMORY_MONITOR", "1")

from support import assert_bucket_holds, main, scratch, tree  # noqa: E402

STEPS = 6
KEEP = 2
WORKERS = 2
SHARDS = 3


@functools.cache
def ray():
    import ray as module

    # A short directory: Ray puts Unix sockets there, whose paths may have 108 bytes.
    temp = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    module.init(num_cpus=4, include_dashboard=False, _temp_dir=temp, logging_level="ERROR", log_to_driver=False)
    return module


def trainable(config):
    """Counts up; saves a checkpoint each step; breaks at a step if told to, once."""
    import hashlib
    import json
    import os
    import pathlib
    import tempfile

    from ray import tune

    start = 0
    previous = tune.get_checkpoint()
    if previous:
        with previous.as_directory() as directory:
            start = json.loads(pathlib.Path(directory, "state.json").read_text())["step"] + 1
            weights = pathlib.Path(directory, "weights.bin").read_bytes()
            assert weights == hashlib.sha256(b"%d" % (start - 1)).digest() * 20_000, "a checkpoint of another step"
    for step in range(start, config["steps"]):
        if config["lr"] == 0.1 and step == config.get("break_at") and not os.path.exists(config["broke"]):
            pathlib.Path(config["broke"]).touch()
            raise RuntimeError("broken on purpose")
        with tempfile.TemporaryDirectory() as directory:
            # The record last, as trainers do.
            pathlib.Path(directory, "weights.bin").write_bytes(hashlib.sha256(b"%d" % step).digest() * 20_000)
            pathlib.Path(directory, "empty").touch()
            pathlib.Path(directory, "sub").mkdir()
            pathlib.Path(directory, "sub", "note.txt").write_text(f"step {step}")
            pathlib.Path(directory, "state.json").write_text(json.dumps({"step": step}))
            tune.report({"step": step, "loss": config["lr"] / (step + 1)}, checkpoint=tune.Checkpoint(directory))


def run_config(storage: pathlib.Path, name: str):
    from ray import tune

    keep = tune.CheckpointConfig(num_to_keep=KEEP)
    return tune.RunConfig(name=name, storage_path=str(storage), checkpoint_config=keep, verbose=0)


def short_trial_name(trial):
    return f"lr={trial.config['lr']}"


def tuned(storage: pathlib.Path, break_at=None):
    """One experiment of two trials; with `break_at` one of them fails and is restored."""
    from ray import tune

    ray()
    broke = scratch("ray") / f"broke-{storage.parent.name}-{break_at}"
    broke.unlink(missing_ok=True)
    space = {"lr": tune.grid_search([0.1, 0.2]), "steps": STEPS, "break_at": break_at, "broke": str(broke)}
    config = tune.TuneConfig(
        metric="loss", mode="min", max_concurrent_trials=2,
        trial_dirname_creator=short_trial_name, trial_name_creator=short_trial_name,
    )  # fmt: skip
    name = "tune" if break_at is None else "broken"
    results = tune.Tuner(trainable, param_space=space, tune_config=config, run_config=run_config(storage, name)).fit()
    if break_at is not None:
        assert results.num_errors == 1, f"{results.num_errors} trials broke, not one"
        at = str(storage / name)
        assert tune.Tuner.can_restore(at)
        results = tune.Tuner.restore(at, trainable, resume_errored=True, param_space=space).fit()
    assert results.num_errors == 0, results.errors
    return storage / name, results


def outcome(results) -> dict:
    found = {}
    for result in results:
        checkpoint = result.checkpoint
        with checkpoint.as_directory() as directory:
            files = {
                str(p.relative_to(directory)): p.read_bytes() for p in pathlib.Path(directory).rglob("*") if p.is_file()
            }
        found[result.config["lr"]] = (
            result.metrics["step"], result.metrics["loss"], os.path.basename(checkpoint.path), files,
            [row["step"] for _, row in result.metrics_dataframe.iterrows()],
        )  # fmt: skip
    return found


def names(root: pathlib.Path) -> set[str]:
    """Every path under `root`, without what is named for a time, a session or a host."""
    dated = ("experiment_state-", "callback-states", "searcher-state", "search_gen_state", "events.out.tfevents",
             "basic-variant-state")  # fmt: skip
    return {str(p.relative_to(root)) for p in root.rglob("*") if not p.name.startswith(dated)}


def compare_experiments(a, b):
    (here, here_results), (plain, plain_results) = a, b
    assert outcome(here_results) == outcome(plain_results)
    assert names(here) == names(plain), names(here) ^ names(plain)
    for trial in ("lr=0.1", "lr=0.2"):
        kept = sorted(p.name for p in (here / trial).glob("checkpoint_*"))
        assert kept == [f"checkpoint_{i:06}" for i in range(STEPS - KEEP, STEPS)], kept
        rows = [json.loads(line) for line in (here / trial / "result.json").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(STEPS)), rows


def test_tune_keeps_checkpoints_and_gives_the_results_of_a_plain_directory():
    here = tree("ray-tune")
    on_mount = tuned(here.path)
    compare_experiments(on_mount, tuned(scratch("ray") / "plain"))
    here.settle()
    if here.is_mount:
        assert_bucket_holds(here.path, here.prefix)
    there = tree("ray-tune", name="b")  # what another node restores from
    for trial in ("lr=0.1", "lr=0.2"):
        last = there.path / "tune" / trial / f"checkpoint_{STEPS - 1:06}"
        assert json.loads((last / "state.json").read_text()) == {"step": STEPS - 1}
    there.stop()
    shutil.rmtree(here.path / "tune")
    here.stop()


def test_tuner_restores_after_a_failure():
    here = tree("ray-restore")
    compare_experiments(tuned(here.path, break_at=3), tuned(scratch("ray") / "plain-restore", break_at=3))
    here.stop()


def rank_function(config):
    """Every rank writes its own shards; rank 0 writes the record, too. All go into one directory."""
    import json
    import pathlib
    import tempfile

    from ray import train

    context = train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    start = 0
    previous = train.get_checkpoint()
    if previous:
        with previous.as_directory() as directory:
            start = json.loads(pathlib.Path(directory, "record.json").read_text())["step"] + 1
            shards = sorted(p.name for p in pathlib.Path(directory).glob("shard-*"))
            assert len(shards) == world * config["shards"], shards
    for step in range(start, config["steps"]):
        with tempfile.TemporaryDirectory() as directory:
            for shard in range(config["shards"]):
                body = b"%d/%d/%d;" % (step, rank, shard) * 50_000
                pathlib.Path(directory, f"shard-{rank}-{shard}.bin").write_bytes(body)
            if rank == 0:
                pathlib.Path(directory, "record.json").write_text(json.dumps({"step": step, "world": world}))
            train.report({"step": step}, checkpoint=train.Checkpoint.from_directory(directory))
        if rank == 1 and step == config["break_at"] and not pathlib.Path(config["broke"]).exists():
            pathlib.Path(config["broke"]).touch()
            raise RuntimeError("a rank is broken on purpose")


def trained(storage: pathlib.Path):
    from ray import train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    ray()
    broke = scratch("ray") / f"broke-train-{storage.parent.name}-{storage.name}"
    result = DataParallelTrainer(
        rank_function,
        train_loop_config={"steps": 4, "shards": SHARDS, "break_at": 1, "broke": str(broke)},
        scaling_config=train.ScalingConfig(num_workers=WORKERS, resources_per_worker={"CPU": 1}),
        run_config=train.RunConfig(
            name="train",
            storage_path=str(storage),
            checkpoint_config=train.CheckpointConfig(num_to_keep=KEEP),
            failure_config=train.FailureConfig(max_failures=1),
        ),
    ).fit()
    assert result.error is None, result.error
    assert broke.exists(), "no rank broke, so nothing was retried"
    checkpoints = sorted(p for p in (storage / "train").glob("checkpoint_*") if p.is_dir())
    return result, [{p.name: p.read_bytes() for p in checkpoint.iterdir()} for checkpoint in checkpoints]


def test_train_writes_one_directory_from_two_ranks_through_a_retry():
    here = tree("ray-train")
    result, kept = trained(here.path)
    plain_result, plain_kept = trained(scratch("ray") / "plain-train")
    assert result.metrics["step"] == plain_result.metrics["step"] == 3
    assert kept == plain_kept
    assert len(kept) == KEEP and all(len(files) == WORKERS * SHARDS + 1 for files in kept)
    snapshot = json.loads((here.path / "train" / "checkpoint_manager_snapshot.json").read_text())
    named = {entry["checkpoint_dir_name"] for entry in snapshot["checkpoint_results"]}
    assert named == {p.name for p in (here.path / "train").glob("checkpoint_*") if p.is_dir()}
    here.settle()
    if here.is_mount:
        assert_bucket_holds(here.path, here.prefix)
    here.stop()


def saves_alone(config):
    import pathlib
    import sys
    import tempfile

    from ray import train

    sys.path.insert(0, config["scripts"])
    import trialfs_commit

    with tempfile.TemporaryDirectory() as directory:
        for n in range(5):
            pathlib.Path(directory, f"part-{n}").write_bytes(b"%d" % n * 10_000)
        checkpoint = train.Checkpoint.from_directory(directory)
        train.report({"done": 1}, checkpoint=checkpoint, checkpoint_upload_fn=trialfs_commit.upload)
        kept = train.get_context().get_storage().experiment_fs_path
        names = [p.name for p in pathlib.Path(kept).glob("checkpoint_*")]
        pathlib.Path(config["state"]).write_text(trialfs_commit.state(pathlib.Path(kept, names[0])))


def test_train_with_an_upload_function_that_commits():
    from ray import train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    here = tree("ray-upload")
    ray()
    state = scratch("ray") / "state"
    scripts = str(pathlib.Path(__file__).resolve().parents[2] / "scripts")
    result = DataParallelTrainer(
        saves_alone,
        train_loop_config={"scripts": scripts, "state": str(state)},
        scaling_config=train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=train.RunConfig(name="train", storage_path=str(here.path)),
    ).fit()
    assert result.error is None, result.error
    assert state.read_text() == "published", state.read_text()
    with result.checkpoint.as_directory() as directory:
        assert sorted(p.name for p in pathlib.Path(directory).iterdir()) == [f"part-{n}" for n in range(5)]
    here.stop()


def test_zz_ray_ends():
    module = ray()
    module.shutdown()


if __name__ == "__main__":
    main(globals())
