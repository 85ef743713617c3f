"""5-fold cross-validation on made-up lesions, in minutes: see that it works.

STUDY=configs/studies/cross_validation_small.py
python -m mela_jax.study --study=$STUDY --workdir=runs/folds_small
"""

from configs import tiny
from configs.studies import cross_validation
from mela_jax.study.spec import Study


def get_study() -> Study:
    """Return the study."""
    base = tiny.get_config()
    # Enough for a melanoma in every fold's validation and test set.
    base.data.phantom_lesions = 100
    base.data.dir = "runs/phantom_100"
    return cross_validation.study_of(base, seeds=(0,))
