import time
from pathlib import Path

import pytest

from benchmarks.processes import run_module
from mela_jax.errors import UserError


def test_process_gives_its_output_its_times_and_its_memory(tmp_path: Path):
    before = time.time()
    done = run_module(
        ["timeit", "-n", "1", "-r", "1", "x = 'a' * 10**8"], log=tmp_path / "log"
    )
    assert "1 loop" in done.stdout
    assert before <= done.started < done.started + done.seconds <= time.time()
    assert done.peak_mb > 100


def test_failure_is_one_line_with_its_reason(tmp_path: Path):
    with pytest.raises(UserError, match="no_such_module ended with 1: .*No module"):
        run_module(["no_such_module"], log=tmp_path / "log")
