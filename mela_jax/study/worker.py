"""One worker of a study: it takes run after run until none is left, in this process.

Every run is enqueued before any worker asks for one; Optuna gives each waiting trial to
one worker. The trial of a worker that has died is failed, and its run is enqueued
again, to go on in the same folder.
"""

import contextlib
import dataclasses
import datetime
import math
import platform
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import optuna
from absl import logging
from ml_collections import ConfigDict
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial, TrialState

from mela_jax.atomic import hold_lock, write_text
from mela_jax.errors import Stopped, UserError
from mela_jax.evaluation.study_runs import Run
from mela_jax.run_record import WorkdirInUse
from mela_jax.study.attempts import ERROR, GIVEN_UP, HOST, RETRY, RUN, list_runs
from mela_jax.study.database import FAULTS, SILENT_INTERVALS
from mela_jax.study.spec import Range, Setting, Study

History = list[dict[str, float]]
# (configuration, folder, to be called with the history after each epoch) -> the value
# that tuning maximises. Tests put something cheap in its place.
Job = Callable[[ConfigDict, Path, Callable[[History], None]], float]

# Epochs that no run is pruned before.
_WARMUP_EPOCHS = 2


@dataclasses.dataclass(frozen=True)
class Worker:
    """Takes runs of a study, written out, that Optuna has in its storage.

    `heartbeat` is the time between two heartbeats, in seconds.
    """

    study: Study
    workdir: Path
    optuna_study: optuna.Study
    job: Job
    heartbeat: int

    @property
    def pause(self) -> float:
        """Seconds between two looks at what other workers do."""
        return self.heartbeat / 6

    def runs(self) -> list[tuple[Run, FrozenTrial | None]]:
        """Return every run and the attempt that counts."""
        trials = self.optuna_study.get_trials(deepcopy=False)
        return list_runs(self.study, self.workdir, trials)

    def work(self, *, retry_failed: bool) -> None:
        """Run what is left, and wait for what others run, in case one of them dies.

        Raises:
          Stopped, KeyboardInterrupt: after SIGTERM or Ctrl-C.
        """
        took = waited_for = 0
        with _interrupts() as was_interrupted:
            while True:
                # Enqueuing is no single step in a storage.
                with hold_lock(self.workdir / ".queue.lock"):
                    states = self._enqueue(retry_failed=retry_failed)
                retry_failed = False
                if was_interrupted():
                    raise KeyboardInterrupt
                running = states.count("running")
                if "waiting" in states:
                    self._take_one()
                    took += 1
                elif running:
                    if running != waited_for:
                        logging.info("waiting for %d runs of other workers", running)
                        waited_for = running
                    time.sleep(self.pause)
                else:
                    if not took:
                        done = "all %d runs are done: nothing is left to do"
                        logging.info(done, len(states))
                    return

    def _enqueue(self, *, retry_failed: bool) -> list[str]:
        """Enqueue every run that is due, and return the state of each."""
        optuna.storages.fail_stale_trials(self.optuna_study)
        for run, attempt in self.runs():
            if run.state == "running" and attempt and self._is_dead(run, attempt):
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                    self.optuna_study.tell(
                        attempt.number, state=TrialState.FAIL, skip_if_finished=True
                    )
        for run, attempt in self.runs():
            retry = retry_failed and run.state == "failed"
            if retry or attempt is None:
                attributes = {RUN: run.number} | ({RETRY: True} if retry else {})
                self.optuna_study.enqueue_trial(run.setting, user_attrs=attributes)
        return [run.state for run, _ in self.runs()]

    def _is_dead(self, run: Run, attempt: FrozenTrial) -> bool:
        """Say whether no process runs an attempt any more, as far as is seen here."""
        host = attempt.user_attrs.get(HOST)
        if host is None:
            # Its worker died between two statements, before its first heartbeat.
            assert attempt.datetime_start is not None, "it was set running"
            age = datetime.datetime.now() - attempt.datetime_start
            return age.total_seconds() > SILENT_INTERVALS * self.heartbeat
        if host != this_host():
            return False
        try:
            with self._hold(run):
                return True
        except BlockingIOError:
            return False

    def _hold(self, run: Run) -> contextlib.AbstractContextManager[None]:
        """Hold a run as long as this process lives, or raise BlockingIOError."""
        return hold_lock(self.workdir / "locks" / f"{run.number}.lock", wait=False)

    def _take_one(self) -> None:
        """Take a waiting trial and run it."""
        # Held until Optuna has recorded how it ended: a trial that is running and that
        # nobody holds is one whose worker has died.
        with contextlib.ExitStack() as held:
            try:
                # Not ask and tell: the heartbeat beats within `optimize` only.
                self.optuna_study.optimize(
                    lambda trial: self._attempt(trial, held), n_trials=1
                )
            except (optuna.exceptions.UpdateFinishedTrialError, ValueError) as error:
                logging.warning(
                    "this worker gave no sign of life for so long that its run was"
                    " given to another (%s)",
                    error,
                )
            except (AssertionError, UnboundLocalError) as error:
                # Of a storage that can be read, but not written, Optuna says "should
                # not reach"; the storage's own fault is behind that.
                fault = error.__context__
                while fault and not isinstance(fault, FAULTS):
                    fault = fault.__context__
                raise fault or error  # noqa: B904 - it has its own cause

    def _attempt(self, trial: optuna.Trial, held: contextlib.ExitStack) -> float:
        """Do the run of a trial, holding it.

        Returns:
          The value of the run; NaN, which Optuna takes for a failure, where there is
          none. An attribute of the trial says why.
        """
        run = next((r for r, a in self.runs() if a and a.number == trial.number), None)
        if run is None:
            # Another worker took the last one that waited; or locks did not hold
            # between two machines, and both enqueued the run.
            return _give_up(trial, "another trial has the run")
        try:
            held.enter_context(self._hold(run))
            trial.set_user_attr(HOST, this_host())
            return self._run(trial, run)
        except (BlockingIOError, WorkdirInUse):
            logging.warning(
                "%s: another process is using it; it is tried again later",
                run.workdir.name,
            )
            value = _give_up(trial, "its folder is in use")
            time.sleep(self.pause)
            return value
        except (Stopped, KeyboardInterrupt):
            _give_up(trial, "stopped")
            raise

    def _run(self, trial: optuna.Trial, run: Run) -> float:
        key, seed = run.workdir.name, self.study.base.seed
        # A stream of its own: a study that was interrupted goes on as it would have,
        # and two workers that ask at once are not given the same setting.
        (stream,) = np.random.SeedSequence([seed, run.number]).generate_state(1)
        # constant_liar: keeps away from what other workers are trying.
        self.optuna_study.sampler = optuna.samplers.TPESampler(
            seed=int(stream), constant_liar=True
        )
        setting = choose(self.study, trial)
        if not run.setting.items() <= setting.items():
            return _give_up(trial, "enqueued by an earlier version")
        config = self.study.run_config(setting, seed=run.seed, fold=run.fold)
        began = time.monotonic()
        logging.info("%s: begins %s", key, "" if self.study.cells else setting)
        reported: list[float] = []

        def on_epoch(history: History) -> None:
            # A run that goes on has told this trial nothing of the epochs before.
            for row in history[len(reported) :]:
                reported.append(row[f"val/{self.study.metric}"])
                trial.report(reported[-1], step=len(reported))
            if trial.should_prune():
                logging.info("%s: pruned at epoch %d", key, len(reported))
                raise optuna.TrialPruned

        try:
            value = self.job(config, run.workdir, on_epoch)
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
                text = traceback.format_exc()
                write_text(run.workdir / "error.txt", text)
            trial.set_user_attr(ERROR, message)
            logging.error("%s: failed: %s", key, message)
            return math.nan
        logging.info("%s: done in %.0f s", key, time.monotonic() - began)
        return value


