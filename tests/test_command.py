"""What ends a command early is one line and a status, on any terminal."""

import os
import signal
import subprocess
import sys

import pytest

from mela_jax.command import Parser, guarded, positive
from mela_jax.config import find_file
from mela_jax.errors import Stopped, UserError
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("too small"), 2, "error: too small"),
        (Stopped("saved", signal.SIGTERM), 143, "saved"),
        (Stopped("saved", signal.SIGINT), 130, "saved"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (KeyboardInterrupt(signal.SIGTERM), 143, "interrupted"),
    ],
)
def test_each_end_has_its_line_and_its_status(error, status, line, capsys):
    @guarded
    def main() -> int:
        raise error

    assert main() == status
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown.startswith(line)


def test_a_wrong_command_line_is_refused_in_one_line():
    parser = Parser(prog="p")
    parser.add_argument("--runs", type=positive)
    assert parser.parse_args(["--runs=3"]).runs == 3
    for words in (["--runs=0"], ["--runs=x"], ["--run=3"]):
        with pytest.raises(UserError) as refusal:
            parser.parse_args(words)
        assert "\n" not in str(refusal.value)


def start(code: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background job ignores Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_ctrl_c_while_a_command_still_imports_is_one_line(tmp_path):
    # A module that takes its time, in place of one that the command needs.
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text(
        "import os, time\nos.write(1, b'x')\ntime.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "mela_jax.predict", "--help"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None and process.stdout.read(1) == b"x"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    (line,) = errors.decode().splitlines()
    assert line.startswith("interrupted; ")


PRINT_MUCH = """
from mela_jax.command import guarded, prepare_process
@guarded
def main():
    for k in range(100_000):
        print("line", k)
    return 0
prepare_process()
raise SystemExit(main())
"""


def test_a_reader_that_leaves_ends_the_command_without_a_word():
    process = start(PRINT_MUCH)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


PRINT_NAME = """
from mela_jax.command import prepare_process
prepare_process()
print("M\\u00fcller", "\\udce9")
"""


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_any_name_can_be_printed_on_any_terminal(encoding):
    process = start(PRINT_NAME, PYTHONIOENCODING=encoding)
    shown, errors = process.communicate()
    assert process.returncode == 0 and errors == b""
    assert b"M" in shown and b"ller" in shown and b"udce9" in shown


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ham10000_kd", "configs/ham10000_kd.py"),
        ("configs/tiny.py", "configs/tiny.py"),
        ("papers/blkd", "configs/papers/blkd.py"),
    ],
)
def test_a_configuration_is_found_by_its_name_from_any_folder(
    name, file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert os.path.samefile(find_file(name), REPOSITORY / file)
    assert find_file(f"{name}:7").endswith(".py:7")
    assert find_file("absent") == "absent"


PRINT_HOME = """
import os
from pathlib import Path
from mela_jax import command
command._has_home = lambda: False
command.prepare_process()
assert Path.home().is_dir() and os.stat(Path.home()).st_uid == os.getuid()
"""


def test_a_user_without_a_home_folder_gets_one(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "HOME"}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_HOME],
        cwd=REPOSITORY,
        env=environment | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"no home folder: caches go to {tmp_path}")
