"""The same networks and steps in Keras on TensorFlow."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from jax.nn import relu6

from mela_jax.models.families import efficientnet


def make_runs(
    name: str,
    batch: dict[str, np.ndarray],
    *,
    cores: int,
    steps: int = 1,
    teacher: str | None = None,
    jit: bool = False,
) -> dict[str, Callable[[], object]]:
    """Return "train", which takes some steps, and "infer", on one batch that stays.

    TensorFlow uses a thread a core; with `jit`, XLA compiles (`jit_compile=True`).
    """
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    size = batch["image"].shape[1]
    images = tf.constant(batch["image"])
    labels = tf.constant(batch["label"], tf.float32)
    model = create_keras_model(name, size)
    teacher_model = None
    if teacher:
        teacher_model = create_keras_model(teacher, size)
        # Or the tape would keep what its gradient needs.
        teacher_model.trainable = False
    step = _make_train_step(model, teacher_model, jit=jit)
    infer = tf.function(lambda x: model(x, training=False), jit_compile=jit)

    def train() -> None:
        for _ in range(steps):
            loss = step(images, labels)
        loss.numpy()

    return {
        "train": train,
        "infer": lambda: infer(images).numpy(),
    }


def create_keras_model(name: str, size: int) -> keras.Model:
    """Build one of `networks.NETWORKS` for images of `size` pixels, with one logit."""
    if name == "efficientnet_lite0":
        body = _efficientnet_lite0(size)
    else:
        applications = {
            "mobilenet_v3_small": keras.applications.MobileNetV3Small,
            "mobilenet_v3_large": keras.applications.MobileNetV3Large,
            "mobilenet_v2": keras.applications.MobileNetV2,
            "efficientnet_b0": keras.applications.EfficientNetB0,
            "resnet50": keras.applications.ResNet50,
        }
        body = applications[name](
            input_shape=(size, size, 3), include_top=False, weights=None, pooling="avg"
        )
    return keras.Model(body.input, keras.layers.Dense(1)(body.output))


def _make_train_step(
    model: keras.Model, teacher: keras.Model | None, *, jit: bool
) -> Callable[[Any, Any], Any]:
    """Return step(images, labels) -> loss, as `jax_networks.Training` has it."""
    optimizer = keras.optimizers.AdamW(
        1e-3, weight_decay=1e-4, global_clipnorm=1.0, use_ema=True, ema_momentum=0.99
    )
    optimizer.build(model.trainable_variables)

    @tf.function(jit_compile=jit)
    def step(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)[:, 0]
            loss = _cross_entropy(labels, logits)
            if teacher is not None:
                soft = tf.sigmoid(teacher(images, training=False)[:, 0] / 2.0)
                loss = 0.5 * loss + 0.5 * 4.0 * _cross_entropy(soft, logits / 2.0)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(
            zip(gradients, model.trainable_variables, strict=True)
        )
        return loss

    return step


def _cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(
        tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
    )


def _efficientnet_lite0(size: int) -> keras.Model:
    layers = keras.layers

    def norm(x: Any) -> Any:
        return layers.BatchNormalization(epsilon=1e-3)(x)

    def conv(x: Any, filters: int, k: int = 1, strides: int = 1) -> Any:
        x = layers.Conv2D(filters, k, strides, padding="same", use_bias=False)(x)
        return norm(x)

    image = layers.Input((size, size, 3))
    x = layers.Rescaling(1 / 128.0, -127.0 / 128.0)(image)
    x = layers.ReLU(6.0)(conv(x, efficientnet.STEM_FILTERS, 3, 2))
    stages = efficientnet.scale_blocks(width=1, depth=1, lite=True, activation=relu6)
    for block in sum(stages, ()):
        inputs = x
        if block.expansion > 1:
            x = layers.ReLU(6.0)(conv(x, x.shape[-1] * block.expansion))
        x = layers.DepthwiseConv2D(
            block.kernel_size, block.strides, padding="same", use_bias=False
        )(x)
        x = conv(layers.ReLU(6.0)(norm(x)), block.filters)
        if block.strides == 1 and inputs.shape[-1] == block.filters:
            x = layers.Add()([x, inputs])
    x = layers.ReLU(6.0)(conv(x, efficientnet.TOP_FILTERS))
    return keras.Model(image, layers.GlobalAveragePooling2D()(x))
