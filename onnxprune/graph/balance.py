"""Blocks that must stay equally large: what follows for plans, and how a plan is made to fit.

`completed` gives units back until every block keeps as many as the others, and every group a
multiple of a number where that is asked for. Every chooser of units passes through it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from onnxprune.base import Balance, Floats, Group, Index, Mask, Plan

__all__ = ["completed", "completed_keep", "is_balanced", "together"]


class Analysis(Protocol):
    """What of an analysis counts here."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """That may lose units; all others keep theirs."""

    @property
    def balances(self) -> tuple[Balance, ...]:
        """Blocks that must stay equal."""


def completed(
    analysis: Analysis,
    plan: Plan,
    *,
    worth: Mapping[str, Floats] | None = None,
    round_to: int = 1,
) -> Plan:
    """`plan` less the removals that leave blocks unequal or groups at odd sizes.

    Args:
        analysis: of the model that the plan is for.
        plan: as a method made it.
        worth: (U,) per group name, larger = the first to be given back; by default those units
            that the method does not call exact.
        round_to: see `completed_keep`.
    """
    if worth is None:
        worth = {name: ~called * 1.0 for name, called in plan.exact.items()}
    keep = completed_keep(analysis, plan.keep, worth=worth, round_to=round_to)
    if all(np.array_equal(keep[name], mask) for name, mask in plan.keep.items()):
        return plan
    return replace(
        plan,
        keep={name: mask for name, mask in keep.items() if not mask.all()},
        folds=tuple(fold for fold in plan.folds if not keep[fold.group][fold.unit]),
        merges=tuple(merge for merge in plan.merges if not keep[merge.group][merge.victim]),
        exact={name: called & ~keep[name] for name, called in plan.exact.items() if name in keep},
    )


def completed_keep(
    analysis: Analysis,
    keep: Mapping[str, Mask],
    *,
    worth: Mapping[str, Floats] | None = None,
    round_to: int = 1,
) -> dict[str, Mask]:
    """Masks that keep what `keep` does and as little more as makes them fit.

    Args:
        analysis: of the model that the masks are for.
        keep: (U,) bool per group name.
        worth: (U,) per group name, larger = the first to be given back.
        round_to: a group that loses units keeps a multiple of this many, or fewer than this many.
    """
    if not analysis.balances and round_to <= 1:
        return dict(keep)
    state = _State(analysis, keep, worth or {})
    while True:
        state.balance()
        if not state.round_up(round_to):
            return {name: state.keep[state.span[name]] for name in keep}


def is_balanced(analysis: Analysis, keep: Mapping[str, Mask]) -> bool:
    """Whether equally many stay of all blocks that need it."""
    whole = {group.name: np.ones(group.size, np.bool_) for group in analysis.groups}
    done = completed_keep(analysis, {**whole, **keep})
    return all(np.array_equal(done[name], mask) for name, mask in keep.items())


def together(analysis: Analysis, names: Sequence[str]) -> list[frozenset[str]]:
    """`names` by what can only be given back together: groups with blocks in common."""
    clusters = [frozenset({name}) for name in names]
    for balance in analysis.balances:
        joined = frozenset(balance.block) & frozenset(names)
        apart = [cluster for cluster in clusters if not cluster & joined]
        if len(apart) < len(clusters):
            merged = joined.union(*(cluster for cluster in clusters if cluster & joined))
            clusters = [*apart, merged]
    return clusters


@dataclass(slots=True)
class _Rule:
    """One balance over all units: (V,) block of each, -1 for none, and the size per block."""

    block: Index
    sizes: Index

    def kept(self, keep: Mask) -> Index:
        gone = self.block[~keep & (self.block >= 0)]
        return self.sizes - np.bincount(gone, minlength=len(self.sizes))


class _State:
    """Masks of all groups side by side, while units are given back."""

    def __init__(
        self, analysis: Analysis, keep: Mapping[str, Mask], worth: Mapping[str, Floats]
    ) -> None:
        self.groups: Sequence[Group] = analysis.groups
        ends = np.cumsum([0, *(group.size for group in analysis.groups)])
        self.span = {
            group.name: slice(int(ends[number]), int(ends[number + 1]))
            for number, group in enumerate(analysis.groups)
        }
        self.keep: Mask = np.ones(int(ends[-1]), np.bool_)
        self.worth = np.zeros(len(self.keep))
        for name, mask in keep.items():
            self.keep[self.span[name]] = mask
            self.worth[self.span[name]] = worth.get(name, 0.0)
        self.rules = [self._rule(balance) for balance in analysis.balances]
        self.shared = np.zeros(len(self.keep), np.int64)  # how many rules count each unit
        for rule in self.rules:
            self.shared += rule.block >= 0

    def _rule(self, balance: Balance) -> _Rule:
        block = np.full(len(self.keep), -1, np.int64)
        for name, own in balance.block.items():
            if name in self.span:
                block[self.span[name]] = own
        return _Rule(block=block, sizes=balance.sizes)

    def balance(self) -> None:
        """Give units back, those first that mend most, until all blocks are equal."""
        while True:
            counts = [rule.kept(self.keep) for rule in self.rules]
            broken = next(
                (
                    (rule, kept)
                    for rule, kept in zip(self.rules, counts, strict=True)
                    if kept.min() < kept.max() and (kept < rule.sizes).any()
                ),
                None,
            )
            if broken is None:
                return
            rule, kept = broken
            short = np.isin(rule.block, np.flatnonzero(kept < kept.max()))
            candidates = np.flatnonzero(short & ~self.keep)
            if not len(candidates) or kept.max() > rule.sizes.min():
                self.keep[rule.block >= 0] = True
                continue
            if (self.shared[candidates] == 1).all():
                self._fill(rule, kept, candidates)
                continue
            merit = self._merit(candidates, counts)
            self.keep[candidates[np.lexsort((candidates, *merit))[0]]] = True

    def _fill(self, rule: _Rule, kept: Index, units: Index) -> None:
        """Give back at once what `balance` would one by one: units that no other rule counts."""
        ranked = units[np.lexsort((units, -self.worth[units], rule.block[units]))]
        blocks, starts = np.unique(rule.block[ranked], return_index=True)
        for block, start in zip(blocks, starts, strict=True):
            self.keep[ranked[start : start + kept.max() - kept[block]]] = True

    def _merit(self, units: Index, counts: Sequence[Index]) -> tuple[Floats, Floats]:
        """Sort keys, the last one first: how few rules a unit mends, how little it is worth."""
        mended = np.zeros(len(units))
        for rule, kept in zip(self.rules, counts, strict=True):
            block = rule.block[units]
            mended += np.where(block < 0, 0, np.where(kept[block] < kept.max(), 1, -1))
        return -self.worth[units], -mended

    def round_up(self, number: int) -> bool:
        """Give units of groups back up to the next multiple; whether there were any."""
        changed = False
        for group in self.groups if number > 1 else ():
            mask = self.keep[self.span[group.name]]  # a view
            count = int(mask.sum())
            missing = min(-count % number, group.size - count)
            if count > number and missing:
                gone = np.flatnonzero(~mask)
                worth = self.worth[self.span[group.name]][gone]
                mask[gone[np.argsort(-worth, kind="stable")[:missing]]] = True
                changed = True
        return changed
