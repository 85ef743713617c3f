"""Training step and inference beside Keras on TensorFlow, on a CPU.

    python -m benchmarks.networks [--models=mobilenet_v3_small,...] [--size=224]

Both sides compute the same: float32, binary cross-entropy, AdamW with the gradient
clipped, a moving average of the weights. TensorFlow uses one thread a core; mela_jax
one virtual device a core. Calls are taken in turn in this one process.
"""

import argparse
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main() -> None:
    """Print a line for each network and kind of work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models",
        default="mobilenet_v3_small,mobilenet_v3_large,efficientnet_lite0,resnet50",
    )
    parser.add_argument("--size", type=int, default=224, help="side in pixels")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--jit", default="off,on", help="TensorFlow's jit_compile: off, on or both"
    )
    arguments = parser.parse_args()

    from benchmarks import jax_networks

    jax_networks.set_up(arguments.cores)
    print(
        f"{arguments.cores} cores, batch {arguments.batch_size},"
        f" {arguments.size} px, float32; images/s, median of {arguments.rounds}"
    )
    for name in arguments.models.split(","):
        compare(name, arguments)


def compare(name: str, arguments: argparse.Namespace) -> None:
    """Time one network on both sides and print images/s and their ratio."""
    import keras
    import numpy as np

    from benchmarks import jax_networks, keras_networks
    from benchmarks.timing import interleave, rates

    rng = np.random.default_rng(0)
    size, count = arguments.size, arguments.batch_size
    batch = {
        "image": rng.uniform(0, 255, (count, size, size, 3)).astype(np.float32),
        "label": (np.arange(count) % 2).astype(np.int32),
    }
    images, labels = keras_networks.batch_of(batch)
    ours = jax_networks.Network(name, batch)
    train = {"mela_jax": ours.train}
    infer = {"mela_jax": ours.infer}
    for mode in arguments.jit.split(","):
        theirs = keras_networks.create_keras_model(name, size)
        step = keras_networks.make_keras_train_step(theirs, jit=mode == "on")
        evaluate = keras_networks.make_keras_eval_step(theirs, jit=mode == "on")
        train[f"keras, jit {mode}"] = lambda step=step: step(images, labels).numpy()
        infer[f"keras, jit {mode}"] = lambda run=evaluate: run(images).numpy()
    for kind, runs in (("train", train), ("infer", infer)):
        speed = rates(interleave(runs, rounds=arguments.rounds, warmup=2), count)
        own = speed.pop("mela_jax")
        others = "".join(
            f"   {label} {rate:7.1f} (ratio {own / rate:.2f})"
            for label, rate in speed.items()
        )
        print(f"{name:20} {kind}   mela_jax {own:7.1f}{others}", flush=True)
    keras.backend.clear_session()


if __name__ == "__main__":
    from mela_jax.memory import use_huge_pages

    use_huge_pages()
    sys.exit(main())
