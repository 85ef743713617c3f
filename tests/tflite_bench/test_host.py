"""Timing on this machine: what it reads off a file, counts, writes and refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mela_jax.errors import UserError
from mela_jax.tflite import add_metadata
from tests.tflite_bench.models import broken_graph_model, foreign_model
from tflite_bench import graph, host, plot, timing


@pytest.fixture(scope="module")
def paths(exported) -> list[str]:
    return [str(exported / f"student_{mode}.tflite") for mode in ("float32", "int8")]


@pytest.fixture(scope="module")
def results(paths):
    return host.benchmark(paths, num_threads=1, runs=12)


def test_one_partition_holds_everything(results):
    for result in results:
        assert result["graph"]["partitions"] == 1
        assert result["graph"]["outside"] == {}
    operations = results[0]["graph"]["operations"]
    # MobileNetV3-Small: 11 blocks, 9 of them with squeeze-and-excite, stem and top.
    assert operations["DEPTHWISE_CONV_2D"] == 11
    assert operations["CONV_2D"] == 1 + 10 + 11 + 1 + 2 * 9
    assert operations["HARD_SWISH"] == 2 + 2 * 8


def test_operations_that_xnnpack_refuses_are_named():
    found = graph.read_graph(broken_graph_model())
    assert found.operations["FLOOR_MOD"] == 1
    assert found.outside == {"FLOOR_MOD": 1}
    assert found.partitions == 2


def test_every_way_is_timed(results):
    for result in results:
        assert set(result["latency_ms"]) == {"xnnpack", "builtin", "compiled_model"}
        assert result["compiled_model_refused"] is None
        for times in result["latency_ms"].values():
            assert 0 < times["min"] <= times["median"] <= times["p90"] <= times["p99"]
            assert times["runs"] == 12
            assert times["throughput"] == pytest.approx(1e3 / times["mean"])
        memory = result["memory_mb"]
        # A file of this size may fit into pages that the process has already.
        assert memory["peak"] > memory["of_model"] >= 0


def test_the_operating_point_is_that_of_the_file(results, exported):
    files = json.loads((exported / "metrics.json").read_text())["files"]
    for result, name in zip(
        results, ("student_float32.tflite", "student_int8.tflite"), strict=True
    ):
        test = files[name]["test"]["operating_point"]
        assert result["operating_point"]["specificity"] == test["specificity"]
        assert result["operating_point"]["threshold"] == test["threshold"]
        assert result["sha256"] == files[name]["sha256"]


def test_samples_are_summarized_as_numpy_does():
    samples = np.random.default_rng(0).gamma(2, 1, 101)
    found = timing.summarize(samples)
    ordered = np.sort(samples)
    assert found["median"] == ordered[50]
    assert found["p90"] == ordered[90]
    assert found["p99"] == ordered[99]
    assert found["min"] == ordered[0]


def test_models_take_turns():
    log: list[str] = []
    runners = {name: lambda name=name: log.append(name) for name in "ab"}
    samples = timing.time_in_turn(runners, runs=25, warm_up=3)
    assert {name: len(values) for name, values in samples.items()} == {"a": 25, "b": 25}
    turns = "".join(log)[6:]
    assert turns.count("ab") == timing.ROUNDS


def test_inputs_are_seeded_and_fill_the_range_of_a_picture():
    details = [
        {"dtype": np.float32, "shape": (1, 9, 9, 3)},
        {"dtype": np.uint8, "shape": (1, 9, 9, 3)},
    ]
    first, second = (timing.random_inputs(details) for _ in range(2))
    for a, b, detail in zip(first, second, details, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == detail["dtype"] and a.shape == detail["shape"]
        assert 0 <= a.min() < 20 and 235 < a.max() <= 255


def test_the_command_prints_a_table_and_writes_json_and_plot(
    paths, tmp_path, capsys, monkeypatch, results
):
    monkeypatch.setattr(host, "benchmark", lambda *_, **__: results)
    arguments = ["--models", *paths, "--runs=12"]
    out, png = tmp_path / "out.json", tmp_path / "plot.png"
    assert host.main([*arguments, f"--json={out}", f"--plot={png}"]) == 0
    printed = capsys.readouterr().out
    for words in ("student_int8.tflite, xnnpack", "1 partition", "HARD_SWISH 18"):
        assert words in printed
    assert json.loads(out.read_text())["results"] == results
    with Image.open(png) as image:
        assert image.format == "PNG" and min(image.size) > 300


def test_a_plot_wants_files_that_say_their_specificity(results):
    nameless = [result | {"operating_point": None} for result in results]
    with pytest.raises(UserError, match="none of the files says its specificity"):
        plot.latency_plot(nameless, num_threads=1)


def test_any_tflite_file_will_do(tmp_path):
    path = tmp_path / "other.tflite"
    path.write_bytes(foreign_model())
    (found,) = host.benchmark([str(path)], num_threads=1, runs=10)
    assert found["operating_point"] is None
    path.write_bytes(add_metadata(foreign_model(), {"version": 99}))
    with pytest.raises(UserError, match="version 99"):
        host.benchmark([str(path)], num_threads=1, runs=10)


def test_other_files_are_refused_in_one_line(tmp_path, capsys, paths):
    whole = Path(paths[1]).read_bytes()
    for name, content, complaint in (
        ("text.tflite", b"not a model", "is not a TFLite model"),
        ("cut.tflite", whole[:-5000], "is damaged or was cut off"),
        ("empty.tflite", b"", "is not a TFLite model"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert host.main(["--models", paths[0], str(path)]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1 and name in errors[0] and complaint in errors[0]
    assert host.main(["--models", str(tmp_path / "absent.tflite")]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--runs=0", "--num_threads=x"])
def test_wrong_numbers_are_refused(word, capsys):
    assert host.main(["--models", "m.tflite", word]) == 2
    assert "is not a whole number above 0" in capsys.readouterr().err
