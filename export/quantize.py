"""From a float .tflite file to one with 8-bit weights, or 8-bit arithmetic.

litert-quantizer does it, not TensorFlow's QuantizationDebugger: it works on the
converted file, so that all files of an export share one graph; layers are chosen by
patterns on their names; and ranges are what the calibration saw, not smoothed.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from ai_edge_litert.interpreter import Interpreter
from litert_quantizer import calibrator, qtyping, quantizer, recipe_manager
from litert_quantizer.algorithm_manager import AlgorithmName
from litert_quantizer.utils import qsv_utils

from mela_jax.models.eight_bits import DYNAMIC, float_parts
from mela_jax.tflite import INPUT, SIGNATURE

Operation = qtyping.TFLOperationName
# Tensor name -> {"min", "max"}.
Ranges = Mapping[str, Any]

# A tensor whose values are all smaller is 0 throughout.
_DEAD = 1e-6

# Kept float in every int8 file. XNNPACK has no int8 HARD_SWISH, and an int8 one would
# cut the graph into pieces that hand tensors back and forth; an 8-bit logit has too few
# values to place a threshold on, which is why the last layers and the ends stay float.
_FLOAT_OPERATIONS = (
    Operation.HARD_SWISH,
    # Squeeze-and-excite averages and scales what hard-swish leaves in float: in int8
    # these small operations are slower, and round once more.
    Operation.SUM,
    Operation.MUL,
    Operation.RESHAPE,
    Operation.LOGISTIC,
    Operation.FULLY_CONNECTED,
    Operation.INPUT,
    Operation.OUTPUT,
)
_FLOAT_LAYERS = (
    # The normalisation, whose rounding would be the picture's.
    r".*/body/(sub|div|mul|rev)\w*(;|$)",
    # Whatever else makes up the logit and the probability.
    r".*melanoma_classifier\)/\w+(;|$)",
    r".*StatefulPartitionedCall.*",
)
# What the second recipe keeps in float besides.
_MORE_FLOAT_LAYERS = (
    r".*block_01.*",
    r".*block_02.*",
    r".*top_.*",
)


def int8_recipes(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the recipes to be tried in this order until a file is within tolerance.

    Args:
      network: the `Classifier` that the float file was made of.

    Returns:
      Name -> patterns on the names of the outputs of the layers that stay float.
    """
    # Between the network and a part stands the method that calls it.
    parts = (rf".*/{re.escape(part)}.*" for part in float_parts(network))
    layers = (*_FLOAT_LAYERS, *parts)
    return {"int8": layers, "int8_more_float": (*layers, *_MORE_FLOAT_LAYERS)}


def choose_calibration_rows(
    rows: np.ndarray, labels: np.ndarray, *, melanoma: int, count: int, seed: int
) -> np.ndarray:
    """Choose training images to calibrate with, half of them melanomas if there are.

    The range of an activation is set by its extremes, and those of melanomas must be
    among them, rare as they are; likewise those of every other class, which have equal
    parts of the other half as far as their images reach.

    Args:
      rows: int[n], the rows of the training split.
      labels: int[N], of the classes, by row.
      melanoma: the label of melanoma.
      count: images wanted; all are taken where there are fewer.
      seed: of the choice.

    Returns:
      int[m], sorted rows.
    """
    rng = np.random.default_rng(seed)
    melanomas = rng.permutation(rows[labels[rows] == melanoma])
    others = rng.permutation(rows[labels[rows] != melanoma])
    # The first of every class, then the second of every class, ...
    turn = np.zeros(len(others), np.int64)
    for label in np.unique(labels[others]):
        of_class = labels[others] == label
        turn[of_class] = np.arange(of_class.sum())
    others = others[np.argsort(turn, kind="stable")]
    num_melanomas = max(min(len(melanomas), count // 2), count - len(others))
    chosen = [melanomas[:num_melanomas], others[: count - num_melanomas]]
    return np.sort(np.concatenate(chosen))


def calibrate(float_model: bytes, images: np.ndarray) -> Ranges:
    """Return the extremes of every tensor of a float32 file over uint8[m, S, S, 3] RGB.

    A tensor that was 0 on all of them, such as what a dead ReLU leaves, gets the range
    from 0 to 1: its own would make a scale of 1e-12, and given such a scale XNNPACK's
    kernels write past their buffers.
    """
    dtype = Interpreter(model_content=float_model).get_input_details()[0]["dtype"]
    data = [{INPUT: image[None].astype(dtype)} for image in images]
    with _quiet():
        found = calibrator.Calibrator(
            float_model,
            num_threads=1,
            # The default is a moving average, which forgets the extremes.
            qsv_update_func=qsv_utils.min_max_update,
        )
        found.calibrate({SIGNATURE: data}, _int8_rules(()))
    ranges = found.get_model_qsvs()
    for extremes in ranges.values():
        if np.abs([extremes["min"], extremes["max"]]).max() < _DEAD:
            extremes["max"] = np.ones_like(extremes["max"])
    return ranges


def quantize_int8(
    float_model: bytes, ranges: Ranges, float_layers: tuple[str, ...]
) -> bytes:
    """Return the model in 8-bit arithmetic, but for the layers that stay float.

    Weights are symmetric with a scale per output channel, activations asymmetric with
    one scale per tensor. The ranges are those of `calibrate` for the same file.
    """
    return _quantize(float_model, _int8_rules(float_layers), dict(ranges))


def quantize_weights(float_model: bytes) -> bytes:
    """Return the model with 8-bit weights that compute in float32."""
    rules = recipe_manager.RecipeManager()
    rules.add_weight_only_config(".*", Operation.ALL_SUPPORTED, num_bits=8)
    _keep_float(rules, ".*", Operation.FULLY_CONNECTED)
    return _quantize(float_model, rules, None)


def _int8_rules(float_layers: tuple[str, ...]) -> recipe_manager.RecipeManager:
    # Later rules go before earlier ones.
    rules = recipe_manager.RecipeManager()
    rules.add_static_config(
        ".*", Operation.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8
    )
    for operation in _FLOAT_OPERATIONS:
        _keep_float(rules, ".*", operation)
    rules.add_dynamic_config(rf".*{DYNAMIC}.*", Operation.CONV_2D, num_bits=8)
    for pattern in float_layers:
        _keep_float(rules, pattern, Operation.ALL_SUPPORTED)
    return rules


def _keep_float(
    rules: recipe_manager.RecipeManager, pattern: str, operation: Operation
) -> None:
    rules.add_quantization_config(
        pattern, operation, algorithm_key=AlgorithmName.NO_QUANTIZE
    )


def _quantize(
    float_model: bytes, rules: recipe_manager.RecipeManager, ranges: Any
) -> bytes:
    with _quiet():
        tool = quantizer.Quantizer(float_model, rules.get_quantization_recipe())
        result = tool.quantize(ranges)
    return bytes(result.quantized_model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Swallow the progress bars and sizes that the quantizer prints."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        yield
