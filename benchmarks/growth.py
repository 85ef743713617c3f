"""How speed and memory grow: with the batch, the image, the devices, the data set.

    python -m benchmarks.growth [--axes=batch_size,size,devices,images]

The first three axes time the training step, each point in a process of its own; what
an axis does not vary is at batch 32, 224 px and one device a core. The fourth runs the
whole main job with one epoch and no teacher on made-up JPEGs of 200x150 pixels at
32 px; past 200 images, files repeat under other names. A job that is not counted
compiles for the others beforehand. Tables are Markdown; memory is in MB.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks import harness, jobs, networks, pictures

AXES = ("batch_size", "size", "devices", "images")
STEPS = 3  # in a timed call


def main() -> None:
    """Print a table for each axis."""
    parser = harness.make_parser(__doc__, rounds=(5, "of the training step"))
    parser.add_argument("--axes", type=harness.names_of(AXES), default=",".join(AXES))
    defaults = ("8,16,32,64,128", "96,128,160,224", "1,2,4", "1000,10000")
    for axis, values in zip(AXES, defaults, strict=True):
        parser.add_argument(f"--{axis}", type=harness.positives, default=values)
    parser.add_argument("--model", default=harness.MODEL)
    arguments = parser.parse_args()
    for axis in arguments.axes:
        grow_data(arguments) if axis == "images" else grow_step(axis, arguments)


def grow_step(axis: str, arguments: argparse.Namespace) -> None:
    """Print images/s and peak memory of the training step along one axis."""
    print(
        f"\n{arguments.model}, training step, {harness.CORES} cores\n\n"
        f"| {axis} | images/s | peak memory |\n| --- | --- | --- |"
    )
    for value in getattr(arguments, axis):
        point = {"batch_size": 32, "size": 224, "devices": harness.CORES, axis: value}
        seconds, done = networks.start_side(
            "mela_jax",
            arguments.model,
            size=point["size"],
            batch_size=point["batch_size"],
            cores=point["devices"],
            rounds=arguments.rounds,
            steps=STEPS,
            kinds=["train"],
        )
        rate = harness.rates(seconds, STEPS * point["batch_size"])["train"]
        print(f"| {value} | {rate:.1f} | {done.peak_mb:.0f} |", flush=True)


def grow_data(arguments: argparse.Namespace) -> None:
    """Print time and peak memory of the main job by the number of images."""
    print(
        f"\n{arguments.model}, main job, one epoch at 32 px, {harness.CORES} cores\n\n"
        "| images | s | CPU s | CPU ms an image | peak memory | of it not files |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run_job(min(arguments.images), arguments.model, folder)
        for count in arguments.images:
            job = run_job(count, arguments.model, folder)
            print(
                f"| {count} | {job.seconds:.1f} | {job.cpu_seconds:.1f}"
                f" | {job.cpu_seconds / count * 1e3:.2f} | {job.peak_mb:.0f}"
                f" | {job.peak_own_mb:.0f} |",
                flush=True,
            )


def run_job(count: int, model: str, folder: Path) -> jobs.Finished:
    """Run the main job on `count` images."""
    data = Path(tempfile.mkdtemp(dir=folder))
    pictures.write_data_set(data, count=count, width=200, height=150)
    fields = {
        "eval_batch_size": 256,
        "log_every_steps": 50,
        "student.model": model,
        "student.batch_size": 64,
        "student.epochs": 1,
    }
    return jobs.run_student(data.with_suffix(".run"), data, fields)


if __name__ == "__main__":
    harness.run(main)
