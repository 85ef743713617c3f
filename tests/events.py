"""What a training wrote for TensorBoard, read back."""

from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray


def read_events(folder: Path) -> dict[str, dict[int, float | str]]:
    """Return tag -> step -> the number or text written last; {} before there is any.

    A file that is being written to is read as far as it goes.
    """
    found: dict[str, dict[int, float | str]] = {}
    for file in sorted(folder.glob("events.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                content = make_ndarray(value.tensor)
                content = content.item() if content.ndim == 0 else content[0]
                if isinstance(content, bytes):
                    content = content.decode()
                found.setdefault(value.tag, {})[event.step] = content
    return found
