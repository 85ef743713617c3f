"""Flags of the main job: `python -m mela_jax.main --config=FILE --workdir=FOLDER`."""

import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from mela_jax.command import guarded, prepare_process
from mela_jax.config import (
    expand_user,
    field_below_a_value,
    find_file,
    list_fields,
    mistake_in_file,
    unknown_field,
)
from mela_jax.errors import UserError
from mela_jax.quiet import set_up_logging

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment: a file, or the name of one of configs/.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join the other processes of this run (jax.distributed)."
)


@guarded
def main(argv: list[str]) -> int:
    """Run the job and return its exit status, 0; see `guarded` for the others."""
    if {"-h", "--help"} & set(argv[1:]):
        # Run as a program, a module registers its flags under the program's name.
        name = sys.argv[0] if __name__ == "__main__" else __name__
        print(f"{__doc__}\n{flags.FLAGS.module_help(name)}\n\n{list_fields()}")
        return 0
    config, workdir = _parse(argv)
    # After the flags: a mistyped one is answered at once.
    from mela_jax import parallel, pipeline, results

    set_up_logging()
    parallel.set_up(
        cpu_devices=config.cpu_devices,
        distributed=_DISTRIBUTED.value,
        compilation_cache=expand_user(config.data.cache_dir) / "xla",
    )
    metrics = pipeline.run(config, workdir)
    if parallel.is_main_process():
        print(results.summary(metrics, workdir))
    return 0


def _with_paths(argv: list[str]) -> list[str]:
    """Return the words of the command line, a configuration's name as its path."""
    words = list(argv)
    for k, word in enumerate(words):
        if word in ("--config", "-config") and k + 1 < len(words):
            words[k + 1] = find_file(words[k + 1])
        elif word.startswith(("--config=", "-config=")):
            flag, _, name = word.partition("=")
            words[k] = f"{flag}={find_file(name)}"
    return words


def _parse(argv: list[str]) -> tuple[ConfigDict, Path]:
    """Return the configuration and the workdir, or raise UserError."""
    if mistake := field_below_a_value(argv):
        raise UserError(mistake)
    try:
        stray = flags.FLAGS(_with_paths(argv))[1:]
        config = _CONFIG.value
        # A file that could not be opened complains only now that it is used.
        getattr(config, "lock", None)
    except Exception as error:
        if mistake := mistake_in_file(error):
            raise UserError(mistake) from error
        if isinstance(error, AttributeError | KeyError):
            raise UserError(unknown_field(error)) from error
        if isinstance(error, flags.Error | OSError | TypeError | ValueError):
            raise UserError(" ".join(str(error).split())) from error
        raise
    if stray:
        raise UserError(f"{stray[0]!r} is not a flag; a field is --config.field=value")
    if not _CONFIG.present:
        raise UserError(
            "--config is missing: give a file, or the name of one of configs/"
        )
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config: get_config() of the file returned {config!r}; it must return"
            " what mela_jax.config.default() gave it"
        )
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: give a folder for the run")
    return config, Path(_WORKDIR.value).expanduser()


def command() -> int:
    """Run the command line of this process and return its exit status."""
    from mela_jax.memory import use_huge_pages

    use_huge_pages()
    prepare_process()
    return main(sys.argv)


if __name__ == "__main__":
    sys.exit(command())
