"""Rows of a benchmark: run what is missing, keep every row as csv, print the table.

A benchmark is a list of named rows, each a function that returns a flat dict. A row that is in the
csv already is not run again, so that an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import csv
import datetime
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SHARED = Path(os.environ.get("ONNXPRUNE_DATA") or Path(__file__).resolve().parents[2] / "shared")
"""Data that is no part of the project: $ONNXPRUNE_DATA, by default `shared` beside the checkout."""

Row = Callable[[], Mapping[str, Any]]


def run(name: str, rows: Mapping[str, Row]) -> list[dict[str, str]]:
    """All rows of benchmark `name`, those run before read from its csv."""
    file = RESULTS / f"{name}.csv"
    known = {row["row"]: row for row in read(file)}
    for key, work in rows.items():
        if key not in known:
            print(f"running {key} ...", flush=True)
            found = {"row": key, **work(), **_circumstances()}
            known[key] = {field: str(value) for field, value in found.items()}
            _write(file, list(known.values()))
    return [known[key] for key in rows]


def forget(name: str, unwanted: Callable[[Mapping[str, str]], bool]) -> None:
    """Drop rows of benchmark `name`, so that they are run again."""
    file = RESULTS / f"{name}.csv"
    rows = [row for row in read(file) if not unwanted(row)]
    if rows:
        _write(file, rows)
    else:
        file.unlink(missing_ok=True)


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a csv; none when there is no such file."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _write(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
    file.parent.mkdir(exist_ok=True)
    names = list(dict.fromkeys(field for row in rows for field in row))
    draft = file.with_suffix(".part")
    with draft.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(draft, file)


def _circumstances() -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
