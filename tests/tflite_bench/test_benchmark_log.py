import re

import pytest

from tests.tflite_bench.fake_device import read_log
from tflite_bench.benchmark_log import delegate_use, parse_log
from tflite_bench.failures import BenchmarkError, Failure

# Read off the files by eye.
EXPECTED = {
    "classic_2018": {
        "tool": "tflite",
        "num_runs": 50,
        "inference_avg_ms": 37.722,
        "inference_min_ms": 37.079,
        "inference_max_ms": 43.416,
        "inference_std_ms": 0.896,
        "init_ms": 4.452,
        "warmup_avg_ms": 46.161,
    },
    "classic_2019": {
        "tool": "tflite",
        "num_runs": 50,
        "inference_avg_ms": 79.7609,
        "inference_min_ms": 77.385,
        "inference_max_ms": 88.213,
        "inference_std_ms": 1.929,
        "init_ms": 38.467,
        "warmup_avg_ms": 86.1843,
    },
    "classic_2021": {
        "tool": "tflite",
        "num_runs": 50,
        "inference_avg_ms": 2950.34,
        "inference_min_ms": 2727.568,
        "inference_max_ms": 3189.954,
        "inference_std_ms": 109.798,
        "init_ms": 17.187,
        "first_inference_ms": 3512.391,
        "warmup_avg_ms": 3512.39,
        "memory_init_mib": 4.21094,
        "memory_overall_mib": 46.0859,
        "memory_measure": "Peak memory footprint",
    },
    "classic": {
        "tool": "tflite",
        "num_runs": 200,
        "inference_avg_ms": 7.81225,
        "inference_min_ms": 7.688,
        "inference_max_ms": 8.893,
        "inference_std_ms": 0.12,
        "inference_p5_ms": 7.701,
        "inference_median_ms": 7.79,
        "inference_p95_ms": 8.011,
        "init_ms": 12.345,
        "first_inference_ms": 9.321,
        "warmup_avg_ms": 7.9312,
        "memory_init_mib": 3.86328,
        "memory_overall_mib": 9.83203,
        "memory_peak_mib": 14.7188,
        "memory_measure": "Memory footprint delta from the start of the tool",
    },
    "classic_all_same": {
        "tool": "tflite",
        "num_runs": 50,
        "inference_avg_ms": 0.004,
        "inference_min_ms": 0.004,
        "inference_max_ms": 0.004,
        "inference_std_ms": 0.0,
        "inference_p5_ms": 0.004,
        "inference_median_ms": 0.004,
        "inference_p95_ms": 0.004,
        "init_ms": 0.31,
        "first_inference_ms": 0.004,
        "warmup_avg_ms": 0.004,
    },
    "litert": {
        "tool": "litert",
        "num_runs": 200,
        "inference_avg_ms": 7.71,
        "inference_min_ms": 7.64,
        "inference_max_ms": 8.102,
        "inference_std_ms": 0.064,
        "inference_p5_ms": 7.655,
        "inference_median_ms": 7.699,
        "inference_p95_ms": 7.841,
        "init_ms": 23.74,
        "first_inference_ms": 8.44,
        "warmup_avg_ms": 7.74,
        "memory_init_mib": 6.39,
        "memory_overall_mib": 11.02,
        "memory_measure": "footprint",
    },
    "litert_block": {
        "tool": "litert",
        "num_runs": 125,
        "inference_avg_ms": 7.98,
        "inference_min_ms": 7.70,
        "inference_max_ms": 9.05,
        "inference_std_ms": 0.21,
        "init_ms": 71.45,
        "first_inference_ms": 9.12,
        "warmup_avg_ms": 8.20,
        "memory_init_mib": 6.39,
        "memory_overall_mib": 11.02,
        "memory_peak_mib": 40.50,
        "memory_measure": "footprint",
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_wording_is_read(name):
    expected = dict(EXPECTED[name])
    log = parse_log(read_log(name))
    assert log.tool == expected.pop("tool")
    assert log.num_runs == expected.pop("num_runs")
    assert log.memory_measure == expected.pop("memory_measure", None)
    assert log.metrics == pytest.approx(expected, rel=1e-9)
    assert log.ignored_flags == ()


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("prefix", ["INFO: ", "   INFO: ", "I tflite  : "])
def test_a_prefix_changes_nothing(name, prefix):
    text = read_log(name)
    bare = re.sub(r"^(INFO|VERBOSE): ", "", text, flags=re.MULTILINE)
    prefixed = "".join(prefix + line for line in bare.splitlines(keepends=True))
    assert parse_log(bare) == parse_log(text) == parse_log(prefixed)


def test_lines_that_end_as_on_a_terminal_are_read():
    text = read_log("classic")
    assert parse_log(text.replace("\n", "\r\n")) == parse_log(text)


@pytest.mark.parametrize(
    "name, old, new, why",
    [
        ("classic", "Inference timings in us", "Timings", "no results"),
        ("classic", "Inference (avg): 7812.25", "Inference (avg): fast", "no results"),
        (
            "classic",
            "Inference (avg): 7812.25",
            "Inference (avg): 7931.2",
            "statistics",
        ),
        ("classic", "Inference (avg): 7812.25", "Inference (avg): nan", "statistics"),
        ("classic", "Init: 12345", "Init: -3", "init_ms is -0.003"),
        ("classic", "Init: 12345", "Init: inf", "init_ms is inf"),
        ("classic", "min=7688", "min=8688", "lies outside"),
        ("classic_2018", "count=50 first", "count=0 first", "no inference was run"),
        ("litert", "Inference (avg):  ", "Inference (mean): ", "no results"),
        ("litert", "7.71 ms (200 runs)", "7.74 ms (200 runs)", "statistics 7.71309"),
        ("litert", "7.71 ms (200 runs)", "7.71 ms (65 runs)", "counts 65 runs"),
        ("litert_block", "Model initialization", "Start", "no time of initialisation"),
        ("litert_block", "7.98 ms (125 runs)", "0.00 ms (0 runs)", "no inference"),
        (
            "litert_block",
            "Inference (max):      9.05",
            "Inference (max): 7.75",
            "outside",
        ),
    ],
)
def test_a_doubtful_log_gives_no_number(name, old, new, why):
    text = read_log(name)
    assert old in text
    with pytest.raises(BenchmarkError, match=re.escape(why)) as caught:
        parse_log(text.replace(old, new))
    assert caught.value.failure is Failure.UNREADABLE_LOG
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("texts", [(), ("classic", "classic"), ("classic", "litert")])
def test_a_log_without_one_result_gives_no_number(texts):
    with pytest.raises(BenchmarkError, match="results instead of one"):
        parse_log("".join(read_log(name) for name in texts))


def test_a_log_cut_anywhere_before_its_result_gives_no_number():
    text = read_log("classic")
    for length in range(0, text.index("Inference (avg)"), 97):
        with pytest.raises(BenchmarkError):
            parse_log(text[:length])


def test_ignored_flags_are_named():
    text = "WARN: Unconsumed cmdline flags: --use_nnapi=true --x\n" + read_log(
        "classic"
    )
    assert parse_log(text).ignored_flags == ("--use_nnapi=true", "--x")


@pytest.mark.parametrize(
    "text, delegate, use",
    [
        (
            "Explicitly applied GPU delegate, and the model graph will be completely "
            "executed by the delegate.",
            "gpu",
            "complete",
        ),
        (
            "INFO: Applied NNAPI delegate, and the model graph will be partially "
            "executed w/ the delegate.",
            "nnapi",
            "partial",
        ),
        (
            "Though NNAPI delegate is explicitly applied, the model graph will not be "
            "executed by the delegate.",
            "nnapi",
            "none",
        ),
        (
            "Replacing 64 out of 64 node(s) with delegate (LITERT_CL) node, yielding 1",
            "gpu",
            "complete",
        ),
        (
            "Replacing 31 out of 97 node(s) with delegate (TfLiteGpuDelegateV2) node",
            "gpu",
            "partial",
        ),
        (
            "Replacing 31 node(s) with delegate (TfLiteNnapiDelegate)",
            "nnapi",
            "partial",
        ),
        (
            "Replacing 97 out of 97 node(s) with delegate (TfLiteXNNPackDelegate)",
            "gpu",
            None,
        ),
        (
            "Explicitly applied GPU delegate, and the model graph will be completely "
            "executed by the delegate.",
            "nnapi",
            None,
        ),
        ("nothing about it", "gpu", None),
    ],
)
def test_delegate_use_is_what_the_log_says(text, delegate, use):
    assert delegate_use(f"INFO: STARTING!\n{text}\nend", delegate) == use
