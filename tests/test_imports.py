"""The import directions of the house, kept by reading the sources.

Each rule is a function from sources to a list of offences, so that it can be held
against the repository and, in the test after it, against a made-up source that breaks
it. Imports inside functions count as well, except where a rule says otherwise.
"""

import ast
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ("mela_jax", "configs", "export", "tflite_bench", "benchmarks")

TENSORFLOW = ("tensorflow", "tensorflow_datasets", "tf_keras")
# Parts of clu that import it.
WRITERS = ("clu.metric_writers", "clu.periodic_actions")
JAX = ("jax", "jaxlib", "flax", "optax", "orbax")
# Keras imports TensorFlow as it starts: allowed only where a function asks for it.
KERAS = ("keras",)

DEVICES = (
    "jax.distributed",
    "jax.experimental.mesh_utils",
    "jax.experimental.multihost_utils",
    "jax.experimental.shard_map",
    "jax.make_mesh",
    "jax.pmap",
    "jax.set_mesh",
    "jax.shard_map",
    "jax.sharding",
)

# A module may import those of its own line and of the lines below it, never above.
LAYERS = (
    ("mela_jax.main", "mela_jax.predict", "mela_jax.study"),
    ("mela_jax.inference",),
    ("mela_jax.pipeline",),
    ("mela_jax.results",),
    ("mela_jax.stages",),
    ("mela_jax.tasks",),
    ("mela_jax.saved_models", "mela_jax.teacher_cache"),
    ("mela_jax.train",),
    ("mela_jax.steps",),
    (
        "mela_jax.atomic",
        "mela_jax.checkpoint",
        "mela_jax.config",
        "mela_jax.data",
        "mela_jax.distill",
        "mela_jax.errors",
        "mela_jax.evaluation",
        "mela_jax.report",
        "mela_jax.images",
        "mela_jax.labels",
        "mela_jax.lazy_tensorflow",
        "mela_jax.log",
        "mela_jax.losses",
        "mela_jax.memory",
        "mela_jax.models",
        "mela_jax.optim",
        "mela_jax.parallel",
        "mela_jax.progress",
        "mela_jax.run_record",
        "mela_jax.state",
        "mela_jax.tflite",
    ),
)

UNPICKLERS = ("_pickle", "cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve")
NUMPY_LOADERS = ("numpy.load", "jax.numpy.load")


# Starts a dotted name whose first part was not imported.
UNKNOWN = "?"


@dataclass(frozen=True)
class Import:
    """One import: what it brings, dotted, and whether only when a function runs."""

    target: str
    lazy: bool


