"""The real thing on a laptop: EfficientNet-Lite0 -> MobileNetV3-Small, 128 px, no GPU.

    python -m mela_jax.main --config=configs/ham10000_kd_cpu.py --workdir=runs/kd_cpu

Both start from ImageNet weights. On 2 busy cores with seed 0: teacher 12 min, distilled
student 14, student without a teacher 6; test ROC-AUC 0.872, 0.882, 0.869. What that
shows is in docs/results.md.
"""

from ml_collections import ConfigDict

from mela_jax import config as mela_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = mela_config.default()
    c.image_size = 128
    c.cpu_devices = 2
    c.baseline = True
    c.data.dir = "../shared/data/ham10000_200x150"
    # All of the 150 pixels that the centre square has.
    c.data.train_size = 150
    c.teacher.model = "efficientnet_lite0"
    c.teacher.init = "../shared/weights/efficientnet_lite0_imagenet.npz"
    c.teacher.dropout = 0.2
    c.teacher.epochs = 6
    c.teacher.batch_size = 32
    c.teacher.learning_rate = 5e-4
    c.teacher.ema_decay = 0.99
    c.student.init = "../shared/weights/mobilenet_v3_small_imagenet.weights.h5"
    c.student.epochs = 16
    c.student.batch_size = 32
    c.student.learning_rate = 2e-3
    c.student.weight_decay = 0.02
    c.student.ema_decay = 0.995
    c.distill.alpha = 0.7
    c.distill.temperature = 2.0
    return c
