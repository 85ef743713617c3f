"""Epochs of the main job beside its training step alone, on one batch that stays.

    python -m benchmarks.epoch [--model=mobilenet_v3_small] [--size=224] [--steps=40]

The main job trains without a teacher on made-up JPEGs. Its event files give the times:
"training" is the second half of each of three epochs, "epoch" runs from the end of the
second to the end of the third: with a validation and a checkpoint, but past the first
validation, which compiles. The step and the job have processes of their own, which take
turns.
"""

import tempfile
from pathlib import Path

from benchmarks import harness, jobs, networks, pictures
from mela_jax.data.splits import read_splits
from mela_jax.errors import UserError


def main() -> None:
    """Print images/s of the step alone, of training and of epochs, and the ratios."""
    parser = harness.make_parser(
        __doc__,
        **harness.STEP,
        steps=(40, "in an epoch, about"),
        rounds=(3, "of both sides"),
    )
    parser.add_argument("--model", default=harness.MODEL)
    arguments = parser.parse_args()
    size, batch_size = arguments.size, arguments.batch_size
    if arguments.steps < 4:
        raise UserError(f"--steps={arguments.steps} is too few for a half to time: 4")
    seconds: dict[str, list[float]] = {"alone": [], "training": [], "epoch": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "data"
        # A little more than the training split's share, whose size is rounded.
        count = int(arguments.steps * batch_size / 0.7) + batch_size // 2
        pictures.write_data_set(data, count=count, width=200, height=150)
        fields = {
            "image_size": size,
            "log_every_steps": arguments.steps // 2,
            "student.model": arguments.model,
            "student.batch_size": batch_size,
            "student.epochs": 3,
        }
        for number in range(arguments.rounds):
            alone, _ = networks.start_side(
                "mela_jax",
                arguments.model,
                size=size,
                batch_size=batch_size,
                rounds=1,
                steps=arguments.steps // 2,
                kinds=["train"],
            )
            seconds["alone"].append(alone["train"][0] / (arguments.steps // 2))
            workdir = folder / f"round_{number}"
            jobs.run_student(workdir, data, fields)
            times = jobs.loss_times(workdir)
            steps = max(times) // 3
            for end in (steps, 2 * steps, 3 * steps):
                half = min(step for step in times if step > end - 0.7 * steps)
                seconds["training"].append((times[end] - times[half]) / (end - half))
            seconds["epoch"].append((times[3 * steps] - times[2 * steps]) / steps)
        splits = [s for _, s in read_splits(workdir / "splits.csv").values()]
    rate = harness.rates(seconds, batch_size)
    print(
        f"{arguments.model}, {harness.CORES} cores, batch {batch_size}, {size} px,"
        f" {steps} steps an epoch, {splits.count('val')} images in validation;"
        f" images/s, median of {arguments.rounds} rounds\n"
        f"step alone {rate['alone']:.1f}   training {rate['training']:.1f}"
        f" (ratio {rate['training'] / rate['alone']:.2f})   epoch {rate['epoch']:.1f}"
        f" (ratio {rate['epoch'] / rate['alone']:.2f})"
    )


if __name__ == "__main__":
    harness.run(main)
