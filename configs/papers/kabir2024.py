r"""Two teachers and a tiny student, in the manner of Kabir et al. 2024.

Intelligence-Based Medicine 10, 100176, doi:10.1016/j.ibmed.2024.100176: ResNet50 and
DenseNet161 teach students of less than a million parameters. Their layers, temperature
and weights are not published; ours are in `mela_jax/models/families/plain.py` and here:

    0.5 cross-entropy + 0.5 T^2 KL(T = 2) of the mean of both teachers' probabilities

The second teacher is trained first, as a network without a teacher:

    python -m mela_jax.main --config=configs/papers/kabir2024.py \
        --workdir=runs/densenet161 --config.data.dir=/path/to/HAM10000 \
        --config.distill.enabled=False --config.distill.extra_teachers="()" \
        --config.student.model=densenet161 --config.student.init=densenet161.npz
    python -m mela_jax.main --config=configs/papers/kabir2024.py \
        --workdir=runs/kabir2024 --config.data.dir=/path/to/HAM10000

For a GPU; not run to the end yet.
"""

from ml_collections import ConfigDict

from mela_jax import config as mela_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = mela_config.default()
    c.data.train_size = 256
    c.teacher.model = "resnet50"
    c.student.model = "tiny_student"
    c.student.init = "random"
    c.student.epochs = 60
    c.distill.extra_teachers = ("runs/densenet161/student",)
    c.distill.alpha = 0.5
    c.distill.temperature = 2.0
    return c
