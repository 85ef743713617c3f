"""The tables of docs/models.md: sizes of all networks, latency of the students.

    python -m benchmarks.network_table [--size=128] [--runs=300] [--models=tiny_student]

The networks have random weights, on which neither size nor latency depends. The int8
file is the first recipe of `export.to_tflite`, calibrated on noise: its accuracy is
another question, which takes a trained network.
"""

import contextlib
import io
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from mela_jax.models.cost import count_flops, count_params
from mela_jax.models.zoo import MODELS, create_model
from mela_jax.saved_models import initial_variables

STUDENTS = (
    "mobilenet_v3_small",
    "mobilenet_v3_small_075",
    "mobilenet_v3_small_relu6",
    "mobilenet_v3_small_relu6_no_se",
    "mobilenet_v3_small_minimalistic",
    "mobilenet_v3_large",
    "mobilenet_v3_large_gate",
    "mobilenet_v3_large_minimalistic",
    "mobilenet_v2",
    "efficientnet_lite0",
    "efficientnet_b0",
    "efficientnet_b0_hard",
    "dsnet",
    "three_block",
    "tiny_student",
)
# Of the methods that they are from.
POOLS = {"dsnet": "flatten", "three_block": "max"}
# At which sizes are given in papers.
TABLE_SIZE = 224
CALIBRATION_IMAGES = 8


def main() -> None:
    """Print both tables in Markdown."""
    parser = harness.make_parser(
        __doc__, size=(128, "pixels of the files"), runs=(300, "timed runs of a file")
    )
    parser.add_argument(
        "--models", type=harness.names_of(tuple(MODELS)), default=",".join(MODELS)
    )
    arguments = parser.parse_args()
    print(f"| network | parameters | GFLOP at {TABLE_SIZE} px |\n| --- | ---: | ---: |")
    for name in arguments.models:
        params, flops = size_of(name)
        print(f"| `{name}` | {params:,} | {flops / 1e9:.3f} |", flush=True)
    print(
        f"\n| network, {arguments.size} px | float32, float16, weight_int8, int8: MB |"
        " partitions | outside of int8 | float32 ms | int8 ms | of float32 |\n"
        f"|{' --- |' * 4}{' ---: |' * 3}"
    )
    for name in STUDENTS:
        if name in arguments.models:
            print(row(name, size=arguments.size, runs=arguments.runs), flush=True)


def size_of(name: str) -> tuple[int, int]:
    """Return the numbers that a body holds, and the operations for one image."""
    model = create_model(name)
    variables: Any = jax.eval_shape(lambda: initial_variables(model, TABLE_SIZE, 0))
    flops = count_flops(model, variables, image_size=TABLE_SIZE)
    return count_params(variables) - count_params(variables["params"]["head"]), flops


def row(name: str, *, size: int, runs: int) -> str:
    """Return a student's line of the second table."""
    from tflite_bench import timing
    from tflite_bench.graph import read_graph

    files = make_files(name, size)
    graphs = {mode: read_graph(content) for mode, content in files.items()}
    runners = {
        mode: timing.interpreter_runner(files[mode], num_threads=1, use_xnnpack=True)
        for mode in ("float32", "int8")
    }
    with contextlib.redirect_stderr(io.StringIO()):
        samples = timing.time_in_turn(runners, runs=runs)
    float32, int8 = (np.median(samples[mode]) for mode in ("float32", "int8"))
    outside = graphs["int8"].outside
    return (
        f"| `{name}` | {', '.join(f'{len(c) / 1e6:.2f}' for c in files.values())}"
        f" | {', '.join(str(g.partitions) for g in graphs.values())}"
        f" | {', '.join(f'{n} {op}' for op, n in outside.items()) or 'nothing'}"
        f" | {float32:.3f} | {int8:.3f} | {int8 / float32:.2f} |"
    )


def draw_variables(model: Any, size: int) -> Any:
    """Draw kernels that keep the size of what they are given; the rest is neutral."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: initial_variables(model, size, 0))

    def draw(path: Any, leaf: Any) -> np.ndarray:
        if path[-1].key != "kernel":
            return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)
        deviation = math.prod(leaf.shape[:-1]) ** -0.5
        return rng.normal(0, deviation, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_files(name: str, size: int) -> Mapping[str, bytes]:
    """Convert a network with random weights: mode -> file."""
    from export import conversion, quantize

    model = create_model(name, pool=POOLS.get(name, "avg"))  # type: ignore[arg-type]
    variables = draw_variables(model, size)
    float32, float16 = (
        conversion.convert(
            model,
            variables,
            image_size=size,
            input_dtype="float32",
            activation_map=name not in POOLS,
            float16=half,
        )
        for half in (False, True)
    )
    noise = np.random.default_rng(0).integers(
        0, 256, (CALIBRATION_IMAGES, size, size, 3), np.uint8
    )
    layers = quantize.int8_recipes(model)["int8"]
    ranges = quantize.calibrate(float32, noise)
    return {
        "float32": float32,
        "float16": float16,
        "weight_int8": quantize.quantize_weights(float32),
        "int8": quantize.quantize_int8(float32, ranges, layers),
    }


if __name__ == "__main__":
    harness.run(main)
