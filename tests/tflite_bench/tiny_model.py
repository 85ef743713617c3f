"""The smallest TFLite model with the contract of an exported one, written by hand."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

INPUT = "serving_default_image:0"
SHAPE = (1, 4, 4, 3)


def tiny_model(*, weight: float = 0.01, input_name: str = INPUT) -> bytes:
    """Return a model: image, float32 [1, 4, 4, 3] -> logit and probability, [1, 1].

    The logit is the sum of all pixels but every other one negative, times `weight`.
    """
    num_pixels = int(np.prod(SHAPE))
    weights = weight * np.where(np.arange(num_pixels) % 2, -1, 1)
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.frombuffer(weights.astype("<f4").tobytes(), np.uint8)
    model.operatorCodes = [
        _code(schema.BuiltinOperator.FULLY_CONNECTED),
        _code(schema.BuiltinOperator.LOGISTIC),
    ]
    graph = schema.SubGraphT()
    graph.tensors = [
        _tensor(input_name, SHAPE),
        _tensor("weights", (1, num_pixels), buffer=1),
        _tensor("logit", (1, 1)),
        _tensor("probability", (1, 1)),
    ]
    dense = schema.OperatorT()
    dense.inputs, dense.outputs = [0, 1, -1], [2]
    dense.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    dense.builtinOptions = schema.FullyConnectedOptionsT()
    sigmoid = schema.OperatorT()
    sigmoid.opcodeIndex, sigmoid.inputs, sigmoid.outputs = 1, [2], [3]
    graph.operators = [dense, sigmoid]
    graph.inputs, graph.outputs = [0], [3, 2]
    model.subgraphs = [graph]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _code(operator: int) -> schema.OperatorCodeT:
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = operator
    code.version = 1
    return code


def _tensor(name: str, shape: tuple[int, ...], *, buffer: int = 0) -> schema.TensorT:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.buffer = name, list(shape), buffer
    tensor.type = schema.TensorType.FLOAT32
    return tensor
