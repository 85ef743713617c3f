"""Model files for the phone: what is read, what is refused, what the metadata keeps."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from scipy.special import expit

from mela_jax import tflite
from mela_jax.errors import UserError
from mela_jax.inference import make_scorer

METADATA = {
    "version": tflite.METADATA_VERSION,
    "input": {"crop": "pad"},
    "calibration": {"a": 0.5, "b": -1.0},
    "operating_point": {"threshold": 0.125},
    "note": "ärztlich",
}


@pytest.fixture(scope="module")
def foreign() -> bytes:
    """Return a whole TFLite model that has nothing to do with this project."""
    signature = [tf.TensorSpec((1, 4), tf.float32, name="x")]
    function = tf.function(lambda x: {"y": 2.0 * x}, input_signature=signature)
    concrete = [function.get_concrete_function()]
    return tf.lite.TFLiteConverter.from_concrete_functions(concrete).convert()


@pytest.fixture(scope="module")
def int8(exported: Path) -> bytes:
    return (exported / "student_int8.tflite").read_bytes()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (count, 32, 32, 3), np.uint8)


def save(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def without_metadata(content: bytes) -> bytes:
    """Rename the metadata, which is then some other program's."""
    assert content.count(tflite.METADATA_NAME.encode() + b"\0") == 1
    return content.replace(b"mela_jax\0", b"mela_bug\0")


def test_whole_files_are_read(tmp_path, foreign, int8):
    for content in (foreign, int8):
        path = save(tmp_path / "model.tflite", content)
        assert tflite.read_model_file(path) == content


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_file_that_was_cut_off_is_refused(tmp_path, int8, share):
    path = save(tmp_path / "model.tflite", int8[: int(share * len(int8))])
    with pytest.raises(UserError, match=r"model\.tflite: is (damaged|not a TFLite)"):
        tflite.read_model_file(path)


def test_buffers_outside_the_flatbuffer_count_as_part_of_the_file(tmp_path, foreign):
    # The converter of models above 2 GB, and litert-quantizer, write such buffers.
    model = tflite.flatbuffer_utils.read_model_from_bytearray(foreign)
    buffer = next(b for b in model.buffers if b.data is not None)
    buffer.data, buffer.offset, buffer.size = None, len(foreign) + 64, 4
    packed = bytes(tflite.flatbuffer_utils.convert_object_to_bytearray(model))
    with pytest.raises(UserError, match="is damaged"):
        tflite.read_model_file(save(tmp_path / "model.tflite", packed))


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("text", "is not a TFLite model"),
        (".", "cannot be read"),
        ("absent", "cannot be read"),
    ],
)
def test_other_files_are_refused(tmp_path, name, complaint):
    save(tmp_path / "text", b"no model at all")
    with pytest.raises(UserError, match=complaint):
        tflite.read_model_file(tmp_path / name)


def test_metadata_comes_back_and_changes_no_answer(int8):
    content = tflite.add_metadata(without_metadata(int8), METADATA)
    assert tflite.read_metadata(content) == METADATA
    before = tflite.PhoneModel(int8, source="before").score(images(8))
    after = tflite.PhoneModel(content, source="after").score(images(8))
    np.testing.assert_array_equal(before[:2], after[:2])


def test_new_metadata_take_the_place_of_old(foreign, int8):
    content = tflite.add_metadata(int8, METADATA)
    assert tflite.read_metadata(content) == METADATA
    assert tflite.add_metadata(content, METADATA) == content
    assert tflite.read_metadata(foreign) is None
    assert tflite.read_metadata(without_metadata(int8)) is None


def test_metadata_of_another_version_are_refused(foreign):
    content = tflite.add_metadata(foreign, {"version": 99})
    with pytest.raises(UserError, match="has version 99"):
        tflite.read_metadata(content)
    content = tflite.add_metadata(foreign, {"version": 1}).replace(b'"ver', b'"_er')
    with pytest.raises(UserError, match="is damaged"):
        tflite.read_metadata(content)


def test_scores_are_those_of_a_plain_interpreter(int8):
    model = tflite.PhoneModel(int8, source="int8")
    assert model.image_size == 32
    logits, probabilities, _ = model.score(images(4))
    interpreter = Interpreter(model_content=int8, num_threads=1)
    runner = interpreter.get_signature_runner()
    for i, image in enumerate(images(4)):
        answer = runner(image=image[None].astype(np.float32))
        assert logits[i] == answer["logit"][0]
        assert probabilities[i] == answer["probability"][0]
    calibration = tflite.read_metadata(int8)["calibration"]
    expected = tflite.to_probability(logits, calibration)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-6)


