"""What every test stands on: eight virtual CPU devices, quiet logs, real images.

Real images are looked for in the folder that the environment variable
``MELA_SHARED`` names, by default ``../shared`` beside the repository. Tests that need
them skip, with the reason, where they are absent.
"""

import os
import shutil
import tempfile
from pathlib import Path

# Before anything imports TensorFlow or JAX, both of which read these only once.
# Processes that tests start inherit them.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["JAX_PLATFORMS"] = "cpu"
# A compiled program left by another version of the code must not decide a test. Those
# of one session are shared by its tests: see `pytest_configure`.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from mela_jax.atomic import hold_lock  # noqa: E402
from tests.job import Job, make_up_calibration  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# The same examples on every machine and no time limit for one: the first example pays
# for XLA's compilation.
hypothesis.settings.register_profile(
    "repeatable", derandomize=True, deadline=None, database=None
)
hypothesis.settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parent.parent
_PROGRAMS = "MELA_TESTS_COMPILED_PROGRAMS"
# Minutes each: where several workers share the files, nobody should be left with one.
_LONGEST = (
    "test_main_job.py",
    "test_faults.py",
    "test_teacher_cache.py",
    "test_study_command.py",
    "test_workers.py",
    "test_parallel.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Share the programs that a session compiles among its tests and its workers."""
    if not hasattr(config, "workerinput"):
        os.environ[_PROGRAMS] = tempfile.mkdtemp(prefix="mela-tests-xla-")
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", os.environ[_PROGRAMS])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, each of which stays with one worker."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove them."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[_PROGRAMS], ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real images and weights, or skip the test."""
    folder = Path(os.environ.get("MELA_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder} is absent (name it in MELA_SHARED)")
    return folder.resolve()


@pytest.fixture(scope="session")
def ham10000_small(shared: Path) -> Path:
    """Return the folder of HAM10000 at 200x150 pixels, or skip the test."""
    folder = shared / "data" / "ham10000_200x150"
    if not folder.is_dir():
        pytest.skip(f"no HAM10000 at 200x150 pixels: {folder} is absent")
    return folder


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Return the smallest whole job, whose runs share images and compiled programs.

    Workers of one session share them, too, and with them what `finished` and `exported`
    leave.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    root = folder / "job"
    root.mkdir(exist_ok=True)
    return Job(root)


@pytest.fixture(scope="session")
def finished(job: Job) -> Path:
    """Return the workdir of a finished, uninterrupted run. Tests must not change it."""
    workdir = job.root / "finished"
    with hold_lock(job.root / "finished.lock"):
        if not (workdir / "report" / "metrics.json").exists():
            done = job.run(workdir)
            assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="session")
def exported(job: Job, finished: Path) -> Path:
    """Return the export of all modes of a finished run. Tests must not change it."""
    workdir = job.root / "exported"
    with hold_lock(job.root / "exported.lock"):
        if not workdir.exists():
            shutil.copytree(finished, workdir)
            make_up_calibration(workdir)
            # Likewise, whether its int8 file is within the tolerance, and so which
            # recipe it takes, would be a matter of rounding.
            done = job.run_module(
                "export.to_tflite",
                f"--workdir={workdir}",
                "--max_auc_loss=2",
                "--max_specificity_loss=2",
            )
            assert done.returncode == 0, done.stderr
    return workdir / "export"
