"""TensorFlow, and what of clu needs it, imported when training starts and not before.

The import takes about two seconds of CPU. A finished run that is asked for again, the
evaluation and `mela_jax.predict` do without it.
"""

import functools
import os
from typing import Any


@functools.cache
def import_tensorflow() -> Any:
    """Return TensorFlow, imported, which is to see no GPU: JAX has those."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow


def import_clu() -> tuple[Any, Any]:
    """Return clu's metric_writers and periodic_actions, which import TensorFlow."""
    import_tensorflow()
    from clu import metric_writers, periodic_actions

    return metric_writers, periodic_actions
