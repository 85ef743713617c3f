"""TensorFlow, and what of clu needs it, imported when training starts and not before.

The import takes about two seconds of CPU. A finished run that is asked for again, the
evaluation and `mela_jax.predict` do without it.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any

# Notices that come before TensorFlow reads TF_CPP_MIN_LOG_LEVEL.
_NOTICE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|[IWE]\d{4} .*\b(port|cud\w+|computation_placer)\.cc:\d+\]"
)

_tensorflow: Any = None


def import_tensorflow() -> Any:
    """Import TensorFlow without its notices, and let it see no GPU: JAX has those.

    Returns:
      The module.
    """
    global _tensorflow
    if _tensorflow is None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with _without_notices():
            import tensorflow

            tensorflow.config.set_visible_devices([], "GPU")
        _tensorflow = tensorflow
    return _tensorflow


def import_clu() -> tuple[Any, Any]:
    """Import clu's metric_writers and periodic_actions, which import TensorFlow.

    Returns:
      The two modules.
    """
    import_tensorflow()
    from clu import metric_writers, periodic_actions

    return metric_writers, periodic_actions


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    """Hold back what the process writes to stderr, and then drop the notices from it.

    They are written by C++ to the file descriptor, past anything of Python's.
    """
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held, open(stderr, "wb") as out:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            held.seek(0)
            out.writelines(line for line in held if not _NOTICE.match(line))
