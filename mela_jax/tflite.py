"""Model files for the phone: read them, check them, score with them.

NumPy and LiteRT only: a machine that scores with a .tflite file needs neither JAX nor
TensorFlow.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils
from scipy.special import expit

from mela_jax.errors import UserError

# Name of the buffer that holds the metadata, a JSON object in UTF-8.
METADATA_NAME = "mela_jax"
# Raised whenever a reader of the old metadata would misunderstand the new.
METADATA_VERSION = 2

SIGNATURE = "serving_default"
INPUT = "image"
LOGIT, PROBABILITY, PROBABILITIES = "logit", "probability", "probabilities"
ACTIVATION_MAP = "activation_map"
INPUT_DTYPES = ("float32", "uint8")

_IDENTIFIER = b"TFL3"


def read_model_file(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a whole .tflite file.

    The runtime trusts what a file says about its own extent, so one that was cut off
    must be found out before it is run.

    Raises:
        UserError: the file cannot be read, is no TFLite model, or is damaged.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give a .tflite file"
        ) from error
    if content[4:8] != _IDENTIFIER:
        raise UserError(
            f"{path}: is not a TFLite model (its first bytes say so); give a .tflite "
            "file that export.to_tflite or a TFLite converter wrote"
        )
    try:
        model = flatbuffer_utils.convert_bytearray_to_object(content)
        ends = [b.offset + b.size for b in model.buffers if b.offset]
        if not model.subgraphs or max(ends, default=0) > len(content):
            raise ValueError("not a whole model")
        # The runtime's own verification of the tables.
        Interpreter(model_content=content)
    except Exception as error:
        # A flatbuffer that points outside itself fails in many ways.
        raise UserError(
            f"{path}: is damaged or was cut off (it is not a whole TFLite model); copy "
            "or export it again"
        ) from error
    return content


def read_metadata(content: bytes) -> dict[str, Any] | None:
    """Return the metadata inside a whole model, or None without any of this project.

    Raises:
        UserError: there is metadata, but it is damaged or of another version.
    """
    model = flatbuffer_utils.read_model_from_bytearray(content)
    entry = _own_entry(model)
    if entry is None:
        return None
    try:
        metadata = json.loads(bytes(model.buffers[entry.buffer].data))
        version = metadata["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "the metadata inside the model is damaged; export the model again"
        ) from error
    if version != METADATA_VERSION:
        raise UserError(
            f"the metadata inside the model has version {version}, and this "
            f"program reads version {METADATA_VERSION}; use the mela_jax that "
            "exported it, or export the model again"
        )
    return metadata


def add_metadata(content: bytes, metadata: Mapping[str, Any]) -> bytes:
    """Return a whole model with the metadata inside, in place of any that was there.

    The metadata are a JSON object with the key "version".
    """
    # read_model_from_bytearray fetches the buffers that lie outside the flatbuffer,
    # as litert-quantizer's do; packing without it would lose them.
    model = flatbuffer_utils.read_model_from_bytearray(content)
    data = [buffer.data for buffer in model.buffers]
    entry = _own_entry(model)
    if entry is None:
        entry = schema.MetadataT(METADATA_NAME, len(data))
        model.metadata = [*(model.metadata or ()), entry]
        data.append(None)
    text = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    data[entry.buffer] = text.encode()
    model.buffers = [_AlignedBuffer(each) for each in data]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _own_entry(model: schema.ModelT) -> schema.MetadataT | None:
    """Return the entry of this project's metadata, where a model has one."""
    names = (METADATA_NAME, METADATA_NAME.encode())
    return next((e for e in model.metadata or () if e.name in names), None)


class _AlignedBuffer(schema.BufferT):
    """A buffer at a multiple of 16 bytes, as TFLite's schema demands.

    The generated Python code does not know of the demand; weights that are read in
    place would be slow, or on some processors unreadable.
    """

    def __init__(self, data: Any):
        super().__init__()
        self.data = data

    def Pack(self, builder: Any) -> int:
        if self.data is None:
            return super().Pack(builder)
        content = bytes(self.data)
        builder.StartVector(1, len(content), 16)
        builder.head -= len(content)
        builder.Bytes[builder.head : builder.head + len(content)] = content
        vector = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def to_probability(
    logits: npt.NDArray[np.float64], calibration: Mapping[str, Any]
) -> npt.NDArray[np.float64]:
    """Return P(melanoma), float64 [B], of the logits of a model file.

    This one is measured and decided on. A file's own output "probability" is the same
    in float32, in which high ones tie: all of a logit above 17.4 are exactly 1.

    Args:
        logits: float64 [B], holding the float32 values of the file.
        calibration: "calibration" of the metadata: slope "a" and intercept "b".
    """
    return expit(calibration["a"] * logits + calibration["b"])


