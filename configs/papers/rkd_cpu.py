"""`rkd.py` on 2 cores: HAM10000 at 200x150, 64 px, EfficientNet-Lite0 as teacher.

python -m mela_jax.main --config=configs/papers/rkd_cpu.py --workdir=runs/rkd_cpu

One seed: 238 s for the student, beside other jobs; on the test set ROC-AUC of melanoma
0.821, balanced accuracy 52 %. What that shows is in docs/distillation.md.
"""

from configs.papers import cpu, rkd

get_config = cpu.shrunk(rkd.get_config)
