"""Which units go, given their scores and what may remain.

`allocate` removes units in one order until the model fits the budget. The order is what makes an
allocation: groups are divided into classes, the units of a class are ranked together, and all
classes lose the same share.

    uniform      every group is a class: the same share everywhere
    global       one class: scores are divided by their group's mean, then one threshold holds for
                 all; a group whose units matter equally loses few or most of them
    isomorphic   groups of the same form are a class: Fang et al. 2024, "Isomorphic Pruning for
                 Vision Models" (arXiv 2407.04616). The paper compares sub-structures of equal
                 topology; our form is the number of units, and for every axis they occupy its
                 position and the indices per unit. Scores are compared as they are.
    gain         one class: units go by the importance lost per cost saved, the cost being what
                 the budget counts. So a latency is cut where it arises (ours)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from onnxprune.base import Floats, Group, Index, Mask
from onnxprune.errors import ConfigError

__all__ = ["ALLOCATIONS", "CHOICES", "Allocated", "Cost", "allocate", "settled_allocation"]

_WIDTHS = 8  # at which it is looked up what units save
_FLAT = 0.05  # of a group's mean saving, that a unit counts for at least

Cost: TypeAlias = Callable[[Mapping[str, Mask]], int]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Allocated:
    """Masks, and how they stand to the budget.

    Attributes:
        keep: (U,) bool per group name, for groups that lose units.
        size: what remains under it, in the budget's unit.
        least: what would remain if every group were down to the fewest units it may have.
    """

    keep: Mapping[str, Mask]
    size: int
    least: int


def _own(group: Group) -> Hashable:
    return group.name


def _all(_group: Group) -> Hashable:
    return ()


def _form(group: Group) -> Hashable:
    return group.size, tuple(
        (member.axis.position, member.index.shape[1]) for member in group.members
    )


ALLOCATIONS: Mapping[str, Callable[[Group], Hashable]] = {
    "uniform": _own,
    "global": _all,
    "isomorphic": _form,
    "gain": _all,
}
"""Every allocation with the class of a group."""

CHOICES = ("auto", *ALLOCATIONS)
"""What `--allocation` takes: auto is gain for a latency, and uniform otherwise."""


def settled_allocation(choice: str, kind: str | None) -> str:
    """The allocation that `choice` means for a target of `kind`.

    Args:
        choice: one of `CHOICES`.
        kind: "params", "macs" or "latency"; None without a target.
    """
    if choice != "auto":
        return choice
    return "gain" if kind == "latency" else "uniform"


def allocate(
    groups: Sequence[Group],
    scores: Mapping[str, Floats],
    budget: int,
    cost: Cost,
    *,
    allocation: str = "uniform",
    round_to: int = 1,
    complete: Callable[[Mapping[str, Mask]], dict[str, Mask]] = dict,
) -> Allocated:
    """Remove the least important units until `cost` is at most `budget`, and no more than needed.

    Every group keeps at least one unit, and its most important ones. The budget is approached from
    below: after a bisection over the order of removal, groups get back what still fits, one step
    each, the last one removed first.

    Args:
        groups: that may lose units; those without scores lose none.
        scores: (U,) per group name, larger = keep.
        budget: what may remain.
        cost: what remains under masks.
        allocation: a key of `ALLOCATIONS`.
        round_to: groups that lose units keep a multiple of this many; smaller groups lose none.
        complete: masks -> masks that keep more where units cannot go without others.

    Raises:
        ConfigError: an unknown allocation, or `round_to` below 1.
    """
    if allocation not in ALLOCATIONS:
        raise ConfigError(f"--allocation {allocation}: expected one of {', '.join(ALLOCATIONS)}")
    if round_to < 1:
        raise ConfigError(f"--round-to {round_to}: expected at least 1")
    scored = [group for group in groups if group.name in scores]
    ranked = _by_gain(scored, scores, cost) if allocation == "gain" else None
    order = np.array(ranked or _order(scored, scores, allocation), np.int64)
    best = {group.name: np.argsort(-scores[group.name], kind="stable") for group in scored}

    def masks(counts: Sequence[int]) -> dict[str, Mask]:
        return complete(_masks(scored, best, counts))

    def kept(removals: int) -> list[int]:
        gone = np.bincount(order[:removals], minlength=len(scored))
        return [
            _rounded(group.size, group.size - int(lost), round_to)
            for group, lost in zip(scored, gone, strict=True)
        ]

    least = cost(masks(kept(len(order))))
    low, high = 0, len(order)
    while low < high and least <= budget:  # the fewest removals that fit
        middle = (low + high) // 2
        if cost(masks(kept(middle))) <= budget:
            high = middle
        else:
            low = middle + 1
    counts = kept(high)
    if least <= budget:
        counts = _given_back(counts, order[:high].tolist(), scored, budget, cost, masks, round_to)
    keep = masks(counts)
    return Allocated(keep=keep, size=cost(keep), least=least)


def _order(groups: Sequence[Group], scores: Mapping[str, Floats], allocation: str) -> Sequence[int]:
    """The group that loses a unit, removal by removal."""
    classes: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        classes.setdefault(ALLOCATIONS[allocation](group), []).append(number)
    levels: list[tuple[float, int]] = []
    for numbers in classes.values():
        values = [scores[groups[number].name] for number in numbers]
        if allocation == "global":
            values = [value / (float(value.mean()) or 1.0) for value in values]
        owners = np.repeat(numbers, [len(value) for value in values])
        ranked = owners[np.argsort(np.concatenate(values), kind="stable")]
        share = (np.arange(len(ranked)) + 1) / len(ranked)
        levels += zip(share.tolist(), ranked.tolist(), strict=True)
    return [number for _, number in sorted(levels, key=lambda level: level[0])]


def _by_gain(groups: Sequence[Group], scores: Mapping[str, Floats], cost: Cost) -> list[int]:
    """The group that loses a unit, removal by removal: least importance per cost saved first.

    With s the share of its group's importance that is left, a group costs 1 / s: it becomes dearer
    the less of it there is, as the loss of a network grows with the inverse of its width. What a
    unit saves depends on how many are left, too: that is looked up at several widths, all other
    groups being whole.
    """
    start = cost({})
    levels: list[tuple[float, int]] = []
    for number, group in enumerate(groups):
        worth = np.sort(scores[group.name], kind="stable")
        worth = np.maximum(worth / (float(worth.sum()) or 1.0), 1e-9)
        worth = worth / np.cumsum(worth[::-1])[::-1] ** 2
        marks = np.unique(np.linspace(0, group.size - 1, _WIDTHS + 1).astype(np.int64))
        saved = [start - cost({group.name: np.arange(group.size) >= mark}) for mark in marks]
        slopes = np.diff(saved) / np.diff(marks) if len(marks) > 1 else np.zeros(1)
        least = _FLAT * max(saved[-1], 1) / group.size
        places = np.searchsorted(marks, np.arange(group.size), side="right") - 1
        gain = np.maximum(slopes, least)[np.minimum(places, len(slopes) - 1)]
        prices = np.maximum.accumulate(worth / gain)  # units go in the order of their scores
        levels += ((float(price), number) for price in prices)
    return [number for _, number in sorted(levels, key=lambda level: level[0])]


def _rounded(size: int, count: int, round_to: int) -> int:
    """What a group of `size` units keeps that should keep `count`: the next higher multiple."""
    if count >= size or size < round_to:
        return size
    up = -(-max(count, 1) // round_to) * round_to
    return up if up <= size else size - size % round_to


def _masks(
    groups: Sequence[Group], best: Mapping[str, Index], counts: Sequence[int]
) -> dict[str, Mask]:
    """The most important units of each group; of equal ones the first.

    Args:
        groups: whose units are counted.
        best: (U,) units per group name, the most important first.
        counts: how many units each group keeps.
    """
    keep: dict[str, Mask] = {}
    for group, count in zip(groups, counts, strict=True):
        if count < group.size:
            mask = np.zeros(group.size, np.bool_)
            mask[best[group.name][:count]] = True
            keep[group.name] = mask
    return keep


def _given_back(
    counts: list[int],
    removals: Sequence[int],
    groups: Sequence[Group],
    budget: int,
    cost: Cost,
    masks: Callable[[Sequence[int]], dict[str, Mask]],
    round_to: int,
) -> list[int]:
    """`counts` with one step more for groups where that still fits the budget."""
    for number in dict.fromkeys(reversed(removals)):
        size = groups[number].size
        if counts[number] < size:
            more = list(counts)
            more[number] = min(counts[number] + round_to, size)
            if cost(masks(more)) <= budget:
                counts = more
    return counts