class Sources:
    """Parsed modules by their dotted name."""

    def __init__(self, texts: dict[str, str]):
        """Parse `texts`: name of a module -> source; packages end in ``.__init__``."""
        self.packages = {
            name.removesuffix(".__init__")
            for name in texts
            if name.endswith(".__init__")
        }
        self.trees = {
            name.removesuffix(".__init__"): ast.parse(text, filename=name)
            for name, text in texts.items()
        }
        self.imports = {name: list(self._imports(name)) for name in self.trees}

    def inside(self, *tops: str) -> list[str]:
        """Return the modules that are one of `tops` or lie below one."""
        return sorted(name for name in self.trees if is_under(name, tops))

    def reached(self, start: str, *, lazy_in: tuple[str, ...]) -> dict[str, str]:
        """Return all that `start` imports, directly or through modules of this house.

        Args:
            start: name of a module.
            lazy_in: modules and packages whose imports inside functions count.

        Returns:
            dotted name -> the chain of imports that leads to it, in words.
        """
        chains: dict[str, str] = {}
        waiting = [(start, start)]
        while waiting:
            name, chain = waiting.pop()
            for found in self.imports.get(name, ()):
                counts = not found.lazy or is_under(name, lazy_in)
                if counts and found.target not in chains:
                    chains[found.target] = f"{chain} -> {found.target}"
                    waiting.append((found.target, chains[found.target]))
        return chains

    def aliases(self, name: str) -> dict[str, str]:
        """Return what each imported name of a module stands for, dotted."""
        aliases: dict[str, str] = {}
        for node in ast.walk(self.trees[name]):
            if isinstance(node, ast.Import):
                for item in node.names:
                    first = item.name.split(".")[0]
                    aliases[item.asname or first] = item.name if item.asname else first
            elif isinstance(node, ast.ImportFrom):
                base = self._base(name, node)
                for item in node.names:
                    aliases[item.asname or item.name] = f"{base}.{item.name}"
        return aliases

    def dotted_names(self, name: str) -> set[str]:
        """Return every dotted name that a module imports or uses."""
        aliases = self.aliases(name)
        used = {
            resolve(node, aliases)
            for node in ast.walk(self.trees[name])
            if isinstance(node, ast.Attribute | ast.Name)
        }
        return used | {found.target for found in self.imports[name]}

    def _base(self, name: str, node: ast.ImportFrom) -> str:
        """Return the absolute module that a ``from`` import takes names from."""
        if not node.level:
            return node.module or ""
        parts = name.split(".")
        parts = parts[: len(parts) - node.level + (name in self.packages)]
        return ".".join(parts + ([node.module] if node.module else []))

    def _imports(self, name: str) -> Iterator[Import]:
        """Yield the imports of a module and, as Python does, of the packages above."""
        for parent in parents(name):
            if parent in self.packages:
                yield Import(parent, lazy=False)
        for node, lazy in walk(self.trees[name], lazy=False):
            for target in self._targets(name, node):
                yield Import(target, lazy)
                for parent in parents(target):
                    if parent in self.packages:
                        yield Import(parent, lazy)

    def _targets(self, name: str, node: ast.AST) -> Iterator[str]:
        """Yield what one statement or call imports."""
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = self._base(name, node)
            yield base
            yield from (f"{base}.{item.name}" for item in node.names)
        elif isinstance(node, ast.Call) and node.args:
            first = node.args[0]
            called = resolve(node.func, {}).split(".")[-1]
            if (
                called in ("import_module", UNKNOWN + "__import__")
                and isinstance(first, ast.Constant)
                and isinstance(first.value, str)
            ):
                yield first.value


