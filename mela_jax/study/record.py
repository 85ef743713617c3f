"""study.json: whose workdir it is, so that no study goes on as another one."""

import dataclasses
import json
import uuid
from pathlib import Path
from typing import Any

from absl import logging

from mela_jax import run_record
from mela_jax.atomic import write_atomically
from mela_jax.config import differences
from mela_jax.errors import UserError
from mela_jax.study.spec import Plan


@dataclasses.dataclass(frozen=True)
class Record:
    """What study.json holds.

    Attributes:
      study_id: name of the study in its storage; no two workdirs have the same.
      storage: URL of the storage, without its password; "" for study.db in the workdir.
      plan: the study.
    """

    study_id: str
    storage: str
    plan: Plan


def claim(workdir: Path, plan: Plan, *, storage: str) -> Record:
    """Write study.json into a new workdir, or check that an old one is of this study.

    Call it under the study's lock.

    Args:
      workdir: folder of the study.
      plan: the study.
      storage: as `Record.storage`.

    Raises:
      UserError: when the workdir belongs to another study, listing the differences.
    """
    provenance = run_record.provenance(plan.base)
    if not (workdir / "study.json").exists():
        record = Record(f"{plan.name}-{uuid.uuid4().hex[:12]}", storage, plan)
        content = {
            "study_id": record.study_id,
            "storage": storage,
            "plan": plan.to_json(),
            "provenance": provenance,
        }
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(workdir / "study.json", text.encode())
        return record
    record, made = _read(workdir)
    changed = differences(
        {"storage": record.storage, **record.plan.to_json()},
        {"storage": storage, **plan.to_json()},
    )
    if changed:
        raise UserError(
            f"--workdir={workdir} belongs to another study: {'; '.join(changed)};"
            " choose another --workdir, or undo the change"
        )
    if made.get("git_commit") != provenance["git_commit"]:
        logging.warning(
            "this study was begun with the code of commit %s, and goes on with %s",
            made.get("git_commit"),
            provenance["git_commit"],
        )
    return record


def read(workdir: Path) -> Record:
    """Read study.json.

    Raises:
      UserError: when there is none, or it is damaged.
    """
    return _read(workdir)[0]


def _read(workdir: Path) -> tuple[Record, dict[str, Any]]:
    path = workdir / "study.json"
    if not path.exists():
        raise UserError(f"--workdir={workdir}: holds no study (no study.json)")
    try:
        content = json.loads(path.read_text())
        plan = Plan.from_json(content["plan"])
        record = Record(content["study_id"], content["storage"], plan)
        return record, content["provenance"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is damaged ({error}); restore it, or choose another --workdir"
        ) from error
