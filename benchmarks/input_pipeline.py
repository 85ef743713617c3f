"""The input pipeline alone: decoding into the cache, and epochs of views from it.

    python -m benchmarks.input_pipeline [--sources=600x450,200x150] [--sizes=224,128]

The files are made-up JPEGs in a temporary folder, fresh in the system's page cache.
Both stages use the functions of the main job. There the training step shares the cores
with the views; here they have them for themselves. Epochs of the same batches are taken
in turn from tf.data and from plain threads.
"""

import argparse
import functools
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import harness, pictures


def main() -> None:
    """Print a table of images/s by size of the files and of the squares."""
    parser = harness.make_parser(
        __doc__, images=(1024, "files"), batch_size=(32, "images"), rounds=(5, "epochs")
    )
    parser.add_argument("--sources", type=_sources, default="600x450,200x150")
    parser.add_argument("--sizes", type=harness.positives, default="224,128")
    arguments = parser.parse_args()
    print(
        f"{harness.CORES} cores, {arguments.images} images, batch"
        f" {arguments.batch_size}, median of {arguments.rounds}\n\n"
        "| JPEG | kB a file | square, px | decoding, images/s | views/s, tf.data"
        " | views/s, threads | ratio | CPU ms a view, tf.data | threads | ratio |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for width, height in arguments.sources:
        with tempfile.TemporaryDirectory() as folder:
            files = pictures.write_pictures(
                Path(folder), count=arguments.images, width=width, height=height
            )
            kilobytes = statistics.mean(f.stat().st_size for f in files) / 1e3
            for size in arguments.sizes:
                decoding, wall, cpu = measure(files, size, arguments)
                print(
                    f"| {width}x{height} | {kilobytes:.0f} | {size} | {decoding:.0f}"
                    f" | {1 / wall['tf.data']:.0f} | {1 / wall['threads']:.0f}"
                    f" | {wall['threads'] / wall['tf.data']:.2f}"
                    f" | {1e3 * cpu['tf.data']:.3f} | {1e3 * cpu['threads']:.3f}"
                    f" | {cpu['tf.data'] / cpu['threads']:.2f} |",
                    flush=True,
                )


def measure(
    files: list[Path], size: int, arguments: argparse.Namespace
) -> tuple[float, dict[str, float], dict[str, float]]:
    """Return decoded images/s; and seconds a view, on the clock and of CPU, by way."""
    import numpy as np

    from mela_jax import config
    from mela_jax.data import input_pipeline
    from mela_jax.data.cache import open_cache
    from mela_jax.data.records import Record
    from mela_jax.data.views import AugmentSettings, Views

    records = [
        Record(image_id=f.name, lesion_id=f.name, label=n % 2, path=str(f))
        for n, f in enumerate(files)
    ]
    decoding = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            start = time.perf_counter()
            cache = open_cache(
                records,
                size=size,
                crop="center",
                directory=Path(folder) / str(number),
                on_bad_image="error",
            )
            decoding.append(time.perf_counter() - start)
        steps = len(records) // arguments.batch_size
        fetch = input_pipeline.make_train_fetch(
            cache.images,
            np.array([r.label for r in records]),
            np.arange(len(records)),
            views=Views(AugmentSettings(**config.default().augment.to_dict())),
            image_size=size,
            batch_size=arguments.batch_size,
            seed=0,
        )
        dtypes = {key: value.dtype for key, value in fetch(0).items()}
        ways = {
            "tf.data": functools.partial(input_pipeline.stream, fetch, dtypes=dtypes),
            "threads": functools.partial(harness.fetch_ahead, fetch),
        }
        wall: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(arguments.rounds):
            for name, way in ways.items():
                batches = way(start=number * steps, stop=(number + 1) * steps)
                # With the first batch here, threads and pipeline have started.
                next(batches)
                start, start_cpu = time.perf_counter(), time.process_time()
                views = arguments.batch_size * sum(1 for _ in batches)
                wall[name].append((time.perf_counter() - start) / views)
                cpu[name].append((time.process_time() - start_cpu) / views)
    return (
        len(records) / statistics.median(decoding),
        {name: statistics.median(values) for name, values in wall.items()},
        {name: statistics.median(values) for name, values in cpu.items()},
    )


def _sources(text: str) -> list[tuple[int, int]]:
    """Read sizes like 600x450 between commas."""
    sizes = []
    for part in text.split(","):
        numbers = [harness.positive(number) for number in part.split("x")]
        if len(numbers) != 2:
            raise argparse.ArgumentTypeError(f"{part!r} is not a size like 600x450")
        sizes.append((numbers[0], numbers[1]))
    return sizes


if __name__ == "__main__":
    harness.run(main)
