"""Where Optuna keeps a study: a SQLite file, or a database that many machines reach."""

import warnings
from pathlib import Path

import optuna
import sqlalchemy
from absl import logging
from sqlalchemy.engine import URL, make_url

from mela_jax.errors import UserError

# What a storage raises that does not answer, or no more.
FAULTS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)
# A worker that has been silent for this many intervals is dead.
SILENT_INTERVALS = 3
# Options after the ? of a URL that are not to be shown.
_SECRET_OPTIONS = ("password", "sslpassword", "passwd")


class Storage(optuna.storages.RDBStorage):
    """Optuna's storage, whose heartbeat outlives a short loss of the database."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Record that the trial's worker lives; a failure is left to the next beat."""
        try:
            super().record_heartbeat(trial_id)
        except FAULTS as error:
            logging.warning("storage: heartbeat not recorded (%s)", _line(error))


def locate(storage: str, workdir: Path) -> tuple[URL, str]:
    """Return a storage's URL, and what may be shown and kept of it.

    Where `storage` is empty, that is the SQLite file of the workdir, and nothing: the
    workdir may be moved.

    Raises:
      UserError: when it is no URL.
    """
    if not storage:
        path = workdir.absolute() / "study.db"
        return URL.create("sqlite", database=str(path)), ""
    try:
        url = make_url(storage)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        # Not repeated: there may be a password in it.
        raise UserError(
            "--storage: is no database URL; give one like"
            " postgresql+psycopg://user@host/database"
        ) from error
    # Both are what servers and hosts hand out.
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    return url, _without_password(url)


def _without_password(url: URL) -> str:
    # url.set(password=None) leaves it as it is.
    shown = URL.create(
        url.drivername, url.username, None, url.host, url.port, url.database, url.query
    )
    return shown.difference_update_query(_SECRET_OPTIONS).render_as_string()


def open_storage(url: URL, *, heartbeat: int) -> Storage:
    """Open a storage with a heartbeat in seconds, making tables that are missing.

    Raises:
      UserError: when it does not answer.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    # Of each driver's own: seconds to wait for a lock, and for an answer.
    waits = {"sqlite": {"timeout": 120}, "postgresql": {"connect_timeout": 15}}
    try:
        return Storage(
            url=url.render_as_string(hide_password=False),
            engine_kwargs={
                "connect_args": waits.get(url.get_backend_name(), {}),
                # A connection may be hours old when it is needed next.
                "pool_pre_ping": True,
            },
            heartbeat_interval=heartbeat,
            grace_period=SILENT_INTERVALS * heartbeat,
        )
    # Drivers raise what they like; RuntimeError: tables of another Optuna.
    except (*FAULTS, ImportError, OSError, RuntimeError, ValueError) as error:
        raise UserError(no_answer(url, error)) from error


def no_answer(url: URL, error: Exception) -> str:
    """Say in one line that a storage does not answer, without its password."""
    reason = _line(error)
    for secret in (url.password, *map(url.query.get, _SECRET_OPTIONS)):
        if secret:
            reason = reason.replace(str(secret), "***")
    return (
        f"--storage={_without_password(url)}: does not answer ({reason}); check the"
        " address, that the server runs and that its driver is installed"
    )


def _line(error: BaseException) -> str:
    """Return what went wrong in one line, in the driver's own words if it has any."""
    inner = getattr(error, "orig", None) or error.__cause__
    if inner is not None:
        return _line(inner)
    return " ".join(str(error).split()) or type(error).__name__