def to_class_probabilities(
    logits: npt.NDArray[np.float64],
    probabilities: npt.NDArray[np.float64],
    *,
    melanoma: int,
    calibration: Mapping[str, Any],
) -> npt.NDArray[np.float64]:
    """Return P(class), float64 [B, K], in which melanoma's is `to_probability`'s.

    The other classes keep their shares among each other, whatever probability of
    melanoma they were scaled to before.

    Args:
        logits: float64 [B], log-odds of melanoma.
        probabilities: [B, K] in [0, 1], K >= 1; of melanoma's column nothing is used.
        melanoma: index of the class that is melanoma.
        calibration: "calibration" of the metadata.
    """
    found = np.array(probabilities, np.float64)
    found[:, melanoma] = 0
    # Where float32 has left nothing of the others, 1 - P(melanoma) is nothing too.
    found /= np.maximum(found.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    found *= expit(-(calibration["a"] * logits + calibration["b"]))[:, None]
    found[:, melanoma] = to_probability(logits, calibration)
    return found


class PhoneModel:
    """A model of this project, ready to run on one image at a time.

    It runs on one thread, so that its answers do not depend on their number.

    Attributes:
        image_size: side S of the square it takes, in pixels.
        outputs: names of its outputs.
        num_classes: K; 1 where it has no output "probabilities".
    """

    def __init__(self, content: bytes, *, source: str):
        """Load a whole model; messages call it `source`.

        Raises:
            UserError: it does not take one square RGB image named "image", or has no
                outputs "logit" and "probability".
        """
        self._interpreter = Interpreter(model_content=content, num_threads=1)
        try:
            self._load()
        except ValueError as error:
            raise UserError(
                f"{source}: is a TFLite model, but not one of mela_jax: {error}; it "
                f"takes one RGB image named {INPUT!r} and answers {LOGIT!r} and "
                f"{PROBABILITY!r}"
            ) from error

    def _load(self) -> None:
        if SIGNATURE not in self._interpreter.get_signature_list():
            raise ValueError("it has no signature")
        self._runner = self._interpreter.get_signature_runner(SIGNATURE)
        inputs = self._runner.get_input_details()
        outputs = self._runner.get_output_details()
        if list(inputs) != [INPUT]:
            raise ValueError(f"its inputs are {', '.join(inputs)}")
        shape = [int(side) for side in inputs[INPUT]["shape"]]
        self._dtype = np.dtype(inputs[INPUT]["dtype"])
        square = [1, *2 * shape[1:2], 3]
        if shape != square or self._dtype.name not in INPUT_DTYPES:
            raise ValueError(f"its input is {self._dtype.name} {shape}")
        for name in (LOGIT, PROBABILITY):
            if name not in outputs or outputs[name]["dtype"] != np.float32:
                raise ValueError(f"it has no float output {name}")
        self.image_size = shape[1]
        self.outputs = sorted(outputs)
        several = outputs.get(PROBABILITIES)
        self.num_classes = int(several["shape"][-1]) if several else 1

    def run(self, image: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
        """Return every output for one image, uint8 [S, S, 3], RGB in [0, 255].

        Returns:
            "logit" float32 [1], "probability" float32 [1] in [0, 1], and where the
            model has them "probabilities" float32 [1, K] in [0, 1] and
            "activation_map" float32 [1, h, w].
        """
        return self._runner(**{INPUT: image[None].astype(self._dtype)})

    def score(
        self, images: npt.NDArray[np.uint8]
    ) -> tuple[
        npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]
    ]:
        """Return logits [B], P(melanoma) [B] and P(class) [B, K] of uint8 [B, S, S, 3].

        What the file itself answers and a phone sees: float32 values as float64. With
        one class P(class) is P(melanoma) once more.
        """
        answers = [self.run(image) for image in images]
        by_class = PROBABILITIES if PROBABILITIES in self.outputs else PROBABILITY
        logits, probabilities, classes = (
            np.array([answer[name].ravel() for answer in answers], np.float64)
            for name in (LOGIT, PROBABILITY, by_class)
        )
        return logits[:, 0], probabilities[:, 0], classes
