"""Train the same network with plain lowerings and with those for a CPU.

    python -m benchmarks.lowering --data=../shared/data/ham10000_200x150

Same start, same batches of real images; the losses of both are printed beside each
other, and drawn into --plot. They part by rounding alone.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main() -> None:
    """Train twice and print the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of HAM10000")
    parser.add_argument("--model", default="mobilenet_v3_small")
    parser.add_argument("--size", type=int, default=96, help="side in pixels")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--plot", help="write a PNG here")
    arguments = parser.parse_args()

    from benchmarks import jax_networks
    from mela_jax import config as mela_config
    from mela_jax import pipeline
    from mela_jax.data.augment import AugmentSettings
    from mela_jax.data.input_pipeline import make_train_batches

    jax_networks.set_up(arguments.cores)
    config = mela_config.default()
    config.image_size = arguments.size
    config.data.dir = arguments.data
    with tempfile.TemporaryDirectory() as workdir:
        _, images = pipeline.load_images(config, Path(workdir))
    batches = list(
        make_train_batches(
            images.train,
            images.labels,
            images.rows["train"],
            image_size=arguments.size,
            batch_size=32,
            seed=0,
            settings=AugmentSettings(**config.augment.to_dict()),
            start_step=0,
            num_steps=arguments.steps,
        )
    )
    losses = {}
    for name, context in (("fast", contextlib.nullcontext), ("plain", plain)):
        with context():
            network = jax_networks.Network(arguments.model, batches[0])
            losses[name] = [network.train(batch) for batch in batches]
    print("step    fast      plain     relative difference")
    for step, (fast, slow) in enumerate(zip(*losses.values(), strict=True), 1):
        if step <= 3 or step % 10 == 0:
            print(f"{step:4} {fast:9.6f} {slow:9.6f} {abs(fast - slow) / slow:9.1e}")
    if arguments.plot:
        draw(losses, arguments.plot)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Trace one `lax` operation a layer, and let JAX differentiate batch norm."""
    from mela_jax.models import normalization
    from mela_jax.models.convolution import plain_convolutions

    automatic = normalization._normalise.__wrapped__
    with (
        plain_convolutions(),
        mock.patch.object(normalization, "_normalise", automatic),
    ):
        yield


def draw(losses: dict[str, list[float]], path: str) -> None:
    """Draw both curves and the difference between them."""
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(6, 5))
    steps = range(1, len(losses["fast"]) + 1)
    above.plot(steps, losses["plain"], color="#0072b2", linewidth=4, label="plain lax")
    above.plot(steps, losses["fast"], color="#e69f00", linewidth=1.2, label="fast")
    above.set_ylabel("loss")
    above.legend()
    pairs = zip(losses["fast"], losses["plain"], strict=True)
    below.semilogy(steps, [abs(a - b) / b + 1e-9 for a, b in pairs], color="black")
    below.set_ylabel("relative difference")
    below.set_xlabel("training step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    from mela_jax.memory import use_huge_pages

    use_huge_pages()
    sys.exit(main())
