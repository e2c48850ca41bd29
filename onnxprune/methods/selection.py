"""What NNrelief's rules leave of a network at given alphas: connections, and units.

Selection by shares, the residual rule, dead units, and the clean-up from the last layer to the
first. Everything here is masks; nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.base import Floats, Group, Index, Mask
from onnxprune.graph.groups import Analysis
from onnxprune.methods.branches import Branch
from onnxprune.methods.connections import Layer, entry_masks

__all__ = ["Choice", "Scored", "joined", "masks_of", "selected"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scored:
    """A layer with the depths of its connections (G, I, O) and biases (G, O)."""

    layer: Layer
    alpha: float
    depth: Floats
    bias_depth: Floats | None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Choice:
    """What a pair of alphas leaves.

    Attributes:
        kept: per layer, its connections.
        biases: per layer that has some, its biases.
        silenced: channels of branches, (C,) each.
        gone: (U,) per group: units that leave the network.
        unused: (U,) per group: of these, those that nothing reads.
    """

    kept: dict[str, Mask]
    biases: dict[str, Mask]
    silenced: list[tuple[Branch, Mask]]
    gone: dict[str, Mask]
    unused: dict[str, Mask]


def _strength(alpha: float, pressure: float) -> float:
    """Alpha under a pressure in [0, 2]: 1 at 0, what was asked for at 1, almost 0 at 2."""
    if pressure <= 1:
        return 1 - (1 - alpha) * pressure
    return alpha * max(2 - pressure, 1e-6)


def selected(
    analysis: Analysis,
    found: Sequence[Scored],
    sums: Sequence[Branch],
    dead: Mapping[str, Mask],
    pressure: float,
) -> Choice:
    """Selection, residual rule, dead units and clean-up.

    Args:
        analysis: of the model.
        found: its layers.
        sums: branches whose channels may be silenced.
        dead: (U,) per group whose units may go.
        pressure: on the alphas, in [0, 2]; 1 for those that were asked for.
    """
    kept: dict[str, Mask] = {}
    biases: dict[str, Mask] = {}
    alphas = {each.layer.node: _strength(each.alpha, pressure) for each in found}
    for each in found:
        kept[each.layer.node] = each.depth < alphas[each.layer.node]
        if each.bias_depth is not None:
            biases[each.layer.node] = each.bias_depth < alphas[each.layer.node]
    by_key = {each.layer.node: each.layer for each in found}
    silenced = []
    for branch in sums:
        quiet = branch.share < min(1 - alphas[branch.layer], 0.5)
        silenced.append((branch, quiet))
        _cut(by_key[branch.layer], kept, biases, np.flatnonzero(quiet))
    choice = Choice(kept=kept, biases=biases, silenced=silenced, gone={}, unused={})
    for name, mask in dead.items():
        none = np.zeros(len(mask), np.bool_)
        choice.gone[name], choice.unused[name] = joined(none, mask), none
        _lose(analysis.group(name), by_key, choice, choice.gone[name])
    _clean_up(analysis, by_key, choice)
    return choice


def joined(gone: Mask, more: Mask) -> Mask:
    """What goes and what is to go as well, but for one of these where all would."""
    every = gone | more
    if every.all():
        every[int(np.argmin(gone))] = False
    return every


def _cut(layer: Layer, kept: dict[str, Mask], biases: dict[str, Mask], outputs: Index) -> None:
    """Take all that leads to the outputs `outputs` of a layer out of `kept` and `biases`."""
    kept[layer.node] = layer.cut_outputs(kept[layer.node], outputs)
    if layer.node in biases:
        mask = biases[layer.node].reshape(-1).copy()
        mask[outputs] = False
        biases[layer.node] = mask.reshape(biases[layer.node].shape)


def _lose(group: Group, by_key: Mapping[str, Layer], choice: Choice, units: Mask) -> None:
    """What makes units of a group, and what reads them, goes with them."""
    index = {member.axis: member.index[units].reshape(-1) for member in group.members}
    for layer in by_key.values():
        if layer.how.out in index:
            _cut(layer, choice.kept, choice.biases, index[layer.how.out])
    for consumer in group.consumers:
        reader = by_key.get(consumer.node)
        if reader is not None and reader.reads == consumer:
            kept = choice.kept[reader.node].copy()
            rows = kept.reshape(-1, kept.shape[2])
            rows[index[consumer.axis]] = False
            choice.kept[reader.node] = kept


def _clean_up(analysis: Analysis, by_key: Mapping[str, Layer], choice: Choice) -> None:
    """Units that nothing reads go, from the last group to the first, until there are none."""
    changed = True
    while changed:
        changed = False
        for group in reversed(analysis.groups):
            gone = choice.gone.get(group.name)
            unread = None if gone is None else _unread(group, by_key, choice)
            if gone is None or unread is None:
                continue
            every = joined(gone, unread)
            choice.gone[group.name], choice.unused[group.name] = every, unread & every
            if (every & ~gone).any():
                changed = True
                _lose(group, by_key, choice, every & ~gone)


def _unread(group: Group, by_key: Mapping[str, Layer], choice: Choice) -> Mask | None:
    """(U,) whether all outgoing connections are gone; None where others than layers read."""
    unread = np.ones(group.size, np.bool_)
    for consumer in group.consumers:
        reader = by_key.get(consumer.node)
        if reader is None or reader.reads != consumer:
            return None
        index = group.member(consumer.axis).index
        rows = reader.of_inputs(choice.kept[reader.node], index.reshape(-1))
        unread &= ~np.any(rows.any(axis=1).reshape(index.shape), axis=1)
    return unread


def masks_of(model: ir.Model, found: Sequence[Scored], choice: Choice) -> Mapping[str, Mask]:
    """What `choice` leaves of the parameters of `model`."""
    pairs = [(each.layer.weight, choice.kept[each.layer.node]) for each in found]
    pairs += [
        (each.layer.bias, choice.biases[each.layer.node])
        for each in found
        if each.layer.bias is not None
    ]
    silent = [
        replace(entries, index=entries.index[quiet])
        for branch, quiet in choice.silenced
        for entries in branch.behind
    ]
    return entry_masks(model, pairs, silent)
