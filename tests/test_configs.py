"""Every experiment of configs/ is a valid configuration."""

import runpy

import pytest

from mela_jax import config
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
