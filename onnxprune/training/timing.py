"""Measure what a model's latency will be at other widths: the table for a target in milliseconds.

The model is pruned to several shares of its units, divided into stretches at the nodes that
multiply, and every stretch is run at every share, and so are the whole models. What comes of it,
`graph.timing.Timing`, is data: a run measures once, and from then on its decisions follow from the
table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Group, Mask, Plan
from onnxprune.errors import ConfigError
from onnxprune.graph.balance import completed_keep
from onnxprune.graph.cost import resized
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis
from onnxprune.graph.timing import Stretch, Timing, multiplies, rising, work
from onnxprune.model import node_key
from onnxprune.ops.registry import View
from onnxprune.rewrite.prune import prune
from onnxprune.runtime.latency import taking_turns
from onnxprune.runtime.parts import divided
from onnxprune.runtime.session import Device, Runner
from onnxprune.training.problem import Problem
from onnxprune.training.pruning import Stage
from onnxprune.training.target import Target

__all__ = ["measured", "timing_of"]

_EXAMPLES = 32  # in a batch, as in reports
_SHARES = (1.0, 0.75, 0.5, 0.35, 0.2, 0.1, 0.0)  # of the units of every group
_SMALLEST = 1 / 48  # share of the model's work that a stretch has at least
_WHOLE, _PART = 2.0, 0.05  # seconds for the whole models, and for one stretch, at all shares
_QUANTILE = 0.2  # of the times of one kind: other programs only ever make them longer
_ODD = 8  # from this width on, widths are odd


def timing_of(problem: Problem, stage: Stage) -> Timing | None:
    """What the latencies of a run are counted by, where its target is one.

    Args:
        problem: what is trained on what.
        stage: the model given.
    """
    goal = problem.config.goal
    if goal is None or goal.kind != "latency":
        return None
    return measured(
        stage.model,
        stage.analysis,
        problem.first_inputs(_EXAMPLES),
        goal,
        device=problem.device,
        round_to=problem.config.multiple,
    )


def measured(
    model: ir.Model,
    analysis: Analysis,
    feeds: Mapping[str, Array],
    goal: Target,
    *,
    device: Device,
    round_to: int = 1,
) -> Timing:
    """Run `model` and smaller ones, and say how long each stretch takes by its work.

    Without `round_to`, the widths measured are odd, because the widths that a criterion leaves are
    any, and kernels like round ones better: the table is not to promise what it cannot keep.

    Args:
        model: not changed.
        analysis: of this very graph, with the groups that may lose units.
        feeds: one batch.
        goal: a latency.
        device: where it runs.
        round_to: groups that lose units keep a multiple of this many.

    Raises:
        ConfigError: the goal is below the latency of the narrowest model. For other targets as
            much goes as can; here nothing but a wreck would be left, for nothing.
    """
    timing = _measured(model, analysis, feeds, device=device, round_to=round_to)
    if goal.limit(timing.start) < timing.least:
        raise ConfigError(
            f"--target {goal}: out of reach; a batch of {timing.examples} takes "
            f"{timing.start / 1e6:.3g} ms, and {timing.least / 1e6:.3g} ms "
            f"({100 * timing.least / timing.start:.0f} %) when every group is down to its last "
            "units; ask for more",
            target=goal,
            least=timing.least,
        )
    return timing


def _measured(
    model: ir.Model,
    analysis: Analysis,
    feeds: Mapping[str, Array],
    *,
    device: Device,
    round_to: int,
) -> Timing:
    masks = _masks(analysis, round_to)
    models = [prune(model, analysis, Plan(keep=keep)).model for keep in masks]
    parts = _parts(model, analysis, models)
    works = [_works(model, analysis, keep, parts) for keep in masks]
    times = _times(models, parts, feeds, device)
    stretches = tuple(
        Stretch(nodes=nodes, time=rising([w[n] for w in works], [t[n] for t in times]))
        for n, nodes in enumerate(parts)
    )
    sums = [sum(s.time(w) for s, w in zip(stretches, each, strict=True)) for each in works]
    runs = [partial(Runner(each, device=device).run, feeds) for each in models]
    return Timing(
        stretches=stretches,
        whole=rising(sums, _nanoseconds(runs, _WHOLE)),
        examples=max((len(array) for array in feeds.values() if array.ndim), default=1),
    )


def _masks(analysis: Analysis, round_to: int) -> list[dict[str, Mask]]:
    """What is kept at every share; shares that come to the same are measured once."""
    found: dict[tuple[int, ...], dict[str, Mask]] = {}
    for share in _SHARES:
        keep = _narrowed(analysis, share, round_to)
        found.setdefault(tuple(int(mask.sum()) for mask in keep.values()), keep)
    return list(found.values())


def _narrowed(analysis: Analysis, share: float, round_to: int) -> dict[str, Mask]:
    """Masks that keep about `share` of the units of every group."""
    keep = {g.name: np.arange(g.size) < _width(g, share, round_to) for g in analysis.groups}
    return completed_keep(analysis, keep, round_to=round_to)


def _width(group: Group, share: float, round_to: int) -> int:
    count = max(round(share * group.size), 1)
    if count >= group.size:
        return group.size
    if round_to > 1:
        return max(count - count % round_to, min(round_to, group.size))
    return count if count < _ODD else count - 1 + count % 2


def _parts(
    model: ir.Model, analysis: Analysis, models: Sequence[ir.Model]
) -> list[tuple[str, ...]]:
    """Keys of the nodes of each stretch: those that multiply begin one, if there is enough to it.

    A stretch begins where all of `models` have the node.
    """
    common = set.intersection(*({node_key(node) for node in each.graph} for each in models))
    found = _views(model, analysis, {})
    whole = sum(work(view) for view in found.values())
    parts: list[list[str]] = [[]]
    total = 0
    for key, view in found.items():
        if total >= _SMALLEST * whole and key in common and multiplies(view):
            parts.append([])
            total = 0
        parts[-1].append(key)
        total += work(view)
    return [tuple(part) for part in parts]


def _views(model: ir.Model, analysis: Analysis, keep: Mapping[str, Mask]) -> dict[str, View]:
    """The nodes of the main graph by key, in order, with their sizes under masks."""
    shapes = {**analysis.shapes, **resized(analysis, keep)}
    found = views(model, shapes, analysis.known)
    return {view.key: view for view in found if view.node.graph is model.graph}


def _works(
    model: ir.Model,
    analysis: Analysis,
    keep: Mapping[str, Mask],
    parts: Sequence[Sequence[str]],
) -> list[int]:
    """Work of every stretch."""
    found = _views(model, analysis, keep)
    return [sum(work(found[key]) for key in part) for part in parts]


def _times(
    models: Sequence[ir.Model],
    parts: Sequence[Sequence[str]],
    feeds: Mapping[str, Array],
    device: Device,
) -> list[list[float]]:
    """Nanoseconds per stretch, for every model; models take turns on each stretch."""
    streams = [divided(each, feeds, _stops(each, parts), device=device) for each in models]
    columns = []
    for stretches in zip(*streams, strict=True):
        runs = [partial(Runner(each, device=device).run, given) for each, given in stretches]
        columns.append(_nanoseconds(runs, _PART))
    return [list(row) for row in zip(*columns, strict=True)]


def _nanoseconds(runs: Sequence[Callable[[], Any]], seconds: float) -> list[float]:
    return [1e6 * taken for taken in taking_turns(runs, seconds=seconds, quantile=_QUANTILE)]


def _stops(model: ir.Model, parts: Sequence[Sequence[str]]) -> list[int]:
    """Number of the node behind each stretch; what a removal put in belongs to what follows."""
    number = {node_key(node): place for place, node in enumerate(model.graph)}
    return [*(number[part[0]] for part in parts[1:]), len(number)]
