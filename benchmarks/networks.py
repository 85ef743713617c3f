"""Training step and inference beside Keras on TensorFlow, on a CPU.

    python -m benchmarks.networks [--models=mobilenet_v3_small,...] [--size=224]

Both sides compute the same: float32, binary cross-entropy, AdamW with the gradient
clipped, a moving average of the weights. TensorFlow uses one thread a core; mela_jax
one virtual device a core. Each side has a process of its own, so that neither's memory
is in the other's way, and the processes take turns.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import harness, jobs

SIDES = ("mela_jax", "keras", "keras_jit")
# What both mela_jax.models.zoo and keras_networks can build.
NETWORKS = (
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mobilenet_v2",
    "efficientnet_lite0",
    "efficientnet_b0",
    "resnet50",
)
NUMBERS = {**harness.STEP, "turns": (2, "of each side")}


def main() -> None:
    """Print a line for each network and kind of work."""
    parser = harness.make_parser(__doc__, rounds=(5, "timed calls a turn"), **NUMBERS)
    parser.add_argument(
        "--models", type=harness.names_of(NETWORKS), default=",".join(NETWORKS)
    )
    parser.add_argument(
        "--sides",
        type=harness.names_of(SIDES),
        default="mela_jax,keras",
        help=f"of {','.join(SIDES)}",
    )
    arguments = parser.parse_args()
    first, *others = arguments.sides
    print(
        f"{harness.CORES} cores, batch {arguments.batch_size}, {arguments.size} px,"
        f" float32; images/s, median of {arguments.turns} x {arguments.rounds}"
    )
    options = {name: getattr(arguments, name) for name in ("rounds", *NUMBERS)}
    for model in arguments.models:
        speeds = images_per_second(arguments.sides, model, **options)
        for kind, speed in speeds.items():
            ratios = "".join(
                f"   {side} {speed[side]:7.1f} (ratio {speed[first] / speed[side]:.2f})"
                for side in others
            )
            print(
                f"{model:20} {kind}   {first} {speed[first]:7.1f}{ratios}", flush=True
            )


def images_per_second(
    sides: Sequence[str], model: str, *, turns: int, **options: Any
) -> dict[str, dict[str, float]]:
    """Let the sides take turns; return "train" and "infer" -> side -> images/s.

    `options` are those of `time_side`.
    """
    seconds: dict[str, dict[str, list[float]]] = {}
    for _ in range(turns):
        for side in sides:
            timed, _ = start_side(side, model, **options)
            for kind, times in timed.items():
                seconds.setdefault(kind, {}).setdefault(side, []).extend(times)
    return {k: harness.rates(v, options["batch_size"]) for k, v in seconds.items()}


def start_side(
    side: str, model: str, **options: Any
) -> tuple[dict[str, list[float]], jobs.Finished]:
    """Call `time_side` in a process of its own; return its times, and what it took."""
    call = json.dumps({"side": side, "model": model, **options})
    done = jobs.run_module(["benchmarks.networks", call])
    return json.loads(done.stdout.splitlines()[-1]), done


def time_side(
    side: str,
    model: str,
    *,
    size: int,
    batch_size: int,
    rounds: int,
    cores: int = harness.CORES,
    steps: int = 1,
    teacher: str | None = None,
    kinds: Sequence[str] = ("train", "infer"),
) -> dict[str, list[float]]:
    """Return the seconds of calls that take training steps, and of inferences."""
    batch = harness.noise_batch(batch_size=batch_size, size=size)
    options: dict[str, Any] = {"cores": cores, "steps": steps, "teacher": teacher}
    if side == "mela_jax":
        from benchmarks import jax_networks

        runs = jax_networks.make_runs(model, batch, **options)
    else:
        from benchmarks import keras_networks

        jit = side == "keras_jit"
        runs = keras_networks.make_runs(model, batch, jit=jit, **options)
    seconds = {}
    for kind in kinds:
        # In blocks, not in turn: training leaves the caches to training.
        timed = harness.interleave({kind: runs[kind]}, rounds=rounds, warmup=2)
        seconds.update(timed)
    return seconds


if __name__ == "__main__":
    # As `start_side` calls it.
    if sys.argv[1:] and sys.argv[1].startswith("{"):
        call = json.loads(sys.argv[1])
        harness.run(lambda: print(json.dumps(time_side(**call))))
    else:
        harness.run(main)
