"""The smallest whole job, for tests: 40 made-up lesions, 32 px, two epochs each.

python -m mela_jax.main --config=configs/tiny.py --workdir=runs/tiny
"""

from ml_collections import ConfigDict

from mela_jax import config as mela_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = mela_config.default()
    c.image_size = 32
    c.baseline = True
    c.num_bootstrap = 100
    c.eval_batch_size = 16
    c.log_every_steps = 1
    c.data.name = "phantom"
    c.data.dir = "runs/phantom_tiny"
    c.data.phantom_lesions = 40
    c.teacher.model = "mobilenet_v3_small"
    for stage in (c.teacher, c.student):
        stage.init = "random"
        stage.epochs = 2
        stage.batch_size = 16
        stage.ema_decay = 0.9
    return c
