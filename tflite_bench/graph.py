"""What a .tflite file consists of, and which of it XNNPACK takes over."""

from collections import Counter
from dataclasses import dataclass

from ai_edge_litert.interpreter import Interpreter, OpResolverType


@dataclass(frozen=True)
class Graph:
    """The operations of a file.

    Attributes:
        operations: name -> how many there are.
        partitions: pieces of the graph that XNNPACK runs; 1 is best, as between two
            pieces tensors are handed back and forth.
        outside: name -> how many operations no piece holds.
    """

    operations: dict[str, int]
    partitions: int
    outside: dict[str, int]


def make_interpreter(
    content: bytes, *, num_threads: int, use_xnnpack: bool = True
) -> Interpreter:
    """Return an interpreter with its tensors allocated, with XNNPACK or without.

    Args:
        content: a whole file, from `mela_jax.tflite.read_model_file`.
        num_threads: at least 1.
        use_xnnpack: False runs every operation by LiteRT's own kernels.
    """
    resolver = (
        OpResolverType.AUTO
        if use_xnnpack
        else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter = Interpreter(
        model_content=content,
        num_threads=num_threads,
        experimental_op_resolver_type=resolver,
    )
    interpreter.allocate_tensors()
    return interpreter


def read_graph(content: bytes) -> Graph:
    """Return the operations of a file and XNNPACK's share of them.

    LiteRT lists the original operations and, after them, one DELEGATE for each piece,
    but not which operations a piece holds: these are found by walking from the piece's
    outputs up to its inputs.

    Args:
        content: a whole file.
    """
    details = make_interpreter(content, num_threads=1)._get_ops_details()
    pieces = [op for op in details if op["op_name"] == "DELEGATE"]
    operations = [op for op in details if op["op_name"] != "DELEGATE"]
    maker = {int(out): i for i, op in enumerate(operations) for out in op["outputs"]}
    inside: set[int] = set()
    for piece in pieces:
        stops = {int(tensor) for tensor in piece["inputs"]}
        waiting = [int(tensor) for tensor in piece["outputs"]]
        while waiting:
            tensor = waiting.pop()
            if tensor in stops or tensor not in maker or maker[tensor] in inside:
                continue
            inside.add(maker[tensor])
            waiting += [int(t) for t in operations[maker[tensor]]["inputs"]]
    names = [op["op_name"] for op in operations]
    return Graph(
        operations=dict(Counter(names).most_common()),
        partitions=len(pieces),
        outside=dict(
            Counter(n for i, n in enumerate(names) if i not in inside).most_common()
        ),
    )
