"""Train the same network with plain lowerings and with those for a CPU.

    python -m benchmarks.lowering --data=../shared/data/ham10000_200x150

Same start, same batches of real images. What rounding alone does to a training run is
shown beside it: the plain lowerings once more, from weights that differ in their last
bit. The losses are printed, and drawn into --plot.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from benchmarks import flags

if TYPE_CHECKING:
    from benchmarks import jax_networks


def main() -> None:
    """Train twice and print the losses."""
    parser = flags.make_parser(__doc__)
    parser.add_argument("--data", required=True, help="folder of HAM10000")
    flags.add_model(parser)
    parser.add_argument("--size", type=flags.positive, default=64, help="pixels")
    parser.add_argument("--steps", type=flags.positive, default=60)
    parser.add_argument("--cores", type=flags.positive, default=flags.CORES)
    parser.add_argument("--plot", help="write a PNG here")
    arguments = parser.parse_args()

    from benchmarks import jax_networks
    from mela_jax import config as mela_config
    from mela_jax.data.input_pipeline import make_train_batches
    from mela_jax.data.views import AugmentSettings, Views
    from mela_jax.images import load_images

    jax_networks.set_up(arguments.cores)
    config = mela_config.default()
    config.image_size = arguments.size
    config.data.dir = arguments.data
    with tempfile.TemporaryDirectory() as workdir:
        _, images = load_images(config, Path(workdir))
    batches = list(
        make_train_batches(
            images.train,
            images.labels,
            images.rows["train"],
            image_size=arguments.size,
            batch_size=32,
            seed=0,
            views=Views(AugmentSettings(**config.augment.to_dict())),
            start_step=0,
            num_steps=arguments.steps,
        )
    )
    losses = {}
    for name, context in (
        ("plain", plain),
        ("fast", contextlib.nullcontext),
        ("plain, last bit changed", plain),
    ):
        with context():
            network = jax_networks.Network(arguments.model, batches[0])
            if "changed" in name:
                change_last_bit(network)
            losses[name] = [network.train(batch) for batch in batches]
    print("step      plain      fast   relative difference, of it by a last bit")
    for step, (slow, fast, changed) in enumerate(zip(*losses.values(), strict=True), 1):
        if step <= 3 or step % 10 == 0:
            print(
                f"{step:4} {slow:10.6f} {fast:9.6f} {abs(fast / slow - 1):12.1e}"
                f" {abs(changed / slow - 1):12.1e}"
            )
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


def change_last_bit(network: "jax_networks.Network") -> None:
    """Move every weight to the next float32 away from zero."""
    import jax
    import jax.numpy as jnp

    variables = network.state.variables
    params = jax.tree.map(
        lambda p: jnp.nextafter(p, 2 * p + jnp.sign(p)), variables["params"]
    )
    network.state = network.state.replace(variables={**variables, "params": params})


def draw(losses: dict[str, list[float]], path: str) -> None:
    """Draw both curves and the difference between them."""
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(6, 5))
    plain_losses = losses["plain"]
    steps = range(1, len(plain_losses) + 1)
    above.plot(steps, plain_losses, color="#0072b2", linewidth=4, label="plain lax")
    above.plot(steps, losses["fast"], color="#e69f00", linewidth=1.2, label="fast")
    above.set_ylabel("loss")
    above.legend()
    others = {
        "fast": "#e69f00",
        "plain, last bit changed": "black",
    }
    for name, colour in others.items():
        pairs = zip(losses[name], plain_losses, strict=True)
        difference = [abs(a / b - 1) + 1e-9 for a, b in pairs]
        below.semilogy(steps, difference, color=colour, label=name)
    below.legend()
    below.set_ylabel("difference from plain,\nrelative")
    below.set_xlabel("training step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    flags.run(main)
