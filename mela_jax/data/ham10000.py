"""Download HAM10000 as ISIC 2018 Task 3 publishes it: 10,015 images in seven diagnoses.

Tschandl, Rosendahl, Kittler: The HAM10000 dataset. Scientific Data 5, 180161 (2018),
doi:10.1038/sdata.2018.161. Licence CC BY-NC-SA 4.0 (non-commercial, attribution).
"""

import errno
import os
import re
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from mela_jax.errors import UserError

ISIC_URL = "https://isic-archive.s3.amazonaws.com/challenges/2018/"
INPUT = "ISIC2018_Task3_Training_Input"
TRUTH = "ISIC2018_Task3_Training_GroundTruth"
GROUPINGS = "ISIC2018_Task3_Training_LesionGroupings"
ARCHIVES = (f"{INPUT}.zip", f"{TRUTH}.zip")
DOWNLOADS = (*ARCHIVES, f"{GROUPINGS}.csv")


def download_ham10000(directory: str | os.PathLike[str]) -> None:
    """Download and unpack the ISIC 2018 Task 3 training files (2.8 GB, no login).

    What is there already is not fetched again: neither an unpacked folder nor an
    archive that the user has put there.

    Args:
      directory: where to; created where it is missing.

    Raises:
      UserError: there is no network, an archive is damaged or reaches out of the
        folder, or the disk is full.
    """
    root = Path(directory).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        for name in DOWNLOADS:
            target = root / name
            unpacked = root / target.stem
            if target.exists() or unpacked.exists():
                continue
            _fetch(ISIC_URL + name, target)
        for name in ARCHIVES:
            archive = root / name
            if not (root / archive.stem).exists():
                extract_zip(archive, root)
    except OSError as error:
        raise UserError(
            f"cannot write to {root}: {error.strerror or error}; free some space "
            "(6 GB are needed) or choose another folder"
        ) from error


def extract_zip(archive: str | os.PathLike[str], directory: Path) -> None:
    """Unpack an archive of unknown origin into `directory/<name of the archive>`.

    The members go to a temporary folder first, so that the folder, once there, is
    complete. A top folder that bears the name of the archive is not doubled.

    Args:
      archive: the zip file.
      directory: an existing folder.

    Raises:
      UserError: the archive is damaged, or a member's path leaves the folder or is a
        link. Nothing is left behind.
    """
    path = Path(archive)
    target = directory / path.stem
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=directory) as temporary:
        content = Path(temporary, "content")
        try:
            with zipfile.ZipFile(path) as file:
                for member in file.infolist():
                    _check_member(member, path)
                file.extractall(content)
        except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{path} is damaged ({error}); delete it and run the same command again"
            ) from error
        top = content / path.stem
        others = {p.name for p in content.iterdir()} - {path.stem, "__MACOSX"}
        os.rename(top if top.is_dir() and not others else content, target)


def _fetch(url: str, target: Path) -> None:
    """Download to a hidden file, then give it its name, so that it is whole."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with (
            urllib.request.urlopen(url, timeout=60) as response,
            partial.open("wb") as file,
        ):
            shutil.copyfileobj(response, file, 1 << 20)
            length = response.headers["Content-Length"]
            if length is not None and file.tell() != int(length):
                raise UserError(
                    f"the download of {url} broke off at {file.tell()} of {length} "
                    "bytes; run the same command again"
                )
        os.replace(partial, target)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise UserError(
            f"cannot download {url} ({_reason(error)}); on a machine with a network "
            f"get {', '.join(DOWNLOADS)} from {ISIC_URL} and place them in "
            f"{target.parent}, or name a folder that has HAM10000"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"cannot download {url}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    return str(error.reason) if isinstance(error, urllib.error.URLError) else str(error)


def _check_member(member: zipfile.ZipInfo, archive: Path) -> None:
    # zipfile would silently rename such a member. That it is there at all means that
    # the archive is not the published one.
    path = PurePosixPath(member.filename.replace("\\", "/"))
    drive = re.match(r"[A-Za-z]:", member.filename)
    if path.is_absolute() or drive or ".." in path.parts:
        raise UserError(
            f"{archive}: the member {member.filename!r} would be written outside the "
            "folder; do not trust this archive, delete it and download it again"
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(
            f"{archive}: the member {member.filename!r} is a link; do not trust this "
            "archive, delete it and download it again"
        )
