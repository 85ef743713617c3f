r"""The default in 5-fold cross-validation: every lesion is once in the test set.

    python -m mela_jax.study --study=configs/studies/cross_validation.py \
        --workdir=runs/folds --config.data.dir=/path/to/HAM10000

The flagship with and without its teacher, 5 folds, 3 seeds: for GPUs. Not run to the
end yet. `cross_validation_small.py` is the same on 2 cores.
"""

from ml_collections import ConfigDict

from configs import ham10000_kd
from mela_jax.study.spec import Study


def get_study() -> Study:
    """Return the study."""
    return study_of(ham10000_kd.get_config(), seeds=(0, 1, 2))


def study_of(base: ConfigDict, *, seeds: tuple[int, ...]) -> Study:
    """Return the cross-validation of a configuration."""
    base.baseline = False
    return Study(
        base=base,
        axes={"distill.enabled": (False, True)},
        reference={"distill.enabled": False},
        seeds=seeds,
        folds=5,
    )
