"""When a training wrote down what: its event files, read back."""

from pathlib import Path


def loss_times(scalars: Path) -> dict[int, float]:
    """Return when each step's training loss was written.

    Args:
      scalars: folder of the event files.

    Returns:
      Step -> seconds since 1970.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return {
        event.step: event.wall_time
        for file in scalars.glob("events.*")
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.tag == "train/loss"
    }
