"""When things go wrong: one clear line, a status that is not 0, and nothing lost."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mela_jax import config as mela_config
from mela_jax import parallel, run_record, stages
from mela_jax.data.views import Views
from mela_jax.errors import UserError
from mela_jax.images import Images, load_images
from mela_jax.plan import Context, make_plan
from mela_jax.saved_models import load_model
from mela_jax.train import FitResult
from tests import tiny
from tests.events import read_events
from tests.job import Finished, Job

MODELS = ("teacher", "student", "baseline")
PREDICTIONS = tuple(f"predictions/{m}_{s}.csv" for m in MODELS for s in ("val", "test"))


def read_json(path: Path):
    return json.loads(path.read_text())


def assert_same_run(workdir: Path, finished: Path):
    """Compare all that training decides, bit for bit; only times may differ."""
    for name in MODELS:
        found, wanted = (
            read_json(root / name / "model.json") for root in (workdir, finished)
        )
        assert found.pop("seconds") > 0 and wanted.pop("seconds") > 0
        assert found == wanted
    for path in ("splits.csv", *PREDICTIONS):
        assert (workdir / path).read_bytes() == (finished / path).read_bytes(), path
    found, wanted = (
        read_json(root / "report" / "metrics.json") for root in (workdir, finished)
    )
    for key in ("models", "comparisons"):
        assert found[key] == wanted[key]


# Command lines. Most of these are answered before TensorFlow and JAX are imported.

FIELDS = "the fields are:"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (
            "--config.student.epoch=3",
            ["'epoch' (did you mean 'epochs'?)", FIELDS, "data.val_fraction"],
        ),
        ("--config.colour=red", ["'colour'", FIELDS, "student.epochs"]),
        (
            "--config.students.epochs=3",
            ["'students' (did you mean 'student'?)", FIELDS],
        ),
        (
            "--config.student.optimizer.beta=0.9",
            ["'student.optimizer' is a value", "'beta'", FIELDS],
        ),
        ("--config.student.epochs.last=9", ["'student.epochs' is a value", FIELDS]),
        ("--config.student.momentum.beta=0.9", ["no field 'momentum'", FIELDS]),
        ("--config.student.epochs=many", ["student.epochs", "many", "int"]),
        ("--config.baseline=perhaps", ["baseline", "perhaps"]),
        ("--workdri=runs/x", ["workdri"]),
        ("data.name=csv", ["'data.name=csv'", "--config.field=value"]),
        ("--workdir=", ["--workdir is missing"]),
        ("--config=configs/none.py", ["configs/none.py", "No such file"]),
        ("--config=configs", ["Is a directory"]),
        ("--config=", ["config file is an empty string"]),
        (
            "--config.student.model=vgg",
            ["model='vgg'", "resnet50", "mobilenet_v3_small", "efficientnet_lite2"],
        ),
    ],
)
def test_wrong_command_line(job: Job, tmp_path: Path, words: str, wanted: list[str]):
    line = job.run(tmp_path / "run", words).error_line()
    for text in wanted:
        assert text in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "line", "wanted"),
    [
        ("def get_config()\n    return 1\n", 1, ["SyntaxError: expected ':'"]),
        (
            "import re\n\ndef get_config():\n    return confg\n",
            4,
            ["NameError: name 'confg' is not defined"],
        ),
        (
            "from mela_jax import config\n\n\n"
            "def get_config():\n"
            "    c = config.default()\n"
            "    c.student.update({'epochs': 'many'})\n",
            6,
            ["TypeError:", "epochs", "many"],
        ),
        (
            "def get_config():\n    return open('/no/such/file')\n",
            2,
            ["FileNotFoundError:", "'/no/such/file'"],
        ),
        ("x = 3\0\n", None, ["null bytes"]),
        ("seed = 3\n", None, ["has no function get_config()", "configs/"]),
        ("def get_config():\n    return {'seed': 3}\n", None, ["{'seed': 3}"]),
        ("def get_config():\n    pass\n", None, ["get_config()", "None"]),
    ],
)
def test_a_mistake_in_the_config_file_is_named_with_its_line(
    job: Job, tmp_path: Path, text: str, line: int | None, wanted: list[str]
):
    file = tmp_path / "mine.py"
    file.write_text(text)
    done = job.run_module(
        "mela_jax.main", f"--config={file}", f"--workdir={tmp_path / 'run'}"
    )
    complaint = done.error_line()
    if line is not None:
        assert f"{file}, line {line}: " in complaint
        assert "correct that line" in complaint
    for words in wanted:
        assert words in complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("data.name", "isic", "phantom"),
        ("student.loss", "hinge", "cross_entropy"),
        ("teacher.pool", "median", "max"),
        ("student.select_by", "luck", "specificity_at_target"),
        ("labels", "nine", "ham7"),
        ("student.class_weights", "some", "balanced"),
        ("student.melanoma_weight", 0.0, "above 0"),
        ("student.label_smoothing", 1.0, "[0, 1)"),
        ("student.sampler", "random", "balanced"),
        ("distill.average", "votes", "probabilities"),
        ("distill.weights.angle", -1.0, "0 or more"),
        ("distill.weights.logits", 0.0, "nothing is learnt"),
        ("distill.teacher_weights", (0.5, 0.5), "each of 1 teachers"),
        ("distill.teacher_weights", (0.9,), "adding up to 1"),
        ("student.views_per_image", 3, "views_per_image=3"),
        ("student.views_per_image", 0, "1 or more"),
        ("crop", "squash", "pad"),
        ("target_sensitivity", 1.0, "below 1"),
        ("target_sensitivity", float("nan"), "below 1"),
        ("student.learning_rate", -1.0, "above 0"),
        ("distill.temperature", 0.0, "above 0"),
        ("distill.alpha", 1.5, "from 0 to 1"),
        ("data.val_fraction", 0.9, "train"),
        ("data.fold", 5, "0 to 4"),
        ("eval_batch_size", 0, "1 or more"),
        ("student.num_views", -1, "0 or more"),
    ],
)
def test_value_out_of_range(field: str, value: object, wanted: str):
    config = mela_config.default()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as caught:
        mela_config.validate(config)
    assert field.split(".")[1 if "weights" in field else -1] in str(caught.value)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (
            {"student.focal_alpha": 0.3, "student.class_weights": "balanced"},
            "weight the classes twice",
        ),
        ({"student.focal_alpha": 0.3, "labels": "ham7"}, "labels='melanoma'"),
        (
            {"student.loss": "focal", "student.label_smoothing": 0.1},
            "loss='cross_entropy'",
        ),
        ({"student.views_per_image": 4, "student.num_views": 6}, "num_views=6"),
        ({"student.qat": True, "student.model": "resnet50"}, "mobilenet_v3_small"),
        ({"student.qat": True, "student.epochs": 3}, "at most 3"),
        ({"data.fold": 1, "data.splits_file": "x"}, "not both"),
        ({"baseline": True, "distill.enabled": False}, "enabled=False"),
        (
            {
                "distill.extra_teachers": ("runs/a", "runs/b"),
                "distill.teacher_weights": (0.5, 0.5),
            },
            "each of 3 teachers",
        ),
    ],
)
def test_values_that_contradict_each_other(changes: dict, wanted: str):
    config = mela_config.default()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=re.escape(wanted)) as caught:
        mela_config.validate(config)
    assert "\n" not in str(caught.value)


def test_a_sampler_and_weights_at_once_are_warned_of(caplog: pytest.LogCaptureFixture):
    config = mela_config.default()
    config.student.update({"sampler": "balanced", "class_weights": "balanced"})
    mela_config.validate(config)
    assert "config.student: sampler=balanced and class_weights" in caplog.text


# Data.


def test_missing_data_folder(job: Job, tmp_path: Path):
    line = job.run(
        tmp_path / "run",
        "--config.data.name=ham10000",
        f"--config.data.dir={tmp_path / 'nowhere'}",
    ).error_line()
    assert f"no data folder {tmp_path / 'nowhere'}" in line
    assert not (tmp_path / "run" / "config.json").exists()


def load(job: Job, workdir: Path, **data: object) -> tuple[list, Images]:
    config = job.config()
    with config.data.unlocked():
        config.data.update({key: str(value) for key, value in data.items()})
    mela_config.validate(config)
    return load_images(config, workdir)


def refusal(job: Job, tmp_path: Path, **data: object) -> str:
    with pytest.raises(UserError) as caught:
        load(job, tmp_path / "run", **data)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "folder", "wanted"),
    [
        ("phantom", "", "--config.data.dir=PATH"),
        ("ham10000", ".", ""),
        ("csv", ".", ""),
    ],
)
def test_a_data_folder_that_is_empty_or_not_given(
    job: Job, tmp_path: Path, name: str, folder: str, wanted: str
):
    given = folder and tmp_path
    assert (wanted or str(tmp_path)) in refusal(job, tmp_path, name=name, dir=given)


def write_images(folder: Path, labels: Sequence[int]) -> list[str]:
    """Write a CSV data set of one image a lesion."""
    folder.mkdir()
    names = [f"mole{i:02}.png" for i in range(len(labels))]
    for i, name in enumerate(names):
        Image.new("RGB", (48, 40), (i, 90, 120)).save(folder / name)
    rows = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows, ""]))
    return names


def test_files_that_are_damaged_or_missing_are_named(job: Job, tmp_path: Path):
    names = write_images(tmp_path / "data", [0, 1] * 10)
    cut, foreign, missing = (tmp_path / "data" / names[i] for i in (3, 8, 5))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    foreign.write_text("not an image")
    line = refusal(job, tmp_path, name="csv", dir=tmp_path / "data")
    assert "2 of 20 images cannot be read" in line
    assert cut.name in line and foreign.name in line
    assert "--config.data.on_bad_image=skip" in line
    missing.unlink()
    line = refusal(job, tmp_path, name="csv", dir=tmp_path / "data")
    assert "1 of 20 images are not there" in line and missing.name in line


def test_bad_images_can_be_skipped_and_are_counted(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    names = write_images(tmp_path / "data", [0, 1] * 10)
    (tmp_path / "data" / names[3]).write_bytes(b"")
    records, images = load(
        job, tmp_path / "run", name="csv", dir=tmp_path / "data", on_bad_image="skip"
    )
    used = np.sort(np.concatenate(list(images.rows.values())))
    assert [records[row].image_id for row in used] == [
        name for name in names if name != names[3]
    ]
    assert "left out 1 of 20 images" in caplog.text
    assert names[3] in caplog.text
    assert read_json(tmp_path / "run" / "config.json")["data"]["images"] == 19


def test_unknown_diagnosis(job: Job, tmp_path: Path):
    folder = tmp_path / "data"
    write_images(folder, [0, 1])
    (folder / "labels.csv").unlink()
    (folder / "HAM10000_metadata.csv").write_text(
        "lesion_id,image_id,dx\nL1,mole00,nv\nL2,mole01,wart\n"
    )
    line = refusal(job, tmp_path, name="ham10000", dir=folder)
    assert "'wart'" in line and "line 3" in line and "mel" in line and "nv" in line


@pytest.mark.parametrize("labels", [[0] * 20, [0] * 18 + [1] * 2, [1] * 20])
def test_too_few_lesions_of_a_class_for_three_splits(
    job: Job, tmp_path: Path, labels: list[int]
):
    write_images(tmp_path / "data", labels)
    with pytest.raises(UserError, match="too few for 3 splits"):
        load(job, tmp_path / "run", name="csv", dir=tmp_path / "data")


# Training, with a network that compiles in a second.


def fit_tiny(
    directory: Path, *, augment_on_device: bool = False, **changes: float
) -> FitResult:
    """Train 32 images of noise; `changes` are fields of the schedule."""
    side = tiny.IMAGE_SIZE
    pictures = np.random.default_rng(5).integers(0, 256, (40, side, side, 3), np.uint8)
    return tiny.fit(
        parallel.make_mesh(),
        directory,
        pictures=Images(
            train=pictures,
            evaluation=pictures,
            labels=np.arange(40, dtype=np.int32) % 2,
            rows={"train": np.arange(32), "val": np.arange(32, 40)},
        ),
        views=Views(tiny.SETTINGS, on_device=augment_on_device),
        **changes,
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("student.batch_size", 64, r"student.batch_size=64 .*\(32 images"),
        ("student.batch_size", 12, "student.batch_size=12 .* 8 devices"),
        ("eval_batch_size", 12, "eval_batch_size=12 .* 8 devices"),
        ("student.init", "/nowhere.h5", "student.init=/nowhere.h5: there is no such"),
        ("teacher.batch_size", 64, r"teacher.batch_size=64 .*\(32 images"),
        ("student.views_per_image", 4, "batch_size=16 .* 8 devices .* multiple of 32"),
        ("student.class_weights", "balanced", "1 of the 2 classes"),
    ],
)
def test_a_stage_that_cannot_run_is_found_before_the_teacher_trains(
    field: str, value: object, message: str, tmp_path: Path
):
    config = mela_config.default()
    for name in ("teacher", "student"):
        config[name].update({"init": "random", "batch_size": 16})
    config.update_from_flattened_dict({"eval_batch_size": 8, field: value})
    nothing = np.zeros((40, 32, 32, 3), np.uint8)
    rows = {"train": np.arange(32), "val": np.arange(32, 40)}
    labels = (
        np.zeros(40, int) if field == "student.class_weights" else np.arange(40) % 2
    )
    images = Images(nothing, nothing, labels, rows)
    with pytest.raises(UserError, match=message):
        stages.obtain_all(
            make_plan(config),
            Context(config, tmp_path, [], images, parallel.make_mesh()),
        )
    assert not any(tmp_path.iterdir())


def test_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path: Path):
    broken = {"learning_rate": 1e30, "clip_norm": 0.0, "epochs": 3}
    with pytest.raises(UserError, match="not finite.* at step .*no checkpoint") as e:
        fit_tiny(tmp_path / "a", **broken)
    assert "config.student.learning_rate" in str(e.value)
    fit_tiny(tmp_path / "b", epochs=1)
    kept = tmp_path / "b" / "student" / "checkpoints" / "2"
    before = sorted(p.relative_to(kept) for p in kept.rglob("*"))
    with pytest.raises(UserError, match="not finite") as caught:
        fit_tiny(tmp_path / "b", **broken)
    assert f"the last good checkpoint is {kept}" in str(caught.value)
    assert sorted(p.relative_to(kept) for p in kept.rglob("*")) == before
    assert [p.name for p in kept.parent.iterdir()] == ["2"]


# Interruptions of a whole run.


@pytest.fixture(scope="module")
def interrupted(job: Job) -> tuple[Path, dict[str, object]]:
    """Kill one run again and again, at a later point each time, then let it end.

    Returns the workdir, and what was seen at each point.
    """
    workdir = job.root / "interrupted"
    seen: dict[str, object] = {}

    def exists(pattern: str) -> bool:
        return any(workdir.glob(pattern))

    run = job.start(workdir)
    run.wait_for(lambda: read_events(workdir / "teacher" / "scalars"))
    run.kill()
    seen["after the first step"] = exists("teacher/checkpoints")

    run = job.start(workdir)
    run.wait_for(lambda: exists("teacher/checkpoints/*tmp*"))
    run.kill()
    seen["half a checkpoint"] = exists("teacher/checkpoints/*tmp*")

    run = job.start(workdir)
    run.wait_for(lambda: exists("teacher/model.json"))
    run.kill()
    seen["no student"] = not exists("student/model.json")

    run = job.start(workdir)
    run.wait_for(lambda: read_events(workdir / "student" / "scalars"))
    seen["stopped"] = run.terminate()

    run = job.start(workdir)
    run.wait_for(lambda: exists("student/checkpoints/4*tmp*"))
    run.kill()
    seen["resumed"] = run.stderr
    seen["half the last checkpoint"] = exists("student/checkpoints/4*tmp*")

    run = job.start(workdir)
    run.wait_for(lambda: exists("student/variables*tmp*"))
    run.kill()
    seen["half a model"] = exists("student/variables*tmp*")

    run = job.start(workdir)
    run.wait_for(lambda: exists("predictions/teacher_val.csv"))
    run.kill()
    seen["no report"] = not exists("report/metrics.json")

    seen["done"] = job.run(workdir)
    return workdir, seen


def test_every_interruption_came_where_it_was_meant_to(interrupted):
    _, seen = interrupted
    for name in (
        "after the first step",
        "half a checkpoint",
        "no student",
        "half the last checkpoint",
        "half a model",
        "no report",
    ):
        assert seen[name], name


def test_asked_to_stop_it_saves_and_says_where(interrupted):
    workdir, seen = interrupted
    stopped = seen["stopped"]
    assert isinstance(stopped, Finished)
    assert stopped.returncode == 143, stopped.stderr
    assert "Traceback" not in stopped.stderr
    line = stopped.stderr.splitlines()[-1]
    found = re.fullmatch(
        r"student: stopped at step ([123]) of 4 and saved in (.*);"
        r" the same command goes on from there",
        line,
    )
    assert found, line
    assert found[2] == str(workdir / "student" / "checkpoints")
    assert f"student: goes on from step {found[1]}" in str(seen["resumed"])


def test_killed_again_and_again_it_ends_as_if_nothing_had_been(interrupted, finished):
    workdir, seen = interrupted
    done = seen["done"]
    assert isinstance(done, Finished)
    assert done.returncode == 0, done.stderr
    assert_same_run(workdir, finished)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk with room for one checkpoint of the smallest job, not for two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a small disk (root)")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_full_disk_is_one_line_and_after_making_room_it_goes_on(
    job: Job, finished: Path, small_disk: Path
):
    workdir = small_disk / "run"
    line = job.run(workdir).error_line()
    assert str(workdir / "teacher" / "checkpoints") in line
    assert "cannot be written" in line and "make room" in line
    assert (workdir / "teacher" / "checkpoints" / "2").is_dir()
    room = ["mount", "-o", "remount,size=400m", str(small_disk)]
    subprocess.run(room, check=True)
    done = job.run(workdir)
    assert done.returncode == 0, done.stderr
    assert "teacher: goes on from step 2" in done.stderr
    assert_same_run(workdir, finished)


# The workdir.


def test_workdir_in_use_is_refused(job: Job, tmp_path: Path):
    with run_record.exclusive(tmp_path):
        line = job.run(tmp_path).error_line()
    assert f"--workdir={tmp_path}: another run is using it" in line
    assert os.listdir(tmp_path) == [".lock"]


def test_workdir_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=f"--workdir={tmp_path}/file: cannot be written"),
        run_record.exclusive(tmp_path / "file"),
    ):
        pass


@pytest.fixture
def student(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished student's folder, to be damaged."""
    shutil.copytree(
        finished / "student",
        tmp_path / "student",
        ignore=shutil.ignore_patterns("checkpoints", "scalars"),
    )
    return tmp_path / "student"


def largest_file(folder: Path) -> Path:
    return max(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def flip_a_byte(folder: Path) -> None:
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def cut_in_half(folder: Path) -> None:
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_a_byte, cut_in_half, shutil.rmtree])
def test_damaged_variables_are_refused(student: Path, damage):
    damage(student / "variables")
    with pytest.raises(UserError) as caught:
        load_model(student, parallel.make_mesh())
    assert str(student / "variables") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_student_stops_the_job_with_one_line(job: Job, finished: Path):
    workdir = job.root / "damaged"
    shutil.copytree(finished, workdir)
    (workdir / "report" / "metrics.json").unlink()
    flip_a_byte(workdir / "student" / "variables")
    line = job.run(workdir).error_line()
    assert str(workdir / "student" / "variables") in line
