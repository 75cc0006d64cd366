"""Commit a checkpoint directory on a trialfs mount by hand: copy what you need, nothing is to be installed.

A directory that a rule of the mount knows by its name (`checkpoint_000007`, or one given with `--rule`)
appears on other nodes by itself, whole, when it is complete. This is for whoever wants to say so, and
to know when every node has it.

Plain PyTorch:

    from trialfs_commit import saved
    with saved("/mnt/trials/run/checkpoint_000007") as directory:
        torch.save(model.state_dict(), directory / "model.pt")
        torch.save(optimizer.state_dict(), directory / "optimizer.pt")
    # here every node sees both files; after an exception or a kill none does

Ray Train, one rank that saves:

    from trialfs_commit import upload
    ray.train.report(metrics, checkpoint=checkpoint, checkpoint_upload_fn=upload)

Where several ranks fill one directory leave `checkpoint_upload_fn` alone: Ray's own record, closed after
all of them, commits it.

On a plain directory both work too, and just don't wait.
"""

import contextlib
import errno
import os
import pathlib
import shutil

COMMIT = "user.trialfs.commit"
STATE = "user.trialfs.state"


def commit(directory, accept_torn: bool = False):
    """Commits `directory` and returns when every node sees it.

    OSError: ETIMEDOUT while files in it are open, here or on another node; EIO if a process that wrote
    in it was killed (`accept_torn` commits what is whole); EINVAL if no rule of the mount knows it.
    """
    try:
        os.setxattr(directory, COMMIT, b"accept-torn" if accept_torn else b"1")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP or is_on_trialfs(directory):
            raise


def state(path) -> str:
    """`open`, `prepared`, `sealed`, `published`, `torn` or `dirty`."""
    return os.getxattr(path, STATE).decode()


def is_on_trialfs(path) -> bool:
    try:
        return bool(state(path))
    except OSError:
        return False


@contextlib.contextmanager
def saved(directory):
    """A new directory to save into; committed at the end, removed after an exception."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True)
    try:
        yield directory
    except BaseException:
        shutil.rmtree(directory)
        raise
    commit(directory)


def upload(checkpoint, name: str):
    """A `checkpoint_upload_fn` of Ray Train: the local checkpoint, copied and committed."""
    import ray.train

    context = ray.train.get_context().get_storage()
    target = pathlib.Path(context.experiment_fs_path) / name
    with checkpoint.as_directory() as source, saved(target) as directory:
        shutil.copytree(source, directory, dirs_exist_ok=True)
    return ray.train.Checkpoint(str(target), filesystem=context.storage_filesystem)
