"""Rules of importing: that linters keep them, and those that only a run can show.

The contracts are in .importlinter and, for parts of packages, in pyproject.toml.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ("mela_jax", "configs", "export", "tflite_bench", "benchmarks")
SOURCES = [path for top in FOLDERS for path in (REPOSITORY / top).rglob("*.py")]

# Contract of .importlinter -> module, what breaks it there.
OFFENCES = {
    "Imports go down": ("mela_jax/state.py", "from .steps import make_eval_step"),
    "never the reverse": ("mela_jax/train.py", "from benchmarks import harness"),
    "neither JAX nor TensorFlow\n": (
        "mela_jax/evaluation/scores.py",
        "def f():\n    from mela_jax.losses import focal",
    ),
    "need no TensorFlow": (
        "mela_jax/losses.py",
        "import tensorflow_datasets.public_api",
    ),
    "Data knows nothing of models": (
        "mela_jax/data/cache.py",
        "from ..models import zoo",
    ),
    "tflite_bench runs": ("tflite_bench/host.py", "def f():\n    import flax.linen"),
    "imports orbax": ("export/conversion.py", "from orbax import checkpoint"),
    "imports TensorFlow, in": (
        "mela_jax/progress.py",
        "def f():\n    import tensorflow",
    ),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what import-linter says of a copy that breaks every contract once."""
    copy = tmp_path_factory.mktemp("broken")
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, copy / name)
    shutil.copy(REPOSITORY / ".importlinter", copy)
    for module, offence in OFFENCES.values():
        with (copy / module).open("a") as file:
            file.write(f"\n{offence}\n")
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [linter, "--no-cache", "--no-logo"], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    # Long names are wrapped.
    return re.sub(r"(?<=\S)[ ]*\n(?=\S)", " ", done.stdout)


@pytest.mark.parametrize("contract", OFFENCES)
def test_a_contract_can_be_broken(broken, contract):
    assert re.search(rf"{contract.strip()}[^\n]*? BROKEN", broken), broken


def test_every_contract_is_broken_above(broken):
    assert f"Contracts: 0 kept, {len(OFFENCES)} broken" in broken


@pytest.mark.parametrize(
    "text",
    [
        "import jax as j\nf = j.shard_map(g)",
        "from jax import sharding as s",
        "import jax\njax.distributed.shutdown()",
        "from clu import metric_writers",
        "from joblib import load",
        "import pickle",
        "import torch\ntorch.load(p)",
        "import pandas as pd\npd.read_pickle(p)",
        "from keras import applications",
    ],
)
def test_banned_names_are_found(text):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select=TID25", "--no-cache"]
        + ["--output-format=concise", "--stdin-filename=mela_jax/train.py", "-"],
        cwd=REPOSITORY,
        input=text + "\n",
        capture_output=True,
        text=True,
    )
    assert "TID25" in done.stdout, done


def test_numpy_is_never_allowed_to_unpickle():
    assert len(SOURCES) > 100
    for path in SOURCES:
        assert not re.search(r"allow_pickle\s*=\s*(?!False)", path.read_text()), path


@pytest.mark.parametrize(
    "module, absent",
    [
        # A phone file needs neither.
        ("mela_jax.predict", ("jax", "tensorflow", "keras")),
        ("mela_jax.tflite", ("jax", "tensorflow", "keras")),
        ("tflite_bench.host", ("jax", "tensorflow", "keras")),
        ("mela_jax.evaluation.measure", ("jax", "tensorflow", "matplotlib")),
        # Its import takes seconds, also on the way to the answer to a mistyped flag.
        ("mela_jax.main", ("tensorflow", "clu.metric_writers", "keras")),
        ("mela_jax.pipeline", ("tensorflow", "clu.metric_writers", "keras")),
        # Where it runs there may be JAX, Flax and Optax, and no more.
        ("benchmarks.gpu", ("tensorflow", "keras", "torch", "ml_collections", "cv2")),
        ("benchmarks.gpu", ("tensorflow_datasets", "sklearn", "statsmodels", "PIL")),
        ("benchmarks.gpu", ("matplotlib", "h5py", "tqdm")),
    ],
)
def test_a_command_starts_without(module, absent):
    program = (
        f"import sys, {module}; print(*sorted(set(sys.modules) & set({absent!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
