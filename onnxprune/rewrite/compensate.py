"""Exchange for what goes: constants move into biases, duplicates into their survivors' weights.

Works on the clone that `prune` owns, with all arrays still at their old sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from onnxprune.base import Axis, Consumer, Floats, Fold, Group, Index, Mask, Merge, Plan
from onnxprune.errors import PlanError
from onnxprune.graph.balance import is_balanced
from onnxprune.graph.consumers import absorber, outgoing
from onnxprune.graph.groups import Analysis
from onnxprune.ops.edit import SHIFTS, Edit

__all__ = ["Substitute", "check", "compensate", "substitutes"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Substitute:
    """What stands at the removed indices of one consumer axis: scale * x[source] + offset.

    Attributes:
        removed: (R,) indices that go.
        source: (R,) surviving indices; the removed index itself where nothing is taken over.
        scale, offset: (R,) numbers; scale 0 for plain removals and folds.
    """

    removed: Index
    source: Index
    scale: Floats
    offset: Floats


def substitutes(groups: Iterable[Group], plan: Plan) -> dict[Consumer, Substitute]:
    """What stands at every consumer of the plan's groups, over all groups that meet there.

    Where a node uses a unit within itself (`Group.inner`), the unit's entries of the weight are
    what is replaced, and only zero can stand there.
    """
    collected: dict[Consumer, list[Substitute]] = {}
    exchanged: dict[str, list[Fold | Merge]] = {}
    exchanges: tuple[Fold | Merge, ...] = (*plan.folds, *plan.merges)
    for exchange in exchanges:
        exchanged.setdefault(exchange.group, []).append(exchange)
    for group in groups:
        mask = plan.keep.get(group.name)
        if mask is None or mask.all():
            continue
        own = exchanged.get(group.name, [])
        for consumer in (*group.consumers, *group.inner):
            collected.setdefault(consumer, []).append(_substitute(group, consumer.axis, ~mask, own))
    return {consumer: _joined(parts) for consumer, parts in collected.items()}


def _substitute(
    group: Group, axis: Axis, gone: Mask, exchanges: Iterable[Fold | Merge]
) -> Substitute:
    index = group.member(axis).index
    source = index.copy()
    scale, offset = np.zeros(index.shape), np.zeros(index.shape)
    for exchange in exchanges:
        if isinstance(exchange, Fold):
            offset[exchange.unit] = exchange.values[axis]
        else:
            unit = exchange.victim
            source[unit] = index[exchange.survivor]
            scale[unit], offset[unit] = exchange.scale, exchange.offset
    return Substitute(
        removed=index[gone].reshape(-1),
        source=source[gone].reshape(-1),
        scale=scale[gone].reshape(-1),
        offset=offset[gone].reshape(-1),
    )


def _joined(parts: list[Substitute]) -> Substitute:
    return Substitute(
        removed=np.concatenate([part.removed for part in parts]),
        source=np.concatenate([part.source for part in parts]),
        scale=np.concatenate([part.scale for part in parts]),
        offset=np.concatenate([part.offset for part in parts]),
    )


def compensate(edit: Edit, consumer: Consumer, substitute: Substitute) -> None:
    """Let the weights and bias of one consumer take over what the removed units contributed.

    Raises:
        PlanError: there is something to take over and the operator has no way to.
    """
    if not substitute.scale.any() and not substitute.offset.any():
        return
    how = absorber(edit.view, consumer)
    shift = SHIFTS.find(edit.view.node, edit.view.opset)
    if how is None or shift is None:
        raise PlanError(
            f"{edit.view.key}: {edit.view.node.op_type} cannot take over constants or duplicates "
            f"of {consumer.axis}; plan a plain removal instead",
            consumer=consumer,
        )
    table = outgoing(edit.view, how)
    vector = contribution(table, substitute)
    dtype = table.dtype
    moved = np.flatnonzero(substitute.scale)
    if len(moved):
        weight = np.array(edit.view.constant(how.slot))
        rows = np.moveaxis(weight, how.in_axis, 0)
        added = rows[substitute.removed[moved]]
        scale = substitute.scale[moved].reshape(-1, *[1] * (rows.ndim - 1))
        np.add.at(rows, substitute.source[moved], (added * scale).astype(dtype))
        edit.write(how.slot, weight, role="weight")
    if vector.any():
        shift(edit, vector)


def contribution(table: Floats, substitute: Substitute) -> Floats:
    """What the constants add to each output: (C_out,), from weights (C_in, C_out, rest)."""
    rows = table[substitute.removed].astype(np.float64)  # einsum has no bfloat16
    total: Floats = np.einsum("r,rok->o", substitute.offset, rows, optimize=True)
    return total.astype(table.dtype)


def check(analysis: Analysis, plan: Plan) -> None:
    """Refuse plans that name unknown groups, empty one, tear blocks, or contradict themselves.

    Raises:
        PlanError: what is wrong, with the group.
    """
    groups = {group.name: group for group in analysis.groups}
    for name, mask in plan.keep.items():
        group = groups.get(name)
        if group is None:
            raise PlanError(f"plan: no group {name}; inspect lists the groups", group=name)
        if mask.shape != (group.size,) or mask.dtype != np.bool_:
            raise PlanError(
                f"plan for {name}: expected a mask of ({group.size},) bool, got "
                f"{mask.shape} {mask.dtype}",
                group=name,
            )
        if not mask.any():
            raise PlanError(f"plan for {name}: the last unit would go; keep one", group=name)
    if not is_balanced(analysis, plan.keep):
        raise PlanError(
            "plan: blocks that need equally many units would keep different numbers; let "
            "graph.balance.completed give some back",
            groups=tuple(plan.keep),
        )
    for problem in chain(_contradictions(plan), _used_inside(groups, plan)):
        raise PlanError(f"plan: {problem}")


def _used_inside(groups: dict[str, Group], plan: Plan) -> Iterator[str]:
    """Nothing inside a node could take over what a unit contributed there."""
    exchanged = {fold.group for fold in plan.folds} | {merge.group for merge in plan.merges}
    for name in sorted(exchanged & groups.keys()):
        for consumer in groups[name].inner:
            yield f"{name} is used inside {consumer.node}; its units can only go without exchange"


def _contradictions(plan: Plan) -> Iterator[str]:
    for group, unit in [(f.group, f.unit) for f in plan.folds] + [
        (m.group, m.victim) for m in plan.merges
    ]:
        if group not in plan.keep or plan.keep[group][unit]:
            yield f"unit {unit} of {group} is folded or merged but kept"
    for merge in plan.merges:
        if not plan.keep[merge.group][merge.survivor]:
            yield f"unit {merge.survivor} of {merge.group} is a survivor but goes"
