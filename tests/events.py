"""The numbers and texts that a training wrote for TensorBoard."""

from pathlib import Path

from tensorboard.util.tensor_util import make_ndarray

from benchmarks import jobs


def read_events(folder: Path) -> dict[str, dict[int, float | str]]:
    """Return tag -> step -> the number or text written last; {} before there is any."""
    found: dict[str, dict[int, float | str]] = {}
    for event in jobs.read_events(folder):
        for value in event.summary.value:
            content = make_ndarray(value.tensor).ravel()[0]
            if isinstance(content, bytes):
                content = content.decode()
            found.setdefault(value.tag, {})[event.step] = content
    return found
