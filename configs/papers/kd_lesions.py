r"""KD-lesions: a plain CNN of three layers learns from ResNet50 at T = 10.

    0.1 cross-entropy + 0.9 KL(T = 10), without T^2

    python -m mela_jax.main --config=configs/papers/kd_lesions.py \
        --workdir=runs/kd_lesions --config.data.dir=/path/to/HAM10000

There: balanced melanoma and benign images of ISIC, split by image; a batch norm before
the teacher's last layer; the soft loss vanished, since its softmax ran over the whole
batch. Here: HAM10000, split by lesion; no such batch norm; one logit, which two with a
softmax are equal to. Adadelta's rate is not published; 1 is that of its paper. For a
GPU; not run to the end yet. `kd_lesions_cpu.py` is its size for 2 cores.
"""

from ml_collections import ConfigDict

from mela_jax import config as mela_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = mela_config.default()
    c.data.train_size = 256
    c.teacher.model = "resnet50"
    c.teacher.dropout = 0.5
    c.teacher.optimizer = "adam"
    c.teacher.schedule = "constant"
    c.teacher.learning_rate = 1e-4
    c.teacher.weight_decay = 0.0
    c.teacher.epochs = 10
    c.student.model = "dsnet"
    c.student.init = "random"
    c.student.pool = "flatten"
    c.student.dropout = 0.25
    c.student.optimizer = "adadelta"
    c.student.schedule = "constant"
    c.student.learning_rate = 1.0
    c.student.weight_decay = 0.0
    c.student.epochs = 20
    c.distill.alpha = 0.9
    c.distill.temperature = 10.0
    c.distill.t_squared = False
    return c
