"""Time models on this machine, in turn, so that all see the same state of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.cpu_options import CpuOptions
from ai_edge_litert.options import Options
from tqdm import tqdm

from tflite_bench.graph import make_interpreter

WARM_UP = 20
# Rounds into which the runs are cut: a model's turn comes that often.
ROUNDS = 10
_SEED = 0

Runner = Callable[[], None]


def random_inputs(details: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """Return seeded inputs for LiteRT's descriptions of them (shape, dtype).

    Floats are uniform in [0, 255] as a picture's, integers uniform over their range.
    """
    rng = np.random.default_rng(_SEED)
    inputs = []
    for detail in details:
        dtype, shape = np.dtype(detail["dtype"]), tuple(detail["shape"])
        if dtype.kind == "f":
            inputs.append(rng.uniform(0, 255, shape).astype(dtype))
        else:
            limits = np.iinfo(dtype)
            inputs.append(
                rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
            )
    return inputs


def interpreter_runner(
    content: bytes, *, num_threads: int, use_xnnpack: bool
) -> Runner:
    """Return a function that runs a file once on one seeded input."""
    interpreter = make_interpreter(
        content, num_threads=num_threads, use_xnnpack=use_xnnpack
    )
    details = interpreter.get_input_details()
    for detail, value in zip(details, random_inputs(details), strict=True):
        interpreter.set_tensor(detail["index"], value)
    return interpreter.invoke


def compiled_runner(content: bytes, *, num_threads: int) -> Runner:
    """Return a function that runs a file once through LiteRT's CompiledModel.

    Raises:
        Exception: whatever LiteRT raises where it cannot.
    """
    model = CompiledModel.from_buffer(
        content, options=Options(cpu_options=CpuOptions(num_threads=num_threads))
    )
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    signature = next(iter(model.get_signature_list()))
    described = model.get_input_tensor_details(signature).values()
    for buffer, value in zip(inputs, random_inputs(list(described)), strict=True):
        buffer.write(value)
    return lambda: model.run_by_index(0, inputs, outputs)


def time_in_turn(
    runners: Mapping[str, Runner], *, runs: int, warm_up: int = WARM_UP
) -> dict[str, np.ndarray]:
    """Time each runner, all of them in every round.

    A machine grows warm and is disturbed: models that are timed one after the other
    are not comparable, models that take turns are.

    Args:
        runners: name -> function to time.
        runs: samples of each.
        warm_up: untimed runs before.

    Returns:
        name -> float64[runs], milliseconds of each run.
    """
    for run in runners.values():
        for _ in range(warm_up):
            run()
    samples: dict[str, list[float]] = {name: [] for name in runners}
    shares = [len(part) for part in np.array_split(np.arange(runs), ROUNDS)]
    for share in tqdm(shares, desc="timing", unit="round", disable=None):
        for name, run in runners.items():
            run()  # the other models have taken the caches
            for _ in range(share):
                began = time.perf_counter()
                run()
                samples[name].append(1e3 * (time.perf_counter() - began))
    return {name: np.array(values) for name, values in samples.items()}


def summarize(samples: np.ndarray) -> dict[str, float]:
    """Return the figures of samples float64[n], in milliseconds.

    Returns:
        "min", "median", "p90", "p99", "mean" in milliseconds; "throughput" in runs a
        second; "runs".
    """
    return {
        "median": float(np.median(samples)),
        "p90": float(np.percentile(samples, 90)),
        "p99": float(np.percentile(samples, 99)),
        "min": float(samples.min()),
        "mean": float(samples.mean()),
        "throughput": float(1e3 / samples.mean()),
        "runs": int(samples.size),
    }
