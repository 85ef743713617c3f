"""`kd_lesions.py` on 2 cores: HAM10000 at 200x150, 64 px, EfficientNet-Lite0 teaches.

python -m mela_jax.main --config=configs/papers/kd_lesions_cpu.py --workdir=runs/lesions

Not run to the end yet.
"""

from configs.papers import cpu, kd_lesions

get_config = cpu.shrunk(kd_lesions.get_config, own_student=True)