def make_pruner(study: Study) -> BasePruner:
    """Return Optuna's pruner of a study; its steps are epochs, from 1."""
    if study.pruner == "median":
        return MedianPruner(n_startup_trials=5, n_warmup_steps=_WARMUP_EPOCHS)
    if study.pruner == "hyperband":
        return HyperbandPruner(min_resource=_WARMUP_EPOCHS, max_resource="auto")
    return NopPruner()


def choose(study: Study, trial: optuna.Trial) -> Setting:
    """Return the setting of a trial: as it was enqueued, or else the sampler's."""
    setting: Setting = {}
    for axis, values in study.axes.items():
        if not isinstance(values, Range):
            setting[axis] = trial.suggest_categorical(axis, values)
        elif isinstance(study.reference[axis], int):
            low, high = int(values.low), int(values.high)
            setting[axis] = trial.suggest_int(axis, low, high, log=values.log)
        else:
            setting[axis] = trial.suggest_float(
                axis, values.low, values.high, log=values.log
            )
    return setting


def this_host() -> str:
    """Return a name of this machine since it was started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def _give_up(trial: optuna.Trial, why: str) -> float:
    """Leave a trial without a result, which is no failure of its run."""
    trial.set_user_attr(GIVEN_UP, why)
    return math.nan


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Let SIGTERM do what Ctrl-C does, and remember either.

    An interrupt that falls into a callback of the garbage collector is lost.
    """
    interrupted = False

    def interrupt(signum: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt(signum)

    handlers = {s: signal.signal(s, interrupt) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: interrupted
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
