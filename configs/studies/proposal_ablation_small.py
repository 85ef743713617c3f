"""The proposal's ablation on made-up lesions, in minutes: see that it works.

STUDY=configs/studies/proposal_ablation_small.py
python -m mela_jax.study --study=$STUDY --workdir=runs/ablation_small
"""

from configs import tiny
from configs.studies import proposal_ablation
from mela_jax.study.spec import Study


def get_study() -> Study:
    """Return the study."""
    base = tiny.get_config()
    base.baseline = False
    return Study(
        base=base,
        cells=proposal_ablation.cells(),
        reference=proposal_ablation.REFERENCE,
        seeds=(0,),
    )
