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

from benchmarks import harness, jobs, pictures


def main() -> None:
    """Print a table of starts."""
    parser = harness.make_parser(
        __doc__,
        **harness.STEP,
        images=(100, "in the data set"),
        rounds=(3, "warm starts"),
    )
    parser.add_argument("--model", default=harness.MODEL)
    arguments = parser.parse_args()
    print(
        f"{arguments.model}, {arguments.size} px, batch {arguments.batch_size},"
        f" {harness.CORES} virtual devices\n\n"
        "| start | first step done, s | whole job, s | peak memory, MB |\n"
        "| --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "data"
        pictures.write_data_set(data, count=arguments.images, width=600, height=450)
        fields = {
            "image_size": arguments.size,
            "student.model": arguments.model,
            "student.batch_size": arguments.batch_size,
        }
        starts = []
        for number in range(arguments.rounds + 1):
            workdir = folder / str(number)
            job = jobs.run_student(workdir, data, fields)
            starts.append(jobs.loss_times(workdir)[1] - job.started)
            name = "cold" if number == 0 else f"warm {number}"
            print(
                f"| {name} | {starts[-1]:.1f} | {job.seconds:.1f}"
                f" | {job.peak_mb:.0f} |",
                flush=True,
            )
    print(f"\nmedian of the warm starts: {statistics.median(starts[1:]):.1f} s")


if __name__ == "__main__":
    harness.run(main)
