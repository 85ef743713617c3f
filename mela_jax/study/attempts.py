"""The runs of a study in Optuna's storage: each attempt at a run is an Optuna trial.

What has become of a run follows from its attempts alone, see `outcome`; nothing is kept
about it anywhere else.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial

from mela_jax.evaluation.study_runs import Run
from mela_jax.study.spec import Study, run_key

# A run that has ended its worker so often is not tried again.
MAX_DEATHS = 3
# User attributes of a trial: the number of its run; that it begins a retry of a failed
# run; the machine that runs it; why the run failed; why the worker gave the trial up,
# which is no failure of the run.
RUN, RETRY, HOST, ERROR, GIVEN_UP = "run", "retry", "host", "error", "given_up"


def outcome(attempts: Sequence[FrozenTrial]) -> tuple[str, str, FrozenTrial | None]:
    """Return what has become of a run, from its attempts in their order.

    Returns:
      One of `study_runs.STATES`; why it failed, or ""; the attempt that counts, None
      where the run needs a new one.
    """
    retries = [i for i, attempt in enumerate(attempts) if RETRY in attempt.user_attrs]
    attempts = attempts[retries[-1] :] if retries else attempts
    for state in ("COMPLETE", "PRUNED", "RUNNING", "WAITING"):
        for attempt in attempts:
            if attempt.state.name == state:
                return state.lower(), "", attempt
    for attempt in attempts:
        if ERROR in attempt.user_attrs:
            return "failed", attempt.user_attrs[ERROR], attempt
    deaths = [a for a in attempts if GIVEN_UP not in a.user_attrs]
    if len(deaths) >= MAX_DEATHS:
        error = f"its worker died {len(deaths)} times (killed, or out of memory?)"
        return "failed", error, deaths[-1]
    return "waiting", "", None


def list_runs(
    study: Study, workdir: Path, trials: Iterable[FrozenTrial]
) -> list[tuple[Run, FrozenTrial | None]]:
    """Return every run, in the order in which they begin, and the attempt that counts.

    `trials` are all that its storage holds, in the order of their numbers.
    """
    attempts: defaultdict[int, list[FrozenTrial]] = defaultdict(list)
    for trial in trials:
        if RUN in trial.user_attrs:
            attempts[trial.user_attrs[RUN]].append(trial)
    # All settings with the first seed come first, so that a whole table stands early.
    planned = [
        (dict(cell), seed, fold, run_key(study.label(cell), seed=seed, fold=fold))
        for seed, fold, cell in itertools.product(
            study.seeds, study.fold_numbers, study.cells
        )
    ]
    if study.method == "tune":
        (seed,), (fold,) = study.seeds, study.fold_numbers
        # There may be more already than are asked for now.
        count = max([study.trials, *(number + 1 for number in attempts)])
        planned = [({}, seed, fold, f"trial-{i:04d}") for i in range(count)]
    runs = []
    for number, (setting, seed, fold, key) in enumerate(planned):
        state, error, attempt = outcome(attempts[number])
        if not setting:
            # As far as it was chosen before the worker died, so that it stays the same.
            setting = max((a.params for a in attempts[number]), key=len, default={})
        folder = workdir / "trials" / key
        runs.append((Run(number, setting, seed, fold, state, error, folder), attempt))
    return runs
