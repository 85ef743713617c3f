"""Checkpoints on disk: of a run in progress, and of a finished model.

Orbax writes a checkpoint into a temporary folder and renames it when it is whole, so a
run that is killed in the middle of a write resumes from the one before.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mela_jax.atomic import write_text
from mela_jax.errors import UserError
from mela_jax.state import TrainState, Variables


def open_checkpoints(directory: Path, *, select_by: str) -> ocp.CheckpointManager:
    """Return the checkpoints of one stage, of which the latest and the best are kept.

    The best has the largest metric `select_by`. The folder is made when absent.
    """

    def metric(metrics: dict[str, float]) -> float:
        return metrics[select_by]

    policies = [
        checkpoint_managers.LatestN(1),
        checkpoint_managers.BestN(
            get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False
        ),
    ]
    return ocp.CheckpointManager(
        directory.absolute(),
        options=ocp.CheckpointManagerOptions(
            # best_step() goes by best_fn, and what is kept by the policy: both must be
            # said.
            best_fn=metric,
            best_mode="max",
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            enable_async_checkpointing=False,
        ),
    )


def save_state(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: TrainState,
    progress: dict[str, Any],
    *,
    metrics: dict[str, float] | None,
) -> None:
    """Write the state after `step` steps.

    `progress` is what else the run needs to go on, as JSON; `metrics` are validation's
    of this state, None between two validations.

    Raises:
      UserError: the disk is full or cannot be written.
    """
    with _writing(Path(checkpoints.directory), state):
        checkpoints.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
            ),
            metrics=metrics,
            force=True,
        )
        checkpoints.wait_until_finished()


def restore_state(
    checkpoints: ocp.CheckpointManager, step: int, template: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    """Read state and progress of a step; `template` gives shapes and shardings.

    Raises:
      UserError: the checkpoint is damaged.
    """
    try:
        restored = checkpoints.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(template),
                progress=ocp.args.JsonRestore(),
            ),
        )
    except Exception as error:
        # Orbax and tensorstore raise many types for a damaged file.
        raise UserError(
            f"{checkpoints.directory / str(step)}: the checkpoint cannot be read"
            f" ({_first_line(error)}); delete that folder to go on from an earlier one"
        ) from error
    return restored["state"], restored["progress"]


def save_model(
    directory: Path, variables: Variables, description: dict[str, Any]
) -> dict[str, Any]:
    """Write a finished model: its variables, then model.json, which marks it whole.

    The variables {"params", "batch_stats"} are replicated on every device. Returned is
    what model.json holds: the description, all that is needed to rebuild and to use the
    model, and the variables' fingerprint. The folder is made when absent.

    Raises:
      UserError: the disk is full or cannot be written.
    """
    directory = directory.absolute()
    description = {**description, "fingerprint": fingerprint(variables)}
    with _writing(directory, variables):
        if jax.process_index() == 0:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "model.json").unlink(missing_ok=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(directory / "variables", variables, force=True)
        if jax.process_index() == 0:
            text = json.dumps(description, indent=2)
            write_text(directory / "model.json", f"{text}\n")
    return description


def read_description(directory: Path) -> dict[str, Any] | None:
    """Return model.json of a finished model, or None where there is none.

    Raises:
      UserError: it is damaged.
    """
    path = directory / "model.json"
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({_first_line(error)}); delete the folder"
            f" {directory} and repeat the command that made it"
        ) from error


def load_variables(directory: Path, template: Variables, *, expected: str) -> Variables:
    """Read the variables of a finished model; `template` gives shapes and shardings.

    Raises:
      UserError: they cannot be read, or their fingerprint is not the `expected` one of
        model.json.
    """
    path = directory.absolute() / "variables"
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            variables = checkpointer.restore(path, template)
    except Exception as error:
        raise UserError(
            f"{path}: the model cannot be read ({_first_line(error)}); it is damaged,"
            " or of another architecture than its model.json says"
        ) from error
    if fingerprint(variables) != expected:
        raise UserError(
            f"{path}: the values are not those that training wrote (their fingerprint"
            " differs from model.json); train again or restore the files"
        )
    return variables


def fingerprint(variables: Variables) -> str:
    """Return the SHA-256 of every array's name, shape, dtype and bytes."""
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    for path, leaf in sorted(leaves, key=lambda item: jax.tree_util.keystr(item[0])):
        array = np.asarray(leaf)
        header = f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}\n"
        digest.update(header.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _writing(directory: Path, tree: Any) -> Iterator[None]:
    """Turn what goes wrong while `tree` is written into one line.

    A write that the disk has no room for does not begin: tensorstore, out of space in
    the middle of one, also reports it from its own threads, in tracebacks that nobody
    can catch.
    """
    # The folder itself or the nearest one above it that is there.
    there = next(p for p in (directory, *directory.parents) if p.is_dir())
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    try:
        if shutil.disk_usage(there).free < needed:
            raise OSError(f"it takes {needed / 2**20:.0f} MiB")
        yield
    except (OSError, ValueError) as error:
        free = shutil.disk_usage(there).free
        raise UserError(
            f"{directory}: cannot be written ({_first_line(error)};"
            f" {free / 2**20:.0f} MiB free); make room or choose another --workdir,"
            " then repeat the command: it goes on from the last whole checkpoint"
        ) from error


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    # tensorstore names the file at length and says only then what is wrong with it.
    return line if len(line) <= 240 else f"{line[:80]} ... {line[-150:]}"
