"""Tables and pictures, mutated from good ones, through every reader.

    python -m tests.fuzz --examples=10000 --seed=0

Two kinds of tables: spelt otherwise, which must be read as the same records, and
damaged byte by byte, which must be read or refused with one line. Pictures are damaged
only. Anything else than a `UserError` ends the run with the example that did it.
"""

import argparse
import csv
import functools
import io
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis
import numpy as np
from hypothesis import strategies as st
from PIL import Image

from mela_jax.data.image_io import read_image
from mela_jax.data.leakage import list_pictures
from mela_jax.data.published import LAYOUTS, read_published
from mela_jax.data.records import Record
from mela_jax.data.user_csv import read_user_csv
from mela_jax.errors import UserError
from mela_jax.evaluation.isic import read_scores
from mela_jax.vocabulary import COLUMNS, picture_name

NAMES = ("ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4")
# Meaning of a column -> its cells; "score" has no other name.
TABLE = {
    "image_id": NAMES,
    "lesion_id": ("L1", "L1", "L2", "L3"),
    "label": ("1", "1", "0", "0"),
    "dx": ("mel", "mel", "nv", "bkl"),
    "age": ("45", "45", "", "80"),
    "sex": ("male", "male", "female", ""),
    "score": ("0.9", "0.25", "0.125", "0.5"),
}
WORDS = {
    "label": {"1": ("1", "1.0", "true", "Melanoma", "malignant", "MEL"),
              "0": ("0", "0.0", "False", "other", "benign", "not melanoma")},
    "dx": {"mel": ("mel", "MEL", "Melanoma, NOS", "melanoma"),
           "nv": ("nv", "Nevus", "NEV"), "bkl": ("bkl", "Seborrheic keratosis", "SEK")},
    "age": {"45": ("45", "45.0"), "": ("", "NA", "unknown", "nan"), "80": ("80",)},
    "sex": {"": ("", "n/a", "None"), "male": ("male",), "female": ("female",)},
}  # fmt: skip
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")


@st.composite
def spelt_otherwise(
    draw: Callable, *, columns: Sequence[str], endings: Sequence[str]
) -> bytes:
    """Draw the bytes of a table that says what `TABLE` says in these columns."""
    header, cells = [], []
    for meaning in draw(st.permutations(columns)):
        names = [n for n in COLUMNS.get(meaning, (meaning,)) if n != "melanoma"]
        name = draw(st.sampled_from(names))
        change = draw(st.sampled_from((str, str.upper, str.title)))
        gap = draw(st.sampled_from("_ -"))
        header.append(change(name).replace("_", gap))
        if meaning == "image_id":
            ending = draw(st.sampled_from(endings))
            cells.append([cell + ending for cell in TABLE[meaning]])
        else:
            words = WORDS.get(meaning, {})
            cells.append(
                [draw(st.sampled_from(words.get(c, (c,)))) for c in TABLE[meaning]]
            )
    rows = draw(st.permutations(list(zip(*cells, strict=True))))
    text = io.StringIO()
    writer = csv.writer(
        text,
        delimiter=draw(st.sampled_from(",;\t")),
        lineterminator=draw(st.sampled_from(("\n", "\r\n", "\r", "\n\n"))),
        quoting=draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))),
    )
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode(draw(st.sampled_from(ENCODINGS)))


