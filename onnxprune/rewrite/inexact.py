"""Operators that see all units of an axis at once, in the reference: the removed ones are hidden.

What a normalization makes of the units that stay depends on the ones that go. Zeros in their place
would count in its mean, so the reference takes them out before such an operator and fills their
places up behind it. What stands in those places does not matter: every consumer replaces it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Choice, Fact, Index, Inexact
from onnxprune.graph.couplings import facts
from onnxprune.graph.groups import Analysis
from onnxprune.ops.edit import Edit
from onnxprune.ops.registry import RESIZES, View, arange

__all__ = ["hide_removed"]


def hide_removed(
    model: ir.Model, analysis: Analysis, kept: Mapping[Axis, Index], taken: set[str | None]
) -> set[str]:
    """Let every node of `model` that is inexact along a resized axis see the kept indices only.

    Args:
        model: a copy of the analyzed model, changed in place; all values keep name and sizes.
        analysis: of that model.
        kept: kept indices per resized axis.
        taken: names of the values that nodes make; grows.

    Returns:
        The keys of these nodes.
    """
    if all(group.exact for group in analysis.groups):
        return set()
    shapes = dict(analysis.shapes)
    found: dict[str, tuple[View, list[Fact]]] = {}
    for view, fact in facts(model, analysis.shapes, analysis.known):
        if view is not None:
            found.setdefault(view.key, (view, []))[1].append(fact)
    hidden = {key: view for key, (view, said) in found.items() if _sees_removed(said, kept)}
    for view in hidden.values():
        _hide(Edit(view=view, kept=dict(kept), shapes=shapes, graph=model.graph, taken=taken))
    return set(hidden)


def _sees_removed(said: list[Fact], kept: Mapping[Axis, Index]) -> bool:
    """Whether any axis or atom that a node is inexact along loses indices."""
    inexact = {fact.axis for fact in said if isinstance(fact, Inexact)}
    if not inexact:
        return False
    choices = [fact for fact in said if isinstance(fact, Choice)]
    return not inexact.isdisjoint({*kept, *_resized_atoms(choices, kept)})


def _resized_atoms(choices: Iterable[Choice], kept: Mapping[Axis, Index]) -> Iterator[Axis]:
    """Atoms of resized product axes along which what is kept varies."""
    for choice in choices:
        starts = choice.starts or (0,) * len(choice.axes)
        for (axis, atoms), start in zip(choice.axes, starts, strict=True):
            if axis in kept:
                sizes = [choice.sizes[number] for number in atoms]
                inside = arange(int(np.prod(sizes, dtype=np.int64))) + start
                mask = np.isin(inside, kept[axis]).reshape(sizes)
                for place, number in enumerate(atoms):
                    if (mask.any(axis=place) != mask.all(axis=place)).any():
                        yield choice.atom(number)


def _hide(edit: Edit) -> None:
    """Take the kept indices in front of a node, mend its attributes, and fill up behind it."""
    node = edit.view.node
    rule = RESIZES.find(node, edit.view.opset)
    if rule is not None:
        rule(edit)
    for slot in range(len(node.inputs)):
        for axis, indices in _resized(edit, node.inputs[slot]):
            role = f"kept_{slot}_{axis}"
            taken = edit.initializer(f"{edit.view.key}/{role}", indices)
            edit.insert_before(slot, "Gather", taken, role=f"{role}_only", axis=axis)
    for output in node.outputs:
        _fill_up(edit, output)


def _resized(edit: Edit, value: ir.Value | None) -> list[tuple[int, Array]]:
    """The resized axes of a value with their kept indices."""
    if value is None or not value.name:
        return []
    rank = len(edit.view.shape(value))
    axes = ((axis, edit.kept_at(value, axis)) for axis in range(rank))
    return [(axis, indices) for axis, indices in axes if indices is not None]


def _fill_up(edit: Edit, value: ir.Value) -> None:
    """Put every kept index back in its place; what goes gets the index kept before it."""
    name = value.name or ""
    chain: list[ir.Node] = []
    last = value
    for axis, indices in _resized(edit, value):
        places = np.searchsorted(indices, arange(edit.shapes[name][axis] or 0), side="right") - 1
        moved = edit.initializer(f"{name}/places_{axis}", np.maximum(places, 0))
        chain.append(ir.node("Gather", [last, moved], attributes={"axis": axis}))
        last = chain[-1].outputs[0]
        last.name = edit.fresh(f"{name}/filled_{axis}")
    if chain:
        ir.convenience.replace_all_uses_with(value, last, replace_graph_outputs=True)
        chain[0].replace_input_with(0, value)
        edit.around.insert_after(edit.view.node, chain)
        last.name, value.name, value.shape = name, edit.fresh(f"{name}/kept"), None
