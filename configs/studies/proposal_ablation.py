r"""Loss, head, temperature and mixing weight, each against no distillation.

    python -m mela_jax.study --study=configs/studies/proposal_ablation.py \
        --workdir=runs/ablation --config.data.dir=/path/to/HAM10000

15 settings, 3 seeds, on the flagship's configuration: for GPUs. Not run to the end yet.
`proposal_ablation_cpu.py` is the same on 2 cores, `proposal_ablation_small.py` on
made-up lesions in minutes.
"""

from typing import Any

from configs import ham10000_kd
from mela_jax.study.spec import Study

# Cross-entropy with balanced weights and average pooling, from the labels alone.
REFERENCE: dict[str, Any] = {
    "distill.enabled": False,
    "distill.temperature": 2.0,
    "distill.alpha": 0.5,
    "student.loss": "cross_entropy",
    "student.class_weights": "balanced",
    "student.focal_gamma": 2.0,
    "student.pool": "avg",
}


def cells() -> list[dict[str, Any]]:
    """Return the settings: one change of loss or head, with and without a teacher.

    Loss and head are tried at temperature 2 and mixing weight 0.5; temperature and
    mixing weight with the reference's loss and head. Focal loss has no weights.
    """
    changes: list[dict[str, Any]] = [
        {},
        *(
            {
                "student.loss": "focal",
                "student.class_weights": "none",
                "student.focal_gamma": gamma,
            }
            for gamma in (1.0, 2.0, 4.0)
        ),
        {"student.pool": "max"},
    ]
    distilled = [
        {"distill.temperature": t, "distill.alpha": a}
        for t in (1.0, 2.0)
        for a in (0.1, 0.5, 0.9)
    ]
    return [
        *({**REFERENCE, **change} for change in changes),
        *({**REFERENCE, "distill.enabled": True, **change} for change in changes),
        *(
            {**REFERENCE, "distill.enabled": True, **change}
            for change in distilled
            if REFERENCE | change != REFERENCE
        ),
    ]


def get_study() -> Study:
    """Return the study."""
    base = ham10000_kd.get_config()
    base.baseline = False
    base.distill.alpha = 0.5
    return Study(base=base, cells=cells(), reference=REFERENCE)
