"""Devices, the only module that knows of them.

Training is data parallel: one step is written as one device sees it, mapped over a
mesh with the single axis "batch" by `jax.shard_map`, and jitted. Each device gets its
rows of the batch and a copy of the state; gradients and batch-norm statistics are
averaged with `pmean`. The same code runs on one device, on several, and on several
processes.
"""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mela_jax.errors import UserError

BATCH_AXIS = "batch"

# Virtual devices of a CPU wait for each other within a process. XLA takes 40 s of that
# for a deadlock and aborts, but a laptop that was asleep or a busy machine does it too.
_PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds"


def set_up(*, cpu_devices: int, distributed: bool, compilation_cache: Path) -> None:
    """Prepare the devices; call before anything else touches JAX.

    `cpu_devices` are virtual ones that share a CPU. The other processes of a
    distributed run are found through the cluster's environment or
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. Compiled functions
    are kept between runs in the folder `compilation_cache`.

    Raises:
      UserError: the other processes cannot be found or joined.
    """
    jax.config.update("jax_num_cpu_devices", cpu_devices)
    flags = os.environ.get("XLA_FLAGS", "")
    if _PATIENCE not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_PATIENCE}={24 * 3600}".strip()
    jax.config.update("jax_compilation_cache_dir", str(compilation_cache))
    if not distributed:
        return
    try:
        # On its own, initialize() reads the address from the environment but neither
        # number; None leaves both to the cluster it finds itself in.
        number, process_id = (
            int(os.environ[name]) if name in os.environ else None
            for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        )
        jax.distributed.initialize(num_processes=number, process_id=process_id)
        # In their first collective processes wait 30 s for each other. Let it be here,
        # where they have just met, and not behind compilations, of which one may take
        # that much longer than the other.
        wait_for_all("set up")
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--distributed: cannot join the other processes ({error}); set"
            " JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def forget_programs() -> None:
    """Drop all compiled programs, for a process that does one run after another."""
    jax.clear_caches()


def make_mesh() -> Mesh:
    """Return the mesh of all devices of all processes, with the one axis "batch"."""
    return jax.make_mesh((jax.device_count(),), (BATCH_AXIS,), (AxisType.Auto,))


def is_main_process() -> bool:
    """Say whether this process writes the files that all share."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Wait until every process is here."""
    multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Say whether `flag` is set in any process, the same answer in all of them."""
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def from_main_process(array: np.ndarray) -> np.ndarray:
    """Return the main process's array in every process; all give the same shape."""
    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def check_batch_size(batch_size: int, *, field: str, per_device: int = 1) -> None:
    """Check that a batch divides among the devices into multiples of `per_device` rows.

    Raises:
      UserError: naming the config field when it does not.
    """
    if batch_size % (jax.device_count() * per_device):
        whole = f" into multiples of {per_device} views" if per_device > 1 else ""
        raise UserError(
            f"config.{field}={batch_size} does not divide evenly among"
            f" {jax.device_count()} devices{whole}; choose a multiple of"
            f" {jax.device_count() * per_device}"
        )


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Put a copy of every array of `tree` on every device."""
    sharding = NamedSharding(mesh, P())

    def put(x: Any) -> jax.Array:
        # Through the host: device_put may hand back the caller's own buffer, and a
        # training step that donates its state would then destroy it.
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])

    return jax.tree.map(put, tree)


def abstract_replicated(mesh: Mesh, tree: Any) -> Any:
    """Return shapes, dtypes and the replicated sharding in place of the arrays."""
    sharding = NamedSharding(mesh, P())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def shard_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Spread this process's rows of a batch over its devices."""
    sharding = NamedSharding(mesh, P(BATCH_AXIS))
    return {
        key: jax.make_array_from_process_local_data(sharding, value)
        for key, value in batch.items()
    }


def prefetch(
    mesh: Mesh, batches: Iterable[dict[str, np.ndarray]], *, ahead: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """Yield batches spread over the devices, copied `ahead` steps before their use.

    Copies are only asked for here, not waited for: they run beside the steps that
    compute.
    """
    waiting: collections.deque[dict[str, jax.Array]] = collections.deque()
    for batch in batches:
        waiting.append(shard_batch(mesh, batch))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def gather(array: jax.Array) -> np.ndarray:
    """Return an array whose rows are spread over the devices, whole, on the host."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def map_train_step(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Map step(state, frozen, batch) -> (state, metrics) over the devices and jit it.

    The state is donated: its buffers are reused for the new state. `frozen` is not.
    """
    specs = (P(), P(), P(BATCH_AXIS)), (P(), P())
    return jax.jit(_map(step, mesh, *specs), donate_argnums=0)


def map_eval_step(step: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Map step(variables, images) -> outputs over the devices and jit it."""
    return jax.jit(_map(step, mesh, (P(), P(BATCH_AXIS)), P(BATCH_AXIS)))


def map_batch(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Map function(batch) -> outputs, row by row, over the devices and jit it."""
    return jax.jit(_map(function, mesh, P(BATCH_AXIS), P(BATCH_AXIS)))


def _map(
    function: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    # With check_vma, autodiff would itself sum gradients over the devices, and the
    # step's own pmean would come on top.
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def describe_devices() -> list[str]:
    """Return one line for each kind of device: how many, which."""
    kinds = [f"{d.platform} {d.device_kind}" for d in jax.devices()]
    return [f"{kinds.count(kind)} x {kind}" for kind in sorted(set(kinds))]
