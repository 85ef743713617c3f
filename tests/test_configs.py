"""Every experiment of configs/ is a valid configuration."""

import runpy

import pytest

from mela_jax import config
from mela_jax.errors import UserError
from tests.job import REPOSITORY

FILES = [
    path.relative_to(REPOSITORY / "configs")
    for folder in ("configs", "configs/papers")
    for path in sorted((REPOSITORY / folder).glob("*.py"))
    if path.name not in ("__init__.py", "cpu.py")
]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_an_experiment_is_valid(file):
    experiment = runpy.run_path(str(REPOSITORY / "configs" / file))["get_config"]()
    experiment.data.dir = experiment.data.dir or "given"
    config.validate(experiment)


def test_a_method_on_a_cpu_differs_from_the_published_one_in_size_alone():
    methods = ("blkd", "fitnet", "rkd", "crkd", "dkd", "decoupled", "kd_lesions")
    for name in methods:
        small, full = (
            runpy.run_path(str(REPOSITORY / "configs/papers" / f"{file}.py"))
            for file in (f"{name}_cpu", name)
        )
        small, full = small["get_config"](), full["get_config"]()
        assert small.distill == full.distill
        assert (small.image_size, small.cpu_devices) == (64, 2)
        assert full.image_size == 224


@pytest.mark.parametrize(
    ("model", "size", "said"),
    [
        ("vit_b16", 100, "vit_b16 takes 16 or more pixels, multiples of 16"),
        ("inception_v3", 64, "inception_v3 takes 75 or more pixels"),
    ],
)
def test_a_size_that_a_network_cannot_see_is_refused(model, size, said):
    experiment = config.default()
    experiment.update({"image_size": size, "teacher": {"model": model}})
    with pytest.raises(UserError, match=said):
        config.validate(experiment)
    experiment.image_size = 224
    config.validate(experiment)
