"""What views that recur cost in accuracy, on 2 cores: 64 px, 8 epochs, 2 seeds.

python -m mela_jax.study --study=configs/studies/recurring_views.py --workdir=runs/views
"""

from configs.studies import proposal_ablation_cpu
from mela_jax.study.spec import Study


def get_study() -> Study:
    """Return the study."""
    return Study(
        base=proposal_ablation_cpu.get_study().base,
        axes={"student.num_views": (0, 1, 2, 4)},
        reference={"student.num_views": 0},
        seeds=(0, 1),
    )
