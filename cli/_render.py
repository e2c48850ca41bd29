"""All that the command line writes: results on stdout, progress and errors on stderr.

`progress` returns what turns run events into a progress bar (on a terminal) or plain lines
(elsewhere); `result` shows a report or an inspection.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from onnxprune.reports import (
    Evaluated,
    Event,
    Inspection,
    Progress,
    Pruned,
    Report,
    Resumed,
    Started,
    human,
    render,
)

__all__ = ["blank", "error", "lines", "mapping", "note", "progress", "result"]


def error(message: str) -> None:
    """One line on stderr, whatever `message` looks like."""
    click.echo(f"error: {' '.join(message.split())}", err=True)


def note(message: str) -> None:
    """A line on stderr."""
    click.echo(message, err=True)


def result(found: Report | Inspection, *, as_json: bool) -> None:
    """Show a report or an inspection on stdout."""
    if as_json:
        click.echo(found.to_json())
        return
    terminal = _is_terminal(sys.stdout)
    width = Console(file=sys.stdout).width if terminal else 100
    click.echo(render(found, terminal=terminal, width=width))


def mapping(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Show names and values on stdout; None is shown as "-"."""
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    width = max(map(len, values), default=0)
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {'-' if value is None else value}".rstrip())


def blank() -> None:
    """An empty line on stdout, between two results."""
    click.echo()


def _is_terminal(stream: IO[str]) -> bool:
    """Whether `stream` shows colors and box characters."""
    encoding = (getattr(stream, "encoding", None) or "").lower()
    return stream.isatty() and encoding.startswith("utf")


@contextlib.contextmanager
def progress(*, show: bool) -> Iterator[Callable[[Event], None] | None]:
    """What to give the library as `on_event`; None when nothing is to be shown."""
    if not show:
        yield None
    elif not _is_terminal(sys.stderr):
        yield _write_lines
    else:
        with Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[facts]}"),
            console=Console(file=sys.stderr),
            transient=True,
        ) as bar:
            yield _bar_updater(bar)


def _bar_updater(bar: Bar) -> Callable[[Event], None]:
    """Move `bar` along; removals and evaluations are printed above it."""
    task = bar.add_task("training", total=None, facts="")
    facts: dict[str, str] = {}

    def update(event: Event) -> None:
        if isinstance(event, Progress):
            facts["loss"] = f"{event.loss:.4f}"
            facts.update({name: f"{value:.4f}" for name, value in event.parts.items()})
            facts["parameters"] = human(event.parameters)
            bar.update(task, completed=event.step, total=event.steps)
        elif isinstance(event, Evaluated) and event.split != "train":
            facts.update({name: f"{value:.4f}" for name, value in event.metrics.items()})
        for line in lines(event):
            bar.console.print(line, markup=False, highlight=False)
        bar.update(task, facts="  ".join(f"{name} {value}" for name, value in facts.items()))

    return update


def _write_lines(event: Event) -> None:
    for line in lines(event):
        note(line)


def lines(event: Event) -> list[str]:
    """An event in words, a line each; progress and the report have none."""
    if isinstance(event, Started):
        return [
            f"{event.model}: {human(event.parameters)} parameters, {human(event.macs)} MACs, "
            f"{event.units} units in {event.groups} groups"
        ]
    if isinstance(event, Resumed):
        return [f"{event.run_directory}: goes on at step {event.step} of {event.steps}"]
    if isinstance(event, Evaluated):
        metrics = "  ".join(f"{name} {value:.4f}" for name, value in event.metrics.items())
        return [
            f"epoch {event.epoch}  step {event.step}  {event.split}  {metrics}  "
            f"parameters {human(event.parameters)}"
        ]
    if isinstance(event, Pruned):
        return _pruned_lines(event)
    return []


def _checked(event: Pruned) -> str:
    if event.verified == "off":
        return "not checked"
    how = " in parts" if event.verified == "parts" else ""
    return f"checked{how}: {event.error:.1e} <= {event.tolerance:.1e}"


def _pruned_lines(event: Pruned) -> list[str]:
    count = sum(event.removed.values())
    found = [
        f"step {event.step}  removed {count} units ({event.exact} exactly) from "
        f"{len(event.removed)} groups  parameters {human(event.parameters)}  "
        f"{_checked(event)}"
    ]
    if event.masked:
        found[0] += f"  connections {human(event.parameters - event.masked)}"
    if event.bounded and math.isfinite(event.change):
        found[0] += f"  expected change {100 * event.change:.2g} %"
    if event.rolled_back:
        found.append(f"step {event.step}  put back after the check: {', '.join(event.rolled_back)}")
    return found
