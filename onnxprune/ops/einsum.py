"""Einsum: products and sums of any number of values, written as an equation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxprune.base import Axis, Ends, Fact, Floats
from onnxprune.ops.edit import Absorber, Edit, shifts
from onnxprune.ops.registry import Role, View, absorbs, couples, macs, parameters

parameters("Einsum", slots=dict.fromkeys(range(8), Role.WEIGHT))


@couples("Einsum")
def einsum(view: View) -> Iterator[Fact]:
    """Couple all axes that carry the same label.

    Forward:  y[output labels] = sum over the other labels of the product of all inputs
    Couples:  axes of one label one to one, over all inputs and the output; of the axes behind an
              ellipsis those that are as far from its end. A label that occurs once is summed over.
              Axes of size 1 repeat and stay
    """
    terms = _terms(view)
    if terms is None:
        for value in (*view.node.inputs, view.output()):
            yield from view.fixed(value, *range(len(view.shape(value))))
        return
    for axes in _by_label(view, terms).values():
        if len(axes) == 1:
            yield Ends(axes[0])
        for axis in axes[1:]:
            yield from view.equal(axes[0], axis)


def _terms(view: View) -> list[list[str]] | None:
    """One label per axis of each input and, last, of the output; None where ranks do not fit."""
    equation = view.attribute("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    texts = left.split(",")
    ranks = [len(view.shape(value)) for value in view.node.inputs]
    if len(texts) != len(ranks):
        return None
    terms = [_labels(text, rank) for text, rank in zip(texts, ranks, strict=True)]
    target = right if arrow else _implicit(left)
    terms.append(_labels(target, len(view.shape(view.output()))))
    return None if None in terms else terms  # type: ignore[return-value]


def _implicit(left: str) -> str:
    """Without an arrow: the ellipsis, then the labels that occur once, in alphabetical order."""
    letters = left.replace("...", "").replace(",", "")
    once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
    return ("..." if "..." in left else "") + "".join(once)


def _labels(text: str, rank: int) -> list[str] | None:
    """One label per axis; those of an ellipsis are numbered from its end."""
    before, dots, after = text.partition("...")
    count = rank - len(before) - len(after)
    if count < 0 or (count and not dots):
        return None
    return [*before, *(f"...{count - number}" for number in range(count)), *after]


def _by_label(view: View, terms: Sequence[Sequence[str]]) -> dict[str, list[Axis]]:
    found: dict[str, list[Axis]] = {}
    for value, labels in zip((*view.node.inputs, view.output()), terms, strict=True):
        for position, label in enumerate(labels):
            if view.shape(value)[position] != 1:
                found.setdefault(label, []).append(view.axis(value, position))
    return found


@macs("Einsum")
def einsum_macs(view: View) -> int:
    """Product of all labels' sizes where something is multiplied; dynamic sizes counted as 1."""
    terms = _terms(view)
    if terms is None or len(view.node.inputs) < 2:
        return 0
    sizes = [view.size(axes[0]) or 1 for axes in _by_label(view, terms).values()]
    return int(np.prod(sizes, dtype=np.int64))


@absorbs("Einsum")
def einsum_absorber(view: View, slot: int) -> Absorber | None:
    """A constant matrix over one summed label and one output label absorbs the former."""
    weight = 1 - slot
    terms = _terms(view)
    if terms is None or len(view.node.inputs) != 2 or not view.is_constant(weight):
        return None
    data, matrix, output = terms[slot], terms[weight], terms[2]
    shared = [position for position, label in enumerate(matrix) if label in data]
    if len(matrix) != 2 or len(shared) != 1:
        return None
    inner, outer = shared[0], 1 - shared[0]
    own = data.count(matrix[inner]) == 1 and matrix[outer] in output
    rest = [label for label in data if label != matrix[inner]]
    if not own or sorted(output) != sorted([*rest, matrix[outer]]):
        return None
    return Absorber(slot=weight, in_axis=inner, out_axis=outer)


@shifts("Einsum")
def einsum_shift(edit: Edit, vector: Floats) -> None:
    """Put an Add of `vector` behind, along the label that the matrix brings."""
    view = edit.view
    terms = _terms(view)
    assert terms is not None
    data = next(slot for slot in (0, 1) if einsum_absorber(view, slot) is not None)
    axis = next(p for p, label in enumerate(terms[2]) if label not in terms[data])
    edit.add_behind(vector.reshape(-1, *[1] * (len(terms[2]) - axis - 1)), axis=axis)
