"""From the start of the main job's process to the end of its first training step.

    python -m benchmarks.startup [--model=mobilenet_v3_small] [--size=224]

Each start is a fresh process of `python -m mela_jax.main` in a new workdir, on made-up
JPEGs. The first one finds neither compiled programs nor decoded images; the later ones
find both. The step is done when its loss is written. Each job trains two epochs and
goes on to its report, so that its peak memory is that of a whole run.
"""

import statistics
import tempfile
from pathlib import Path

from benchmarks import events, flags, pictures, processes


def main() -> None:
    """Print a table of starts."""
    parser = flags.make_parser(__doc__)
    flags.add_training_step(parser)
    parser.add_argument("--images", type=flags.positive, default=100)
    parser.add_argument("--rounds", type=flags.positive, default=3, help="warm starts")
    parser.add_argument("--cores", type=flags.positive, default=flags.CORES)
    arguments = parser.parse_args()
    print(
        f"{arguments.model}, {arguments.size} px, batch {arguments.batch_size},"
        f" {arguments.cores} virtual devices\n\n"
        "| start | first step done, s | whole job, s | peak memory, MB |\n"
        "| --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures.write_data_set(
            folder / "data", count=arguments.images, width=600, height=450
        )
        starts = []
        for number in range(arguments.rounds + 1):
            job = processes.run_module(
                [
                    "mela_jax.main",
                    "--config=configs/tiny.py",
                    f"--workdir={folder / str(number)}",
                    f"--config.image_size={arguments.size}",
                    f"--config.cpu_devices={arguments.cores}",
                    f"--config.eval_batch_size={32 * arguments.cores}",
                    "--config.baseline=False",
                    "--config.distill.enabled=False",
                    "--config.data.name=csv",
                    f"--config.data.dir={folder / 'data'}",
                    f"--config.data.cache_dir={folder / 'cache'}",
                    f"--config.student.model={arguments.model}",
                    f"--config.student.batch_size={arguments.batch_size}",
                ],
                log=folder / f"{number}.log",
            )
            losses = events.loss_times(folder / str(number) / "student" / "scalars")
            first = losses[1] - job.started
            name = "cold" if number == 0 else f"warm {number}"
            print(
                f"| {name} | {first:.1f} | {job.seconds:.1f} | {job.peak_mb:.0f} |",
                flush=True,
            )
            starts.append(first)
    print(f"\nmedian of the warm starts: {statistics.median(starts[1:]):.1f} s")


if __name__ == "__main__":
    flags.run(main)
