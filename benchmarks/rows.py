"""Rows of a benchmark: run what is missing, keep every row as csv, print the table.

A benchmark is a list of named rows, each a function that returns a flat dict. A row that is in the
csv already is not run again, so that an interrupted benchmark goes on where it stopped.

ONNXPRUNE_ROWS, a regular expression, limits a benchmark to the rows whose whole name matches;
ONNXPRUNE_RESULTS is another folder for the csv. Tables show the rows there are. Processes that
share a csv may run different rows of it at the same time.
"""

from __future__ import annotations

import csv
import datetime
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune.storage import try_lock

RESULTS = Path(os.environ.get("ONNXPRUNE_RESULTS") or Path(__file__).parent / "results")
CHOSEN = re.compile(os.environ.get("ONNXPRUNE_ROWS") or ".*")
SHARED = Path(os.environ.get("ONNXPRUNE_DATA") or Path(__file__).resolve().parents[2] / "shared")
"""Data that is no part of the project: $ONNXPRUNE_DATA, by default `shared` beside the checkout."""

Row = Callable[[], Mapping[str, Any]]


def run(name: str, rows: Mapping[str, Row]) -> list[dict[str, str]]:
    """The rows of benchmark `name` that there are once the missing chosen ones have run."""
    file = RESULTS / f"{name}.csv"
    for key, work in rows.items():
        if CHOSEN.fullmatch(key) and key not in _known(file):
            print(f"running {key} ...", flush=True)
            found = {"row": key, **work(), **_circumstances()}
            _add(file, {field: str(value) for field, value in found.items()})
    known = _known(file)
    return [known[key] for key in rows if key in known]


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


def _known(file: Path) -> dict[str, dict[str, str]]:
    return {row["row"]: row for row in read(file)}


def _add(file: Path, row: dict[str, str]) -> None:
    """Write `row` beside those that other processes may have written since."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("wb") as lock:
        while not try_lock(lock):
            time.sleep(0.01)
        _write(file, list((_known(file) | {row["row"]: row}).values()))


def _write(file: Path, rows: Sequence[Mapping[str, str]]) -> None:
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
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "machine": platform.machine(),
    }


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
