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

    The runtime trusts what a file says about its own extent, so a file that was cut
    off must be found out before it is run.

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
        whole = bool(model.subgraphs) and max(ends, default=0) <= len(content)
        if whole:
            # The runtime's own verification of the tables.
            Interpreter(model_content=content)
    except Exception as error:
        # A flatbuffer that points outside itself fails in many ways.
        raise UserError(_damaged(path)) from error
    if not whole:
        raise UserError(_damaged(path))
    return content


def read_metadata(content: bytes) -> dict[str, Any] | None:
    """Return the metadata inside a model, or None where it holds none of this project.

    Args:
        content: a whole file, from `read_model_file`.

    Raises:
        UserError: there is metadata, but it is damaged or of another version.
    """
    model = schema.Model.GetRootAs(content, 0)
    for i in range(model.MetadataLength()):
        entry = model.Metadata(i)
        if entry.Name() != METADATA_NAME.encode():
            continue
        buffer = model.Buffers(entry.Buffer())
        if buffer.Offset():
            data = content[buffer.Offset() : buffer.Offset() + buffer.Size()]
        else:
            data = bytes(buffer.DataAsNumpy())
        try:
            metadata = json.loads(data)
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
    return None


def add_metadata(content: bytes, metadata: Mapping[str, Any]) -> bytes:
    """Return a model with the metadata inside, in place of any that was there.

    Args:
        content: a whole model.
        metadata: a JSON object with the key "version".
    """
    # read_model_from_bytearray fetches the buffers that lie outside the flatbuffer,
    # as litert-quantizer's do; packing without it would lose them.
    model = flatbuffer_utils.read_model_from_bytearray(content)
    data = [buffer.data for buffer in model.buffers]
    entries = list(model.metadata or [])
    own = [entry for entry in entries if _name(entry) == METADATA_NAME]
    if not own:
        entry = schema.MetadataT()
        entry.name = METADATA_NAME
        entry.buffer = len(data)
        data.append(None)
        own = [entry]
        entries.append(entry)
    data[own[0].buffer] = json.dumps(
        metadata, ensure_ascii=False, allow_nan=False
    ).encode()
    model.metadata = entries
    model.buffers = [_AlignedBuffer(content) for content in data]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


class _AlignedBuffer(schema.BufferT):
    """A buffer at a multiple of 16 bytes, as TFLite's schema demands.

    The generated Python code does not know of the demand; weights that are read in
    place would be slow, or on some processors unreadable.
    """

    def __init__(self, data: Any):
        super().__init__()
        self.data = None if data is None else np.frombuffer(bytes(data), np.uint8)

    def Pack(self, builder: Any) -> int:
        vector = None
        if self.data is not None:
            content = self.data.tobytes()
            builder.StartVector(1, len(content), 16)
            builder.head -= len(content)
            builder.Bytes[builder.head : builder.head + len(content)] = content
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        return schema.BufferEnd(builder)