def walk(node: ast.AST, *, lazy: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Yield every node below and whether a function's body holds it."""
    for child in ast.iter_child_nodes(node):
        yield child, lazy
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from walk(child, lazy=lazy or is_function)


def parents(name: str) -> Iterator[str]:
    """Yield the packages that hold a module, outermost first."""
    parts = name.split(".")
    yield from (".".join(parts[:i]) for i in range(1, len(parts)))


def is_under(name: str, tops: tuple[str, ...]) -> bool:
    """Return whether a dotted name is one of `tops` or lies below one."""
    return any(name == top or name.startswith(f"{top}.") for top in tops)


def resolve(node: ast.AST, aliases: dict[str, str]) -> str:
    """Return ``a.b.c`` for such an expression, marked where it starts unknown."""
    if isinstance(node, ast.Name):
        return aliases.get(node.id, UNKNOWN + node.id)
    if isinstance(node, ast.Attribute):
        return f"{resolve(node.value, aliases)}.{node.attr}"
    return UNKNOWN


def reaching(
    sources: Sources,
    *,
    modules: list[str],
    targets: tuple[str, ...],
    lazy_in: tuple[str, ...] = FOLDERS,
) -> list[str]:
    """Return the chains by which any of `modules` reaches any of `targets`."""
    return [
        chain
        for module in modules
        for target, chain in sources.reached(module, lazy_in=lazy_in).items()
        if is_under(target, targets)
    ]


def tensorflow_where_it_must_not_be(sources: Sources) -> list[str]:
    """Losses, distill, models and evaluation import no TensorFlow."""
    modules = sources.inside(
        "mela_jax.losses",
        "mela_jax.distill",
        "mela_jax.models",
        "mela_jax.evaluation",
        "mela_jax.report",
    )
    return reaching(sources, modules=modules, targets=TENSORFLOW) + reaching(
        sources, modules=modules, targets=KERAS, lazy_in=()
    )


def jax_in_evaluation(sources: Sources) -> list[str]:
    """Evaluation turns arrays into numbers without JAX."""
    return reaching(
        sources,
        modules=sources.inside("mela_jax.evaluation", "mela_jax.report"),
        targets=JAX,
    )


def models_in_data(sources: Sources) -> list[str]:
    """Data knows nothing of models."""
    return reaching(
        sources, modules=sources.inside("mela_jax.data"), targets=("mela_jax.models",)
    )


def heavy_start_of_predict(sources: Sources) -> list[str]:
    """Predict starts without JAX and TensorFlow: a phone file needs neither."""
    return reaching(
        sources,
        modules=sources.inside("mela_jax.predict", "mela_jax.tflite"),
        targets=JAX + TENSORFLOW + KERAS,
        lazy_in=(),
    )


def heavy_start_of_the_main_job(sources: Sources) -> list[str]:
    """It starts without TensorFlow, whose import takes seconds."""
    return reaching(
        sources,
        modules=sources.inside("mela_jax.main", "mela_jax.pipeline"),
        targets=("tensorflow", *WRITERS, *KERAS),
        lazy_in=(),
    )


def tensorflow_past_its_module(sources: Sources) -> list[str]:
    """Only mela_jax.lazy_tensorflow imports it, in silence and without GPUs."""
    return [
        f"{module} -> {found.target}"
        for module in sources.inside("mela_jax")
        if module != "mela_jax.lazy_tensorflow"
        for found in sources.imports[module]
        if is_under(found.target, ("tensorflow", *WRITERS))
    ]


def heavy_start_of_the_gpu_benchmark(sources: Sources) -> list[str]:
    """It runs where there are JAX, Flax and Optax; TensorFlow and PyTorch can lack."""
    return reaching(
        sources,
        modules=sources.inside("benchmarks.gpu"),
        targets=TENSORFLOW
        + WRITERS
        + KERAS
        + ("ml_collections", "torch", "torchvision"),
        lazy_in=(),
    )


def outer_folders_in_mela_jax(sources: Sources) -> list[str]:
    """Export, tflite_bench and benchmarks use mela_jax, never the reverse."""
    return reaching(
        sources,
        modules=sources.inside("mela_jax"),
        targets=("export", "tflite_bench", "configs", "benchmarks"),
    )


def heavy_imports_in_tflite_bench(sources: Sources) -> list[str]:
    """tflite_bench runs where neither JAX nor TensorFlow is installed."""
    return reaching(
        sources,
        modules=sources.inside("tflite_bench"),
        targets=JAX + TENSORFLOW + KERAS,
        lazy_in=("tflite_bench",),
    )


def orbax_outside_checkpoint(sources: Sources) -> list[str]:
    """Only mela_jax.checkpoint imports orbax."""
    return [
        f"{module} -> {found.target}"
        for module in sources.trees
        if module != "mela_jax.checkpoint"
        for found in sources.imports[module]
        if is_under(found.target, ("orbax",))
    ]


def devices_outside_parallel(sources: Sources) -> list[str]:
    """Only mela_jax.parallel knows of meshes, shardings and hosts."""
    return [
        f"{module} uses {name}"
        for module in sources.trees
        if module != "mela_jax.parallel"
        for name in sources.dotted_names(module)
        if is_under(name, DEVICES)
    ]


def upward_imports(sources: Sources) -> list[str]:
    """Imports go down: main -> pipeline -> train -> steps -> the rest."""
    return [
        offence
        for i, layer in enumerate(LAYERS)
        for offence in reaching(
            sources, modules=sources.inside(*layer), targets=sum(LAYERS[:i], ())
        )
    ]


def unpickling(sources: Sources) -> list[str]:
    """Nothing unpickles, and numpy.load says so."""
    offences = []
    for module, tree in sources.trees.items():
        offences += [
            f"{module} uses {name}"
            for name in sources.dotted_names(module)
            if is_under(name, UNPICKLERS)
            or name == "torch.load"
            or name.rpartition(".")[2] in ("read_pickle", "to_pickle")
        ]
        aliases = sources.aliases(module)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            allowed = [word for word in node.keywords if word.arg == "allow_pickle"]
            if any(
                not isinstance(word.value, ast.Constant)
                or word.value.value is not False
                for word in allowed
            ):
                offences.append(f"{module}:{node.lineno} allows pickle")
            elif not allowed and resolve(node.func, aliases) in NUMPY_LOADERS:
                offences.append(f"{module}:{node.lineno} loads without allow_pickle")
    return offences


RULES = (
    tensorflow_where_it_must_not_be,
    jax_in_evaluation,
    models_in_data,
    heavy_start_of_predict,
    heavy_start_of_the_main_job,
    tensorflow_past_its_module,
    heavy_start_of_the_gpu_benchmark,
    outer_folders_in_mela_jax,
    heavy_imports_in_tflite_bench,
    orbax_outside_checkpoint,
    devices_outside_parallel,
    upward_imports,
    unpickling,
)


@pytest.fixture(scope="module")
def repository() -> Sources:
    # Abandoned tasks of earlier tests, collected while Python builds a syntax tree, log
    # a traceback, for which Python 3.11 parses too: that ends in a SystemError.
    gc.collect()
    return Sources(
        {
            ".".join(
                path.relative_to(REPOSITORY).with_suffix("").parts
            ): path.read_text()
            for folder in FOLDERS
            for path in (REPOSITORY / folder).rglob("*.py")
        }
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps(repository, rule):
    assert rule(repository) == []


def test_the_repository_is_found(repository):
    assert {"mela_jax", "mela_jax.predict", "mela_jax.data.image_io"} <= set(
        repository.trees
    )


OFFENCES = [
    (tensorflow_where_it_must_not_be, {"mela_jax.losses": "import tensorflow as tf"}),
    (
        tensorflow_where_it_must_not_be,
        {"mela_jax.models.resnet": "def f():\n    from tensorflow import keras"},
    ),
    (
        tensorflow_where_it_must_not_be,
        {"mela_jax.models.pretrained": "from keras import applications"},
    ),
    (
        tensorflow_where_it_must_not_be,
        {
            "mela_jax.distill.logits": "from mela_jax.data import views",
            "mela_jax.data.views": "import tensorflow_datasets.public_api",
        },
    ),
    (
        tensorflow_where_it_must_not_be,
        {
            "mela_jax.report.main_report": "from ..data.records import Record",
            "mela_jax.data.__init__": "import tensorflow",
            "mela_jax.data.records": "",
        },
    ),
    (
        tensorflow_where_it_must_not_be,
        {"mela_jax.losses": "import importlib\nimportlib.import_module('tensorflow')"},
    ),
    (jax_in_evaluation, {"mela_jax.evaluation.scores": "import jax.numpy as jnp"}),
    (
        jax_in_evaluation,
        {
            "mela_jax.evaluation.__init__": "from . import plots",
            "mela_jax.report.plots": "from mela_jax.losses import focal",
            "mela_jax.losses": "import jax",
        },
    ),
    (models_in_data, {"mela_jax.data.cache": "from ..models import zoo"}),
    (models_in_data, {"mela_jax.data.__init__": "from mela_jax import models"}),
    (
        heavy_start_of_predict,
        {
            "mela_jax.predict": "from mela_jax.data.image_io import load_square",
            "mela_jax.data.__init__": "from mela_jax.data import input_pipeline",
            "mela_jax.data.input_pipeline": "import tensorflow as tf",
        },
    ),
    (heavy_start_of_predict, {"mela_jax.predict": "if True:\n    import jax"}),
    (
        heavy_start_of_the_main_job,
        {
            "mela_jax.pipeline": "from mela_jax.data import input_pipeline",
            "mela_jax.data.input_pipeline": "import tensorflow as tf",
        },
    ),
    (
        tensorflow_past_its_module,
        {"mela_jax.data.cache": "def f():\n    import tensorflow as tf"},
    ),
    (
        tensorflow_past_its_module,
        {"mela_jax.progress": "def f():\n    from clu import metric_writers"},
    ),
    (heavy_start_of_the_gpu_benchmark, {"benchmarks.gpu": "import torch"}),
    (
        heavy_start_of_the_gpu_benchmark,
        {
            "benchmarks.gpu": "from mela_jax.data import views",
            "mela_jax.data.views": "import tensorflow as tf",
        },
    ),
    (heavy_start_of_predict, {"mela_jax.tflite": "import tensorflow as tf"}),
    (outer_folders_in_mela_jax, {"mela_jax.predict": "def f():\n    import export.x"}),
    (outer_folders_in_mela_jax, {"mela_jax.train": "from benchmarks import timing"}),
    (outer_folders_in_mela_jax, {"mela_jax.main": "from tflite_bench import host"}),
    (
        heavy_imports_in_tflite_bench,
        {"tflite_bench.host": "def f():\n    import tensorflow.lite"},
    ),
    (
        heavy_imports_in_tflite_bench,
        {"tflite_bench.host": "tf = __import__('tensorflow')"},
    ),
    (
        heavy_imports_in_tflite_bench,
        {
            "tflite_bench.host": "from mela_jax import state",
            "mela_jax.state": "import flax.linen as nn",
        },
    ),
    (orbax_outside_checkpoint, {"mela_jax.train": "import orbax.checkpoint as ocp"}),
    (orbax_outside_checkpoint, {"export.save": "from orbax import checkpoint"}),
    (devices_outside_parallel, {"mela_jax.train": "from jax.sharding import Mesh"}),
    (
        devices_outside_parallel,
        {"mela_jax.steps": "import jax as j\nf = j.shard_map(g)"},
    ),
    (
        devices_outside_parallel,
        {"mela_jax.main": "import jax\njax.distributed.shutdown()"},
    ),
    (devices_outside_parallel, {"mela_jax.state": "from jax import sharding as s"}),
    (
        devices_outside_parallel,
        {"mela_jax.train": "from jax.experimental.shard_map import shard_map"},
    ),
    (upward_imports, {"mela_jax.steps": "from mela_jax import train"}),
    (upward_imports, {"mela_jax.state": "from .steps import make_eval_step"}),
    (upward_imports, {"mela_jax.pipeline": "from mela_jax.main import main"}),
    (upward_imports, {"mela_jax.models.head": "def f():\n    from ..train import fit"}),
    (
        upward_imports,
        {
            "mela_jax.losses": "from mela_jax import helper",
            "mela_jax.helper": "from mela_jax import pipeline",
        },
    ),
    (unpickling, {"mela_jax.checkpoint": "import pickle"}),
    (unpickling, {"export.load": "from joblib import load"}),
    (unpickling, {"mela_jax.data.user_csv": "import pandas as pd\npd.read_pickle(p)"}),
    (
        unpickling,
        {"mela_jax.losses": "import numpy as np\nnp.load(p, allow_pickle=True)"},
    ),
    (
        unpickling,
        {"mela_jax.losses": "import numpy as np\nnp.load(p, allow_pickle=yes)"},
    ),
    (unpickling, {"mela_jax.data.cache": "import numpy as np\nnp.load(p)"}),
    (unpickling, {"mela_jax.data.cache": "from numpy import load\nload(p)"}),
    (unpickling, {"export.load": "import torch\ntorch.load(p)"}),
]


@pytest.mark.parametrize("rule, texts", OFFENCES)
def test_a_made_up_offence_is_named(rule, texts):
    offences = rule(Sources(texts))
    assert offences
    assert any(next(iter(texts)).removesuffix(".__init__") in line for line in offences)


def test_every_rule_is_shown_to_fail():
    assert {rule for rule, _ in OFFENCES} == set(RULES)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_what_is_allowed_stays_allowed(rule):
    sources = Sources(
        {
            "mela_jax.__init__": "",
            "mela_jax.main": "from mela_jax import pipeline",
            "mela_jax.pipeline": "from .train import fit\nimport tensorflow_datasets",
            "mela_jax.train": "import jax\nfrom mela_jax import checkpoint, steps",
            "mela_jax.steps": "import jax\njax.lax.pmean(x, 'batch')\njax.devices()",
            "mela_jax.parallel": "import jax\njax.make_mesh((1,), ('batch',))",
            "mela_jax.checkpoint": "import orbax.checkpoint as ocp\n"
            "import numpy as np\nnp.load(p, allow_pickle=False)",
            "mela_jax.models.__init__": "",
            "mela_jax.models.pretrained": "def fetch():\n    import keras",
            "mela_jax.evaluation.scores": "import numpy as np\n"
            "from mela_jax.data.records import Record",
            "mela_jax.data.__init__": "",
            "mela_jax.data.records": "from mela_jax.errors import UserError",
            "mela_jax.lazy_tensorflow": "def f():\n    import tensorflow as tf",
            "benchmarks.gpu": "def f():\n    import torch",
            "mela_jax.predict": "def f():\n    import mela_jax.inference",
            "mela_jax.inference": "import jax",
            "mela_jax.errors": "",
            "tflite_bench.host": "from mela_jax.predict import find_images",
            "export.convert": "import jax, tensorflow\nfrom mela_jax import models",
        }
    )
    assert rule(sources) == []
