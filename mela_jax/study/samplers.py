"""How Optuna chooses the settings of a study, and which runs it ends early."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, GridSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from mela_jax.study.queue import RUN, grid_space
from mela_jax.study.spec import Plan

# Epochs that no run is ended before.
WARMUP_EPOCHS = 2


class SeededTPE(BaseSampler):
    """TPE, whose random stream for a run follows from the seed and the run's number.

    So a study that was interrupted goes on as it would have, and two workers that ask
    at once are not given the same setting.

    Args:
      seed: of the study.
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._tpe = TPESampler(seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin the random stream of the trial's run."""
        numbers = [self._seed, trial.user_attrs.get(RUN, trial.number)]
        (seed,) = np.random.SeedSequence(numbers).generate_state(1)
        # constant_liar: keeps away from what other workers are trying.
        self._tpe = TPESampler(seed=int(seed), constant_liar=True)
        self._tpe.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """As TPESampler."""
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """As TPESampler."""
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """As TPESampler."""
        return self._tpe.sample_independent(
            study, trial, param_name, param_distribution
        )

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """As TPESampler."""
        self._tpe.after_trial(study, trial, state, values)


def make_sampler(plan: Plan) -> BaseSampler:
    """Return Optuna's sampler of a study."""
    if plan.method == "grid":
        return GridSampler(grid_space(plan))
    return SeededTPE(plan.base.seed)


def make_pruner(plan: Plan) -> BasePruner:
    """Return Optuna's pruner of a study; its steps are epochs, from 1."""
    if plan.pruner == "median":
        return MedianPruner(n_startup_trials=5, n_warmup_steps=WARMUP_EPOCHS)
    if plan.pruner == "hyperband":
        return HyperbandPruner(min_resource=WARMUP_EPOCHS, max_resource="auto")
    return NopPruner()
