"""What the options of methods may be: checked when a method is made, hours before they count."""

from __future__ import annotations

from collections.abc import Collection

from onnxprune.errors import ConfigError

__all__ = ["check_range", "check_word"]


def check_range(interval: str, **options: float) -> None:
    """Refuse numbers outside `interval`, such as "(0, 1]" or "[1, inf)"; NaN lies in none.

    Args:
        interval: its limits belong to it behind square brackets.
        options: by name.

    Raises:
        ConfigError: for the first number outside.
    """
    low, high = (float(limit) for limit in interval[1:-1].split(","))
    for name, number in options.items():
        above = number >= low if interval[0] == "[" else number > low
        below = number <= high if interval[-1] == "]" else number < high
        if not (above and below):
            raise ConfigError(
                f"--set {name}={number}: expected a number in {interval}",
                option=name,
                value=number,
            )


def check_word(words: Collection[str], **options: str) -> None:
    """Refuse options that are none of `words`.

    Raises:
        ConfigError: for the first one.
    """
    for name, word in options.items():
        if word not in words:
            raise ConfigError(
                f"--set {name}={word}: expected one of {', '.join(words)}", option=name, value=word
            )
