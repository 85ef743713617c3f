"""How a training goes, for the terminal, the log and TensorBoard."""

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path

from absl import logging
from tensorboardX import SummaryWriter
from tqdm import tqdm

from mela_jax import parallel


class Progress(contextlib.AbstractContextManager["Progress"]):
    """A bar where the log is a terminal, lines elsewhere, and event files.

    Of several processes, the main one alone writes.
    """

    def __init__(
        self, name: str, directory: Path, *, first_step: int, total_steps: int
    ) -> None:
        """Start to write.

        Args:
          name: of the model.
          directory: folder of the event files; made when absent.
          first_step: steps that were done before.
          total_steps: the length of the training.
        """
        self._name = name
        self._writes = parallel.is_main_process()
        self._events = SummaryWriter(
            str(directory), write_to_disk=self._writes, max_queue=100
        )
        self._bar = tqdm(
            desc=name,
            initial=first_step,
            total=total_steps,
            unit="step",
            dynamic_ncols=True,
            disable=not (sys.stderr.isatty() and self._writes),
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record what was measured up to a step."""
        for key, value in values.items():
            self._events.add_scalar(key, value, step)
        if self._bar.disable:
            shown = ", ".join(f"{k}={v:.6g}" for k, v in sorted(values.items()))
            logging.info("%s: step %d: %s", self._name, step, shown)
        else:
            if "train/loss" in values:
                loss = f"{values['train/loss']:.4f}"
                self._bar.set_postfix(loss=loss, refresh=False)
            self._bar.update(step - self._bar.n)

    def line(self, text: str) -> None:
        """Say something in a line of its own."""
        if self._bar.disable:
            logging.info(text)
        else:
            self._bar.write(text, file=sys.stderr)

    def __exit__(self, *exception: object) -> None:
        """End the bar and the event files."""
        self._bar.close()
        self._events.close()
