r"""Plain distillation on seven classes, the baseline "BLKD" of SSD-KD.

Wang et al., "SSD-KD: A self-supervised diverse knowledge distillation method for
lightweight skin lesion classification", Medical Image Analysis 84 (2023), 102693,
doi:10.1016/j.media.2022.102693:

    0.5 cross-entropy (class-weighted) + 0.5 T^2 KL(T = 5)

    python -m mela_jax.main --config=configs/papers/blkd.py --workdir=runs/blkd \
        --config.data.dir=/path/to/HAM10000

In the paper: ISIC 2019, split by image; SGD, its rate cut on a plateau. Here:
HAM10000, split by lesion; AdamW with a cosine. For a GPU; not run to the end yet.
`blkd_cpu.py` is its size for 2 cores, with MobileNetV3-Small as student.
"""

from ml_collections import ConfigDict

from mela_jax import config as mela_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = mela_config.default()
    c.labels = "ham7"
    c.augment.crop_min_area = 0.6
    c.data.train_size = 256
    c.teacher.model = "resnet50"
    c.student.model = "mobilenet_v2"
    for stage in (c.teacher, c.student):
        stage.class_weights = "balanced_batch"
        stage.batch_size = 128
        stage.weight_decay = 1e-3
    c.distill.alpha = 0.5
    c.distill.temperature = 5.0
    return c
