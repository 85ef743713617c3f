"""Epochs of the main job beside its training step alone, on one batch that stays.

    python -m benchmarks.epoch [--model=mobilenet_v3_small] [--size=224] [--steps=40]

Images come from made-up JPEGs through the decoded-image cache, are split, augmented
and fed by the main job's own functions, without a teacher. The event files give
the times: "training" is the second half of each of three epochs, "epoch" runs
from the end of the second to the end of the third: with a validation and a checkpoint,
but past the first validation, which compiles. Rounds of both sides are taken in turn in
this process.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import events, flags, pictures
from mela_jax.errors import UserError


def main() -> None:
    """Print images/s of the step alone, of training and of epochs, and the ratios."""
    parser = flags.make_parser(__doc__)
    flags.add_training_step(parser)
    parser.add_argument(
        "--steps", type=flags.positive, default=40, help="in an epoch, about"
    )
    parser.add_argument("--rounds", type=flags.positive, default=3)
    parser.add_argument("--cores", type=flags.positive, default=flags.CORES)
    arguments = parser.parse_args()
    if arguments.steps < 4:
        raise UserError(f"--steps={arguments.steps} is too few for a half to time: 4")
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Time the step alone and the job's training in turn, in `folder`."""
    from benchmarks import jax_networks
    from mela_jax import parallel, stages
    from mela_jax.images import load_images
    from mela_jax.plan import Context, make_plan

    jax_networks.set_up(arguments.cores)
    batch_size = arguments.batch_size
    parallel.check_batch_size(batch_size, field="batch_size")
    config = _config(arguments, folder)
    pictures.write_data_set(
        folder / "data",
        # A little more than the training split's share, whose size is rounded.
        count=int(arguments.steps * batch_size / 0.7) + batch_size // 2,
        width=200,
        height=150,
    )
    records, images = load_images(config, folder / "run")
    steps = len(images.rows["train"]) // batch_size
    config.log_every_steps = steps // 2
    alone = jax_networks.Network(
        arguments.model,
        pictures.noise_batch(batch_size=batch_size, size=arguments.size),
    )
    alone.train_many(2)
    seconds: dict[str, list[float]] = {"alone": [], "training": [], "epoch": []}
    for number in range(arguments.rounds):
        start = time.perf_counter()
        alone.train_many(steps // 2)
        seconds["alone"].append((time.perf_counter() - start) / (steps // 2))
        workdir = folder / f"round_{number}"
        mesh = parallel.make_mesh()
        context = Context(config, workdir, records, images, mesh)
        stages.obtain_all(make_plan(config), context)
        times = events.loss_times(workdir / "student" / "scalars")
        for end in (steps, 2 * steps, 3 * steps):
            half = max(step for step in times if step < end)
            seconds["training"].append((times[end] - times[half]) / (end - half))
        seconds["epoch"].append((times[3 * steps] - times[2 * steps]) / steps)
    rate = {k: batch_size / statistics.median(v) for k, v in seconds.items()}
    print(
        f"{arguments.model}, {arguments.cores} cores, batch {batch_size},"
        f" {arguments.size} px, {steps} steps an epoch,"
        f" {len(images.rows['val'])} images in validation; images/s, median of"
        f" {arguments.rounds} rounds\n"
        f"step alone {rate['alone']:.1f}   training {rate['training']:.1f}"
        f" (ratio {rate['training'] / rate['alone']:.2f})   epoch {rate['epoch']:.1f}"
        f" (ratio {rate['epoch'] / rate['alone']:.2f})"
    )


def _config(arguments: argparse.Namespace, folder: Path) -> Any:
    """Return the configuration of a student of three epochs without a teacher."""
    from mela_jax import config

    c = config.default()
    c.image_size = arguments.size
    c.cpu_devices = arguments.cores
    c.eval_batch_size = 32 * arguments.cores
    c.data.name = "csv"
    c.data.dir = str(folder / "data")
    c.data.cache_dir = str(folder / "cache")
    c.distill.enabled = False
    c.student.model = arguments.model
    c.student.init = "random"
    c.student.epochs = 3
    c.student.batch_size = arguments.batch_size
    c.student.ema_decay = 0.99
    config.validate(c)
    return c


if __name__ == "__main__":
    flags.run(main)
