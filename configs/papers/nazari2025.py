r"""EfficientNet-B3 with spatial group-wise attention, as a teacher.

Nazari & Garcia, Computers in Biology and Medicine 185 (2025), 109492,
doi:10.1016/j.compbiomed.2025.109492:

    focal (gamma 2) + LDAM (largest margin 0.8, scale 10), equal parts

    python -m mela_jax.main --config=configs/papers/nazari2025.py \
        --workdir=runs/nazari2025 --config.data.dir=/path/to/HAM10000

There: ISIC 2019 and 2020 at 384 px, eight classes, twenty stored views; one factor of
the focal loss for a whole batch, which is a mistake. Here: HAM10000, seven classes, at
300 px. The other three kinds of attention, and none, are `--config.teacher.model=` and
efficientnet_b3_s2, efficientnet_b3_s2_cbam, efficientnet_b3_spatial, efficientnet_b3.
For a GPU; not run to the end yet.
"""

from ml_collections import ConfigDict

from mela_jax import config as mela_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = mela_config.default()
    c.labels = "ham7"
    c.image_size = 300
    c.data.train_size = 384
    c.teacher.model = "efficientnet_b3_sge"
    c.teacher.loss = "focal_ldam"
    c.teacher.class_weights = "balanced"
    c.teacher.ldam_margin = 0.8
    c.teacher.ldam_scale = 10.0
    c.teacher.epochs = 35
    c.teacher.learning_rate = 3e-4
    c.teacher.weight_decay = 1e-5
    return c
