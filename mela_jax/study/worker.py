"""One worker of a study: it takes run after run until none is left, in this process."""

import contextlib
import dataclasses
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
from absl import logging
from ml_collections import ConfigDict

from mela_jax.atomic import write_atomically
from mela_jax.errors import Stopped, UserError
from mela_jax.run_record import WorkdirInUse
from mela_jax.study.queue import (
    ERROR,
    GIVEN_UP,
    HOST,
    Queue,
    Run,
    this_host,
)
from mela_jax.study.spec import Plan, Range, Setting
from mela_jax.study.storage import FAULTS

History = list[dict[str, float]]
# (configuration, folder, to be called with the history after each epoch) -> the value
# that tuning maximises. Tests put something cheap in its place.
Job = Callable[[ConfigDict, Path, Callable[[History], None]], float]


class _Failed(Exception):
    """The run has failed, and its trial says why."""


class _GivenUp(Exception):
    """The trial is not run by this worker, and its run has not failed."""


@dataclasses.dataclass(frozen=True)
class Worker:
    """Takes runs of a study.

    Attributes:
      queue: the runs.
      job: does one of them.
      pause: seconds between two looks at what other workers do.
    """

    queue: Queue
    job: Job
    pause: float

    def work(self, *, retry_failed: bool) -> None:
        """Run what is left, and wait for what others run, lest one of them dies.

        Args:
          retry_failed: begin with giving what has failed another chance.

        Raises:
          Stopped: after SIGTERM or Ctrl-C.
        """
        waited_for = -1
        with _interrupts() as was_told_to_stop:
            while True:
                with contextlib.ExitStack() as turn:
                    turn.enter_context(self.queue.lock())
                    self.queue.mend(forgive=retry_failed)
                    retry_failed = False
                    states = [verdict.state for _, verdict in self.queue.verdicts()]
                    if "waiting" in states:
                        self._take_one(turn)
                if was_told_to_stop():
                    raise KeyboardInterrupt
                if "waiting" in states:
                    continue
                running = states.count("running")
                if not running:
                    return
                if running != waited_for:
                    logging.info("waiting for %d runs of other workers", running)
                    waited_for = running
                time.sleep(self.pause)

    def _take_one(self, turn: contextlib.ExitStack) -> None:
        """Take a waiting trial and run it; `turn` is closed once it is ours."""
        taken = []

        def objective(trial: optuna.Trial) -> float:
            taken.append(trial.number)
            turn.close()
            return self._run(trial, held)

        # Held until Optuna has written down how it ended: a trial that is running, and
        # that nobody holds, is one whose worker has died.
        with contextlib.ExitStack() as held:
            try:
                self.queue.study.optimize(
                    objective, n_trials=1, catch=(_Failed, _GivenUp)
                )
            except (*FAULTS, Stopped, KeyboardInterrupt):
                raise
            # Optuna has several ways to say it.
            except Exception as error:
                if not taken or self.queue.is_running(taken[0]):
                    # Of a storage that can be read, but not written, it says "should
                    # not reach".
                    if fault := _fault_behind(error):
                        raise fault from fault.__cause__
                    raise
                logging.warning(
                    "this worker gave no sign of life for so long that its run was"
                    " given to another"
                )

    def _run(self, trial: optuna.Trial, held: contextlib.ExitStack) -> float:
        """Do the run of a trial, holding it, and return its value."""
        mine = [
            run
            for run, verdict in self.queue.verdicts()
            if verdict.trial is not None and verdict.trial.number == trial.number
        ]
        if not mine:
            # Locks did not hold between two machines, and both enqueued it.
            trial.set_user_attr(GIVEN_UP, "another trial has the run")
            raise _GivenUp
        (run,) = mine
        try:
            held.enter_context(self.queue.hold(run))
            trial.set_user_attr(HOST, this_host())
            return self._run_held(trial, run)
        except (BlockingIOError, WorkdirInUse):
            trial.set_user_attr(GIVEN_UP, "its folder is in use")
            logging.warning(
                "%s: another process is using it; it is tried again later", run.key
            )
            time.sleep(self.pause)
            raise _GivenUp from None
        except (Stopped, KeyboardInterrupt):
            trial.set_user_attr(GIVEN_UP, "stopped")
            raise

    def _run_held(self, trial: optuna.Trial, run: Run) -> float:
        plan, folder = self.queue.plan, self.queue.folder(run)
        setting = choose(plan, trial)
        config = plan.run_config(setting, seed=run.seed, fold=run.fold)
        began = time.monotonic()
        logging.info("%s: begins %s", run.key, "" if run.cell else setting)
        reported: list[float] = []

        def on_epoch(history: History) -> None:
            # A run that goes on has told its storage nothing of the epochs before.
            for row in history[len(reported) :]:
                reported.append(row[f"val/{plan.metric}"])
                trial.report(reported[-1], step=len(reported))
            if trial.should_prune():
                logging.info("%s: pruned at epoch %d", run.key, len(reported))
                raise optuna.TrialPruned

        try:
            value = self.job(config, folder, on_epoch)
        except (
            *FAULTS,
            optuna.TrialPruned,
            optuna.exceptions.UpdateFinishedTrialError,
            Stopped,
            WorkdirInUse,
        ):
            raise
        # One run's fault is not to end the others, whatever it is.
        except Exception as error:
            message = " ".join(str(error).split())
            if not isinstance(error, UserError):
                message = f"{type(error).__name__}: {message}"
                write_atomically(folder / "error.txt", traceback.format_exc().encode())
            trial.set_user_attr(ERROR, message)
            logging.error("%s: failed: %s", run.key, message)
            raise _Failed from error
        logging.info("%s: done in %.0f s", run.key, time.monotonic() - began)
        return value


def _fault_behind(error: BaseException) -> BaseException | None:
    """Return the storage's fault during whose handling an error arose, if any."""
    behind = error.__context__
    while behind is not None and not isinstance(behind, FAULTS):
        behind = behind.__context__
    return behind


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Let SIGTERM do what Ctrl-C does, and remember either.

    An interrupt that falls into a callback of the garbage collector is lost.
    """
    told = False

    def interrupt(signum: int, frame: object) -> None:
        nonlocal told
        told = True
        raise KeyboardInterrupt

    handlers = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: told
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def choose(plan: Plan, trial: optuna.Trial) -> Setting:
    """Return the setting of a trial, asking its sampler."""
    if plan.method == "grid":
        trial.suggest_categorical("seed", plan.seeds)
        trial.suggest_categorical("fold", plan.folds)
        return plan.cells[trial.suggest_categorical("cell", list(plan.cells))]
    return {axis: _suggest(plan, trial, axis) for axis in plan.axes}


def _suggest(plan: Plan, trial: optuna.Trial, axis: str) -> Any:
    values = plan.axes[axis]
    if not isinstance(values, Range):
        return trial.suggest_categorical(axis, values)
    if isinstance(plan.reference[axis], int):
        low, high = int(values.low), int(values.high)
        return trial.suggest_int(axis, low, high, log=values.log)
    return trial.suggest_float(axis, values.low, values.high, log=values.log)
