"""Train the same network with plain lowerings and with those for a CPU.

    python -m benchmarks.lowering --data=../shared/data/ham10000_200x150

Same start, same batches of real images. What rounding alone does to a training run is
shown beside it: the plain lowerings once more, from weights that differ in their last
bit. The losses are printed, and drawn into --plot.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import harness

BATCH_SIZE = 32


def main() -> None:
    """Train three times and print the losses."""
    parser = harness.make_parser(
        __doc__,
        size=(64, "pixels"),
        steps=(60, "of training"),
    )
    parser.add_argument("--data", required=True, help="folder of HAM10000")
    parser.add_argument("--model", default=harness.MODEL)
    parser.add_argument("--plot", help="write a PNG here")
    arguments = parser.parse_args()

    from benchmarks import jax_networks

    jax_networks.set_up(harness.CORES, BATCH_SIZE)
    batches = list(real_batches(arguments))
    losses = {}
    for name in ("plain", "fast", "plain, last bit changed"):
        with contextlib.nullcontext() if name == "fast" else plain():
            training = jax_networks.Training(arguments.model, arguments.size)
            if "changed" in name:
                change_last_bit(training)
            losses[name] = [training.train([training.put(b)]) for b in batches]
    print("step      plain      fast   relative difference, of it by a last bit")
    for step, (slow, fast, changed) in enumerate(zip(*losses.values(), strict=True), 1):
        if step <= 3 or step % 10 == 0:
            print(
                f"{step:4} {slow:10.6f} {fast:9.6f} {abs(fast / slow - 1):12.1e}"
                f" {abs(changed / slow - 1):12.1e}"
            )
    if arguments.plot:
        draw(losses, arguments.plot)


def real_batches(arguments: argparse.Namespace) -> Iterator[Any]:
    """Yield augmented batches of HAM10000's training split."""
    from mela_jax import config as mela_config
    from mela_jax.data.input_pipeline import make_train_batches
    from mela_jax.data.views import AugmentSettings, Views
    from mela_jax.images import load_images

    config = mela_config.default()
    config.image_size = arguments.size
    config.data.dir = arguments.data
    with tempfile.TemporaryDirectory() as workdir:
        _, images = load_images(config, Path(workdir))
    return make_train_batches(
        images.train,
        images.labels,
        images.rows["train"],
        image_size=arguments.size,
        batch_size=BATCH_SIZE,
        seed=0,
        views=Views(AugmentSettings(**config.augment.to_dict())),
        start_step=0,
        num_steps=arguments.steps,
    )


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


def change_last_bit(training: Any) -> None:
    """Move every weight to the next float32 away from zero."""
    import jax
    import jax.numpy as jnp

    variables = training.state.variables
    params = jax.tree.map(
        lambda p: jnp.nextafter(p, 2 * p + jnp.sign(p)), variables["params"]
    )
    training.state = training.state.replace(variables={**variables, "params": params})


def draw(losses: dict[str, list[float]], path: str) -> None:
    """Draw both curves and the difference between them."""
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(6, 5))
    steps = range(1, len(losses["plain"]) + 1)
    above.plot(steps, losses["plain"], color="#0072b2", linewidth=4, label="plain lax")
    above.plot(steps, losses["fast"], color="#e69f00", linewidth=1.2, label="fast")
    for name, colour in (("fast", "#e69f00"), ("plain, last bit changed", "black")):
        pairs = zip(losses[name], losses["plain"], strict=True)
        difference = [abs(a / b - 1) + 1e-9 for a, b in pairs]
        below.semilogy(steps, difference, color=colour, label=name)
    above.set_ylabel("loss")
    below.set_ylabel("difference from plain,\nrelative")
    below.set_xlabel("training step")
    above.legend()
    below.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    harness.run(main)
