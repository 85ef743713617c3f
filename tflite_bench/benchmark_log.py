"""Read what ``benchmark_model`` prints, in the wordings it has had since 2018.

Two tools carry that name. The classic one, of TensorFlow Lite, ends with one line in
microseconds; the newer one, of LiteRT, with a block in milliseconds. Both print a line
of statistics (``count=50 first=...``) for the warm-up and then one for the timed runs,
and both may put ``INFO: `` or ``INFO: [file:line] `` before every line.

A log that holds no result, several results, or figures that contradict each other is
refused: a wrong latency is worse than none.
"""

import math
import re
from dataclasses import dataclass

from tflite_bench.failures import BenchmarkError, Failure

NUMBER = r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"
PREFIX = re.compile(
    r"^\s*(?:(?:INFO|WARN|WARNING|ERROR|[VDIWEF] \w+\s*): ?)?\s*"
    r"(?:\[[^\]\s]+:\d+\] ?)?\s*"
)

# The classic tool, newest wording first. Microseconds.
CLASSIC_SUMMARIES = (
    re.compile(
        rf"Inference timings in us: Init: (?P<init>{NUMBER}), "
        rf"First inference: (?P<first>{NUMBER}), "
        rf"Warmup \(avg\): (?P<warmup>{NUMBER}), Inference \(avg\): (?P<avg>{NUMBER})"
    ),
    re.compile(
        rf"Average inference timings in us: Warmup: (?P<warmup>{NUMBER}), "
        rf"Init: (?P<init>{NUMBER}), (?:no stats|Inference): (?P<avg>{NUMBER})"
    ),
)
# Kilobytes divided by 1024 twice, whatever the tool calls them: mebibytes.
CLASSIC_MEMORY = re.compile(
    r"(?P<what>Peak memory footprint|Memory footprint delta from the start of the tool)"
    rf" \(MB\): init=(?P<init>{NUMBER}) overall=(?P<overall>{NUMBER})"
)
CLASSIC_PEAK = re.compile(
    rf"Overall peak memory footprint \(MB\) via periodic monitoring: {NUMBER}"
)

# The tool of LiteRT. Milliseconds; the standard deviation bears no unit but has it.
LITERT_RESULT = re.compile(rf"Inference \(avg\): +{NUMBER} ms \((\d+) runs\)")
LITERT_TIMES = {
    "init_ms": re.compile(rf"Model initialization: +{NUMBER} ms"),
    "first_inference_ms": re.compile(rf"Warmup \(first\): +{NUMBER} ms"),
    "warmup_avg_ms": re.compile(rf"Warmup \(avg\): +{NUMBER} ms"),
    "inference_min_ms": re.compile(rf"Inference \(min\): +{NUMBER} ms"),
    "inference_max_ms": re.compile(rf"Inference \(max\): +{NUMBER} ms"),
    "inference_std_ms": re.compile(rf"Inference \(std\): +{NUMBER}"),
}
LITERT_MEMORY = {
    "memory_init_mib": re.compile(rf"Init footprint: +{NUMBER} MB"),
    "memory_overall_mib": re.compile(rf"Overall footprint: +{NUMBER} MB"),
    "memory_peak_mib": re.compile(rf"Peak memory: +{NUMBER} MB"),
}
LITERT_RESOLUTION_MS = 0.01  # it prints two decimals

STATISTICS = re.compile(r"count=(\d+)(?: |$)(.*)")
FIELD = re.compile(rf"(first|curr|min|max|avg|std|p5|median|p95)={NUMBER}")
# The tool prints six significant digits.
RELATIVE_ROUNDING = 1e-5

IGNORED_FLAGS = re.compile(r"Unconsumed cmdline flags: (.+)")
APPLIED = re.compile(
    r"[Aa]pplied (\S+) delegate, and the model graph will be "
    r"(completely|partially) executed"
)
NOT_APPLIED = re.compile(
    r"Though (\S+) delegate is (?:explicitly )?applied, the model graph will not be"
)
REPLACED = re.compile(
    r"Replacing (\d+)(?: out of (\d+))? node\(s\) with delegate \(([^)]*)\)"
)


@dataclass(frozen=True)
class BenchmarkLog:
    """What one run of ``benchmark_model`` reported.

    Attributes:
        tool: "tflite" (the classic one) or "litert".
        num_runs: timed runs, None where an old tool does not say.
        metrics: name -> number; the name ends in its unit, ``_ms`` or ``_mib``.
            ``inference_avg_ms`` and ``init_ms`` are always there; what the tool did
            not print is absent.
        memory_measure: the tool's own name for its memory figures, if it gave any.
        ignored_flags: flags that the tool was given and did not know.
    """

    tool: str
    num_runs: int | None
    metrics: dict[str, float]
    memory_measure: str | None
    ignored_flags: tuple[str, ...]