def test_high_probabilities_do_not_tie():
    logits = np.arange(17.5, 30, 0.5)
    assert len(set((1 / (1 + np.exp(-logits))).astype(np.float32))) == 1
    assert len(set(tflite.to_probability(logits, {"a": 1.0, "b": 0.0}))) == len(logits)


@given(
    np_st.arrays(np.float32, (5, 4), elements=st.floats(0, 1, width=32)),
    np_st.arrays(np.float64, 5, elements=st.floats(-1e4, 1e4)),
    st.integers(0, 3),
)
def test_other_classes_share_what_melanoma_leaves(given, logits, melanoma):
    calibration = {"a": 0.7, "b": -0.4}
    found = tflite.to_class_probabilities(
        logits, given, melanoma=melanoma, calibration=calibration
    )
    np.testing.assert_array_equal(
        found[:, melanoma], tflite.to_probability(logits, calibration)
    )
    assert ((found >= 0) & (found <= 1)).all()
    others, before = (np.delete(x, melanoma, axis=1) for x in (found, given))
    enough = before.sum(axis=1) > 1e-30
    np.testing.assert_allclose(found.sum(axis=1)[enough], 1, rtol=1e-12)
    rest = expit(-(0.7 * logits - 0.4))[:, None]
    shares = before / np.maximum(before.sum(axis=1, dtype=float), 1e-300)[:, None]
    np.testing.assert_allclose(others[enough], (rest * shares)[enough], rtol=1e-9)


def test_the_scorer_knows_its_crop_threshold_and_classes(tmp_path, int8):
    # These metadata say nothing of classes, as before there were several.
    path = save(tmp_path / "m.tflite", tflite.add_metadata(int8, METADATA))
    scorer = make_scorer(path)
    assert (scorer.crop, scorer.threshold, scorer.image_size) == ("pad", 0.125, 32)
    assert (scorer.classes, scorer.melanoma) == (("melanoma",), 0)
    logits = tflite.PhoneModel(int8, source="m").score(images(3))[0]
    expected = 1 / (1 + np.exp(1.0 - 0.5 * logits))
    np.testing.assert_allclose(scorer.score(images(3))[:, 0], expected, rtol=1e-14)
    assert make_scorer(path, crop="pad").crop == "pad"


def test_files_that_contradict_what_is_asked_or_said_are_refused(
    tmp_path, foreign, int8
):
    path = save(tmp_path / "m.tflite", tflite.add_metadata(int8, METADATA))
    with pytest.raises(UserError, match="--crop=center: .* crop pad"):
        make_scorer(path, crop="center")
    wrong = METADATA | {"classes": ["mel", "nv"], "melanoma": 0}
    path = save(tmp_path / "m.tflite", tflite.add_metadata(int8, wrong))
    with pytest.raises(UserError, match="1 classes, and its metadata name mel, nv"):
        make_scorer(path)
    path = save(tmp_path / "m.tflite", foreign)
    with pytest.raises(UserError, match="m.tflite: is a TFLite model, but not one of"):
        make_scorer(path)


def test_without_metadata_the_scorer_asks_for_what_it_lacks(tmp_path, int8):
    path = save(tmp_path / "m.tflite", without_metadata(int8))
    with pytest.raises(UserError, match="--threshold=T"):
        make_scorer(path, crop="center")
    with pytest.raises(UserError, match="--crop=center"):
        make_scorer(path, threshold=0.5)
    scorer = make_scorer(path, crop="center", threshold=0.5)
    assert (scorer.crop, scorer.threshold) == ("center", 0.5)
    probabilities = tflite.PhoneModel(int8, source="m").score(images(2))[1]
    np.testing.assert_array_equal(scorer.score(images(2))[:, 0], probabilities)


def test_it_brings_in_neither_jax_nor_tensorflow(tmp_path, int8):
    path = save(tmp_path / "m.tflite", int8)
    code = (
        "import sys; from mela_jax.inference import make_scorer; "
        f"make_scorer({json.dumps(path)}); "
        "heavy = {'jax', 'flax', 'tensorflow', 'keras'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
