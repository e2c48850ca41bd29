"""Prune, verify, and put back what fails: no plan leaves a broken model behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Mask, Plan
from onnxprune.errors import ModelError, PlanError
from onnxprune.graph.groups import Analysis
from onnxprune.rewrite.prune import Pruned, prune
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.session import Device
from onnxprune.runtime.verify import TOLERANCE, Agreement, compare

__all__ = ["Checked", "checked_prune"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Checked:
    """A verified removal.

    Attributes:
        pruned: the model, and the kept indices.
        plan: what was done: the plan given less what was put back.
        agreement: of the pruned model with its reference on the batch.
        rolled_back: groups that failed and were left whole.
        exact: units removed that changed nothing: called so by the method, and confirmed by
            comparing the model without them to the unmodified one.
    """

    pruned: Pruned
    plan: Plan
    agreement: Agreement
    rolled_back: tuple[str, ...]
    exact: int

    @property
    def bounded(self) -> int:
        """Units removed that changed something."""
        return self.plan.removed() - self.exact


def checked_prune(
    model: ir.Model,
    analysis: Analysis,
    plan: Plan,
    feeds: Mapping[str, Array],
    *,
    device: Device | None = None,
    tolerance: float = TOLERANCE,
) -> Checked:
    """Apply `plan` and compare with the reference on a real batch; groups that fail are put back.

    Args:
        model: the graph; not changed.
        analysis: of this very graph.
        plan: what to remove.
        feeds: one batch.
        device: where to run the comparison.
        tolerance: see `runtime.verify`.

    Raises:
        PlanError: the plan does not fit the groups.
    """
    failed: list[str] = []
    attempt = _attempt(model, analysis, plan, feeds, device, tolerance)
    if attempt is None:
        for name in plan.keep:
            alone = plan.without(frozenset(plan.keep) - {name})
            if _attempt(model, analysis, alone, feeds, device, tolerance) is None:
                failed.append(name)
        attempt, failed = _without_failed(model, analysis, plan, feeds, device, tolerance, failed)
        plan = plan.without(frozenset(failed))
    pruned, agreement = attempt
    return Checked(
        pruned=pruned,
        plan=plan,
        agreement=agreement,
        rolled_back=tuple(failed),
        exact=_confirmed(model, analysis, plan, feeds, device, tolerance),
    )


_Attempt = tuple[Pruned, Agreement]


def _attempt(
    model: ir.Model,
    analysis: Analysis,
    plan: Plan,
    feeds: Mapping[str, Array],
    device: Device | None,
    tolerance: float,
) -> _Attempt | None:
    """The verified result of `plan`; None when it fails."""
    try:
        pruned = prune(model, analysis, plan)
        expected = reference(model, analysis, plan)
        agreement = compare(expected, pruned.model, feeds, device=device, tolerance=tolerance)
    except (ModelError, PlanError):
        return None
    return (pruned, agreement) if agreement.holds else None


def _without_failed(
    model: ir.Model,
    analysis: Analysis,
    plan: Plan,
    feeds: Mapping[str, Array],
    device: Device | None,
    tolerance: float,
    failed: list[str],
) -> tuple[_Attempt, list[str]]:
    """Leave out the groups that failed alone, then, while it still fails, one after the other."""
    remaining = [name for name in plan.keep if name not in failed]
    while True:
        attempt = _attempt(
            model, analysis, plan.without(frozenset(failed)), feeds, device, tolerance
        )
        if attempt is not None:
            return attempt, failed
        if not remaining:
            return (Pruned(model=model, kept={}), Agreement(error=0.0, relative=0.0)), failed
        failed = [*failed, remaining.pop()]


def _confirmed(
    model: ir.Model,
    analysis: Analysis,
    plan: Plan,
    feeds: Mapping[str, Array],
    device: Device | None,
    tolerance: float,
) -> int:
    """How many removals are exact: the model without just those equals the unmodified one."""
    exact = only_exact(plan)
    if not exact.removed():
        return 0
    try:
        smaller = prune(model, analysis, exact).model
        agreement = compare(model, smaller, feeds, device=device, tolerance=tolerance)
    except (ModelError, PlanError):
        return 0
    return exact.removed() if agreement.holds else 0


def only_exact(plan: Plan) -> Plan:
    """The part of `plan` that its method calls exact."""
    keep: dict[str, Mask] = {}
    for name, mask in plan.keep.items():
        called = plan.exact.get(name, np.zeros(len(mask), np.bool_))
        keep[name] = mask | ~called
    return Plan(
        keep=keep,
        folds=tuple(fold for fold in plan.folds if not keep[fold.group][fold.unit]),
        merges=tuple(merge for merge in plan.merges if not keep[merge.group][merge.victim]),
        exact={name: ~mask for name, mask in keep.items()},
    )
