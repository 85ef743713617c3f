"""The flagship: ImageNet ResNet50 -> MobileNetV3-Small at 224 px, for a GPU or TPU.

    python -m mela_jax.main --config=configs/ham10000_kd.py --workdir=runs/kd \
        --config.data.dir=/path/to/HAM10000

Needs HAM10000 at 600x450 (or at 224x224) and, the first time, a network for the Keras
weights. Not run to the end yet: it wants a GPU; no time and no result is claimed.
"""

from ml_collections import ConfigDict

from mela_jax import config as mela_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = mela_config.default()
    c.compute_dtype = "bfloat16"
    c.augment_on_device = True
    c.baseline = True
    # Crops of 60 % of the area still have 224 real pixels.
    c.data.train_size = 288
    c.teacher.dropout = 0.2
    c.teacher.epochs = 20
    c.teacher.learning_rate = 2e-4
    c.teacher.ema_decay = 0.99
    c.student.epochs = 60
    c.student.learning_rate = 1e-3
    c.student.weight_decay = 0.02
    c.student.ema_decay = 0.995
    c.distill.alpha = 0.7
    c.distill.temperature = 2.0
    return c
