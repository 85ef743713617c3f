"""Names of pictures are found again under any spelling, or are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mela_jax.errors import UserError
from mela_jax.vocabulary import PictureNames, known_text, parse_label, picture_name


@pytest.mark.parametrize(
    "spelling",
    ["ISIC_1", "ISIC_1.jpg", "ISIC_1.JPG", "ISIC_1.png", "photos/ISIC_1.jpeg",
     "/data/photos/ISIC_1", "..\\photos\\ISIC_1.jpg", "ISIC_1_downsampled.jpg"],
)  # fmt: skip
def test_every_spelling_means_the_picture(spelling):
    assert PictureNames(["photos/ISIC_2.jpg", "photos/ISIC_1.jpg"]).find(spelling) == 1
    assert PictureNames([spelling]).find("photos/ISIC_1.jpg") == 0


def test_the_nearest_spelling_is_meant_and_two_equally_near_ones_are_refused():
    names = PictureNames(["a/1.jpg", "b/1.jpg", "b/1.png"])
    assert [names.find(n) for n in ("a/1.jpg", "b/1.png", "x/b/1.jpg")] == [0, 2, 1]
    assert names.find("c/1.jpg") is None and names.find("11") is None
    for name in ("1.jpg", "1", "b/1"):
        with pytest.raises(UserError, match="could be"):
            names.find(name)


@pytest.mark.parametrize(
    "names, repeated",
    [
        (["1", "2", "1"], (0, 2)),
        (["1.jpg", "1"], (0, 1)),
        (["1.jpg", "1_downsampled.jpg"], (0, 1)),
        (["a/1.jpg", "b/1.jpg"], None),
        (["1.jpg", "1.png"], None),
    ],
)
def test_a_picture_that_is_named_twice_is_found(names, repeated):
    assert PictureNames(names).find_repeated() == repeated


PARTS = st.text("abAB1_. é", min_size=1, max_size=6).filter(
    lambda text: text.strip(" .") == text
)


@given(st.lists(st.lists(PARTS, min_size=1, max_size=3), min_size=1, max_size=8))
def test_an_equal_name_is_always_found(parts):
    names = list(dict.fromkeys("/".join(p) + ".jpg" for p in parts))
    index = PictureNames(names)
    for number, name in enumerate(names):
        assert picture_name(name) == picture_name(f"./{name}")
        assert index.find(name) == number


@pytest.mark.parametrize("text", ["", " ", "NA", "n/a", "NaN", "<NA>", "Unknown", "?"])
def test_not_known_is_spelt_in_many_ways_and_is_no_label(text):
    assert known_text(text) == "" and parse_label(known_text(text)) is None