def parse_log(text: str) -> BenchmarkLog:
    """Parse the output, stdout and stderr together, of either ``benchmark_model``.

    Raises:
        BenchmarkError: no result, several, or figures that cannot be true.
    """
    lines = [PREFIX.sub("", line).rstrip() for line in text.splitlines()]
    body = "\n".join(lines)
    classic = [found for form in CLASSIC_SUMMARIES for found in form.finditer(body)]
    litert = list(LITERT_RESULT.finditer(body))
    if len(classic) + len(litert) != 1:
        how_many = len(classic) + len(litert) or "no"
        raise _unreadable(f"it holds {how_many} results instead of one")
    statistics = _statistics(lines)
    if classic:
        tool, resolution = "tflite", 0.0
        metrics, memory_measure = _classic_metrics(classic[0], body)
        num_runs = None if statistics is None else int(statistics["count"])
    else:
        tool, resolution = "litert", LITERT_RESOLUTION_MS
        metrics, memory_measure = _litert_metrics(litert[0], body)
        num_runs = int(litert[0].group(2))
    if statistics is not None:
        _check_agreement(metrics, num_runs, statistics, resolution)
        # These are whole microseconds, finer than the summary of either tool.
        for name in ("min", "max", "std", "p5", "median", "p95"):
            if name in statistics:
                metrics[f"inference_{name}_ms"] = statistics[name] / 1e3
    _check_sense(metrics, num_runs)
    ignored = IGNORED_FLAGS.findall(body)
    return BenchmarkLog(
        tool=tool,
        num_runs=num_runs,
        metrics=metrics,
        memory_measure=memory_measure,
        ignored_flags=tuple(flag for line in ignored for flag in line.split()),
    )


def delegate_use(text: str, delegate: str) -> str | None:
    """Return how much of the graph went to `delegate`, as the log has it.

    Args:
        text: the output of ``benchmark_model``.
        delegate: "gpu" or "nnapi".

    Returns:
        "complete", "partial" or "none"; None where the log does not say.
    """
    stated = [
        (name, {"completely": "complete", "partially": "partial"}[how])
        for name, how in APPLIED.findall(text)
    ] + [(name, "none") for name in NOT_APPLIED.findall(text)]
    for name, use in stated:
        if delegate in name.lower():
            return use
    for nodes, total, name in REPLACED.findall(text):
        # LiteRT's delegates for the GPU are LITERT_CL, LITERT_OPENGL and so on.
        is_meant = delegate in name.lower() or (
            delegate == "gpu" and name.startswith("LITERT_")
        )
        if is_meant and total:
            return "complete" if nodes == total else "partial"
        if is_meant:
            return "partial"
    return None


def _unreadable(why: str) -> BenchmarkError:
    return BenchmarkError(
        Failure.UNREADABLE_LOG,
        f"the log of benchmark_model is not understood: {why}; no number is taken "
        "from it",
    )


def _statistics(lines: list[str]) -> dict[str, float] | None:
    """Return the last ``count=`` line, in microseconds: that of the timed runs."""
    found = [match for line in lines if (match := STATISTICS.match(line))]
    if not found:
        return None
    count, rest = found[-1].groups()
    fields = {name: float(value) for name, value in FIELD.findall(rest)}
    if "avg" not in fields and "curr" in fields:
        # One run, or "(all same)": the tool prints one figure for all.
        same = fields["curr"]
        fields |= {"min": same, "max": same, "avg": same, "std": 0.0}
    return {"count": float(count), **fields}


def _classic_metrics(
    summary: re.Match[str], body: str
) -> tuple[dict[str, float], str | None]:
    metrics = {
        "inference_avg_ms": float(summary["avg"]) / 1e3,
        "init_ms": float(summary["init"]) / 1e3,
        "warmup_avg_ms": float(summary["warmup"]) / 1e3,
    }
    if "first" in summary.groupdict():
        metrics["first_inference_ms"] = float(summary["first"]) / 1e3
    memory = CLASSIC_MEMORY.search(body)
    if memory:
        metrics["memory_init_mib"] = float(memory["init"])
        metrics["memory_overall_mib"] = float(memory["overall"])
    if peak := CLASSIC_PEAK.search(body):
        metrics["memory_peak_mib"] = float(peak.group(1))
    return metrics, memory["what"] if memory else None


def _litert_metrics(
    result: re.Match[str], body: str
) -> tuple[dict[str, float], str | None]:
    metrics = {"inference_avg_ms": float(result.group(1))}
    for name, form in (LITERT_TIMES | LITERT_MEMORY).items():
        if found := form.search(body):
            metrics[name] = float(found.group(1))
    if "init_ms" not in metrics:
        raise _unreadable("it gives no time of initialisation")
    has_memory = any(name in metrics for name in LITERT_MEMORY)
    return metrics, "footprint" if has_memory else None


def _check_agreement(
    metrics: dict[str, float],
    num_runs: int | None,
    statistics: dict[str, float],
    resolution: float,
) -> None:
    """Refuse a summary that is not about the runs that the statistics are about."""
    average = statistics.get("avg", math.nan) / 1e3
    allowed = resolution + RELATIVE_ROUNDING * abs(average)
    if not abs(metrics["inference_avg_ms"] - average) <= allowed:
        raise _unreadable(
            f"its summary says {metrics['inference_avg_ms']:g} ms on average, "
            f"its statistics {average:g} ms"
        )
    if num_runs != statistics["count"]:
        raise _unreadable(
            f"its summary counts {num_runs} runs, its statistics "
            f"{statistics['count']:.0f}"
        )


def _check_sense(metrics: dict[str, float], num_runs: int | None) -> None:
    """Refuse numbers that no run can have."""
    if num_runs == 0:
        raise _unreadable("no inference was run")
    for name, value in metrics.items():
        if not math.isfinite(value) or (name.endswith("_ms") and value < 0):
            raise _unreadable(f"{name} is {value}")
    average = metrics["inference_avg_ms"]
    if average == 0:
        raise _unreadable("an inference took no time")
    slack = LITERT_RESOLUTION_MS + RELATIVE_ROUNDING * average
    low = metrics.get("inference_min_ms", average)
    high = metrics.get("inference_max_ms", average)
    if not low - slack <= average <= high + slack:
        raise _unreadable(
            f"the average of {average:g} ms lies outside {low:g} to {high:g} ms"
        )
