"""Several devices and several processes: the same result as one."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from mela_jax import parallel
from mela_jax.errors import UserError
from tests import tiny

REPOSITORY = Path(__file__).resolve().parent.parent
NUM_PROCESSES = 2
TIMEOUT = 240  # seconds for all processes of a test together


def test_a_batch_that_does_not_divide_among_the_devices_is_refused():
    parallel.check_batch_size(16, field="student.batch_size")
    with pytest.raises(
        UserError,
        match=r"config\.student\.batch_size=12 does not divide evenly among 8 devices",
    ):
        parallel.check_batch_size(12, field="student.batch_size")


def test_rows_are_spread_in_order_and_come_back_whole():
    mesh = parallel.make_mesh()
    assert mesh.axis_names == (parallel.BATCH_AXIS,)
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    spread = parallel.shard_batch(mesh, {"x": x, "row": np.arange(16, dtype=np.int32)})
    for device, shard in zip(
        mesh.devices, spread["row"].addressable_shards, strict=True
    ):
        assert shard.device == device
        np.testing.assert_array_equal(shard.data, 2 * device.id + np.arange(2))
    np.testing.assert_array_equal(parallel.gather(spread["x"]), x)


def test_batches_are_on_the_devices_before_they_are_used():
    mesh, asked = parallel.make_mesh(), []

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for number in range(5):
            asked.append(number)
            yield {"x": np.full(8, number, np.float32)}

    ahead = parallel.prefetch(mesh, batches(), ahead=2)
    found = []
    for used, batch in enumerate(ahead):
        assert asked == list(range(min(used + 3, 5)))
        assert len(batch["x"].addressable_shards) == 8
        found.append(float(batch["x"][0]))
    assert found == [0, 1, 2, 3, 4]
    assert list(parallel.prefetch(mesh, [])) == []


def test_replicated_arrays_are_copies_that_a_donating_step_may_destroy():
    mesh = parallel.make_mesh()
    original = {"a": jax.numpy.arange(3.0), "b": np.float32(2), "step": np.int32(7)}
    copies = parallel.replicate(mesh, original)
    for leaf in jax.tree.leaves(copies):
        assert len(leaf.addressable_shards) == 8
        assert leaf.is_fully_replicated
    again = parallel.replicate(mesh, copies)
    jax.tree.map(lambda x: x.delete(), copies)
    for tree in (original, again):
        np.testing.assert_array_equal(tree["a"], [0, 1, 2])
        assert (tree["b"], tree["step"]) == (2, 7)
    assert again["step"].dtype == np.int32


def test_abstract_replicated_tells_shapes_dtypes_and_sharding():
    mesh = parallel.make_mesh()
    tree = {"a": np.zeros((2, 3), np.float32), "step": np.int32(0)}
    abstract = parallel.abstract_replicated(mesh, tree)
    real = parallel.replicate(mesh, tree)
    for name, leaf in abstract.items():
        assert (leaf.shape, leaf.dtype) == (tree[name].shape, tree[name].dtype)
        assert leaf.sharding == real[name].sharding


def test_one_process_is_the_main_one_and_hears_itself():
    assert parallel.is_main_process()
    parallel.wait_for_all("nobody")
    assert parallel.any_process(True)
    assert not parallel.any_process(False)


def test_devices_are_described_by_kind_and_number():
    assert parallel.describe_devices() == ["8 x cpu cpu"]


@contextlib.contextmanager
def workers(logs: Path, *jobs: tuple[list[str], dict[str, str]]) -> Iterator[None]:
    """Run workers of (arguments, environment) beside the block; all must end well.

    Whatever happens, none outlives the test.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        started = []
        for i, (arguments, environment) in enumerate(jobs):
            log = stack.enter_context((logs / f"{i}.log").open("w+"))
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.two_process_worker", *arguments],
                cwd=REPOSITORY,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append((process, log))
        yield
        for process, log in started:
            status = process.wait(TIMEOUT)
            log.seek(0)
            assert status == 0, log.read()[-4000:]


