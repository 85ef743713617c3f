"""Convert the same architecture as keras.applications has it, to compare with.

Usage::

    python -m export.keras_twin --network=mobilenet_v3_small --image_size=128
        --output=twin.tflite

The weights are random: this file is timed, never believed.
"""

import os
import sys
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from mela_jax.atomic import write_atomically
from mela_jax.command import Parser, guarded, positive, prepare_process
from mela_jax.errors import UserError


def convert_twin(network: str, *, image_size: int) -> bytes:
    """Return a float32 .tflite file of Keras' body, global average pooling, one logit.

    Like our files it takes one raw RGB image, [1, image_size, image_size, 3], and
    answers a logit and a probability.

    Args:
      network: a name of `mela_jax.models.zoo`.
      image_size: side of the square image in pixels.

    Raises:
      UserError: keras.applications has no such network.
    """
    import keras
    import tensorflow as tf

    bodies = {
        "mobilenet_v3_small": keras.applications.MobileNetV3Small,
        "mobilenet_v3_large": keras.applications.MobileNetV3Large,
    }
    if network not in bodies:
        raise UserError(
            f"--network={network}: has no twin here; there are {', '.join(bodies)}"
        )
    image = keras.Input(batch_shape=(1, image_size, image_size, 3), name="image")
    body = bodies[network](input_tensor=image, include_top=False, weights=None)
    features = keras.layers.GlobalAveragePooling2D()(body.output)
    logit = keras.layers.Dense(1, name="logit")(features)
    probability = keras.layers.Activation("sigmoid", name="probability")(logit)
    model = keras.Model(image, [logit, probability])
    return bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


@guarded
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = Parser(prog="python -m export.keras_twin")
    parser.add_argument("--network", required=True)
    parser.add_argument("--image_size", type=positive, required=True)
    parser.add_argument("--output", required=True, metavar="FILE.tflite")
    options = parser.parse_args(arguments)
    content = convert_twin(options.network, image_size=options.image_size)
    write_atomically(options.output, content)
    return 0


if __name__ == "__main__":
    prepare_process()
    sys.exit(main())
