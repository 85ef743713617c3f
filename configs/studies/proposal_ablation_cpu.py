"""The proposal's ablation on 2 cores: HAM10000 at 200x150, 64 px, 8 epochs, 3 seeds.

STUDY=configs/studies/proposal_ablation_cpu.py
python -m mela_jax.study --study=$STUDY --workdir=runs/ablation_cpu
"""

from configs import ham10000_kd_cpu
from configs.studies import proposal_ablation
from mela_jax.study.spec import Study


def get_study() -> Study:
    """Return the study."""
    base = ham10000_kd_cpu.get_config()
    base.baseline = False
    base.distill.alpha = 0.5
    base.image_size = 64
    base.data.train_size = 75
    # The table of docs/ablation.md is of students that start so.
    base.student.init = "random"
    base.student.epochs = 8
    base.student.batch_size = 64
    # The teacher's logits of these views are computed once for each seed.
    base.student.num_views = 4
    return Study(
        base=base,
        cells=proposal_ablation.cells(),
        reference=proposal_ablation.REFERENCE,
    )
