"""What tests of the command line share: types of their fixtures, and what a refusal looks like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from click.testing import Result

Run = Callable[..., Result]
Save = Callable[..., Path]


def refused(result: Result, says: str, folder: Path, *, code: int = 2) -> None:
    """One line of error, and nothing written."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert list(folder.iterdir()) == []
