"""How a training goes, for the terminal, the log and TensorBoard."""

import contextlib
import functools
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from clu import parameter_overview
from clu import platform as clu_platform
from clu import profiler as clu_profiler
from tqdm import tqdm

from mela_jax import lazy_tensorflow, parallel

# Seconds between two looks at speed and time left.
_REPORT_SECONDS = 60.0
# Steps before a profile, in which things compile.
_WARM_UP_STEPS = 3
_ON_TERMINAL = sys.stderr.isatty()


class Progress(contextlib.AbstractContextManager["Progress"]):
    """A bar where the log is a terminal, a line an epoch elsewhere, and event files.

    Of several processes, only the main one writes. clu writes through TensorFlow, which
    is imported when there is something to write: see `mela_jax.lazy_tensorflow`.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        first_step: int,
        total_steps: int,
        profile_steps: int = 0,
    ) -> None:
        """Start reporting on the model `name`, with event files in `directory`.

        Of `total_steps`, `first_step` were done before; a profile of `profile_steps` is
        taken for TensorBoard.
        """
        self._name = name
        self._directory = directory
        self._first_step, self._total_steps = first_step, total_steps
        self._profile_steps = profile_steps
        self._writes = parallel.is_main_process()
        self._texts: dict[str, str] = {}
        self._speed = ""
        self._bar = tqdm(
            desc=name,
            initial=first_step,
            total=total_steps,
            unit="step",
            dynamic_ncols=True,
            disable=not (_ON_TERMINAL and self._writes),
        )

    def parameters(self, params: Mapping[str, Any]) -> None:
        """Log the number of parameters, and list them among TensorBoard's texts."""
        table = parameter_overview.get_parameter_overview(params, include_stats=False)
        self._texts["parameters"] = f"```\n{table}\n```"
        count = parameter_overview.count_parameters(params)
        self.line(f"{self._name}: {count:,} parameters")

    def step(self, step: int) -> None:
        """Count a step that was dispatched; a profile may begin or end with it."""
        if self._writes and self._profile_steps:
            self._profile(step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record what was measured up to a step, as Python or NumPy numbers."""
        if not self._writes:
            return
        self._writer.write_scalars(step, values)
        # A run that is killed leaves what it had.
        self._writer.flush()
        self._report(step)
        if "train/loss" in values:
            loss = f"{values['train/loss']:.4f}"
            self._bar.set_postfix(loss=loss, refresh=False)
        self._bar.update(step - self._bar.n)

    def line(self, text: str) -> None:
        """Print a line above the bar, or log it, with speed and time left."""
        if self._bar.disable:
            logging.info("%s%s", text, self._speed)
        else:
            self._bar.write(text, file=sys.stderr)

    def __exit__(self, *exception: object) -> None:
        """End the bar, a profile and the event files."""
        self._bar.close()
        if "_profile" in vars(self):
            with contextlib.suppress(RuntimeError):  # that none is running
                clu_profiler.stop()
        if "_writer" in vars(self):
            self._writer.close()

    @functools.cached_property
    def _writer(self) -> Any:
        metric_writers, _ = lazy_tensorflow.import_clu()
        writer = metric_writers.SummaryWriter(str(self._directory))
        if self._texts:
            writer.write_texts(self._first_step, self._texts)
        return writer

    @functools.cached_property
    def _report(self) -> Any:
        """Record speed and time left, for TensorBoard and the next line."""
        _, periodic_actions = lazy_tensorflow.import_clu()
        # On its own, a note is logged as "Setting work unit notes: ...".
        setattr(clu_platform.work_unit(), "set_notes", self._note)  # noqa: B010
        return periodic_actions.ReportProgress(
            num_train_steps=self._total_steps,
            every_secs=_REPORT_SECONDS,
            writer=self._writer,
        )

    @functools.cached_property
    def _profile(self) -> Any:
        _, periodic_actions = lazy_tensorflow.import_clu()
        return periodic_actions.Profile(
            logdir=str(self._directory),
            num_profile_steps=self._profile_steps,
            profile_duration_ms=None,
            first_profile=self._first_step + _WARM_UP_STEPS,
            every_secs=None,
        )

    def _note(self, text: str) -> None:
        # "5.2 steps/s, 50.0% (4/8), ETA: 1m": the epoch's line already has the middle.
        self._speed = "  " + re.sub(r", [\d.]+% \([^)]*\)", "", text)
