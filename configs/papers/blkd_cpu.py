"""`blkd.py` on 2 cores: HAM10000 at 200x150, 64 px, EfficientNet-Lite0 as teacher.

python -m mela_jax.main --config=configs/papers/blkd_cpu.py --workdir=runs/blkd_cpu

One seed: 256 s for the student, beside other jobs; on the test set ROC-AUC of melanoma
0.834, balanced accuracy 59 %. What that shows is in docs/distillation.md.
"""

from configs.papers import blkd, cpu

get_config = cpu.shrunk(blkd.get_config)
