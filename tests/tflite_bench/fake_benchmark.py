"""Stand in for benchmark_model on the fake device: its flags, logs, outputs and faults.

The file that FAKE_SCENARIO names says how to behave, as JSON: ``log`` is what a run
prints, ``flags`` what ``--help`` lists, ``faults`` what goes wrong with which graph,
``ignored`` a line on flags that were not consumed, ``shift`` what is added to outputs.
Outputs are computed for real, by LiteRT, from the input files.
"""

import json
import os
import signal
import sys
import time


def main() -> int:
    """Behave as the scenario says; return the exit status."""
    with open(os.environ["FAKE_SCENARIO"]) as file:
        scenario = json.load(file)
    if sys.argv[1:] == ["--help"]:
        print("INFO: STARTING!")
        print("ERROR: usage: benchmark_model <flags>\nFlags:")
        for name in scenario["flags"]:
            print(f"\t--{name}=\tstring\toptional\twhat {name} is")
        print("ERROR: Benchmarking failed.")
        return 1
    flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
    os.stat(flags["graph"])
    fault = scenario["faults"].get(os.path.basename(flags["graph"]))
    print("INFO: STARTING!", flush=True)
    if fault == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "error":
        print("ERROR: Failed to load model", file=sys.stderr)
        return 1
    if fault == "hang":
        time.sleep(600)
    if scenario["ignored"]:
        print(f"WARN: Unconsumed cmdline flags: {scenario['ignored']}")
    if "output_filepath" in flags:
        write_outputs(flags, scenario["shift"])
    print("INFO: cut" if fault == "mute" else scenario["log"], end="")
    return 0


def write_outputs(flags: dict[str, str], shift: float) -> None:
    """Run the model on the input files as the real tool does."""
    sys.path.append(os.environ["FAKE_SITE_PACKAGES"])
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=flags["graph"], num_threads=1)
    names = flags["input_layer"].split(",")
    shapes = flags["input_layer_shape"].split(":")
    files = {}
    for item in flags["input_layer_value_files"].split(","):
        name, _, file = item.replace("::", "\0").partition(":")
        files[name.replace("\0", ":")] = file
    inputs = interpreter.get_input_details()
    assert names == [details["name"] for details in inputs]
    interpreter.allocate_tensors()
    for details, name, shape in zip(inputs, names, shapes, strict=True):
        value = np.fromfile(files[name], details["dtype"])
        value = value.reshape([int(side) for side in shape.split(",")])
        interpreter.set_tensor(details["index"], value)
    interpreter.invoke()
    with open(flags["output_filepath"], "wb") as file:
        for details in interpreter.get_output_details():
            value = interpreter.get_tensor(details["index"])
            file.write((value + np.array(shift, value.dtype)).tobytes())


if __name__ == "__main__":
    sys.exit(main())