def to_probability(
    logits: npt.NDArray[np.float64], calibration: Mapping[str, Any]
) -> npt.NDArray[np.float64]:
    """Return P(melanoma), float64 [B], of the logits of a model file.

    A file's own output "probability" is the same in float32, in which high
    probabilities tie: all of a logit above 17.4 are exactly 1. What is measured and
    decided on is this one.

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

    It runs on one thread, as everywhere in this project, so that its answers do not
    depend on how many there are.

    Attributes:
        image_size: side S of the square it takes, in pixels.
        outputs: names of its outputs.
        num_classes: K; 1 where it has no output "probabilities".
    """

    def __init__(self, content: bytes, *, source: str):
        """Load a model.

        Args:
            content: a whole model.
            source: what to call it in messages.

        Raises:
            UserError: it does not take one square RGB image named "image", or has no
                outputs "logit" and "probability".
        """
        self._interpreter = Interpreter(model_content=content, num_threads=1)
        try:
            self._runner = self._interpreter.get_signature_runner(SIGNATURE)
        except ValueError as error:
            raise UserError(_foreign(source, "it has no signature")) from error
        inputs = self._runner.get_input_details()
        outputs = self._runner.get_output_details()
        if list(inputs) != [INPUT]:
            raise UserError(_foreign(source, f"its inputs are {', '.join(inputs)}"))
        shape = [int(side) for side in inputs[INPUT]["shape"]]
        self._dtype = np.dtype(inputs[INPUT]["dtype"])
        if (
            len(shape) != 4
            or shape[0] != 1
            or shape[1] != shape[2]
            or shape[3] != 3
            or self._dtype.name not in INPUT_DTYPES
        ):
            raise UserError(
                _foreign(source, f"its input is {self._dtype.name} {shape}")
            )
        for name in (LOGIT, PROBABILITY):
            if name not in outputs or outputs[name]["dtype"] != np.float32:
                raise UserError(_foreign(source, f"it has no float output {name}"))
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
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return logits and probabilities, float64 [B], of images uint8 [B, S, S, 3].

        Both hold float32 values: what the file itself answers, and what a phone sees.
        """
        return self.score_classes(images)[:2]

    def score_classes(
        self, images: npt.NDArray[np.uint8]
    ) -> tuple[
        npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]
    ]:
        """Return what `score` does, and P(class) float64 [B, K], as float32 values.

        With one class that is P(melanoma) once more.
        """
        answers = [self.run(image) for image in images]
        several = PROBABILITIES if PROBABILITIES in self.outputs else PROBABILITY
        logits, probabilities, classes = (
            np.array([answer[name].ravel() for answer in answers], np.float64)
            for name in (LOGIT, PROBABILITY, several)
        )
        return logits[:, 0], probabilities[:, 0], classes


class Scorer:
    """A model file ready to score, as `mela_jax.predict` wants it.

    Attributes:
        image_size: side of the square it takes, in pixels.
        classes: names of the K classes it tells apart; ("melanoma",) where it says
            nothing of them.
        melanoma: index of the one that is melanoma.
    """

    def __init__(self, path: str, *, crop: str | None):
        """Load a file.

        Args:
            path: a .tflite file.
            crop: "center" or "pad", for a file that does not say; None otherwise.

        Raises:
            UserError: the file cannot be read or is damaged, or is not a model of this
                project; or `crop` contradicts it.
        """
        content = read_model_file(path)
        self._path = path
        try:
            self._metadata = read_metadata(content)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        self._model = PhoneModel(content, source=path)
        self._crop = crop
        self.image_size = self._model.image_size
        if crop and self._metadata and crop != self.crop:
            raise UserError(
                f"--crop={crop}: {path} was trained with crop {self.crop}; leave "
                "--crop out"
            )
        # Files of before there were several classes say nothing of them.
        said = self._metadata or {}
        self.classes: tuple[str, ...] = tuple(said.get("classes", ("melanoma",)))
        self.melanoma: int = said.get("melanoma", 0)
        if said and self._model.num_classes != len(self.classes):
            raise UserError(
                f"{path}: answers {self._model.num_classes} classes, and its metadata "
                f"name {', '.join(self.classes)}; export the model again"
            )

    @property
    def crop(self) -> str:
        """How a photograph becomes a square: "center" or "pad".

        Raises:
            UserError: the file does not say, nor does the command line.
        """
        if self._metadata:
            return str(self._metadata["input"]["crop"])
        if self._crop:
            return self._crop
        raise UserError(self._unknown("--crop=center or --crop=pad"))

    @property
    def threshold(self) -> float:
        """The operating point that was chosen for this very file.

        Raises:
            UserError: the file holds no metadata.
        """
        if self._metadata:
            return float(self._metadata["operating_point"]["threshold"])
        raise UserError(self._unknown("--threshold=T (and --crop=center or pad)"))

    def score(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Return P(melanoma), float64 [B], for RGB images, uint8 [B, S, S, 3]."""
        return self.score_classes(images)[:, self.melanoma]

    def score_classes(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Return P(class), float64 [B, K], for RGB images, uint8 [B, S, S, 3]."""
        logits, probability, classes = self._model.score_classes(images)
        if not self._metadata:
            return probability[:, None]
        return to_class_probabilities(
            logits,
            classes,
            melanoma=self.melanoma,
            calibration=self._metadata["calibration"],
        )

    def _unknown(self, what: str) -> str:
        return (
            f"{self._path}: holds no metadata of mela_jax, so neither its operating "
            f"point nor its crop is known; give {what}, or export the model again"
        )


def _name(entry: schema.MetadataT) -> str:
    return entry.name.decode() if isinstance(entry.name, bytes) else entry.name


def _damaged(path: str | os.PathLike[str]) -> str:
    return (
        f"{path}: is damaged or was cut off (it is not a whole TFLite model); copy or "
        "export it again"
    )


def _foreign(source: str, why: str) -> str:
    return (
        f"{source}: is a TFLite model, but not one of mela_jax: {why}; it takes one "
        f"RGB image named {INPUT!r} and answers {LOGIT!r} and {PROBABILITY!r}"
    )
