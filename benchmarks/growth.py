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

from benchmarks import flags, pictures, processes

AXES = ("batch_size", "size", "devices", "images")


def main() -> None:
    """Print a table for each axis."""
    parser = flags.make_parser(__doc__)
    parser.add_argument("--axes", type=flags.names_of(AXES), default=",".join(AXES))
    parser.add_argument("--batch_size", type=flags.positives, default="8,16,32,64,128")
    parser.add_argument("--size", type=flags.positives, default="96,128,160,224")
    parser.add_argument("--devices", type=flags.positives, default="1,2,4")
    parser.add_argument("--images", type=flags.positives, default="1000,10000")
    flags.add_model(parser)
    parser.add_argument(
        "--rounds", type=flags.positive, default=5, help="of the training step"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for axis in arguments.axes:
            if axis == "images":
                grow_data(arguments, Path(folder))
            else:
                grow_step(axis, arguments, Path(folder))


def grow_step(axis: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Print images/s and peak memory of the training step along one axis."""
    print(
        f"\n{arguments.model}, training step, {flags.CORES} cores\n\n"
        f"| {axis} | images/s | peak memory |\n| --- | --- | --- |"
    )
    for value in getattr(arguments, axis):
        done = processes.run_module(
            [
                "benchmarks.train_step",
                f"--model={arguments.model}",
                f"--rounds={arguments.rounds}",
                f"--{axis}={value}",
            ],
            log=folder / "step.log",
        )
        print(
            f"| {value} | {float(done.stdout):.1f} | {done.peak_mb:.0f} |", flush=True
        )


def grow_data(arguments: argparse.Namespace, folder: Path) -> None:
    """Print time and peak memory of the main job by the number of images."""
    print(
        f"\n{arguments.model}, main job, one epoch at 32 px, {flags.CORES} cores\n\n"
        "| images | s | CPU s | CPU ms an image | peak memory | of it not files |\n"
        "| --- | --- | --- | --- | --- | --- |"
    )
    run_job(min(arguments.images), arguments.model, folder / "uncounted", folder)
    for count in arguments.images:
        job = run_job(count, arguments.model, folder / str(count), folder)
        print(
            f"| {count} | {job.seconds:.1f} | {job.cpu_seconds:.1f}"
            f" | {job.cpu_seconds / count * 1e3:.2f} | {job.peak_mb:.0f}"
            f" | {job.peak_own_mb:.0f} |",
            flush=True,
        )


def run_job(count: int, model: str, folder: Path, cache: Path) -> processes.Finished:
    """Run the main job on `count` images in `folder`; `cache` is shared by jobs."""
    data = folder / "data"
    pictures.write_data_set(data, count=count, width=200, height=150)
    return processes.run_module(
        [
            "mela_jax.main",
            "--config=configs/tiny.py",
            f"--workdir={folder / 'run'}",
            f"--config.cpu_devices={flags.CORES}",
            "--config.eval_batch_size=256",
            "--config.log_every_steps=50",
            "--config.baseline=False",
            "--config.distill.enabled=False",
            "--config.data.name=csv",
            f"--config.data.dir={data}",
            f"--config.data.cache_dir={cache / 'cache'}",
            f"--config.student.model={model}",
            "--config.student.batch_size=64",
            "--config.student.epochs=1",
        ],
        log=folder / "log",
    )


if __name__ == "__main__":
    flags.run(main)
