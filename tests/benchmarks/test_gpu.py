"""The GPU benchmark works at a tiny size; what it measures is not looked at."""

import dataclasses
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu, gpu_jax
from benchmarks.gpu_settings import Settings
from mela_jax import parallel
from mela_jax.distill.logits import tempered_kl
from mela_jax.errors import UserError
from mela_jax.losses import cross_entropy
from tests import tiny
from tests.job import REPOSITORY

SETTINGS = Settings(
    batch_size=tiny.BATCH_SIZE,
    image_size=tiny.IMAGE_SIZE,
    steps=2,
    matrix_size=16,
    products=2,
    images=2 * tiny.BATCH_SIZE + 3,
    epochs=3,
    train_size=12,
    seed=0,
)


@pytest.fixture
def tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure networks that compile in a second."""
    network = tiny.network(axis_name=parallel.BATCH_AXIS, dtype=jnp.bfloat16)
    monkeypatch.setattr(gpu_jax, "networks", lambda: (network, network))


def test_the_jax_half_measures_steps_and_matrix_rate(tiny_networks, capsys):
    gpu.measure_step(SETTINGS, (), rounds=2, warmup=1)
    text = capsys.readouterr().out
    teacher, student = gpu_jax.forward_flops(SETTINGS)
    # One convolution of 3x3x3x6 at stride 2 of 8 pixels, and the head's 6 products.
    assert teacher == student == 2 * (4 * 4 * 27 * 6 + 6)
    row = re.search(r"^JAX +([\d,.]+) \(([\d,.]+)-([\d,.]+)\)", text, re.MULTILINE)
    middle, low, high = (float(part.replace(",", "")) for part in row.groups())
    assert 0 < low <= middle <= high
    assert "measured matrix rate" in text and "PyTorch" not in text


def test_the_epoch_is_measured_end_to_end_and_in_parts(tiny_networks, capsys):
    gpu.measure_pipeline(SETTINGS, rounds=1, warmup=1)
    text = capsys.readouterr().out
    assert f"{6 * tiny.BATCH_SIZE} made-up images of 12 px (3 epochs)" in text
    for name in ("views on the device", "steps alone", "host part", "on the host"):
        assert re.search(rf"^.*{name}.* +[\d,.]+ \(", text, re.MULTILINE)
    assert re.search(r"ratio end to end / steps alone: \d+\.\d\d", text)


def test_a_step_that_diverges_is_not_timed(tiny_networks):
    run = gpu_jax.make_step_run(dataclasses.replace(SETTINGS, learning_rate=1e30))
    with pytest.raises(RuntimeError, match="the loss is not finite"):
        run(), run()


def test_without_torch_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu.main([]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: there is nothing to compare with: torch cannot")
    assert "--skip_torch" in message and message.count("\n") == 1
    gpu._check(SETTINGS, skip_torch=True)


def test_what_cannot_be_measured_is_refused(monkeypatch):
    with pytest.raises(UserError, match="8 devices.*CUDA_VISIBLE_DEVICES"):
        gpu._check(SETTINGS, skip_torch=True)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    few = dataclasses.replace(SETTINGS, images=3)
    with pytest.raises(UserError, match="--images=3 is less than a batch"):
        gpu._check(few, skip_torch=True)
    with pytest.raises(SystemExit):
        gpu.main(["--batch_size=0"])


def test_it_starts_without_what_only_the_whole_job_needs():
    """A machine with a GPU may have JAX, Flax, Optax and PyTorch, and no more."""
    absent = ("cv2", "tensorflow", "tensorflow_datasets", "ml_collections", "orbax")
    absent += ("absl", "sklearn", "statsmodels", "matplotlib", "h5py", "PIL", "tqdm")
    code = (
        f"import sys, benchmarks.gpu\nprint(sorted(set({absent!r}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    # Flax itself imports orbax and what that needs.
    assert set(eval(done.stdout)) <= {"orbax", "absl"}


def test_the_torch_half_computes_the_same_loss():
    pytest.importorskip("torchvision", reason="PyTorch is not installed")
    import torch

    from benchmarks import gpu_torch

    rng = np.random.default_rng(0)
    z, t = rng.normal(0, 5, (2, 50)).astype(np.float32)
    y = rng.integers(0, 2, 50)
    theirs = gpu_torch.distillation_loss(
        *(torch.tensor(x) for x in (z, t)),
        torch.tensor(y).float(),
        alpha=0.7,
        temperature=2.0,
    )
    hard = cross_entropy(z[:, None], y)
    soft = tempered_kl(z[:, None], t[:, None], temperature=2.0)
    ours = 0.3 * hard + 0.7 * soft
    assert float(theirs) == pytest.approx(float(ours.mean()), rel=1e-5)


def test_the_torch_half_computes_the_same_networks():
    pytest.importorskip("torchvision", reason="PyTorch is not installed")
    from benchmarks import gpu_torch

    settings = dataclasses.replace(SETTINGS, image_size=64)
    for ours, theirs in zip(
        gpu_jax.forward_flops(settings),
        gpu_torch.forward_flops(settings),
        strict=True,
    ):
        assert theirs == pytest.approx(ours, rel=0.01)
