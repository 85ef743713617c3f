"""A PostgreSQL server of the tests' own."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PASSWORD = "se-cret%word"


def find_postgres() -> Path | None:
    """Return the folder of initdb and pg_ctl, or None."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    if found:
        places.insert(0, Path(found).parent)
    for place in places:
        if all((place / name).exists() for name in ("initdb", "pg_ctl", "postgres")):
            return place
    return None


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Return the URL of a database of a server that ends with the tests, or skip."""
    programs = find_postgres()
    if programs is None:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    # The server refuses to run as root.
    prefix = []
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("PostgreSQL does not run as root, and there is no setpriv")
        prefix = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    # Not in pytest's folder, which other users may not enter.
    root = Path(tempfile.mkdtemp(prefix="mela-postgres-"))
    password = root / "password"
    password.write_text(PASSWORD)
    if prefix:
        for path in (root, password):
            shutil.chown(path, "nobody", "nogroup")

    def call(name: str, *arguments: str) -> None:
        done = subprocess.run(
            [*prefix, str(programs / name), *arguments],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"

    data = str(root / "data")
    try:
        call(
            "initdb",
            f"--pgdata={data}",
            "--username=mela",
            "--auth=scram-sha-256",
            f"--pwfile={password}",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = f"-p {port} -h 127.0.0.1 -k {root} -F"
        log = str(root / "server.log")
        call("pg_ctl", "start", "-w", "-t", "240", "-D", data, "-l", log, "-o", options)
        try:
            quoted = PASSWORD.replace("%", "%25")
            yield f"postgresql+psycopg://mela:{quoted}@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "stop", "-w", "-m", "immediate", "-D", data)
    finally:
        shutil.rmtree(root, ignore_errors=True)