@st.composite
def damaged(draw: Callable, *, content: bytes) -> bytes:
    """Draw bytes like these with some changed, lost, doubled or cut off."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(result) - 1)))
        kind = draw(st.sampled_from(("change", "insert", "lose", "double", "cut")))
        if kind == "change" and result:
            result[at] = draw(st.integers(0, 255))
        elif kind == "insert":
            result[at:at] = draw(st.binary(min_size=1, max_size=4))
        elif kind == "lose":
            del result[at : at + draw(st.integers(1, 8))]
        elif kind == "double":
            result[at:at] = result[at : at + 40]
        else:
            del result[max(at, 1) :]
    return bytes(result)


def _years(record: Record) -> float | None:
    return float(record.age) if record.age else None


class Readers:
    """Every reader of tables, over one folder of four pictures."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.pictures = {}
        for k, name in enumerate(NAMES):
            pixels = np.random.default_rng(k).integers(0, 256, (12, 16, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}.jpg")
        for kind in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, kind)
            self.pictures[kind] = buffer.getvalue()

    def user_csv(self, content: bytes) -> list[tuple]:
        (self._folder / "labels.csv").write_bytes(content)
        found = read_user_csv(self._folder)
        return sorted(
            (Path(r.path).stem, r.lesion_id, r.label, _years(r)) for r in found
        )

    def published(self, name: str, content: bytes) -> list[tuple]:
        table = self._folder / f"{LAYOUTS[name].tables[0][0]}.csv"
        table.write_bytes(content)
        try:
            found = read_published(self._folder, LAYOUTS[name])
        finally:
            table.unlink()
        return [(r.image_id, r.lesion_id, r.label, r.dx, _years(r)) for r in found]

    def audit(self, content: bytes) -> list[tuple]:
        table = self._folder / "metadata.csv"
        table.write_bytes(content)
        try:
            found = list_pictures([self._folder])
        finally:
            table.unlink()
        return [(p.path.stem, sorted(p.groups)) for p in found]

    def picture(self, content: bytes) -> None:
        path = self._folder / ".picture"
        path.write_bytes(content)
        image = read_image(path)
        assert image.dtype == np.uint8 and image.shape[2] == 3

    def scores(self, content: bytes) -> list[tuple]:
        (self._folder / "scores.csv").write_bytes(content)
        try:
            found = read_scores(self._folder / "scores.csv")
        finally:
            (self._folder / "scores.csv").unlink()
        names = [picture_name(name).parts[-1] for name in found.image_id]
        columns = (found.lesion_id, found.label.tolist(), found.score.tolist())
        return sorted(zip(names, *columns, strict=True))


def make_columns(readers: Readers) -> dict[str, tuple[Callable, tuple[str, ...]]]:
    """Return for each reader of tables its function and the columns that it gets."""
    known = ("image_id", "lesion_id", "dx", "age", "sex")
    found: dict[str, tuple[Callable, tuple[str, ...]]] = {
        "user's table": (readers.user_csv, (*known[:4], "label")),
        "score table": (readers.scores, ("image_id", "lesion_id", "label", "score")),
        "audit": (readers.audit, known[:3]),
    }
    for name, layout in LAYOUTS.items():
        if len(layout.tables[0]) == 1:
            found[name] = (functools.partial(readers.published, name), known)
    return found


def run(examples: int, seed: int) -> Counter:
    """Put so many examples through every reader and count what became of them.

    Raises:
      AssertionError: a table that says the same was read as something else.
      Exception: whatever a reader raised besides `UserError`.
    """
    logging.disable(logging.WARNING)
    counts: Counter = Counter()

    def check(strategy: st.SearchStrategy[bytes], use: Callable[[bytes], str]) -> None:
        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(strategy)
        def test(content: bytes) -> None:
            counts[use(content)] += 1

        test()

    def survives(name: str, read: Callable, content: bytes) -> str:
        try:
            read(content)
        except UserError as error:
            assert "\n" not in str(error), error
            return f"{name}, damaged: refused"
        return f"{name}, damaged: read"

    def same(name: str, read: Callable, expected: list[tuple], content: bytes) -> str:
        found = read(content)
        assert found == expected, (name, found, expected)
        return f"{name}, spelt otherwise: the same records"

    with tempfile.TemporaryDirectory() as folder:
        readers = Readers(Path(folder))
        for name, (read, columns) in make_columns(readers).items():
            # The user's own table names files.
            endings = ("", ".jpg", ".JPG", "_downsampled.jpg")
            endings = (".jpg",) if name == "user's table" else endings
            rows = zip(*(TABLE[column] for column in columns), strict=True)
            named = [(image + endings[0], *row) for image, *row in rows]
            good = "\n".join(map(",".join, [columns, *named])).encode()
            expected = read(good)
            check(
                spelt_otherwise(columns=columns, endings=endings),
                functools.partial(same, name, read, expected),
            )
            check(damaged(content=good), functools.partial(survives, name, read))
        for kind, picture in readers.pictures.items():
            check(
                damaged(content=picture),
                functools.partial(survives, f"{kind} picture", readers.picture),
            )
    return counts


def main() -> None:
    """Run and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    counts = run(options.examples, options.seed)
    for name, count in sorted(counts.items()):
        print(f"{count:8,} {name}")
    print(
        f"{counts.total():8,} in {time.monotonic() - began:.0f} s, none of them wrong"
    )


if __name__ == "__main__":
    main()
