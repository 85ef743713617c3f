"""A flag that is not what it should be is refused in words."""

import argparse

import pytest

from benchmarks import flags


def test_names_are_read_in_order_and_a_stranger_is_refused():
    read = flags.names_of(("a", "b", "c"))
    assert read("c,a") == ["c", "a"]
    for text in ("a,d", "", "a,"):
        with pytest.raises(argparse.ArgumentTypeError, match="none of a, b, c"):
            read(text)


def test_only_whole_numbers_above_0_are_sizes():
    assert flags.positives("8,16") == [8, 16]
    for text in ("0", "-1", "1.5", "8,", "²"):
        with pytest.raises(argparse.ArgumentTypeError, match="whole number above 0"):
            flags.positives(text)
