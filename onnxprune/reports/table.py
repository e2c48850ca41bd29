"""Reports and inspections as text.

Entry: `render`. On a terminal it uses rich, in a file or a pipe plain columns that `grep` and
`diff` can read. Both are made from the same rows, so they say the same.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.reports.quantities import change, human, human_bytes, points
from onnxprune.reports.report import Inspection, Report, Size

__all__ = ["render"]

_SHARES = ("accuracy", "auc", "f1", "top1", "top5")  # metrics in [0, 1]
_FROZEN_ROWS = 20  # axes shown before they are only counted
_UNSAID = ("size 1",)  # reasons that are true of every model and explain nothing


@dataclass(frozen=True, slots=True)
class _Grid:
    """Cells as text; all columns but those in `left` are numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: tuple[int, ...] = (0,)


def render(result: Report | Inspection, *, terminal: bool = False, width: int = 100) -> str:
    """The tables of a report or an inspection.

    Args:
        result: what to show.
        terminal: whether colors and box characters are welcome.
        width: of the terminal, in characters.
    """
    if isinstance(result, Report):
        grids, notes = _report(result)
    else:
        grids, notes = _inspection(result)
    parts = [_rich(grid, width) if terminal else _plain(grid) for grid in grids if grid.rows]
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(part.rstrip("\n") for part in parts)


def _report(report: Report) -> tuple[list[_Grid], list[str]]:
    rows = tuple(_size_rows(report.before, report.after))
    notes = [f"{report.exact + report.bounded} units removed, {report.exact} of them exactly"]
    steps = f"{report.steps} steps in " if report.steps else ""
    notes[0] += f"; {steps}{report.seconds:.1f} s"
    if report.target is not None:
        left = "" if report.achieved is None else f"; {100 * report.achieved:.1f} % remain"
        verdict = {True: "reached", False: "not reached", None: "asked for"}[report.reached]
        notes.append(f"target {report.target} {verdict}{left}")
    notes += report.notes
    if report.output is not None:
        notes.append(f"written to {report.output}")
    if report.run_directory is not None:
        notes.append(f"records in {report.run_directory}")
    grid = _Grid(report.model, ("", "before", "after", "change"), rows)
    return [grid], notes


def _size_rows(before: Size, after: Size) -> Iterator[tuple[str, ...]]:
    yield (
        "parameters",
        human(before.parameters),
        human(after.parameters),
        change(before.parameters, after.parameters),
    )
    if before.masked or after.masked:
        counts = before.parameters - before.masked, after.parameters - after.masked
        yield "connections", human(counts[0]), human(counts[1]), change(*counts)
    if before.units is not None:
        yield "units", human(before.units), human(after.units), change(before.units, after.units)
    if before.macs is not None:
        yield "MACs", human(before.macs), human(after.macs), change(before.macs, after.macs)
    if before.bytes is not None:
        sizes = human_bytes(before.bytes), human_bytes(after.bytes)
        yield "file size", *sizes, change(before.bytes, after.bytes)
    names = dict.fromkeys([*before.metrics, *after.metrics])
    for name in names:
        yield _metric_row(name, before.metrics.get(name), after.metrics.get(name))
    if before.latency_ms is not None:
        times = (
            "-" if value is None else f"{value:.3g} ms"
            for value in (before.latency_ms, after.latency_ms)
        )
        yield "latency", *times, change(before.latency_ms, after.latency_ms)


def _metric_row(name: str, before: float | None, after: float | None) -> tuple[str, ...]:
    label = {"auc": "AUC", "mse": "MSE"}.get(name, name)
    if name in _SHARES:
        shares = ("-" if value is None else f"{100 * value:.2f} %" for value in (before, after))
        return label, *shares, points(before, after)
    values = ("-" if value is None else f"{value:.4g}" for value in (before, after))
    return label, *values, change(before, after)


def _inspection(result: Inspection) -> tuple[list[_Grid], list[str]]:
    groups = _Grid(
        "groups of units that can be removed",
        ("group", "units", "parameters", "axes", "removal"),
        tuple(
            (
                row.name,
                str(row.units),
                human(row.parameters),
                str(len(row.axes)),
                "exact if dead" if row.exact else row.reason or "inexact",
            )
            for row in result.groups
        ),
        left=(0, 4),
    )
    said = [row for row in result.frozen if row.reason not in _UNSAID]
    frozen = _Grid(
        "axes that keep their size",
        ("axis", "size", "reason", "node"),
        tuple(
            (
                row.axis,
                "?" if row.size is None else str(row.size),
                f"{row.reason}: {row.detail}" if row.detail else row.reason,
                row.node,
            )
            for row in said[:_FROZEN_ROWS]
        ),
        left=(0, 2, 3),
    )
    return [groups, frozen], _inspection_notes(result, [row.reason for row in said])


def _inspection_notes(result: Inspection, reasons: Sequence[str]) -> list[str]:
    notes = []
    if len(reasons) > _FROZEN_ROWS:
        rest = Counter(reasons[_FROZEN_ROWS:]).most_common()
        counted = ", ".join(f"{count} {reason}" for reason, count in rest)
        notes.append(f"and {len(reasons) - _FROZEN_ROWS} more axes: {counted}")
    if not result.groups:
        notes.append("nothing can be removed from this model; the reasons are above")
    units = sum(row.units for row in result.groups)
    notes.append(f"{len(result.groups)} groups, {units} units")
    notes.append(
        "at most removable: "
        + _share("parameters", result.removable_parameters, result.parameters)
        + ", "
        + _share("MACs", result.removable_macs, result.macs)
    )
    notes.append(f"{len(result.trained)} parameters are trained, {len(result.untrained)} are not:")
    notes += [f"  {name}: {why}" for name, why in result.untrained]
    if not result.untrained:
        notes[-1] = f"{len(result.trained)} parameters are trained"
    return [*notes, *result.notes]


def _share(what: str, part: int | None, whole: int | None) -> str:
    if part is None or not whole:
        return f"{human(part)} {what}"
    return f"{human(part)} of {human(whole)} {what} ({100 * part / whole:.1f} %)"


def _plain(grid: _Grid) -> str:
    cells = (grid.header, *grid.rows)
    widths = [max(len(row[column]) for row in cells) for column in range(len(grid.header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in grid.left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join([grid.title, *lines])


def _rich(grid: _Grid, width: int) -> str:
    table = Table(title=Text(grid.title), title_justify="left", title_style="bold")
    for column, name in enumerate(grid.header):
        table.add_column(name, justify="left" if column in grid.left else "right", overflow="fold")
    for row in grid.rows:
        # Text, because names of nodes may hold brackets that rich would read as markup
        table.add_row(*(Text(cell) for cell in row))
    buffer = io.StringIO()
    Console(file=buffer, force_terminal=True, width=width, legacy_windows=False).print(table)
    return buffer.getvalue()
