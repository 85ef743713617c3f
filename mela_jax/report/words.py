"""How figures are put into words and digits, the same way everywhere in the report."""

import math
from collections.abc import Mapping
from typing import Any

UNDEFINED = "undefined: no such image"
# No line ends within an interval, nor before a percent sign.
DASH = "\N{WORD JOINER}\N{EN DASH}\N{WORD JOINER}"
_PERCENT = "\N{NO-BREAK SPACE}%"


def percent(value: float, digits: int = 1) -> str:
    r"""Return a share as percent, never rounding an imperfect one up to 100 %.

    >>> [percent(v).replace("\xa0", " ") for v in (0.12345, 1.0, 0.9999)]
    ['12.3 %', '100.0 %', 'over 99.9 %']
    """
    shown = 100 * value
    if shown < 100 and round(shown, digits) == 100:
        return f"over {100 - 10**-digits:.{digits}f}{_PERCENT}"
    return f"{shown:.{digits}f}{_PERCENT}"


def target(value: float) -> str:
    r"""Return a target as percent, without needless digits.

    >>> [target(v).replace("\xa0", " ") for v in (0.95, 0.1111111111)]
    ['95 %', '11.11 %']
    """
    return f"{100 * value:.4g}{_PERCENT}"


def rate(figure: Mapping[str, Any]) -> str:
    """Return a share with its interval, both in percent; limits rounded outwards."""
    if figure["value"] is None:
        return UNDEFINED
    low, high = _outwards(figure, 1000)
    return f"{percent(figure['value'])} ({low / 10:.1f}{DASH}{high / 10:.1f})"


def number(figure: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Return a figure that is no share, such as an area, with its interval."""
    if figure is None or figure["value"] is None:
        return "undefined"
    return (
        f"{figure['value']:.{digits}f} "
        f"({figure['low']:.{digits}f}{DASH}{figure['high']:.{digits}f})"
    ).replace("-", "\N{MINUS SIGN}")


def people(figure: Mapping[str, Any]) -> str:
    """Return a number of people with its interval, limits rounded outwards."""
    low, high = _outwards(figure, 1)
    value = figure["value"]
    shown = f"{value:.1f}" if value < 10 else f"{value:.0f}"
    return f"{shown} ({low}{DASH}{high})"


def hundredths(value: float) -> int:
    """Return a share as whole hundredths, halves rounded up.

    >>> hundredths(0.925), hundredths(0.4)
    (93, 40)
    """
    # 0.145 is a little less than itself in binary.
    return math.floor(100 * value + 0.5 + 1e-9)


def of_hundred(figure: Mapping[str, Any]) -> str:
    """Return "about 95 (90 to 98)"; the interval is rounded outwards."""
    value = figure["value"]
    # What is flagged and what is missed of a hundred add up to a hundred.
    whole = 100 - hundredths(1 - value) if figure.get("rest") else hundredths(value)
    if value in (0, 1):
        count = "none" if value == 0 else "all"
    elif whole == 0:
        count = "fewer than 1"
    elif whole == 100:
        count = "more than 99"
    else:
        count = f"about {whole}"
    low, high = _outwards(figure, 100)
    return f"{count} ({low} to {high})"


def rest(figure: Mapping[str, Any]) -> dict[str, Any]:
    """Return the complement of a share and of its interval, marked as the rest."""
    return {
        "value": 1 - figure["value"],
        "low": 1 - figure["high"],
        "high": 1 - figure["low"],
        "rest": True,
    }


def signed(value: float, digits: int) -> str:
    """Return the value with its sign, and a rounded zero without one.

    >>> signed(0.0123, 3), signed(-0.0001, 2)
    ('+0.012', '0.00')
    """
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        return text[1:]
    return text.replace("-", "\N{MINUS SIGN}")


def p_value(p: float) -> str:
    """Return a p-value with two digits, or that it is tiny.

    >>> p_value(0.0000012), p_value(0.0312), p_value(1.0)
    ('< 0.001', '0.031', '1')
    """
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def amount(count: int) -> str:
    """Return a count with three digits and a unit: 940 k."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _outwards(figure: Mapping[str, Any], scale: float) -> tuple[int, int]:
    """Return the limits, scaled, as whole numbers that enclose them."""
    # The slack keeps 1 - 0.9 = 0.09999999999999998 from widening the interval.
    return (
        math.floor(scale * figure["low"] + 1e-9),
        math.ceil(scale * figure["high"] - 1e-9),
    )
