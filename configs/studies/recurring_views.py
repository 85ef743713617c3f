"""What views that recur cost in accuracy, on 2 cores: 64 px, 6 epochs, 2 seeds.

python -m mela_jax.study --study=configs/studies/recurring_views.py --workdir=runs/views
"""

from configs.studies import proposal_ablation_cpu
from mela_jax.study.spec import Study


def get_study() -> Study:
    """Return the study."""
    base = proposal_ablation_cpu.get_study().base
    base.student.epochs = 6
    return Study(
        base=base,
        axes={"student.num_views": (0, 1, 2)},
        reference={"student.num_views": 0},
        seeds=(0, 1),
    )
