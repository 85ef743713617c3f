"""The one reader of tables."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mela_jax.errors import UserError
from mela_jax.tables import read_table

CELL = st.text(
    st.characters(
        codec="utf-8", exclude_categories=("Cs",), exclude_characters="\0\r\n"
    ),
    max_size=8,
).map(str.strip)


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("abc"), CELL, CELL), min_size=1, max_size=4
    ),
    separator=st.sampled_from(",;\t"),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_was_written_is_read(
    tmp_path_factory, rows, separator, line_end, encoding
):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=line_end)
    writer.writerows([("image_id", "Lesion ID", "dx"), *rows])
    path = tmp_path_factory.mktemp("tables") / "any name"
    path.write_bytes(text.getvalue().encode(encoding))
    table = read_table(path)
    assert table.columns == ("image_id", "Lesion ID", "dx")
    assert [tuple(row.values()) for row in table.rows] == rows


def test_a_row_is_found_again_in_the_file(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a,b\n\n1,2\n"x\ny",3\n4\n')
    table = read_table(path)
    assert [r["b"] for r in table.rows] == ["2", "3", ""]
    assert table.lines == [3, 5, 6]
    assert table.place(1) == f"{path}, line 5"


def test_columns_are_found_by_any_spelling(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("Image-ID;dx type;dx\n1;2;n/a\n")
    table = read_table(path)
    assert table.require("image_id") == ["Image-ID"]
    assert table.find("dx_type") == ["dx type"] and table.texts("dx") == [""]
    assert table.find("age") == [] and not table.has("age")
    with pytest.raises(UserError, match="age.*Image-ID"):
        table.require("age")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty"),
        (b"a,b\n", "no rows"),
        (b"a,b,a\n1,2,3\n", "'a' twice"),
        (b"a,b\n1,2,3\n", "line 2: has 3 cells"),
        (b"a,b;c\n1,2\n", "as many"),
        (b"a,b\n1,\xff\n", "line 2: is not UTF-8"),
        (b"a,b\n1,\0\n", "NUL"),
        (b'a,b\n1,"2\n', "line 2"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refusal:
        read_table(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "header, agreeing, contradicting",
    [
        ("image,path", "ISIC_1,photos/ISIC_1.jpg", "ISIC_1,photos/ISIC_2.jpg"),
        ("label,target", "malignant,1.0", "1,0"),
        ("benign_malignant,target", "benign,0", "benign,1"),
        ("dx,diagnosis_3", 'mel,"Melanoma, NOS"', "mel,Nevus"),
        ("age,age_approx", "45.0,45", "45,50"),
        ("sex,gender", "male,Male", "male,female"),
    ],
)
def test_columns_of_one_meaning_must_agree(tmp_path, header, agreeing, contradicting):
    path = tmp_path / "t.csv"
    meaning = {"image": "image_id", "benign_malignant": "label"}
    first = header.split(",")[0]
    meaning = meaning.get(first, first)
    path.write_text(f"{header}\n{agreeing}\n")
    assert read_table(path).texts(meaning)
    path.write_text(f"{header}\n{agreeing}\n{contradicting}\n")
    with pytest.raises(UserError, match="line 3: .* is .* and .* is "):
        read_table(path).texts(meaning)
    # What one of them does not know, the other may.
    path.write_text(f"{header}\n{agreeing.split(',')[0]},\n")
    assert read_table(path).texts(meaning) == [agreeing.split(",")[0]]


def test_a_file_that_is_absent_is_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_table(tmp_path / "absent.csv")
