"""From a Flax network to a float .tflite file."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import tensorflow as tf
from jax.experimental import jax2tf

from mela_jax.errors import UserError
from mela_jax.models.convolution import plain_convolutions
from mela_jax.models.outputs import Outputs
from mela_jax.tflite import ACTIVATION_MAP, INPUT, LOGIT, PROBABILITY

# What the affine calibration of a logit is before anybody has fitted one.
UNCALIBRATED = (1.0, 0.0)


def has_activation_map(description: Mapping[str, Any]) -> bool:
    """Say whether a model's class activation map is exact.

    The mean over space of (feature map times weights) is the logit only where nothing
    but a linear layer follows an average.

    Args:
      description: its model.json.
    """
    return description["pool"] == "avg" and description["hidden"] == 0


def convert(
    network: nn.Module,
    variables: Mapping[str, Any],
    *,
    image_size: int,
    input_dtype: str,
    activation_map: bool,
    float16: bool = False,
    calibration: tuple[float, float] = UNCALIBRATED,
) -> bytes:
    """Convert a network with its variables.

    The file has one signature: "image" [1, S, S, 3], raw RGB in [0, 255], in;
    "logit" float32 [1], "probability" float32 [1], and on demand "activation_map"
    float32 [1, h, w] out. The map's mean plus the bias of the last layer is the logit
    (Zhou et al. 2016, arXiv:1512.04150).

    The batch is 1 and static: with a polymorphic one, batch norm is not folded into the
    convolutions.

    Args:
      network: flax module from images to `Outputs`, computing in float32.
      variables: its variables.
      image_size: S, in pixels.
      input_dtype: "float32" or "uint8".
      activation_map: add the class activation map; the head must be linear.
      float16: store the weights in half precision; the computation stays float32.
      calibration: (a, b) of probability = sigmoid(a * logit + b).

    Raises:
      UserError: the converter refuses the network.
    """

    def melanoma_classifier(image: jax.Array) -> dict[str, jax.Array]:
        outputs: Outputs = network.apply(
            variables, image.astype(jnp.float32), train=False
        )
        found = {
            LOGIT: outputs.logits,
            PROBABILITY: calibrated_probability(outputs.logits, calibration),
        }
        if activation_map:
            weights = variables["params"]["head"]["logits"]["kernel"][:, 0]
            found[ACTIVATION_MAP] = outputs.feature_map @ jnp.asarray(weights)
        return found

    shape = (1, image_size, image_size, 3)
    signature = tf.TensorSpec(shape, tf.dtypes.as_dtype(input_dtype), name=INPUT)
    converter = _converter(melanoma_classifier, signature)
    if float16:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    try:
        return bytes(converter.convert())
    except Exception as error:
        # The converter raises bare Exceptions, with the whole graph in the message.
        raise UserError(
            f"TFLiteConverter refuses the network: {_shortened(error)}; export "
            "another model, or file an issue with this line"
        ) from error


def calibrated_probability(
    logits: jax.Array, calibration: tuple[float, float]
) -> jax.Array:
    """Return P(melanoma): the one place in the graph where a logit becomes one.

    Args:
      logits: float32[B].
      calibration: (a, b); (1, 0) leaves the logit as it is and adds no operation.
    """
    if calibration != UNCALIBRATED:
        slope, intercept = calibration
        logits = slope * logits + intercept
    return jax.nn.sigmoid(logits)


def _converter(
    function: Callable[[jax.Array], dict[str, jax.Array]], signature: tf.TensorSpec
) -> tf.lite.TFLiteConverter:
    """Trace a function of one image and hand it to TensorFlow's converter."""
    module = tf.Module()
    # The file is for a CPU, also when the machine that writes it has another device.
    platforms = ("cpu",)
    with plain_convolutions():
        module.function = tf.function(
            jax2tf.convert(
                function, with_gradient=False, native_serialization_platforms=platforms
            ),
            input_signature=[signature],
            autograph=False,
        )
        concrete = module.function.get_concrete_function()
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)


def _shortened(error: Exception) -> str:
    """Return the telling part of a converter's message, which may be megabytes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line.lower()] or lines
    text = telling[0] if telling else type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
