"""Tuning on made-up lesions, in minutes: see that it works.

STUDY=configs/studies/tune_student_small.py
python -m mela_jax.study --study=$STUDY --workdir=runs/tune_small
"""

import dataclasses

from configs import tiny
from configs.studies import tune_student
from mela_jax.study.spec import Study


def get_study() -> Study:
    """Return the study."""
    base = tiny.get_config()
    base.student.epochs = 4
    study = tune_student.study_of(base, trials=8)
    # 40 lesions make no larger batch.
    return dataclasses.replace(
        study, axes={**study.axes, "student.batch_size": (8, 16)}
    )
