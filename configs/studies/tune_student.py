r"""Tuning of the student: TPE, with median pruning, by validation alone.

    python -m mela_jax.study --study=configs/studies/tune_student.py \
        --workdir=runs/tune --trials=40 --config.data.dir=/path/to/HAM10000

On the flagship's configuration: for GPUs. Not run to the end yet. What it finds was
tried on one seed: run the best settings as a grid over several before you believe them.
`tune_student_small.py` is the same on 2 cores.
"""

from ml_collections import ConfigDict

from configs import ham10000_kd
from mela_jax.study.spec import Range, Study


def get_study() -> Study:
    """Return the study."""
    return study_of(ham10000_kd.get_config(), trials=40)


def study_of(base: ConfigDict, *, trials: int) -> Study:
    """Return the tuning of a configuration's student."""
    base.baseline = False
    return Study(
        base=base,
        method="tune",
        axes={
            "student.learning_rate": Range(3e-4, 1e-2, log=True),
            "student.weight_decay": Range(1e-4, 1e-1, log=True),
            "student.batch_size": (32, 64, 128),
            "student.loss": ("cross_entropy", "focal"),
            "distill.alpha": Range(0.1, 0.9),
            "distill.temperature": Range(1.0, 4.0),
        },
        seeds=(0,),
        # Sensitivity first: the specificity that is left at 95 % of it.
        metric="specificity_at_target",
        pruner="median",
        trials=trials,
    )
