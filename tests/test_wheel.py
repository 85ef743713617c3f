"""What a user of the wheel has, in whatever folder they are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
COMMANDS = ("train", "predict", "report", "study", "export", "bench")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which the wheel is installed, without what it needs."""
    # Of a copy: building leaves folders behind.
    source = tmp_path_factory.mktemp("source")
    for name in ("mela_jax", "configs", "export", "tflite_bench"):
        shutil.copytree(REPOSITORY / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, f"--target={folder}", source], check=True)
    return folder


def run(installed: Path, folder: Path, command: str, *arguments: str) -> str:
    """Run a console script in `folder`; no other copy of the code is found there."""
    done = subprocess.run(
        [installed / "bin" / f"mela-{command}", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_lists_its_flags(installed, tmp_path, command):
    flag = {"predict": "--images", "bench": "--models", "report": "--val"}
    shown = run(installed, tmp_path, command, "--help")
    assert flag.get(command, "--workdir") in shown


def test_a_report_is_written_with_the_packaged_templates(installed, tmp_path):
    scores = [(f"i{n}", n % 2, 0.3 + 0.4 * (n % 2) + n / 1000) for n in range(60)]
    for split in ("val", "test"):
        lines = [f"{split}{name},{y},{score}" for name, y, score in scores]
        table = "\n".join(["image_id,label,score", *lines])
        (tmp_path / f"{split}.csv").write_text(table)
    run(installed, tmp_path, "report", "--val=val.csv", "--test=test.csv", "--output=.")
    assert "</html>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("name", ["mine.py", "tiny", "configs/tiny.py"])
def test_a_configuration_of_any_folder_is_read(installed, tmp_path, name):
    (tmp_path / "mine.py").write_text(
        "from configs import tiny\ndef get_config():\n    return tiny.get_config()\n"
    )
    done = subprocess.run(
        [installed / "bin" / "mela-train", f"--config={name}", "--workdir=run"]
        + ["--config.student.epochs=0"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "config.student.epochs=0 is not valid" in done.stderr
