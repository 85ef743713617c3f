"""From a Flax network to a float .tflite file."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from jax.experimental import jax2tf

from mela_jax.errors import UserError
from mela_jax.labels import LabelSpace
from mela_jax.models.convolution import plain_convolutions
from mela_jax.models.outputs import LAST_MAP, Outputs
from mela_jax.tflite import ACTIVATION_MAP, INPUT, LOGIT, PROBABILITIES, PROBABILITY

# What the affine calibration of a logit is before anybody has fitted one.
UNCALIBRATED = (1.0, 0.0)
BINARY = LabelSpace()


def has_activation_map(description: Mapping[str, Any]) -> bool:
    """Say whether the class activation map of a model with this model.json is exact.

    The mean over space of (feature map times weights) is a logit only where nothing but
    a linear layer follows an average.
    """
    return description["pool"] == "avg" and description["hidden"] == 0


def convert(
    network: nn.Module,
    variables: Mapping[str, Any],
    *,
    image_size: int,
    input_dtype: str,
    activation_map: bool,
    classes: LabelSpace = BINARY,
    float16: bool = False,
    calibration: tuple[float, float] = UNCALIBRATED,
) -> bytes:
    """Convert a network with its variables.

    The file has one signature: "image" [1, S, S, 3], raw RGB in [0, 255], in; what
    `read_out` returns and, on demand, "activation_map", see `explain`, out.

    The batch is 1 and static: with a polymorphic one, batch norm is not folded into the
    convolutions.

    Args:
      network: from images to `Outputs`, computing in float32.
      variables: its variables.
      image_size: S, in pixels.
      input_dtype: "float32" or "uint8".
      activation_map: wanted; the head must be linear.
      classes: what the network tells apart.
      float16: store the weights in half precision; the computation stays float32.
      calibration: (a, b) of probability = sigmoid(a * logit + b).

    Raises:
      UserError: the converter refuses the network.
    """

    def melanoma_classifier(image: jax.Array) -> dict[str, jax.Array]:
        outputs: Outputs = network.apply(
            variables, image.astype(jnp.float32), train=False
        )
        found = read_out(outputs.logits, classes, calibration)
        if activation_map:
            kernel = variables["params"]["head"]["logits"]["kernel"]
            found[ACTIVATION_MAP] = explain(outputs, jnp.asarray(kernel), classes)
        return found

    shape = (1, image_size, image_size, 3)
    module = tf.Module()
    with plain_convolutions():
        module.function = tf.function(
            jax2tf.convert(
                melanoma_classifier,
                with_gradient=False,
                # The file is for a CPU, also where the machine that writes it has
                # another device.
                native_serialization_platforms=("cpu",),
            ),
            input_signature=[
                tf.TensorSpec(shape, tf.dtypes.as_dtype(input_dtype), name=INPUT)
            ],
            autograph=False,
        )
        concrete = module.function.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    if float16:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    try:
        return bytes(converter.convert())
    except Exception as error:
        # The converter raises bare Exceptions, with the whole graph, which may be
        # megabytes, in the message.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        telling = [line for line in lines if "error:" in line.lower()] or lines
        text = telling[0] if telling else type(error).__name__
        if len(text) > 300:
            text = f"{text[:300]} ..."
        raise UserError(
            f"TFLiteConverter refuses the network: {text}; export another model, or "
            "file an issue with this line"
        ) from error


def read_out(
    logits: jax.Array, classes: LabelSpace, calibration: tuple[float, float]
) -> dict[str, jax.Array]:
    """Return what a file answers of melanoma and, if there are several, of all classes.

    Args:
      logits: float32[1, K].
      classes: the K classes.
      calibration: (a, b); (1, 0) leaves the log-odds as they are and adds no operation.

    Returns:
      "logit" float32[1], melanoma's log-odds m; "probability" float32[1],
      sigmoid(a * m + b); with K > 1 "probabilities" float32[1, K]: that of melanoma,
      and 1 minus it, shared out among the others as the softmax over them has it.
    """
    log_odds = classes.log_odds(logits)
    calibrated = log_odds
    if calibration != UNCALIBRATED:
        slope, intercept = calibration
        calibrated = slope * log_odds + intercept
    found = {LOGIT: log_odds, PROBABILITY: jax.nn.sigmoid(calibrated)}
    if not classes.is_binary:
        # Not 1 - probability, in which what is small would be lost.
        rest = jax.nn.sigmoid(-calibrated)
        found[PROBABILITIES] = rest[:, None] * _shares_of_others(
            logits, classes
        ) + found[PROBABILITY][:, None] * _is_melanoma(classes)
    return found


def explain(outputs: Outputs, kernel: jax.Array, classes: LabelSpace) -> jax.Array:
    """Return the class activation map float32[1, h, w] of melanoma's log-odds.

    With one class it is the last map times the weights, whose mean plus the bias is
    the logit (Zhou et al. 2016, arXiv:1512.04150). With more the log-odds are
    m = z_mel - logsumexp(z of the others), whose gradient by the logits is 1 for
    melanoma and -q_c for class c, q being the softmax over the others. The map is the
    sum of the classes' maps with these weights: the gradient of m by the last map,
    times that map (Selvaraju et al. 2017, arXiv:1610.02391, without their averaging and
    their ReLU). As logsumexp(z) = sum(q * z) + H(q), with the entropy H, its mean plus
    b_mel - sum(q * b) - H(q) is m: exact, by a number that is the same at every place.

    Args:
      outputs: of a network whose head is linear on average pooling.
      kernel: float32[F, K], weights of the last layer.
      classes: the K classes.
    """
    last = outputs.maps[LAST_MAP]
    if classes.is_binary:
        return last @ kernel[:, 0]
    weights = _is_melanoma(classes) - _shares_of_others(outputs.logits, classes)
    # Two axes, since TFLiteConverter refuses the product of four with two.
    maps = last.reshape(-1, last.shape[-1]) @ kernel
    return jnp.sum(maps * weights, axis=-1).reshape(last.shape[:-1])


def _is_melanoma(classes: LabelSpace) -> np.ndarray:
    """Return float32[K], 1 for melanoma and 0 for the others."""
    return np.eye(classes.num_logits, dtype=np.float32)[classes.melanoma]


def _shares_of_others(logits: jax.Array, classes: LabelSpace) -> jax.Array:
    """Return float32[1, K], the softmax over all classes but melanoma, which has 0."""
    hidden = np.where(_is_melanoma(classes), -np.inf, 0).astype(np.float32)
    return jax.nn.softmax(logits + hidden, axis=-1)
