"""Which rows an epoch shows, and how many times an image has been shown."""

import numpy as np
import pytest
from scipy.stats import chisquare

from mela_jax.data.sampling import make_order, make_sweep, process_share
from mela_jax.errors import UserError


def test_an_epoch_is_numpys_permutation_of_its_own_seed():
    order = make_order(50, seed=5)
    for epoch in (0, 1, 7):
        rows, times = order(epoch)
        rng = np.random.default_rng(np.random.SeedSequence([5, epoch]))
        np.testing.assert_array_equal(rows, rng.permutation(50))
        np.testing.assert_array_equal(times, np.full(50, epoch))


def test_weighted_rows_come_in_proportion():
    """Balanced classes of 900, 90 and 10: a third of the draws each."""
    classes = np.repeat([0, 1, 2], [900, 90, 10])
    weights = 1.0 / np.bincount(classes)[classes]
    order = make_order(1000, seed=0, weights=weights)
    drawn = np.concatenate([order(epoch)[0] for epoch in range(20)])
    counts = np.bincount(classes[drawn])
    assert chisquare(counts).pvalue > 0.001
    # Within a class all rows are alike.
    assert chisquare(np.bincount(drawn)[990:]).pvalue > 0.001
    # And the test would see the classes' own shares.
    plain = np.concatenate([make_order(1000, seed=0)(e)[0] for e in range(20)])
    assert chisquare(np.bincount(classes[plain])).pvalue < 1e-10


def test_a_row_of_no_weight_never_comes():
    order = make_order(10, seed=0, weights=np.arange(10) % 2)
    drawn = np.concatenate([order(epoch)[0] for epoch in range(20)])
    assert set(drawn) == {1, 3, 5, 7, 9}


def test_an_epochs_draws_follow_from_seed_and_epoch_alone():
    weights = np.arange(1, 41)
    order = make_order(40, seed=3, weights=weights)
    in_turn = [order(epoch) for epoch in range(6)]
    for epoch in (5, 2, 4):
        again = make_order(40, seed=3, weights=weights)(epoch)
        for ours, theirs in zip(again, in_turn[epoch], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert in_turn[0][0].tolist() != in_turn[1][0].tolist()
    other = make_order(40, seed=4, weights=weights)(0)[0]
    assert in_turn[0][0].tolist() != other.tolist()


def test_a_weighted_rows_times_are_counted_without_a_gap():
    """So no two showings share a view, and none is left out."""
    order = make_order(30, seed=1, weights=np.arange(30) ** 2)
    shown: dict[int, list[int]] = {}
    for epoch in range(8):
        for row, time in zip(*order(epoch), strict=True):
            shown.setdefault(int(row), []).append(int(time))
    assert max(len(times) for times in shown.values()) > 8
    for times in shown.values():
        assert times == list(range(len(times)))


@pytest.mark.parametrize(("batch_size", "count"), [(4, 1), (4, 2), (19, 1), (32, 2)])
def test_a_sweep_holds_every_row_once(batch_size, count):
    rows = np.arange(2, 21)
    sweeps = [
        make_sweep(rows, batch_size=batch_size, process_index=p, process_count=count)
        for p in range(count)
    ]
    (num_batches,) = {number for _, number in sweeps}
    parts = [rows_of(n) for n in range(num_batches) for rows_of, _ in sweeps]
    index, mask = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert len(index) == num_batches * batch_size == -(-19 // batch_size) * batch_size
    np.testing.assert_array_equal(index[mask == 1], rows)
    np.testing.assert_array_equal(index[mask == 0], 2)


def test_refusals():
    assert process_share(12, 4) == 3
    with pytest.raises(UserError, match="12 images does not divide among 5"):
        process_share(12, 5)
    with pytest.raises(UserError, match="no images"):
        make_sweep(np.arange(0), batch_size=4, process_index=0, process_count=1)
