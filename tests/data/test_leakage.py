"""The audit finds what was planted, and nothing where nothing was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mela_jax.data.leakage import (
    CANNOT_RUN,
    CLEAN,
    HASH_SIZE,
    KINDS,
    LEAKS,
    MAX_DISTANCE,
    list_pictures,
    main,
    near_duplicates,
    perceptual_hash,
)


def draw(path: Path, seed: int, *, size: tuple[int, int] = (160, 120)) -> Path:
    """Draw a smooth picture that no other seed resembles."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return two folders of five pictures each that share nothing."""
    for number, name in enumerate(("first", "second")):
        lines = ["lesion_id,image_id"]
        for k in range(5):
            draw(tmp_path / name / "images" / f"{name}{k}.png", 10 * number + k)
            lines.append(f"{name}-lesion{k},{name}{k}")
        (tmp_path / name / "metadata.csv").write_text("\n".join(lines))
    return tmp_path / "first", tmp_path / "second"


def summary(folders: tuple[Path, Path], *words: str) -> tuple[int, dict]:
    output = folders[0].parent / "audit.json"
    status = main([*map(str, folders), f"--output={output}", *words])
    found = json.loads(output.read_text())
    counts = found["summary"]
    for kind, name in KINDS.items():
        assert sum(leak["kind"] == kind for leak in found["leaks"]) == counts[name]
    return status, counts


def test_folders_that_share_nothing_are_clean(folders: tuple[Path, Path]) -> None:
    status, found = summary(folders)
    assert status == CLEAN
    assert found["images"] == {str(folder): 5 for folder in folders}
    assert found["without_lesion_id"] == 0


def test_a_shared_lesion_is_found(folders: tuple[Path, Path]) -> None:
    table = folders[1] / "metadata.csv"
    table.write_text(table.read_text().replace("second-lesion3", "first-lesion0"))
    status, found = summary(folders)
    assert status == LEAKS
    assert found["shared_lesions"] == 1
    assert found["identical_files"] == found["near_duplicates"] == 0


@pytest.mark.parametrize(
    ("name", "header", "separator", "ending"),
    [
        ("HAM10000_metadata.tab", "image_id", "\t", ""),
        ("HAM10000_metadata", "image_id", ",", ""),
        ("metadata.CSV", "isic_id", ",", ""),
        ("GroundTruth.csv", "image_name", ";", ""),
        ("labels.csv", "path", ",", ".png"),
        ("labels.csv", "image_id", ",", "_downsampled.jpg"),
    ],
)
def test_a_shared_lesion_is_found_in_any_spelling_of_the_table(
    folders: tuple[Path, Path], name: str, header: str, separator: str, ending: str
) -> None:
    for folder in folders:
        (folder / "metadata.csv").unlink()
        rows = [f"mole {k}{separator}{folder.name}{k}{ending}" for k in range(5)]
        rows[1:] = [row.replace("mole", folder.name) for row in rows[1:]]
        lines = [f"lesion_id{separator}{header}", *rows]
        (folder / name).write_text("\n".join(lines))
    status, found = summary(folders)
    assert (status, found["shared_lesions"], found["without_lesion_id"]) == (
        LEAKS,
        1,
        0,
    )


def test_a_table_in_the_folder_of_the_pictures_is_read(
    folders: tuple[Path, Path],
) -> None:
    for folder in folders:
        table = (folder / "metadata.csv").rename(folder / "images" / "metadata.csv")
        table.write_text(table.read_text().replace("second-lesion3", "first-lesion0"))
    status, found = summary(folders)
    assert (status, found["shared_lesions"], found["without_lesion_id"]) == (1, 1, 0)


