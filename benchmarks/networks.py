"""Training step and inference beside Keras on TensorFlow, on a CPU.

    python -m benchmarks.networks [--models=mobilenet_v3_small,...] [--size=224]

Both sides compute the same: float32, binary cross-entropy, AdamW with the gradient
clipped, a moving average of the weights. TensorFlow uses one thread a core; mela_jax
one virtual device a core. Each side has a process of its own, so that neither's memory
is in the other's way, and the processes take turns.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import flags, pictures, processes
from benchmarks.timing import interleave

SIDES = ("mela_jax", "keras", "keras_jit")


def main() -> None:
    """Print a line for each network and kind of work."""
    parser = flags.make_parser(__doc__)
    parser.add_argument(
        "--models",
        type=flags.names_of(flags.NETWORKS),
        default=",".join(flags.NETWORKS),
    )
    parser.add_argument("--size", type=flags.positive, default=224, help="pixels")
    parser.add_argument("--batch_size", type=flags.positive, default=32)
    parser.add_argument(
        "--rounds", type=flags.positive, default=5, help="timed calls a turn"
    )
    parser.add_argument("--turns", type=flags.positive, default=2)
    parser.add_argument("--cores", type=flags.positive, default=flags.CORES)
    parser.add_argument(
        "--sides",
        type=flags.names_of(SIDES),
        default="mela_jax,keras",
        help=f"of {','.join(SIDES)}",
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments)))
        return
    print(
        f"{arguments.cores} cores, batch {arguments.batch_size}, {arguments.size} px,"
        f" float32; images/s, median of {arguments.turns} x {arguments.rounds}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for model in arguments.models:
            compare(model, arguments, log=Path(folder) / "log")


def compare(model: str, arguments: argparse.Namespace, *, log: Path) -> None:
    """Let the sides take turns on one network; print images/s and their ratio."""
    sides = arguments.sides
    seconds: dict[str, dict[str, list[float]]] = {
        kind: {side: [] for side in sides} for kind in ("train", "infer")
    }
    sizes = [
        f"--{name}={getattr(arguments, name)}"
        for name in ("size", "batch_size", "rounds", "cores")
    ]
    for _ in range(arguments.turns):
        for side in sides:
            done = processes.run_module(
                ["benchmarks.networks", f"--side={side}", f"--models={model}", *sizes],
                log=log,
            )
            for kind, times in json.loads(done.stdout.splitlines()[-1]).items():
                seconds[kind][side] += times
    for kind, by_side in seconds.items():
        rate = {
            side: arguments.batch_size / statistics.median(times)
            for side, times in by_side.items()
        }
        own = rate[sides[0]]
        others = "".join(
            f"   {side} {rate[side]:7.1f} (ratio {own / rate[side]:.2f})"
            for side in sides[1:]
        )
        print(f"{model:20} {kind}   {sides[0]} {own:7.1f}{others}", flush=True)


def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of each training step and each inference of one side."""
    batch = pictures.noise_batch(batch_size=arguments.batch_size, size=arguments.size)
    make = _ours if arguments.side == "mela_jax" else _theirs
    seconds = {}
    for kind, run in make(arguments, batch).items():
        # In blocks, not in turn: training leaves the caches to training.
        seconds |= interleave({kind: run}, rounds=arguments.rounds, warmup=2)
    return seconds


def _ours(arguments: argparse.Namespace, batch: dict) -> dict[str, Callable]:
    from benchmarks import jax_networks
    from mela_jax import parallel

    jax_networks.set_up(arguments.cores)
    parallel.check_batch_size(arguments.batch_size, field="batch_size")
    (model,) = arguments.models
    network = jax_networks.Network(model, batch)
    return {"train": network.train, "infer": network.infer}


def _theirs(arguments: argparse.Namespace, batch: dict) -> dict[str, Callable]:
    import tensorflow as tf

    from benchmarks import keras_networks

    tf.config.threading.set_intra_op_parallelism_threads(arguments.cores)
    images, labels = keras_networks.batch_of(batch)
    (name,) = arguments.models
    model = keras_networks.create_keras_model(name, arguments.size)
    jit = arguments.side == "keras_jit"
    step = keras_networks.make_keras_train_step(model, jit=jit)
    evaluate = keras_networks.make_keras_eval_step(model, jit=jit)
    return {
        "train": lambda: step(images, labels).numpy(),
        "infer": lambda: evaluate(images).numpy(),
    }


if __name__ == "__main__":
    flags.run(main)
