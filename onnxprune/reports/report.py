"""The results of a run and of an inspection, as data.

Entries: `Report` and `Inspection`. Both become plain dicts for JSON; how they look on a terminal is
the business of `table`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxprune.reports.records import plain

__all__ = ["FrozenRow", "GroupRow", "Inspection", "Report", "Size"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large, how fast and how good a model is.

    Attributes:
        parameters: numbers in its initializers that count as parameters.
        macs: multiply-accumulates per example; None when unknown.
        masked: numbers among the parameters that are zero for good: single connections that went.
        units: that it has in groups that could lose some before the run; None when not counted.
        bytes: of its file, external data included; None when unknown.
        latency_ms: of one batch, milliseconds; None when not measured.
        metrics: by name ("accuracy" and "auc" in [0, 1], "mse", "loss").
    """

    parameters: int
    macs: int | None = None
    masked: int = 0
    units: int | None = None
    bytes: int | None = None
    latency_ms: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run achieved.

    Attributes:
        model, output: paths of the model that went in and of the one that came out.
        before, after: their sizes.
        exact, bounded: removed units that changed nothing, and something.
        steps, seconds: optimizer steps done, and how long all of it took.
        training_seconds: of these, from the first step to the last, removals and evaluations on
            validation data included.
        target: what was asked for ("params=30%"), None when nothing was.
        achieved: the share in [0, 1] of the target's parameters or MACs that remains, None
            without a target.
        reached: whether that is the target; None without one.
        difference: largest absolute difference of any output to the model that went in; None when
            the model was trained, or nothing could be run.
        agreement: share in [0, 1] of examples with the same top class as before; None likewise.
        notes: what the user should know, one sentence each.
        run_directory: where the records are; None when none were kept.
    """

    model: str
    output: str | None
    before: Size
    after: Size
    exact: int = 0
    bounded: int = 0
    steps: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    target: str | None = None
    achieved: float | None = None
    reached: bool | None = None
    difference: float | None = None
    agreement: float | None = None
    notes: tuple[str, ...] = ()
    run_directory: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return _as_dict(self)

    def to_json(self) -> str:
        """The same as text, indented."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRow:
    """Units that can be removed.

    Attributes:
        name: of the group.
        units: how many.
        parameters: that they own together.
        axes: where they occur, as text.
        exact: whether a dead unit can go without changing anything.
        reason: why not, when not.
    """

    name: str
    units: int
    parameters: int
    axes: tuple[str, ...]
    exact: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenRow:
    """An axis that keeps its size.

    Attributes:
        axis: as text.
        size: None when unknown.
        reason: why, in a few words.
        node: where that was found; empty for the graph itself.
        detail: what more is known.
    """

    axis: str
    size: int | None
    reason: str
    node: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What can be removed from a model, what cannot, and why.

    Attributes:
        groups, frozen: one row each.
        parameters, macs: of the whole model, macs per example.
        removable_parameters, removable_macs: that would go with all units but one per group.
        trained: names of the parameters that training moves.
        untrained: (name, why) of the initializers it does not.
        notes: one sentence each.
    """

    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenRow, ...]
    parameters: int
    macs: int | None
    removable_parameters: int
    removable_macs: int | None
    trained: tuple[str, ...] = ()
    untrained: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        return _as_dict(self)

    def to_json(self) -> str:
        """The same as text, indented."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)


def _as_dict(row: Report | Inspection) -> dict[str, Any]:
    result: dict[str, Any] = plain(asdict(row))
    return result
