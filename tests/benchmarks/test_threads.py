import numpy as np

from benchmarks.threads import fetch_ahead
from mela_jax.data.input_pipeline import make_train_batches, make_train_fetch
from tests.views import IMAGES, LABELS, OPTIONS, ROWS


def test_threads_give_the_batches_of_tf_data():
    fetch = make_train_fetch(IMAGES, LABELS, ROWS, **OPTIONS)
    ours = list(fetch_ahead(fetch, start=3, stop=10))
    theirs = list(
        make_train_batches(IMAGES, LABELS, ROWS, start_step=3, num_steps=10, **OPTIONS)
    )
    assert len(ours) == len(theirs) == 7
    for batch, other in zip(ours, theirs, strict=True):
        for key in other:
            np.testing.assert_array_equal(batch[key], other[key], strict=True)
