"""The runs of a study: who has which, and that none is lost or doubled.

Every run gets its Optuna trial before any worker asks for one: a waiting trial, which
exactly one worker sets running. (GridSampler on its own may hand a point of the grid to
two workers, as its documentation says.) The trial of a worker that has died is failed,
and the run gets another trial, which goes on in the same folder. Which trial counts for
a run, and what has become of it, follows from the trials alone: see `judge`.
"""

import contextlib
import dataclasses
import datetime
import itertools
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import GridSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from mela_jax.atomic import hold_lock
from mela_jax.study.spec import Plan, key_of
from mela_jax.study.storage import SILENT_INTERVALS, Storage

# A run that has ended its worker so often is not tried again.
MAX_DEATHS = 3
# Attributes of an Optuna trial: the number of its run; that earlier failures of the run
# are forgiven; the machine that runs it; why the run failed; why the worker gave the
# trial up, which is no failure of the run.
RUN, FORGIVES, HOST, ERROR, GIVEN_UP = "run", "forgives", "host", "error", "given_up"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of the main job.

    Attributes:
      number: from 0.
      key: name of its folder in trials/.
      cell: name of its setting; empty for tuning.
      seed: `config.seed`.
      fold: `config.data.fold`.
    """

    number: int
    key: str
    cell: str
    seed: int
    fold: int


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What has become of a run.

    Attributes:
      state: one of `trial.STATES`.
      error: why it failed; empty otherwise.
      trial: the Optuna trial that counts; None where the run needs a new one.
      params: what Optuna chose for it, as far as known.
    """

    state: str
    error: str
    trial: FrozenTrial | None
    params: dict[str, Any]


def judge(trials: Sequence[FrozenTrial]) -> Verdict:
    """Say what has become of a run.

    Args:
      trials: those of the run, in the order of their numbers.
    """
    params = max((t.params for t in trials), key=len, default={})
    pardons = [i for i, t in enumerate(trials) if t.user_attrs.get(FORGIVES)]
    trials = trials[pardons[-1] :] if pardons else trials
    for state, name in (
        (TrialState.COMPLETE, "complete"),
        (TrialState.PRUNED, "pruned"),
        (TrialState.RUNNING, "running"),
        (TrialState.WAITING, "waiting"),
    ):
        for trial in trials:
            if trial.state == state:
                return Verdict(name, "", trial, params)
    for trial in trials:
        if ERROR in trial.user_attrs:
            return Verdict("failed", trial.user_attrs[ERROR], trial, params)
    deaths = [t for t in trials if GIVEN_UP not in t.user_attrs]
    if len(deaths) >= MAX_DEATHS:
        error = f"its worker died {len(deaths)} times (killed, or out of memory?)"
        return Verdict("failed", error, deaths[-1], params)
    return Verdict("waiting", "", None, params)


