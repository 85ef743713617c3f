"""What a user sees of native libraries."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAM = """
import os, sys
from mela_jax.quiet import hide_chatter

hide_chatter()
print("first", file=sys.stderr)
os.write(2, b"INFO: [environment.cc:36] Creating LiteRT environment\\n")
os.write(2, b"W0000 00:00:17 1 port.cc:153] oneDNN custom operations are on\\n")
os.write(2, b"ERROR: the model has no such operation\\n")
from mela_jax import lazy_tensorflow

tf = lazy_tensorflow.import_tensorflow()
assert not tf.config.get_visible_devices("GPU")
list(tf.data.Dataset.range(3).map(lambda x: x + 1))
print("second", file=sys.stderr)
print("result")
"""


def test_chatter_is_dropped_and_other_words_are_kept():
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # What Python says goes another way than what libraries say.
    assert sorted(done.stderr.splitlines()) == [
        "ERROR: the model has no such operation",
        "first",
        "second",
    ]
    assert done.stdout == "result\n"


def test_a_crash_is_still_seen():
    program = "from mela_jax.quiet import hide_chatter; hide_chatter(); 1 / 0"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
