"""The main job, a study and an export, killed -9 at random moments and resumed.

    python -m tests.kill --times=100 --seed=0 --output=FOLDER

Each is started, killed after a random while and started again, until it has been killed
so often; whenever it gets to its end, the result is compared bit for bit with that of a
run that nobody killed, and it begins anew. Not part of the test suite: it takes hours.
"""

import argparse
import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from mela_jax.evaluation.scores import read_predictions
from tests.job import Finished, Job, Running
from tests.test_faults import assert_same_run

STUDY = """
import mela_jax.study.spec as spec
from configs import tiny


def get_study():
    base = tiny.get_config()
    base.data.dir, base.data.cache_dir = {data!r}, {cache!r}
    base.baseline = False
    rates = ({{"student.learning_rate": 1e-3}}, {{"student.learning_rate": 1e-2}})
    return spec.Study(base=base, cells=rates, reference=rates[0], seeds=(0,))
"""


def kill_often(
    start: Callable[[Path], Running],
    compare: Callable[[Path, Path], None],
    folder: Path,
    *,
    times: int,
    draw: random.Random,
) -> tuple[int, int]:
    """Kill a command so many times and return how often it was killed, and ended.

    Args:
      start: starts the command on a folder of results.
      compare: raises where two such folders differ in what must be the same.
      folder: of all results.
      times: kills, at least; the last run of it goes on to the end.
      draw: source of the moments.

    Raises:
      AssertionError: it failed, or its result is another.
    """
    finish(start(folder / "whole"))
    # Again, for its time: the first run has compiled its programs.
    began = time.monotonic()
    finish(start(folder / "again"))
    longest = time.monotonic() - began
    compare(folder / "again", folder / "whole")
    killed = ended = 0
    torn = folder / "torn"
    while killed < times or torn.exists():
        process = start(torn)
        time.sleep(draw.uniform(0, longest) if killed < times else longest)
        if killed < times and process.running:
            process.kill()
            killed += 1
            continue
        finish(process)
        compare(torn, folder / "whole")
        ended += 1
        shutil.rmtree(torn)
    return killed, ended


def finish(process: Running) -> Finished:
    """Wait for the end of a process, which must be a good one."""
    done = process.finish()
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def compare_studies(found: Path, wanted: Path) -> None:
    """Compare the predictions of all runs of two studies; none is lost or double."""
    names = [
        sorted(
            str(p.relative_to(root)) for p in root.glob("trials/*/predictions/*.csv")
        )
        for root in (found, wanted)
    ]
    assert names[0] == names[1] and names[0]
    for name in names[0]:
        assert (found / name).read_bytes() == (wanted / name).read_bytes(), name
        read_predictions(found / name)


def compare_exports(found: Path, wanted: Path) -> None:
    """Compare the phone files of two exports."""
    for path in sorted(wanted.glob("*.tflite")):
        digests = [
            hashlib.sha256((root / path.name).read_bytes()).hexdigest()
            for root in (found, wanted)
        ]
        assert digests[0] == digests[1], path.name
    for root in (found, wanted):
        json.loads((root / "metrics.json").read_text())


def main() -> None:
    """Run and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100, help="kills of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--only", choices=["job", "study", "export"], action="append")
    options = parser.parse_args()
    root = options.output.absolute()
    root.mkdir(parents=True)
    job = Job(root)
    job_folder = root / "job"
    study = root / "study.py"
    study.write_text(STUDY.format(data=str(job.data), cache=str(job.cache)))

    def start_study(workdir: Path) -> Running:
        return job.start_module(
            "mela_jax.study",
            f"--study={study}",
            f"--workdir={workdir}",
            "--heartbeat=1",
            # A run whose workers were lost several times counts as failed.
            "--retry_failed",
        )

    def start_export(output: Path) -> Running:
        return job.start_module(
            "export.to_tflite",
            f"--workdir={job_folder / 'whole'}",
            f"--output={output}",
            "--modes=float32,float16",
        )

    commands = {
        "job": (job.start, assert_same_run),
        "study": (start_study, compare_studies),
        "export": (start_export, compare_exports),
    }
    # What an export is made of.
    if options.only and "job" not in options.only:
        finish(job.start(job_folder / "whole"))
    for name, (start, compare) in commands.items():
        if options.only and name not in options.only:
            continue
        draw = random.Random(f"{options.seed} {name}")
        killed, ended = kill_often(
            start, compare, root / name, times=options.times, draw=draw
        )
        print(
            f"{name}: killed {killed} times, ended {ended} times, each time the same",
            flush=True,
        )


if __name__ == "__main__":
    main()
