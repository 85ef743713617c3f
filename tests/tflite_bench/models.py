"""Small TFLite models that have nothing to do with this project."""

import functools

import tensorflow as tf


def _convert(function) -> bytes:
    signature = [tf.TensorSpec((1, 4), tf.float32, name="x")]
    traced = tf.function(function, input_signature=signature)
    concrete = [traced.get_concrete_function()]
    return tf.lite.TFLiteConverter.from_concrete_functions(concrete).convert()


@functools.cache
def foreign_model() -> bytes:
    """Return a model that doubles four numbers."""
    return _convert(lambda x: {"y": 2.0 * x})


@functools.cache
def broken_graph_model() -> bytes:
    """Return a model with an operation in its middle that XNNPACK has not."""
    return _convert(lambda x: {"y": 3.0 * tf.math.floormod(2.0 * x, 3.0)})
