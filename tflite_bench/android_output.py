"""Check that a model gives on the device what it gives on this machine.

Both get the same input, drawn from a fixed seed over the whole range of the input's
type. This machine's outputs are those of the LiteRT ``Interpreter``; the device's are
those that the classic ``benchmark_model`` leaves in ``--output_filepath``, which is
every output tensor's bytes, one after the other. The tool of LiteRT has no such flags.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from tflite_bench.failures import BenchmarkError, Failure

NEEDED_FLAGS = (
    "input_layer",
    "input_layer_shape",
    "input_layer_value_files",
    "output_filepath",
)
# Largest difference allowed, as a share of the output's largest magnitude or of 1,
# whichever is more. Float kernels differ by the order of their sums. Where activations
# are rounded to 8 bits, or a GPU computes in 16, one rounding that falls the other way
# is worth 1/127 or 1/1024 of a layer's range.
FLOAT_TOLERANCE = 1e-3
COARSE_TOLERANCE = 2e-2

SEED = 0
QUANTIZED = (np.int8, np.uint8, np.int16)


@dataclass(frozen=True)
class Tensor:
    """One input or output with its value; scale 0 where it is not quantized."""

    name: str
    value: npt.NDArray[np.generic]
    scale: float
    zero_point: int

    def real(self) -> npt.NDArray[np.float64]:
        """Return what its numbers stand for."""
        value = self.value.astype(np.float64)
        return (value - self.zero_point) * self.scale if self.scale else value


@dataclass(frozen=True)
class HostRun:
    """One inference on this machine.

    Attributes:
        inputs: what the model was given.
        outputs: what it gave, in the order of the model's outputs.
        is_quantized: whether any tensor but the inputs is of 8 or 16 bits.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    is_quantized: bool


def run_on_host(model: Path) -> HostRun:
    """Run `model` once on this machine, on one thread.

    Raises:
        BenchmarkError: LiteRT cannot read or run the file.
    """
    try:
        interpreter = Interpreter(model_path=str(model), num_threads=1)
        interpreter.allocate_tensors()
        generator = np.random.default_rng(SEED)
        inputs = tuple(
            _tensor(details, _draw(generator, details["shape"], details["dtype"]))
            for details in interpreter.get_input_details()
        )
        for details, given in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(details["index"], given.value)
        interpreter.invoke()
        outputs = tuple(
            _tensor(details, interpreter.get_tensor(details["index"]))
            for details in interpreter.get_output_details()
        )
        if not all(np.isfinite(output.real()).all() for output in outputs):
            raise ValueError("an output is not a finite number")
        given_names = {given.name for given in inputs}
        is_quantized = any(
            details["dtype"] in QUANTIZED and details["name"] not in given_names
            for details in interpreter.get_tensor_details()
        )
    except (ValueError, RuntimeError) as error:
        raise BenchmarkError(
            Failure.BAD_INPUT,
            f"{model}: LiteRT cannot read or run it: {str(error)[:200]}",
        ) from error
    return HostRun(inputs, outputs, is_quantized)


def why_not_comparable(run: HostRun, known_flags: frozenset[str]) -> str | None:
    """Return why the device's outputs cannot be had, None where they can."""
    missing = [f"--{name}" for name in NEEDED_FLAGS if name not in known_flags]
    if missing:
        return f"this benchmark_model has no {', '.join(missing)}"
    for tensor in run.inputs:
        if "," in tensor.name:
            return f"the input's name {tensor.name} has a comma, which separates inputs"
    return None


def input_flags(inputs: Sequence[Tensor], files: Sequence[str]) -> list[str]:
    """Return the flags that give each input the content of its file on the device.

    A colon ends a name in ``--input_layer_value_files`` and is doubled within one.
    """
    names = [tensor.name for tensor in inputs]
    shapes = [",".join(str(side) for side in tensor.value.shape) for tensor in inputs]
    values = [
        f"{name.replace(':', '::')}:{file}"
        for name, file in zip(names, files, strict=True)
    ]
    return [
        f"--input_layer={','.join(names)}",
        f"--input_layer_shape={':'.join(shapes)}",
        f"--input_layer_value_files={','.join(values)}",
    ]


def compare(
    expected: Sequence[Tensor], content: bytes, *, tolerance: float
) -> dict[str, Any]:
    """Compare the bytes that the device left with the outputs of this machine.

    Args:
        expected: the outputs here.
        content: the outputs there, one after the other.
        tolerance: largest difference, as a share of the largest magnitude of the
            output, or of 1 where that is less. One and a half quantization steps are
            always allowed.

    Returns:
        what was compared, for the JSON: per output the largest difference in real
        units and what was allowed, and whether all are equal within it.
    """
    size = sum(tensor.value.nbytes for tensor in expected)
    if len(content) != size:
        return {
            "compared": True,
            "equal": False,
            "reason": f"{len(content)} bytes of output there, {size} here",
        }
    outputs = []
    at = 0
    for tensor in expected:
        value = np.frombuffer(
            content, tensor.value.dtype, count=tensor.value.size, offset=at
        ).reshape(tensor.value.shape)
        at += tensor.value.nbytes
        here = tensor.real()
        there = Tensor(tensor.name, value, tensor.scale, tensor.zero_point).real()
        difference = float(np.max(np.abs(there - here), initial=0.0))
        allowed = tolerance * max(1.0, float(np.max(np.abs(here), initial=0.0)))
        allowed = max(allowed, 1.5 * tensor.scale)
        outputs.append(
            {
                "name": tensor.name,
                "shape": list(tensor.value.shape),
                "dtype": str(tensor.value.dtype),
                # JSON has no NaN. A difference that is no number is not allowed.
                "max_abs_difference": difference if np.isfinite(difference) else None,
                "allowed": allowed,
                "equal": bool(difference <= allowed),
            }
        )
    return {
        "compared": True,
        "equal": all(output["equal"] for output in outputs),
        "against": "the LiteRT Interpreter on this machine, one thread",
        "input": f"uniform noise over the input's whole range, seed {SEED}",
        "outputs": outputs,
    }


def describe(check: dict[str, Any]) -> str:
    """Return the result of `compare` in words: the first output that differs."""
    if "reason" in check:
        return str(check["reason"])
    wrong = next((out for out in check["outputs"] if not out["equal"]), None)
    if wrong is None:
        return "equal"
    found = wrong["max_abs_difference"]
    return (
        f"{wrong['name']} differs by {'no number' if found is None else f'{found:.3g}'}"
        f", {wrong['allowed']:.3g} is allowed"
    )


def _tensor(details: dict[str, Any], value: npt.NDArray[np.generic]) -> Tensor:
    scale, zero_point = details["quantization"]
    return Tensor(details["name"], value, float(scale), int(zero_point))


def _draw(
    generator: np.random.Generator, shape: npt.NDArray[np.int32], dtype: type
) -> npt.NDArray[np.generic]:
    """Draw an image: raw pixels, 0 to 255 for floats and the type's range for bytes."""
    if np.issubdtype(dtype, np.floating):
        return generator.integers(0, 256, shape).astype(dtype)
    if dtype in (np.uint8, np.int8):
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max + 1, shape).astype(dtype)
    raise ValueError(f"an input of {np.dtype(dtype)} is not an image")
