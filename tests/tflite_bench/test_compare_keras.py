"""The comparison with keras.applications: three files, two ratios."""

import json

import pytest
from ai_edge_litert.interpreter import Interpreter

from export import keras_twin
from mela_jax.errors import UserError
from tflite_bench import compare_keras


def test_the_three_files_are_compared(exported, tmp_path, capsys):
    out = tmp_path / "out.json"
    status = compare_keras.main([f"--export={exported}", "--runs=20", f"--json={out}"])
    found = json.loads(out.read_text())
    median = {name: times["median"] for name, times in found["latency_ms"].items()}
    assert set(median) == {"float32", "int8", "keras"}
    assert found["float32_over_keras"] == median["float32"] / median["keras"]
    assert found["int8_over_float32"] == median["int8"] / median["float32"]
    # The same network, so nearly the same file.
    assert found["bytes"]["keras"] == pytest.approx(found["bytes"]["float32"], rel=0.05)
    holds = found["float32_over_keras"] <= 1.05 and found["int8_over_float32"] <= 0.65
    assert status == (0 if holds else 1)
    assert capsys.readouterr().out.count("wanted") == 2


def test_the_twin_has_the_interface_of_our_files():
    content = keras_twin.convert_twin("mobilenet_v3_small", image_size=32)
    interpreter = Interpreter(model_content=content)
    (image,) = interpreter.get_input_details()
    assert list(image["shape"]) == [1, 32, 32, 3]
    assert [list(d["shape"]) for d in interpreter.get_output_details()] == [[1, 1]] * 2


def test_a_network_that_keras_has_not_is_refused(exported, monkeypatch):
    with pytest.raises(UserError, match="efficientnet_lite0: has no twin here"):
        keras_twin.convert_twin("efficientnet_lite0", image_size=32)
    with pytest.raises(UserError, match="export.keras_twin: --network=lenet"):
        compare_keras._keras_twin("lenet", image_size=32)


def test_missing_files_are_one_line(tmp_path, capsys):
    assert compare_keras.main([f"--export={tmp_path}"]) == 2
    assert "student_float32.tflite: cannot be read" in capsys.readouterr().err
