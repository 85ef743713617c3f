"""The scoring command: what it accepts, what it writes, what it refuses."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mela_jax import predict
from mela_jax.inference import Scorer

THRESHOLD = 0.3


class RedModel:
    """Scores an image by its mean red value and remembers the batches it was given."""

    classes = ("melanoma",)
    melanoma = 0

    def __init__(self):
        self.batches = []
        self.asked = []

    def make_scorer(self, model, *, which, crop, threshold):
        self.asked.append((model, which, crop))
        return Scorer(
            name="the student",
            image_size=8,
            crop="center",
            threshold=THRESHOLD if threshold is None else threshold,
            classes=self.classes,
            melanoma=self.melanoma,
            score=lambda images: self.score(images),
        )

    def score(self, images):
        self.batches.append(images.copy())
        return images[..., :1].mean((1, 2), dtype=np.float64) / 255


@pytest.fixture
def scorer(monkeypatch):
    model = RedModel()
    monkeypatch.setattr(predict, "make_scorer", model.make_scorer)
    return model


def save(path: Path, red: int, *, mode="RGB", size=(20, 15), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red, red, red)).convert(mode).save(path, **options)
    return path


def run(*arguments) -> int:
    return predict.main([str(argument) for argument in arguments])


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_writes_score_threshold_and_decision_exactly(tmp_path, scorer, capsys):
    paths = [save(tmp_path / f"{red}.png", red) for red in (0, 76, 77, 255)]
    output = tmp_path / "scores.csv"
    assert run("--model=runs/kd", "--images", *paths, f"--output={output}") == 0
    rows = rows_of(output)
    assert list(rows[0]) == ["image", "score", "threshold", "decision"]
    assert [row["image"] for row in rows] == [str(path) for path in paths]
    assert [float(row["score"]) for row in rows] == [0, 76 / 255, 77 / 255, 1]
    assert {float(row["threshold"]) for row in rows} == {THRESHOLD}
    assert [row["decision"] for row in rows] == ["not_flagged"] * 2 + ["flagged"] * 2
    assert scorer.asked == [("runs/kd", None, None)]
    printed = capsys.readouterr()
    assert "4 images scored by the student, 2 flagged" in printed.out
    assert "not a diagnosis" in printed.out.splitlines()[-1]
    assert os.listdir(tmp_path).count("scores.csv") == 1
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_a_score_at_the_threshold_is_flagged(tmp_path, scorer):
    output = tmp_path / "s.csv"
    image = save(tmp_path / "a.png", 51)
    run("--model=m", f"--images={image}", f"--output={output}", "--threshold=.2")
    (row,) = rows_of(output)
    assert list(row.values()) == [str(image), "0.2", "0.2", "flagged"]


def test_accepts_every_kind_of_image(tmp_path, scorer):
    # How each is decoded is shown of `load_square`.
    kinds = {
        "a.jpg": "RGB",
        "b.JPEG": "L",
        "c.jpeg": "CMYK",
        "d.png": "RGBA",
        "e.PNG": "P",
        "f.bmp": "RGB",
        "g.Bmp": "L",
        "h.tif": "RGB",
        "i.tiff": "1",
        "j.webp": "RGBA",
    }
    for k, (name, mode) in enumerate(kinds.items()):
        save(tmp_path / "in" / name, 255, mode=mode, size=(1 + 90 * k, 200 - 20 * k))
    output = tmp_path / "s.csv"
    assert run("--model=m", "--images", tmp_path / "in", "--output", output) == 0
    rows = rows_of(output)
    assert [Path(row["image"]).name for row in rows] == list(kinds)
    assert [float(row["score"]) for row in rows] == pytest.approx([1] * 10, abs=0.01)


def test_folders_are_searched_in_order_and_other_files_passed_over(tmp_path, scorer):
    folder = tmp_path / "moles"
    for name in ("b.jpg", "a/z.PNG", "a/deep/er/x.bmp", ".hidden.jpg", ".cache/y.jpg"):
        save(folder / name, 9, format="PNG" if name.startswith(".") else None)
    (folder / "labels.csv").write_text("path,label\n")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    elsewhere = save(tmp_path / "elsewhere" / "linked.png", 9).parent
    (folder / "c").symlink_to(elsewhere, target_is_directory=True)
    output = tmp_path / "s.csv"
    assert run("--model=m", f"--images={folder}", f"--output={output}") == 0
    assert [os.path.relpath(row["image"], folder) for row in rows_of(output)] == [
        "a/deep/er/x.bmp",
        "a/z.PNG",
        "b.jpg",
        "c/linked.png",
    ]


def test_files_folders_and_patterns_mix_and_each_image_is_scored_once(
    tmp_path, scorer, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.png", "in/b.png", "x1.png", "x2.png", "[1].png"):
        save(Path(name), 9)
    save(Path("photo.unknown"), 9, format="PNG")
    arguments = "--images=photo.unknown in/b.png in --output=s.csv --images=x*.png"
    again = "--images [1].png ./in/a.png"
    assert run("--model=m", *arguments.split(), *again.split()) == 0
    found = [row["image"] for row in rows_of(Path("s.csv"))]
    wanted = "photo.unknown in/b.png in/a.png x1.png x2.png [1].png"
    assert found == wanted.split()


@pytest.mark.parametrize("num_images, batch_size", [(1, 4), (4, 4), (5, 4), (9, 2)])
def test_batches_have_one_shape_and_every_image_its_own_score(
    tmp_path, scorer, num_images, batch_size
):
    reds = [10 * i + 5 for i in range(num_images)]
    for i, red in enumerate(reds):
        save(tmp_path / "in" / f"{i}.png", red)
        (tmp_path / "in" / f"{i}_bad.png").write_bytes(b"no image")
    output = tmp_path / "s.csv"
    needed = ("--model=m", f"--images={tmp_path}/in", f"--output={output}")
    assert run(*needed, f"--batch_size={batch_size}") == 1
    assert {batch.shape for batch in scorer.batches} == {(batch_size, 8, 8, 3)}
    assert len(scorer.batches) == -(-num_images // batch_size)
    assert [float(row["score"]) for row in rows_of(output)] == [r / 255 for r in reds]


def test_unreadable_images_are_named_and_the_rest_scored(tmp_path, scorer, capsys):
    folder = tmp_path / "in"
    good = save(folder / "good.jpg", 255)
    truncated = save(folder / "truncated.jpg", 255, size=(200, 150))
    truncated.write_bytes(truncated.read_bytes()[:400])
    (folder / "empty.png").touch()
    (folder / "text.jpeg").write_text("no image at all")
    missing = folder / "missing.jpg"
    output = tmp_path / "s.csv"
    assert run("--model=m", "--images", folder, missing, "--output", output) == 1
    assert [row["image"] for row in rows_of(output)] == [str(good)]
    lines = capsys.readouterr().err.splitlines()
    for name in ("truncated.jpg", "empty.png", "text.jpeg", "missing.jpg"):
        assert sum(name in line for line in lines) == 1
    assert "4 of 5 images could not be read" in lines[-1]
    assert len(lines) == 5


def test_where_nothing_is_readable_no_csv_is_written(tmp_path, scorer, capsys):
    output = tmp_path / "s.csv"
    assert run("--model=m", "--images", tmp_path / "a.jpg", "--output", output) == 1
    assert not output.exists()
    assert "nothing was written" in capsys.readouterr().err
    assert not scorer.batches


def test_odd_file_names_survive(tmp_path, scorer, capsys):
    folder = tmp_path / "in"
    save(folder / 'a "quoted", two\nlines é.png', 9)
    with open(os.fsencode(folder) + b"/bad\xff\n.png", "wb") as file:
        file.write(b"no image")
    os.rename(save(folder / "t.png", 9), os.fsencode(folder) + b"/latin\xe9.png")
    output = tmp_path / "s.csv"
    assert run("--model=m", "--images", folder, "--output", output) == 1
    with open(output, newline="", encoding="utf-8", errors="surrogateescape") as file:
        names = {os.path.basename(row["image"]) for row in csv.DictReader(file)}
    assert names == {'a "quoted", two\nlines é.png', os.fsdecode(b"latin\xe9.png")}
    assert len(capsys.readouterr().err.splitlines()) == 2


def refusal(capsys, *arguments) -> str:
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    "images, output, complaint",
    [
        ("a.png", "no/such/s.csv", "there is no folder .*no/such"),
        ("a.png", "", "not a plain file"),
        ("a.png", "/dev/null", "not a plain file"),
        ("a.png", "a.png", "overwritten"),
        ("in", "s.csv", "no images in .*/in;"),
    ],
)
def test_what_could_not_be_read_or_written_is_refused_before_any_work(
    tmp_path, scorer, capsys, images, output, complaint
):
    image = save(tmp_path / "a.png", 9)
    pixels = image.read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").touch()
    flags = (f"--images={tmp_path / images}", f"--output={tmp_path / output}")
    assert re.search(complaint, refusal(capsys, "--model=m", *flags))
    assert image.read_bytes() == pixels and not scorer.batches


def test_a_full_disk_is_one_line_and_keeps_the_old_csv(
    tmp_path, scorer, capsys, monkeypatch
):
    image = save(tmp_path / "a.png", 9)
    output = tmp_path / "s.csv"
    output.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = refusal(capsys, "--model=m", f"--images={image}", f"--output={output}")
    assert "No space left" in line and "s.csv" in line
    assert output.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["a.png", "s.csv"]


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.5])
def test_a_score_that_is_no_probability_is_refused(tmp_path, scorer, capsys, bad):
    image = save(tmp_path / "a.png", 9)
    scorer.score = lambda images: np.full((len(images), 1), bad)
    line = refusal(capsys, "--model=m", f"--images={image}", f"--output={tmp_path}/s")
    assert "a.png" in line and "not a number from 0 to 1" in line
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ((), "required"),
        (("--threshold=1.5",), "number from 0 to 1"),
        (("--threshold=nan",), "number from 0 to 1"),
        (("--batch_size=0",), "whole number above 0"),
        (("--batch_size=2.5",), "whole number above 0"),
        (("--colour=red",), "unrecognized"),
    ],
)
def test_wrong_arguments_exit_with_status_2(tmp_path, capsys, arguments, complaint):
    needed = ("--model=m", f"--images={tmp_path}", f"--output={tmp_path}/s.csv")
    assert complaint in refusal(capsys, *(needed if arguments else ()), *arguments)


def test_help_lists_the_exit_statuses(capsys):
    with pytest.raises(SystemExit, match="0"):
        run("--help")
    assert "exit status" in capsys.readouterr().out


def test_a_model_of_several_diagnoses_writes_a_column_for_each(tmp_path, scorer):
    def score(images):
        red = RedModel.score(scorer, images)[:, 0]
        return np.stack([(1 - red) / 3, red, (1 - red) / 1.5], axis=1)

    paths = [save(tmp_path / f"{k}.png", red) for k, red in enumerate((0, 99, 201))]
    scorer.classes, scorer.melanoma, scorer.score = ("nv", "mel", "b,c"), 1, score
    output = tmp_path / "scores.csv"
    run("--model=m", "--images", *paths, f"--output={output}", "--batch_size=2")
    rows = rows_of(output)
    assert list(rows[0]) == [*predict.COLUMNS, "p_nv", "p_mel", "p_b,c"]
    for row, red in zip(rows, (0.0, 99 / 255, 201 / 255), strict=True):
        assert row["p_mel"] == row["score"] == repr(red)
        assert float(row["p_nv"]) == (1 - red) / 3
        assert float(row["p_b,c"]) == (1 - red) / 1.5
    # NaN in any of several is refused.
    scorer.score = lambda images: np.full((len(images), 3), np.nan)
    assert run("--model=m", "--images", *paths, f"--output={output}") == 2


def test_a_workdir_is_scored_by_the_model_asked_for(finished, tmp_path, capsys):
    image, output = save(tmp_path / "a.png", 9), tmp_path / "s.csv"
    needed = (f"--model={finished}", f"--images={image}", f"--output={output}")
    report = json.loads((finished / "report" / "metrics.json").read_text())
    for which in ("student", "teacher"):
        assert run(*needed, f"--which={which}") == 0
        assert f"scored by the {which}" in capsys.readouterr().out
        own = report["models"][which]["val"]["operating_point"]["threshold"]
        assert float(rows_of(output)[0]["threshold"]) == own
    line = refusal(capsys, *needed, "--which=teacher_2")
    assert "--which=teacher_2" in line and "it has: teacher, student, " in line


@pytest.mark.parametrize(
    "model, options, complaint",
    [
        ("nowhere", ["--which=student"], "there is no .*nowhere"),
        ("m.tflite", [], "not a TFLite model"),
        ("m.h5", [], "neither a folder nor a .tflite file"),
        ("folder", [], "the run is not finished .* mela_jax.main"),
        ("folder", ["--crop=pad"], "leave --crop out"),
        ("m.tflite", ["--which=teacher"], "leave --which out"),
    ],
)
def test_models_and_options_that_do_not_go_together_are_refused(
    tmp_path, capsys, model, options, complaint
):
    image = save(tmp_path / "a.png", 9)
    (tmp_path / "folder").mkdir()
    (tmp_path / "m.tflite").touch()
    (tmp_path / "m.h5").touch()
    needed = (f"--images={image}", f"--output={tmp_path}/s.csv")
    line = refusal(capsys, f"--model={tmp_path / model}", *options, *needed)
    assert re.search(complaint, line)


def test_a_phone_file_is_scored_by_its_own_operating_point(exported, tmp_path, capsys):
    """And decides, image for image, as metrics.json of the export counted."""
    images = exported.parent.parent / "phantom"
    rows = {}
    for mode in ("float32", "float16", "weight_int8", "int8"):
        output = tmp_path / f"{mode}.csv"
        model = exported / f"student_{mode}.tflite"
        assert run(f"--model={model}", f"--images={images}", f"--output={output}") == 0
        assert f"scored by student_{mode}.tflite" in capsys.readouterr().out
        rows[mode] = {Path(row["image"]).name: row for row in rows_of(output)}
    table = rows_of(exported.parent / "splits.csv")
    files = json.loads((exported / "metrics.json").read_text())["files"]
    for mode, found in rows.items():
        for split in ("val", "test"):
            figures = files[f"student_{mode}.tflite"][split]["operating_point"]
            decided = {"tp": set(), "fp": set(), "tn": set(), "fn": set()}
            for row in (row for row in table if row["split"] == split):
                scored = found[row["image_id"]]
                assert float(scored["threshold"]) == figures["threshold"]
                flagged = scored["decision"] == "flagged"
                kind = ("t" if flagged == (row["label"] == "1") else "f") + "np"[
                    flagged
                ]
                decided[kind].add(row["image_id"])
            counts = {kind: len(images) for kind, images in decided.items()}
            assert counts == figures["confusion"]
        # metrics.json names the wrong ones of the test set, which came last.
        wrong = files[f"student_{mode}.tflite"]["test"]
        assert decided["fn"] == {image["image_id"] for image in wrong["missed"]}
        assert decided["fp"] == {image["image_id"] for image in wrong["false_alarms"]}


def test_a_phone_file_without_metadata_asks_for_threshold_and_crop(
    exported, tmp_path, capsys
):
    content = (exported / "student_float32.tflite").read_bytes()
    file = tmp_path / "m.tflite"
    file.write_bytes(content.replace(b"mela_jax\0", b"mela_bug\0"))
    image, output = save(tmp_path / "a.png", 9), tmp_path / "s.csv"
    needed = (f"--model={file}", f"--images={image}", f"--output={output}")
    assert "give --threshold" in refusal(capsys, *needed)
    assert "give --crop" in refusal(capsys, *needed, "--threshold=0.3")
    assert not output.exists()
    assert run(*needed, "--threshold=0.3", "--crop=center") == 0
    assert float(rows_of(output)[0]["threshold"]) == 0.3


def test_interruption_is_one_line(tmp_path, scorer, capsys):
    def interrupt(images):
        raise KeyboardInterrupt

    scorer.score = interrupt
    image = save(tmp_path / "a.png", 9)
    status = run("--model=m", f"--images={image}", f"--output={tmp_path}/s.csv")
    assert status == 130
    assert capsys.readouterr().err == "interrupted; the same command starts again\n"
    assert os.listdir(tmp_path) == ["a.png"]
