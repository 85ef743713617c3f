"""The input pipeline alone: decoding into the cache, and epochs of views from it.

    python -m benchmarks.input_pipeline [--sources=600x450,200x150] [--sizes=224,128]

The files are made-up JPEGs in a temporary folder, fresh in the system's page cache.
Both stages use the functions of the main job. There the training step shares the cores
with the views; here they have them for themselves.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import flags, pictures


def main() -> None:
    """Print a table of images/s by size of the files and of the squares."""
    parser = flags.make_parser(__doc__)
    parser.add_argument("--sources", type=_sources, default="600x450,200x150")
    parser.add_argument("--sizes", type=flags.positives, default="224,128")
    parser.add_argument("--images", type=flags.positive, default=1024)
    parser.add_argument("--batch_size", type=flags.positive, default=32)
    parser.add_argument("--rounds", type=flags.positive, default=5)
    arguments = parser.parse_args()
    print(
        f"{flags.CORES} cores, {arguments.images} images, batch {arguments.batch_size},"
        f" median of {arguments.rounds}\n\n"
        "| JPEG | kB a file | square, px | decoding, images/s | views, images/s |\n"
        "| --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as folder:
        for width, height in arguments.sources:
            files = pictures.write_pictures(
                Path(folder) / f"{width}x{height}",
                count=arguments.images,
                width=width,
                height=height,
            )
            kilobytes = statistics.mean(f.stat().st_size for f in files) / 1e3
            for size in arguments.sizes:
                decoding, views = measure(files, size, arguments)
                print(
                    f"| {width}x{height} | {kilobytes:.0f} | {size} | {decoding:.0f}"
                    f" | {views:.0f} |",
                    flush=True,
                )


def measure(
    files: list[Path], size: int, arguments: argparse.Namespace
) -> tuple[float, float]:
    """Return images/s of decoding and of the views of an epoch."""
    import numpy as np

    from mela_jax import config
    from mela_jax.data.augment import AugmentSettings
    from mela_jax.data.cache import open_cache
    from mela_jax.data.input_pipeline import make_train_batches
    from mela_jax.data.records import Record

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
        batches = make_train_batches(
            cache.images,
            np.array([r.label for r in records]),
            np.arange(len(records)),
            image_size=size,
            batch_size=arguments.batch_size,
            seed=0,
            start_step=0,
            num_steps=(arguments.rounds + 1) * steps,
            settings=AugmentSettings(**config.default().augment.to_dict()),
        )
        epochs = []
        for _ in range(arguments.rounds + 1):
            start = time.perf_counter()
            for _ in range(steps):
                next(batches)
            epochs.append(time.perf_counter() - start)
    # The first epoch starts threads and fills the queue.
    return (
        len(records) / statistics.median(decoding),
        steps * arguments.batch_size / statistics.median(epochs[1:]),
    )


def _sources(text: str) -> list[tuple[int, int]]:
    """Read sizes like 600x450 between commas."""
    sizes = []
    for part in text.split(","):
        numbers = [flags.positive(number) for number in part.split("x")]
        if len(numbers) != 2:
            raise argparse.ArgumentTypeError(f"{part!r} is not a size like 600x450")
        sizes.append((numbers[0], numbers[1]))
    return sizes


if __name__ == "__main__":
    flags.run(main)
