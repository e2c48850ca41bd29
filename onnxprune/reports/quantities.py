"""Numbers for people: 17.2 k, 1.5 M, 34.1 kB, -71.9 %."""

from __future__ import annotations

import math

__all__ = ["change", "human", "human_bytes", "points"]

_PREFIXES = ("", "k", "M", "G", "T", "P")


def human(number: float | None) -> str:
    """A count with three digits and a decimal prefix.

    Example:
        >>> human(17226), human(999), human(1_500_000), human(None)
        ('17.2 k', '999', '1.5 M', '-')
    """
    return _scaled(number, "")


def human_bytes(number: float | None) -> str:
    """A size in bytes with three digits; kB are 1000 bytes.

    Example:
        >>> human_bytes(70123), human_bytes(12)
        ('70.1 kB', '12 B')
    """
    return _scaled(number, "B")


def _scaled(number: float | None, unit: str) -> str:
    if number is None or not math.isfinite(number):
        return "-"
    level = 0
    # 999.5 would be written as 1000
    while abs(number) >= 999.5 and level < len(_PREFIXES) - 1:
        number /= 1000
        level += 1
    digits = f"{number:.0f}" if level == 0 or abs(number) >= 100 else f"{number:.1f}"
    digits = digits.removesuffix(".0")
    return f"{digits} {_PREFIXES[level]}{unit}".rstrip()


def change(before: float | None, after: float | None) -> str:
    """How much `after` is more or less than `before`, in percent of it.

    Example:
        >>> change(200, 50), change(4, 4), change(None, 1)
        ('-75 %', '0 %', '')
    """
    if before is None or after is None or not before:
        return ""
    percent = 100 * (after - before) / before
    digits = f"{percent:+.1f}".removesuffix(".0")
    return f"{digits} %" if float(digits) else "0 %"


def points(before: float | None, after: float | None) -> str:
    """The difference of two shares in percentage points.

    Example:
        >>> points(0.975, 0.972)
        '-0.3 points'
    """
    if before is None or after is None:
        return ""
    digits = f"{100 * (after - before):+.2f}".rstrip("0").rstrip(".")
    return f"{digits} points" if float(digits) else "0 points"
