"""What a training wrote for TensorBoard, and when, read back."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_events(scalars: Path) -> Iterator[Any]:
    """Yield the events of a folder, of a file being written to as far as it goes.

    Without TensorFlow, which TensorBoard's own readers import. A record is its length,
    a checksum, its content and another checksum.

    Args:
      scalars: folder of the event files; it need not be there yet.

    Yields:
      `tensorboard.compat.proto.event_pb2.Event`.
    """
    from tensorboard.compat.proto.event_pb2 import Event

    for file in sorted(scalars.glob("events.*")):
        content, start = file.read_bytes(), 0
        while start + 12 <= len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            end = start + 12 + length
            if end + 4 > len(content):
                break
            yield Event.FromString(content[start + 12 : end])
            start = end + 4


def loss_times(scalars: Path) -> dict[int, float]:
    """Return when each step's training loss was written.

    Args:
      scalars: folder of the event files.

    Returns:
      Step -> seconds since 1970.
    """
    return {
        event.step: event.wall_time
        for event in read_events(scalars)
        for value in event.summary.value
        if value.tag == "train/loss"
    }
