"""Checkpoints: what is kept, what is refused, and what a broken write leaves."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from mela_jax import checkpoint
from mela_jax.errors import UserError
from mela_jax.state import TrainState, create_state

REPOSITORY = Path(__file__).resolve().parent.parent


def state_after(step: int) -> TrainState:
    """Make a state whose every number tells the step."""
    variables = {
        "params": {"kernel": jnp.full((4, 3), float(step)), "bias": jnp.arange(3.0)},
        "batch_stats": {"mean": jnp.full(3, step + 0.5)},
    }
    state = create_state(variables, optax.adam(1e-3), use_ema=True)
    return state.replace(step=jnp.asarray(step, jnp.int32))


def template() -> TrainState:
    """Describe the state, as training does before it restores one."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        state_after(0),
    )


def open_checkpoints(folder: Path) -> ocp.CheckpointManager:
    """Open the checkpoints that are selected by ROC-AUC."""
    return checkpoint.open_checkpoints(folder, select_by="roc_auc")


def save(checkpoints: ocp.CheckpointManager, step: int, roc_auc: float | None):
    """Save the state after a step, with a metric or, in mid-epoch, without."""
    # The other metric goes the other way: only the named one may decide.
    metrics = None if roc_auc is None else {"roc_auc": roc_auc, "pr_auc": 1 - roc_auc}
    progress = {"losses": [0.5, step]}
    checkpoint.save_state(
        checkpoints, step, state_after(step), progress, metrics=metrics
    )


def latest(checkpoints: ocp.CheckpointManager) -> Any:
    """Return state and progress of the latest checkpoint."""
    return checkpoint.restore_state(checkpoints, checkpoints.latest_step(), template())


def kept(folder: Path) -> set[int]:
    """Return the steps of the checkpoints on disk."""
    return {int(path.name) for path in folder.iterdir() if path.name.isdigit()}


