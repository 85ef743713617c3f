"""`fitnet.py` on 2 cores: HAM10000 at 200x150, 64 px, EfficientNet-Lite0 as teacher.

python -m mela_jax.main --config=configs/papers/fitnet_cpu.py --workdir=runs/fitnet_cpu

One seed: 287 s for the student, beside other jobs; on the test set ROC-AUC of melanoma
0.839, balanced accuracy 60 %. What that shows is in docs/distillation.md.
"""

from configs.papers import cpu, fitnet

get_config = cpu.shrunk(fitnet.get_config)
