"""The training loop: it never waits for the devices but to look at the loss."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mela_jax import parallel
from tests.test_faults import fit_tiny

# What of an array makes the host wait for the devices. On a CPU, JAX's transfer guard
# lets them all pass, so they are watched by name.
WAITS = ("_value", "__array__", "block_until_ready")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record "step" and "wait", in order, of the thread that trains."""
    found: list[str] = []
    # Checkpoints are written by threads of their own, beside the loop.
    trainer = threading.get_ident()
    array = type(jnp.zeros(()))

    def record(event: str) -> None:
        if threading.get_ident() == trainer:
            found.append(event)

    def waits(wrapped: Callable[..., Any]) -> Callable[..., Any]:
        def waiting(*args: Any, **kwargs: Any) -> Any:
            record("wait")
            return wrapped(*args, **kwargs)

        return waiting

    for name in WAITS:
        old = getattr(array, name)
        new = property(waits(old.fget)) if isinstance(old, property) else waits(old)
        monkeypatch.setattr(array, name, new)
    monkeypatch.setattr(jax, "block_until_ready", waits(jax.block_until_ready))
    map_train_step = parallel.map_train_step

    def recording(*args: Any) -> Callable[..., Any]:
        step = map_train_step(*args)

        def take(*state: Any) -> Any:
            record("step")
            return step(*state)

        return take

    monkeypatch.setattr(parallel, "map_train_step", recording)
    yield found


@pytest.mark.parametrize(
    "look",
    [
        float,
        bool,
        np.asarray,
        jax.device_get,
        jax.block_until_ready,
        lambda x: x.block_until_ready(),
        lambda x: x.item(),
        lambda x: parallel.gather(x),
        lambda x: f"{x:.3f}",
    ],
)
def test_every_way_to_look_at_an_array_is_seen(events: list[str], look: Any):
    """Without this, the test below could not fail.

    The array lies on all devices, as the loop's do. (One that a single CPU device
    holds lends NumPy its memory, and no method is called.)
    """
    x = parallel.replicate(parallel.make_mesh(), np.float32(1))
    assert events == []
    look(x)
    assert "wait" in events


@pytest.mark.parametrize(("every", "looks"), [(100, {4, 8}), (3, {3, 4, 6, 8})])
@pytest.mark.parametrize("on_device", [False, True])
def test_the_host_waits_only_where_it_logs(
    events: list[str], tmp_path: Path, every: int, looks: set[int], on_device: bool
):
    """Two epochs of four steps; each ends with validation and a checkpoint."""
    fit_tiny(
        tmp_path,
        augment_on_device=on_device,
        log_every_steps=every,
        batch_size=8,
        epochs=2,
    )
    assert events.count("step") == 8
    # Before the first step, the state is put on the devices.
    taken = events[events.index("step") :]
    waited_after, step = set(), 0
    for event in taken:
        step += event == "step"
        if event == "wait":
            waited_after.add(step)
    assert waited_after == looks


def test_a_batch_left_on_the_host_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It would be copied by the step itself, with the device waiting for it."""
    monkeypatch.setattr(parallel, "prefetch", lambda mesh, batches: batches)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        fit_tiny(tmp_path)


def test_views_of_the_device_train_as_those_of_the_host(tmp_path: Path):
    host, device = (
        fit_tiny(tmp_path / str(on), augment_on_device=on, epochs=2)
        for on in (False, True)
    )
    for theirs, ours in zip(host.history, device.history, strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-3)
        assert ours["val/loss"] == pytest.approx(theirs["val/loss"], rel=1e-3)