def test_lesions_and_groups_stand_side_by_side(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        table = folder / "metadata.csv"
        header, *rows = table.read_text().splitlines()
        lines = [f"{header},group", *(f"{row},{folder.name}" for row in rows)]
        table.write_text("\n".join(lines))
    assert summary(folders)[0] == CLEAN
    table.write_text(table.read_text().replace(",second\n", ",first\n"))
    status, found = summary(folders)
    assert (status, found["shared_lesions"]) == (LEAKS, 1)


def test_a_shared_patient_is_a_leak_too(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        table = folder / "metadata.csv"
        header, *rows = table.read_text().splitlines()
        rows = [f"{row},{folder.name if k else 'IP_1'}" for k, row in enumerate(rows)]
        table.write_text("\n".join([f"{header},patient_id", *rows]))
    status, found = summary(folders)
    assert (status, found["shared_lesions"]) == (LEAKS, 1)


@pytest.mark.parametrize(
    "text",
    ["image_id,dx\nfirst0,mel\n", "lesion_id,image_id\nL,other\n", "\xff\xfe", ""],
)
def test_a_table_that_cannot_be_used_is_named_and_nothing_is_called_clean(
    folders: tuple[Path, Path], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders[0] / "metadata.csv").write_text(text, encoding="latin-1")
    assert main([*map(str, folders)]) == CANNOT_RUN
    assert str(folders[0] / "metadata.csv") in capsys.readouterr().err
    # So is one in the folder of the pictures, or in a format that cannot be read.
    for place in ("images/metadata.csv", "images/moles.xlsx"):
        table = (folders[0] / "metadata.csv").rename(folders[0] / place)
        assert main([*map(str, folders)]) == CANNOT_RUN
        assert str(table) in capsys.readouterr().err
        table.rename(folders[0] / "metadata.csv")
    # Beside one that can, it is only named.
    (folders[0] / "good.csv").write_text("lesion_id,image_id\nL,first0\n")
    assert main([*map(str, folders)]) == CLEAN
    assert "not used: " in capsys.readouterr().err


def test_the_groups_of_a_users_table_are_lesions(folders: tuple[Path, Path]) -> None:
    for folder, mole in zip(folders, ("mole 1", "mole 2"), strict=True):
        (folder / "metadata.csv").unlink()
        lines = [f"images/{p.name},0,{mole}" for p in (folder / "images").iterdir()]
        (folder / "labels.csv").write_text("\n".join(["path,label,group", *lines]))
    status, found = summary(folders)
    assert (status, found["without_lesion_id"]) == (CLEAN, 0)
    table = folders[1] / "labels.csv"
    table.write_text(table.read_text().replace("mole 2", "mole 1"))
    status, found = summary(folders)
    assert (status, found["shared_lesions"]) == (LEAKS, 1)


def test_a_copied_file_is_found_under_another_name(
    folders: tuple[Path, Path],
) -> None:
    shutil.copy(folders[0] / "images/first2.png", folders[1] / "images/other.png")
    status, found = summary(folders)
    assert status == LEAKS
    # And is not told a second time as a near-duplicate.
    assert (found["identical_files"], found["near_duplicates"]) == (1, 0)
    assert found["without_lesion_id"] == 1


@pytest.mark.parametrize("change", ["smaller", "jpeg", "darker", "centre square"])
def test_a_changed_copy_is_found(folders: tuple[Path, Path], change: str) -> None:
    with Image.open(folders[0] / "images/first2.png") as opened:
        image = opened.convert("RGB")
    path = folders[1] / "images/second9.png"
    if change == "smaller":
        image.resize((80, 60)).save(path)
    elif change == "jpeg":
        image.save(path.with_suffix(".jpg"), quality=60)
    elif change == "darker":
        image.point(lambda v: int(0.8 * v)).save(path)
    else:
        image.crop((20, 0, 140, 120)).save(path)
    status, found = summary(folders)
    assert status == LEAKS
    assert (found["identical_files"], found["near_duplicates"]) == (0, 1)


def test_splits_make_the_places(folders: tuple[Path, Path], tmp_path: Path) -> None:
    # The same picture in both folders, and both in training: no leak.
    shutil.copy(folders[0] / "images/first2.png", folders[1] / "images/copy.png")
    names = [p.stem for f in folders for p in sorted((f / "images").iterdir())]
    splits = {name: "train" for name in names} | {"first0": "test"}

    def audit() -> tuple[int, dict]:
        lines = ["image_id,split", *(f"{n},{s}" for n, s in splits.items())]
        table = tmp_path / "splits.csv"
        table.write_text("\n".join(lines))
        return summary(folders, f"--splits={table}")

    status, found = audit()
    assert status == CLEAN
    assert found["images"] == {"test": 1, "train": 10}
    splits["copy"] = "test"
    status, found = audit()
    assert status == LEAKS
    assert found["identical_files"] == 1


def test_the_splits_of_a_run_name_paths(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    names = [f"{f.name}/images/{p.name}" for f in folders for p in f.glob("images/*")]
    lines = [f"{n},{n},0,{'train' if 'first' in n else 'test'}" for n in names]
    table = tmp_path / "splits.csv"
    table.write_text("\n".join(["image_id,lesion_id,label,split", *lines]))
    status, found = summary(folders, f"--splits={table}")
    assert (status, found["images"]) == (CLEAN, {"train": 5, "test": 5})


def test_hamming_distances_agree_with_the_librarys(
    folders: tuple[Path, Path],
) -> None:
    import imagehash

    pictures = list_pictures(folders)
    hashes = np.stack([perceptual_hash(p.path) for p in pictures])
    pairs = near_duplicates(pictures, hashes, max_distance=HASH_SIZE**2)
    assert len(pairs) == 25
    for leak in pairs:
        first, second = (
            imagehash.phash(Image.open(path).crop((20, 0, 140, 120)), HASH_SIZE)
            for path in leak.images
        )
        assert leak.distance == first - second
        assert leak.distance > 2 * MAX_DISTANCE


def test_mistakes_get_one_line(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "x.jpg").write_bytes(b"no picture")
    splits = tmp_path / "splits.csv"
    splits.write_text("image_id,split\nfirst0,test\n")
    first = str(folders[0])
    for words, message in (
        ([first], "one folder is one place"),
        ([first, first], "same folder"),
        ([first, "absent"], "no such folder"),
        ([first, str(tmp_path / "empty")], "no images"),
        ([first, str(broken)], "not an image that can be read"),
        ([first, f"--splits={splits}"], "is in --splits"),
        ([first, "--splits=absent.csv"], "no such file"),
    ):
        assert main(words) == CANNOT_RUN
        lines = [x for x in capsys.readouterr().err.splitlines() if "hashing" not in x]
        assert len(lines) == 1, lines
        assert message in lines[0]


def test_ham10000_holds_one_mole_under_two_names(ham10000_small: Path) -> None:
    # Found by the audit: the same hair lies beside the same mole.
    first, second = (
        perceptual_hash(next(ham10000_small.rglob(f"{name}.jpg")))
        for name in ("ISIC_0025226", "ISIC_0030074")
    )
    assert np.bitwise_count(first ^ second).sum() <= MAX_DISTANCE
