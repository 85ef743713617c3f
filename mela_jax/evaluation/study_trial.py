"""What a study knows of one of its trials."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# In the order in which a trial goes through them.
STATES = ("waiting", "running", "pruned", "failed", "complete")


@dataclass(frozen=True)
class Trial:
    """One run of the main job within a study.

    Attributes:
      number: from 0, unique in the study.
      setting: value of each axis, {"student.loss": "focal", ...}; trials of one setting
        differ in seed and fold only.
      seed: `config.seed` of the run.
      fold: `config.data.fold` of the run; -1 for the fixed split.
      state: one of `STATES`.
      error: why it failed, in one line; empty otherwise.
      workdir: folder of the run. Complete: with predictions/ and report/metrics.json.
    """

    number: int
    setting: dict[str, Any]
    seed: int
    fold: int
    state: str
    error: str
    workdir: Path
