"""What the tests start as one of several processes; see test_parallel.py.

python -m tests.two_process_worker steps RESULT.npz
python -m tests.two_process_worker main FLAGS_OF_MELA_JAX_MAIN...

Both join the other processes as JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID say.
"""

import sys
from pathlib import Path
from unittest import mock

from tests import tiny


def train_steps(result: Path) -> int:
    """Distil the tiny network on this process's share; write what came out."""
    import jax
    import numpy as np

    from mela_jax import checkpoint, parallel

    parallel.set_up(
        cpu_devices=1, distributed=True, compilation_cache=result.parent / "xla"
    )
    mesh = parallel.make_mesh()
    history, variables = tiny.distil(
        mesh, num_steps=3, process=jax.process_index(), processes=jax.process_count()
    )
    # Only the main process may need its folder: elsewhere it cannot even be made.
    first, again = (tiny.kept_logits(mesh, result.with_suffix(".kept")) for _ in "ab")
    rows = np.arange(6, dtype=np.float32).reshape(3, 2) + 10 * jax.process_index()
    gathered = parallel.gather(parallel.shard_batch(mesh, {"x": rows})["x"])
    parallel.wait_for_all("done")
    np.savez(
        result,
        loss=[metrics["loss"] for metrics in history],
        share=[metrics["soft_gradient_share"] for metrics in history],
        gathered=gathered,
        first=first,
        again=again,
        # One process asks, all must hear it.
        heard=parallel.any_process(jax.process_index() == 1),
        not_heard=parallel.any_process(False),
        fingerprint=checkpoint.fingerprint(variables),
        main=parallel.is_main_process(),
        **{f"leaf_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(variables))},
    )
    return 0


def run_main(flags: list[str]) -> int:
    """Run the whole job with a tiny network in the place of every architecture."""
    from mela_jax import main

    def create(name, *, bn_axis_name=None, dropout=0.0, **rest):
        del name, rest
        return tiny.network(axis_name=bn_axis_name, dropout=dropout)

    with mock.patch("mela_jax.saved_models.create_model", create):
        return main.main(["main", *flags])


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    status = run_main(arguments) if what == "main" else train_steps(Path(arguments[0]))
    sys.exit(status)
