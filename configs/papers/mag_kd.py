r"""A teacher's gate shows the student where to look, in the manner of MAG-KD.

The phone app DermoHelper describes its training in formulas, without layers or code:

    0.4 focal + 0.3 T^2 KL(T = 5) + 0.3 (squared difference of the gates)

    python -m mela_jax.main --config=configs/papers/mag_kd.py --workdir=runs/mag_kd \
        --config.data.dir=/path/to/HAM10000

Ours, where it is silent: the gate (`mela_jax.models.attention.Gate`), gamma 2, AdamW
with a cosine, 30 epochs. There, "malignant" is melanoma, basal cell carcinoma and
actinic keratosis; here it is melanoma, so no figure of the one may stand beside the
other. For a GPU; not run to the end yet.
"""

from ml_collections import ConfigDict

from mela_jax import config as mela_config


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = mela_config.default()
    c.data.train_size = 256
    c.teacher.model = "efficientnet_b4_gate"
    c.student.model = "mobilenet_v3_large_gate"
    for stage in (c.teacher, c.student):
        stage.loss = "focal"
        stage.focal_gamma = 2.0
        # Class weights of 1 : 4.
        stage.focal_alpha = 0.8
        stage.epochs = 30
    c.teacher.learning_rate = 1e-4
    c.student.learning_rate = 5e-4
    c.distill.temperature = 5.0
    # 0.7 (4/7 focal + 3/7 soft).
    c.distill.weights.logits = 0.7
    c.distill.alpha = 3 / 7
    c.distill.weights.attention = 0.3
    return c