def assert_equal(left, right) -> None:
    """Compare two trees bit for bit, dtypes included."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_restored_checkpoint_is_what_was_saved(tmp_path: Path):
    checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.latest_step() is None
    assert checkpoints.best_step() is None
    awkward = 0.1 + 0.2  # a float that survives JSON only with all its digits
    history = [{"epoch": 1, "val/loss": awkward}]
    progress = {"history": history, "losses": [awkward]}
    metrics = {"roc_auc": 0.5}
    checkpoint.save_state(checkpoints, 7, state_after(7), progress, metrics=metrics)
    checkpoints.close()
    again = open_checkpoints(tmp_path)
    state, found = latest(again)
    again.close()
    assert_equal(state, state_after(7))
    assert found == progress


def test_the_latest_and_the_best_are_kept_and_no_other(tmp_path: Path):
    checkpoints = open_checkpoints(tmp_path)
    for step, roc_auc in ((1, 0.6), (2, 0.9), (3, 0.7), (4, 0.8)):
        save(checkpoints, step, roc_auc)
    assert kept(tmp_path) == {2, 4}
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (2, 4)
    for step in (2, 4):
        found, _ = checkpoint.restore_state(checkpoints, step, template())
        assert_equal(found, state_after(step))
    checkpoints.close()


def test_a_save_between_validations_drops_neither_the_best_nor_becomes_it(
    tmp_path: Path,
):
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 1, None)
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (None, 1)
    save(checkpoints, 2, 0.9)
    save(checkpoints, 3, 0.8)
    save(checkpoints, 4, None)
    checkpoints.close()
    again = open_checkpoints(tmp_path)
    assert (again.best_step(), again.latest_step()) == (2, 4)
    save(again, 5, 0.85)
    assert (again.best_step(), again.latest_step()) == (2, 5)
    assert kept(tmp_path) == {2, 5}
    save(again, 6, 0.95)
    assert again.best_step() == 6
    assert kept(tmp_path) == {6}
    again.close()


def test_an_unfinished_write_is_passed_over(tmp_path: Path):
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 1, 0.9)
    checkpoints.close()
    # What a killed write leaves: the folder that was not renamed yet.
    unfinished = tmp_path / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "1", unfinished)
    for path in sorted(unfinished.rglob("*"))[::2]:
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    again = open_checkpoints(tmp_path)
    assert (again.best_step(), again.latest_step()) == (1, 1)
    state, _ = latest(again)
    assert_equal(state, state_after(1))
    # The step that was cut off is done and saved again.
    save(again, 2, 0.95)
    assert (again.best_step(), again.latest_step()) == (2, 2)
    again.close()


def test_a_process_killed_while_it_saves_leaves_the_checkpoint_before(tmp_path: Path):
    script = """
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, os.getcwd())
        from tests.test_checkpoint import open_checkpoints, save

        checkpoints = open_checkpoints(Path(sys.argv[1]))
        save(checkpoints, 1, 0.5)
        # Everything is written, and the rename that makes it count is next.
        rename = os.rename
        def killed(source, target, *rest, **more):
            if Path(target).name == "2":
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target, *rest, **more)
        os.rename = os.replace = killed
        import pathlib
        pathlib.Path.rename = lambda self, target: killed(self, target)
        pathlib.Path.replace = lambda self, target: killed(self, target)
        save(checkpoints, 2, 0.9)
    """
    done = run_script(script, tmp_path)
    assert done.returncode == -9, done.stderr[-2000:]
    assert [path for path in tmp_path.iterdir() if "tmp" in path.name]
    checkpoints = open_checkpoints(tmp_path)
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (1, 1)
    save(checkpoints, 2, 0.9)
    state, _ = latest(checkpoints)
    checkpoints.close()
    assert_equal(state, state_after(2))


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, from the repository."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path):
    checkpoints = open_checkpoints(tmp_path)
    save(checkpoints, 1, 0.9)
    damage(tmp_path / "1")
    with pytest.raises(UserError, match=r"/1: the checkpoint cannot be read .* delete"):
        latest(checkpoints)
    checkpoints.close()


def damage(folder: Path) -> None:
    """Cut every large enough file of array data in half."""
    data = [p for p in folder.rglob("*") if p.is_file() and p.parent.name == "d"]
    assert data
    for path in data:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fill_the_disk_while_saving(how: str, folder: Path) -> subprocess.CompletedProcess:
    """Save in a process that may write no file larger than 64 KiB."""
    script = f"""
        import os, resource, signal, sys
        from pathlib import Path
        import jax.numpy as jnp
        sys.path.insert(0, os.getcwd())
        from mela_jax import checkpoint
        from mela_jax.errors import UserError
        from tests.test_checkpoint import open_checkpoints, save, state_after

        folder = Path(sys.argv[1])
        checkpoints = open_checkpoints(folder)
        save(checkpoints, 1, 0.5)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error, not a death
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
        noise = jnp.asarray(__import__("numpy").random.default_rng(0).normal(
            size=(400, 400)))
        big = {{"params": {{"kernel": noise}}, "batch_stats": {{}}}}
        try:
            {how}
        except UserError as error:
            print(error)
            sys.exit(2)
    """
    return run_script(script, folder)


def test_a_full_disk_is_said_and_the_checkpoint_before_stays(tmp_path: Path):
    done = fill_the_disk_while_saving(
        "checkpoint.save_state(checkpoints, 2,"
        " state_after(2).replace(variables=big), {},"
        " metrics={'roc_auc': 0.9})",
        tmp_path,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"{tmp_path}: cannot be written" in done.stdout
    assert "make room or choose another --workdir" in done.stdout
    checkpoints = open_checkpoints(tmp_path)
    assert checkpoints.latest_step() == 1
    state, _ = latest(checkpoints)
    checkpoints.close()
    assert_equal(state, state_after(1))


def test_a_full_disk_leaves_no_model_that_looks_whole(tmp_path: Path):
    model = tmp_path / "model"
    done = fill_the_disk_while_saving(
        "checkpoint.save_model(folder / 'model', big, {})", tmp_path
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"{model}: cannot be written" in done.stdout
    assert checkpoint.read_description(model) is None


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path):
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint.save_model(blocked / "model", state_after(1).variables, {})


def load(folder: Path, wanted: Any = None) -> Any:
    """Return the variables of a model."""
    description = checkpoint.read_description(folder)
    assert description is not None
    return checkpoint.load_variables(
        folder, wanted or template().variables, expected=description["fingerprint"]
    )


def test_a_model_is_read_as_it_was_written_last(tmp_path: Path):
    folder = tmp_path / "model"
    assert checkpoint.read_description(folder) is None
    for step in (4, 5):
        variables = state_after(step).variables
        written = checkpoint.save_model(folder, variables, {"model": "tiny", "n": step})
        print_of = checkpoint.fingerprint(variables)
        assert written == {"model": "tiny", "n": step, "fingerprint": print_of}
        assert checkpoint.read_description(folder) == written
        assert_equal(load(folder), variables)
    # Text for people, too.
    assert len((folder / "model.json").read_text().splitlines()) > 2
    (folder / "model.json").write_text('{"model": "tin')
    with pytest.raises(UserError, match=r"model\.json: cannot be read .* delete"):
        checkpoint.read_description(folder)


def test_a_model_of_another_architecture_is_refused(tmp_path: Path):
    checkpoint.save_model(tmp_path, state_after(5).variables, {})
    wanted = template().variables
    wanted["params"]["another"] = wanted["params"].pop("bias")
    with pytest.raises(UserError, match="the model cannot be read"):
        load(tmp_path, wanted)


def test_values_that_training_did_not_write_are_refused(tmp_path: Path):
    # Variables of another run under this run's model.json.
    checkpoint.save_model(tmp_path / "a", state_after(1).variables, {})
    checkpoint.save_model(tmp_path / "b", state_after(2).variables, {})
    shutil.rmtree(tmp_path / "a" / "variables")
    shutil.copytree(tmp_path / "b" / "variables", tmp_path / "a" / "variables")
    with pytest.raises(UserError, match="fingerprint differs from model.json"):
        load(tmp_path / "a")


def test_the_fingerprint_sees_every_name_shape_dtype_and_value():
    def of(**arrays) -> str:
        return checkpoint.fingerprint({"params": arrays})

    base = of(a=np.zeros((2, 3), np.float32), b=np.ones(2, np.float32))
    assert base == of(b=jnp.ones(2), a=jnp.zeros((2, 3)))
    tiny = np.zeros((2, 3), np.float32)
    tiny[1, 2] = np.finfo(np.float32).smallest_subnormal
    others = {
        of(a=tiny, b=np.ones(2, np.float32)),
        of(a=-np.zeros((2, 3), np.float32), b=np.ones(2, np.float32)),
        of(a=np.zeros((3, 2), np.float32), b=np.ones(2, np.float32)),
        of(a=np.zeros((2, 3), np.int32), b=np.ones(2, np.float32)),
        of(a=np.zeros((2, 3), np.float32), c=np.ones(2, np.float32)),
        of(a=np.zeros((2, 3), np.float32)),
    }
    assert len(others | {base}) == 7