def joined(process_id: int, port: int) -> dict[str, str]:
    """Return the environment that makes a process one of the two."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(NUM_PROCESSES),
        "JAX_PROCESS_ID": str(process_id),
    }


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes_take_the_steps_that_one_takes(tmp_path: Path):
    results = [tmp_path / f"{i}.npz" for i in range(NUM_PROCESSES)]
    port = free_port()
    with workers(
        tmp_path,
        *((["steps", str(path)], joined(i, port)) for i, path in enumerate(results)),
    ):
        # Meanwhile, here: one process with as many devices.
        mesh = Mesh(
            np.array(jax.devices()[:2]),
            (parallel.BATCH_AXIS,),
            axis_types=(AxisType.Auto,),
        )
        history, variables = tiny.distil(mesh, num_steps=3)
        logits = tiny.kept_logits(mesh, tmp_path / "kept")
    found = [dict(np.load(path, allow_pickle=False)) for path in results]
    assert [bool(f["main"]) for f in found] == [True, False]
    # Both processes hold one and the same model.
    assert found[0]["fingerprint"] == found[1]["fingerprint"]
    for f in found:
        np.testing.assert_allclose(
            f["loss"], [metrics["loss"] for metrics in history], rtol=1e-5
        )
        np.testing.assert_allclose(
            f["share"],
            [metrics["soft_gradient_share"] for metrics in history],
            rtol=1e-5,
        )
        for i, leaf in enumerate(jax.tree.leaves(variables)):
            np.testing.assert_allclose(f[f"leaf_{i}"], leaf, atol=1e-5)
        np.testing.assert_array_equal(
            f["gathered"], [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13], [14, 15]]
        )
        assert f["heard"] and not f["not_heard"]
        # The teacher's kept logits: computed by both, read again from the main one.
        np.testing.assert_allclose(f["first"], logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(f["again"], f["first"])
    assert len(list((tmp_path / "0.kept").rglob("*.npz"))) == 2
    assert not (tmp_path / "1.kept").exists()


def test_the_whole_job_in_two_processes_is_that_in_one(tmp_path: Path):
    """Every stage of main with the tiny network, on the same made-up lesions."""
    one, two = tmp_path / "one", tmp_path / "two"

    def flags(workdir: Path, *more: str) -> list[str]:
        return [
            "main",
            "--config=configs/tiny.py",
            f"--workdir={workdir}",
            f"--config.data.dir={workdir / 'lesions'}",
            f"--config.data.cache_dir={tmp_path / 'cache'}",
            "--config.baseline=False",
            "--config.student.dropout=0.5",
            *more,
        ]

    port = free_port()
    with workers(
        tmp_path / "logs",
        (flags(two, "--distributed"), joined(0, port)),
        (flags(two, "--distributed"), joined(1, port)),
        (flags(one, "--config.cpu_devices=2"), {}),
    ):
        pass
    names = sorted(path.name for path in (one / "predictions").iterdir())
    assert names == [
        f"{model}_{split}.csv"
        for model in ("student", "teacher")
        for split in ("test", "val")
    ]
    for name in names:
        ours, theirs = (
            [line.split(",") for line in (d / "predictions" / name).read_text().split()]
            for d in (two, one)
        )
        assert [line[:3] for line in ours] == [line[:3] for line in theirs]
        np.testing.assert_allclose(
            [float(line[3]) for line in ours[1:]],
            [float(line[3]) for line in theirs[1:]],
            atol=1e-4,
        )
    assert (two / "report" / "metrics.json").exists()
    assert (two / "splits.csv").read_text() == (one / "splits.csv").read_text()
    # The processes that do not write the report leave nothing of their own behind.
    assert {p.name for p in two.iterdir()} == {p.name for p in one.iterdir()}


def test_distributed_without_a_coordinator_is_refused_in_one_line(tmp_path: Path):
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("JAX_C", "JAX_P"))
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mela_jax.main", "--config=configs/tiny.py"),
            *(f"--workdir={tmp_path / 'run'}", "--distributed"),
            f"--config.data.cache_dir={tmp_path / 'cache'}",
        ],
        cwd=REPOSITORY,
        env=environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: --distributed: cannot join the other processes")
    assert "JAX_COORDINATOR_ADDRESS=HOST:PORT" in last
    assert "Traceback" not in done.stderr
