"""Flags of a study: `python -m mela_jax.study --study=FILE --workdir=FOLDER`.

Runs what is left of a study, or, with --report, writes its report. Several workers are
several such commands at once, on one machine or on many; see docs/studies.md.
"""

import dataclasses
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags

from mela_jax.command import guarded, prepare_process
from mela_jax.config import expand_user, find_file, unknown_field
from mela_jax.errors import UserError
from mela_jax.quiet import set_up_logging
from mela_jax.study.spec import Study, check_study, load_study

if TYPE_CHECKING:
    # Not as it starts: a mistyped flag is answered at once.
    from mela_jax.evaluation.study_runs import Run

_STUDY = flags.DEFINE_string(
    "study", None, "Study: a file, or the name of one of configs/studies/."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study.")
_TRIALS = flags.DEFINE_integer(
    "trials", None, "For tuning: settings to try, over all workers.", lower_bound=1
)
_STORAGE = flags.DEFINE_string(
    "storage",
    "",
    "Database URL; by default the file study.db in the workdir, for one machine.",
)
_REPORT = flags.DEFINE_bool("report", False, "Write the report and run nothing.")
_RETRY = flags.DEFINE_bool("retry_failed", False, "Try again what has failed.")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat",
    30,
    "Seconds between two signs of life of a worker; one that is silent three times as"
    " long is taken for dead. The same for all workers.",
    lower_bound=1,
)


@guarded
def main(argv: list[str]) -> int:
    """Run and return the exit status: 0 done, 1 some failed; others as `guarded`."""
    if {"-h", "--help"} & set(argv[1:]):
        # Run as a program, a module registers its flags under the program's name.
        name = sys.argv[0] if __name__ == "__main__" else __name__
        print(
            f"{__doc__}\n{flags.FLAGS.module_help(name)}\n\n"
            "  --config.FIELD=VALUE\n    Changes a field of the study's base"
            " configuration; see python -m mela_jax.main --help."
        )
        return 0
    # Told to stop, it stops as after Ctrl-C, also between two steps of training.
    signal.signal(signal.SIGTERM, _interrupt)
    study = _parse(argv)
    workdir = expand_user(_WORKDIR.value or "")
    set_up_logging()
    from mela_jax.study import session

    if study is None:
        print(session.report(workdir, storage=_STORAGE.value))
        return 0
    runs = session.run(
        study,
        workdir,
        storage=_STORAGE.value,
        heartbeat=_HEARTBEAT.value,
        retry_failed=_RETRY.value,
    )
    print(_summary(runs, workdir))
    return 1 if any(run.state == "failed" for run in runs) else 0


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt(signum)


def _parse(argv: list[str]) -> Study | None:
    """Return the study, None for a report only, or raise UserError."""
    try:
        flags.FLAGS(argv, known_only=True)
        if not _WORKDIR.value:
            raise UserError("--workdir is missing: give a folder for the study")
        study = None
        if not _REPORT.value:
            if not _STUDY.value:
                raise UserError("--study is missing: give a file of configs/studies/")
            study = load_study(expand_user(find_file(_STUDY.value, "configs/studies")))
            base = study.base.copy_and_resolve_references()
            config = config_flags.DEFINE_config_dict(
                "config", base, "Base configuration.", lock_config=True
            )
        stray = flags.FLAGS(argv)[1:]
        if stray:
            raise UserError(
                f"{stray[0]!r} is not a flag; a field is --config.field=value"
            )
        if study is None:
            return None
        study = check_study(
            study, name=Path(_STUDY.value or "").stem, base=config.value
        )
    except (AttributeError, KeyError) as error:
        raise UserError(unknown_field(error)) from error
    except (flags.Error, OSError, TypeError, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from error
    if study.method == "grid":
        if _TRIALS.value:
            raise UserError("--trials: a grid runs every cell; leave it out")
        return study
    study = dataclasses.replace(study, trials=_TRIALS.value or study.trials)
    if study.trials < 1:
        raise UserError("--trials is missing: say how many settings to try")
    return study


def _summary(runs: list["Run"], workdir: Path) -> str:
    """Return what became of the runs, for the terminal."""
    states = Counter(run.state for run in runs)
    lines = [f"{run.workdir.name}: failed: {run.error}" for run in runs if run.error]
    counts = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
    lines.append(f"{len(runs)} runs: {counts}")
    if states["failed"]:
        lines.append("What failed is tried again with --retry_failed.")
    lines.append(f"Report: python -m mela_jax.study --workdir={workdir} --report")
    return "\n".join(lines)


def command() -> int:
    """Run the command line of this process and return its exit status."""
    from mela_jax.memory import use_huge_pages

    use_huge_pages()
    prepare_process()
    return main(sys.argv)


if __name__ == "__main__":
    sys.exit(command())
