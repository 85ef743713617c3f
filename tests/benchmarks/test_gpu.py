"""The GPU benchmark works at a tiny size; what it measures is not looked at."""

import argparse
import json
import re
import sys

import jax
import numpy as np
import pytest

from benchmarks import gpu, jax_networks
from benchmarks.gpu_record import Record
from mela_jax import parallel
from mela_jax.distill.logits import tempered_kl
from mela_jax.errors import UserError
from mela_jax.losses import cross_entropy
from tests import tiny


def settings(**changes: int) -> argparse.Namespace:
    """Return the numbers of the smallest measurement."""
    numbers = {
        "batch_size": tiny.BATCH_SIZE,
        "image_size": tiny.IMAGE_SIZE,
        "steps": 2,
        "rounds": 1,
        "warmup": 1,
        "matrix_size": 16,
        "products": 2,
        "images": 2 * tiny.BATCH_SIZE + 3,
        "epochs": 3,
        "train_size": 12,
    }
    return argparse.Namespace(**{**numbers, **changes})


@pytest.fixture
def tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure networks that compile in a second."""
    monkeypatch.setattr(
        jax_networks,
        "network",
        lambda _, dtype: tiny.network(axis_name=parallel.BATCH_AXIS, dtype=dtype),
    )


def test_the_jax_half_measures_steps_and_matrix_rate(tiny_networks, capsys):
    gpu.measure_step(settings(rounds=2), (), Record())
    text = capsys.readouterr().out
    teacher, student = gpu.forward_flops(tiny.IMAGE_SIZE)
    # One convolution of 3x3x3x6 at stride 2 of 8 pixels, and the head's 6 products.
    assert teacher == student == 2 * (4 * 4 * 27 * 6 + 6)
    row = re.search(r"^JAX +([\d,.]+) \(([\d,.]+)-([\d,.]+)\)", text, re.MULTILINE)
    middle, low, high = (float(part.replace(",", "")) for part in row.groups())
    assert 0 < low <= middle <= high
    assert "measured matrix rate" in text and "PyTorch" not in text


def test_the_epoch_is_measured_end_to_end_and_in_parts(tiny_networks, capsys):
    gpu.measure_pipeline(settings(), Record())
    text = capsys.readouterr().out
    assert f"{6 * tiny.BATCH_SIZE} made-up images of 12 px (3 epochs)" in text
    for name in ("views on the device", "steps alone", "host part", "on the host"):
        assert re.search(rf"^.*{name}.* +[\d,.]+ \(", text, re.MULTILINE)
    assert re.search(r"ratio end to end / steps alone: \d+\.\d\d", text)


def test_a_step_that_diverges_is_not_timed(tiny_networks, monkeypatch):
    monkeypatch.setitem(gpu.OPTIMIZER, "learning_rate", 1e30)
    run = gpu.make_step_run(settings())
    with pytest.raises(RuntimeError, match="the loss is not finite"):
        run(), run()


def test_a_run_that_is_stopped_keeps_what_it_measured(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    calls = iter(range(4))

    def second() -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt

    makers = {
        "first": (lambda: lambda: None, 10, "FLOP"),
        "second": (lambda: second, 20, "images"),
    }
    record = Record(str(path), settings={"steps": 2})
    record.say("imported", jax="0.10")
    with pytest.raises(KeyboardInterrupt):
        record.time(makers, 5, 2)
    kept = json.loads(path.read_text())
    assert (kept["settings"], kept["jax"]) == ({"steps": 2}, "0.10")
    first, last = kept["calls"]["first"], kept["calls"]["second"]
    assert (first["work"], first["unit"]) == (10, "FLOP")
    assert (len(first["warmup_seconds"]), len(first["seconds"])) == (2, 1)
    assert (len(last["warmup_seconds"]), len(last["seconds"])) == (2, 0)
    lines = re.findall(r"^ *[\d.]+ s  ([\w: -]+)", capsys.readouterr().out, re.M)
    warm_up = "first: warm-up call took 0"
    assert lines[:4] == ["imported", "first: made", warm_up, warm_up]
    assert [phase for _, phase in kept["phases"]][-1].startswith("first: timed call")


def test_without_torch_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu.main([]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: there is nothing to compare with: torch cannot")
    assert "--skip_torch" in message and message.count("\n") == 1


def test_what_cannot_be_measured_is_refused(monkeypatch):
    sizes = {"image_size": 32, "train_size": 32}
    with pytest.raises(UserError, match="8 devices.*CUDA_VISIBLE_DEVICES"):
        gpu._check(settings(**sizes))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    gpu._check(settings(**sizes))
    with pytest.raises(UserError, match="--images=3 is less than a batch"):
        gpu._check(settings(images=3))
    for name in sizes:
        with pytest.raises(UserError, match=f"--{name}=31 is below 32"):
            gpu._check(settings(**{**sizes, name: 31}))
    with pytest.raises(SystemExit):
        gpu.main(["--batch_size=0"])


def test_the_torch_half_computes_the_same_loss():
    pytest.importorskip("torchvision", reason="PyTorch is not installed")
    import torch

    from benchmarks import gpu_torch

    rng = np.random.default_rng(0)
    z, t = rng.normal(0, 5, (2, 50)).astype(np.float32)
    y = rng.integers(0, 2, 50)
    theirs = gpu_torch.distillation_loss(
        *(torch.tensor(x) for x in (z, t)), torch.tensor(y).float()
    )
    hard = cross_entropy(z[:, None], y)
    soft = tempered_kl(z[:, None], t[:, None], temperature=2.0)
    ours = 0.5 * hard + 0.5 * soft
    assert float(theirs) == pytest.approx(float(ours.mean()), rel=1e-5)


def test_the_torch_half_computes_the_same_networks():
    pytest.importorskip("torchvision", reason="PyTorch is not installed")
    from benchmarks import gpu_torch

    for ours, theirs in zip(
        gpu.forward_flops(64), gpu_torch.forward_flops(64), strict=True
    ):
        assert theirs == pytest.approx(ours, rel=0.01)
