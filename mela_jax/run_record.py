"""The workdir: whose it is, under which configuration, and that one process uses it."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mela_jax import parallel
from mela_jax.atomic import hold_lock, write_text
from mela_jax.config import differences, with_defaults
from mela_jax.data.records import Record
from mela_jax.errors import UserError

_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow"),
    *("scikit-learn", "scipy", "numpy", "pillow"),
)


class WorkdirInUse(UserError):
    """Another process has the workdir."""


@contextlib.contextmanager
def exclusive(workdir: Path) -> Iterator[None]:
    """Hold the workdir for this run; of several processes, the main one does.

    Raises:
      WorkdirInUse: another run has it.
      UserError: it cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            if parallel.is_main_process():
                stack.enter_context(hold_lock(workdir / ".lock", wait=False))
        except BlockingIOError as error:
            raise WorkdirInUse(
                f"--workdir={workdir}: another run is using it; wait for it, or choose"
                " another workdir"
            ) from error
        except OSError as error:
            raise UserError(
                f"--workdir={workdir}: cannot be written ({error.strerror}); choose"
                " another"
            ) from error
        yield


def claim(workdir: Path, config: ConfigDict, records: Sequence[Record]) -> None:
    """Write config.json into a new workdir, or check that an old one is of this run.

    Raises:
      UserError: the workdir belongs to another configuration or other data.
    """
    path = workdir / "config.json"
    wanted = {
        "config": json.loads(config.to_json()),
        "data": {
            "images": len(records),
            "melanomas": sum(r.label for r in records),
            "lesions": len({r.lesion_id for r in records}),
            "fingerprint": data_fingerprint(records),
        },
    }
    if not path.exists():
        if parallel.is_main_process():
            content = {**wanted, "provenance": provenance(config)}
            write_text(path, json.dumps(content, indent=2) + "\n")
        return
    try:
        found = json.loads(path.read_text())
        old = {"config": with_defaults(found["config"]), "data": found["data"]}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: is damaged ({error}); choose another --workdir"
        ) from error
    if changed := differences(old, wanted):
        raise UserError(
            f"--workdir={workdir} belongs to a run with another configuration:"
            f" {'; '.join(changed)}; choose another --workdir, or undo the change"
        )


def data_fingerprint(records: Sequence[Record]) -> str:
    """Return the SHA-256 of every image's id, lesion and label."""
    digest = hashlib.sha256()
    for r in sorted(records, key=lambda r: r.image_id):
        digest.update(f"{r.image_id},{r.lesion_id},{r.label}\n".encode())
    return digest.hexdigest()


def provenance(config: ConfigDict) -> dict[str, Any]:
    """Return what made this run: code, packages, seeds, devices."""
    return {
        "git_commit": _git_commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "seeds": {"seed": config.seed, "split_seed": config.data.split_seed},
        "devices": parallel.describe_devices(),
    }


def _git_commit() -> str:
    """Return the code's commit, marked when files differ; "unknown" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(
            command,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