@dataclasses.dataclass(frozen=True)
class Queue:
    """The runs of one study in one storage.

    Attributes:
      plan: the study.
      workdir: its folder.
      storage: open.
      study: in the storage.
      trials: for tuning, how many runs are wanted; there may be more already.
    """

    plan: Plan
    workdir: Path
    storage: Storage
    study: optuna.Study
    trials: int

    def folder(self, run: Run) -> Path:
        """Return the workdir of a run."""
        return self.workdir / "trials" / run.key

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the queue: SQLite, for one, knows no lock on a single trial."""
        with hold_lock(self.workdir / ".queue.lock"):
            yield

    @contextlib.contextmanager
    def hold(self, run: Run) -> Iterator[None]:
        """Hold a run, as long as this process lives.

        Raises:
          BlockingIOError: when another process has it.
        """
        folder = self.workdir / "locks"
        folder.mkdir(exist_ok=True)
        with hold_lock(folder / f"{run.number}.lock", wait=False):
            yield

    def is_running(self, number: int) -> bool:
        """Say whether the storage takes an Optuna trial for running."""
        return any(
            trial.number == number
            for trial in self.study.get_trials(
                deepcopy=False, states=(TrialState.RUNNING,)
            )
        )

    def verdicts(self) -> list[tuple[Run, Verdict]]:
        """Return every run in the order in which they begin, and what became of it."""
        found: dict[int, list[FrozenTrial]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if RUN in trial.user_attrs:
                found.setdefault(trial.user_attrs[RUN], []).append(trial)
        runs = list_runs(self.plan, total=max([self.trials, *(n + 1 for n in found)]))
        return [(run, judge(found.get(run.number, []))) for run in runs]

    def mend(self, *, forgive: bool = False) -> None:
        """Fail the trials of dead workers, and give every run that lacks one a trial.

        Call it under `lock`.

        Args:
          forgive: also try again what has failed.
        """
        optuna.storages.fail_stale_trials(self.study)
        for run, verdict in self.verdicts():
            trial = verdict.trial
            if verdict.state == "running" and self._is_abandoned(run, trial):
                self._fail(trial)
        lacking = [
            (run, verdict)
            for run, verdict in self.verdicts()
            if verdict.trial is None or (forgive and verdict.state == "failed")
        ]
        grid = self.plan.method == "grid"
        points = grid_points(self.plan) if grid and lacking else {}
        for run, verdict in lacking:
            attributes = {RUN: run.number}
            if verdict.state == "failed":
                attributes[FORGIVES] = True
            self.study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    user_attrs=attributes,
                    # The names that the samplers themselves go by.
                    system_attrs=points[run.cell, run.seed, run.fold]
                    if grid
                    else {"fixed_params": verdict.params},
                )
            )

    def _is_abandoned(self, run: Run, trial: FrozenTrial | None) -> bool:
        """Say whether no process runs a trial any more, as far as can be seen here."""
        assert trial is not None and trial.datetime_start is not None, "it is running"
        host = trial.user_attrs.get(HOST)
        if host is None:
            # Its worker died between two statements, before its first sign of life.
            silence = (self.storage.get_heartbeat_interval() or 0) * SILENT_INTERVALS
            age = datetime.datetime.now() - trial.datetime_start
            return age > datetime.timedelta(seconds=silence)
        if host != this_host():
            return False
        try:
            with self.hold(run):
                return True
        except BlockingIOError:
            return False

    def _fail(self, trial: FrozenTrial | None) -> None:
        assert trial is not None
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self.storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def list_runs(plan: Plan, *, total: int) -> list[Run]:
    """Return every run of a study, in the order in which they begin.

    Args:
      plan: the study.
      total: for tuning, how many.
    """
    if plan.method == "tune":
        (seed,), (fold,) = plan.seeds, plan.folds
        return [Run(i, f"trial-{i:04d}", "", seed, fold) for i in range(total)]
    # All settings with the first seed come first, so that a whole table stands early.
    points = itertools.product(plan.seeds, plan.folds, plan.cells)
    return [
        Run(i, key_of(cell, seed=seed, fold=fold), cell, seed, fold)
        for i, (seed, fold, cell) in enumerate(points)
    ]


def grid_space(plan: Plan) -> dict[str, list[Any]]:
    """Return the search space of a grid, for Optuna."""
    return {
        "cell": list(plan.cells),
        "seed": list(plan.seeds),
        "fold": list(plan.folds),
    }


def grid_points(plan: Plan) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return (cell, seed, fold) -> attributes by which GridSampler knows the point."""
    space = grid_space(plan)
    sampler = GridSampler(space)
    study = optuna.create_study(sampler=sampler)
    points = {}
    for number in range(len(plan.cells) * len(plan.seeds) * len(plan.folds)):
        # GridSampler's own copy of the space has its names in order.
        attributes = {"grid_id": number, "search_space": dict(sorted(space.items()))}
        trial = create_trial(state=TrialState.WAITING, system_attrs=attributes)
        point = tuple(
            sampler.sample_independent(
                study, trial, name, CategoricalDistribution(values)
            )
            for name, values in space.items()
        )
        points[point] = attributes
    return points


def this_host() -> str:
    """Return a name of this machine since it was started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()
