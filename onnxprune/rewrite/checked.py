"""Prune, verify, and put back what fails: no plan leaves a broken model behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Mask, Plan
from onnxprune.errors import ModelError, PlanError
from onnxprune.graph.balance import completed, together
from onnxprune.graph.groups import Analysis
from onnxprune.rewrite.compensate import check
from onnxprune.rewrite.prune import Pruned, prune
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.session import Device
from onnxprune.runtime.verify import Agreement, compare, tolerance_of

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
    tolerance: float | None = None,
    parts: bool = False,
) -> Checked:
    """Apply `plan` and compare with the reference on a real batch; groups that fail are put back.

    Args:
        model: the graph; not changed.
        analysis: of this very graph.
        plan: what to remove.
        feeds: one batch.
        device: where to run the comparison.
        tolerance: relative; by default what the element types of `model` allow.
        parts: whether to compare stretch by stretch, for models that are too large for memory.

    Raises:
        PlanError: the plan does not fit the groups.
    """
    check(analysis, plan)
    trial = _Trial(
        model=model,
        analysis=analysis,
        feeds=feeds,
        device=device,
        tolerance=tolerance_of(model) if tolerance is None else tolerance,
        parts=parts,
    )
    failed: list[str] = []
    attempt = trial.of(plan)
    if attempt is None:
        clusters = together(analysis, list(plan.keep))
        alone = [plan.without(frozenset(plan.keep) - cluster) for cluster in clusters]
        bad = [names for names, part in zip(clusters, alone, strict=True) if trial.of(part) is None]
        attempt, failed = _without_failed(trial, plan, clusters, bad)
        plan = plan.without(frozenset(failed))
    pruned, agreement = attempt
    return Checked(
        pruned=pruned,
        plan=plan,
        agreement=agreement,
        rolled_back=tuple(failed),
        exact=_confirmed(trial, plan),
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Trial:
    """Where plans are tried: a model, a batch, a tolerance."""

    model: ir.Model
    analysis: Analysis
    feeds: Mapping[str, Array]
    device: Device | None
    tolerance: float
    parts: bool

    def of(self, plan: Plan) -> tuple[Pruned, Agreement] | None:
        """The verified result of `plan`; None when it fails."""
        try:
            pruned = prune(self.model, self.analysis, plan)
            agreement = self.compare(reference(self.model, self.analysis, plan), pruned.model)
        except (ModelError, PlanError):
            return None
        return (pruned, agreement) if agreement.holds else None

    def compare(self, expected: ir.Model, actual: ir.Model) -> Agreement:
        """How far two models are apart on the batch."""
        return compare(
            expected,
            actual,
            self.feeds,
            device=self.device,
            tolerance=self.tolerance,
            parts=self.parts,
        )


def _without_failed(
    trial: _Trial, plan: Plan, clusters: list[frozenset[str]], failed: list[frozenset[str]]
) -> tuple[tuple[Pruned, Agreement], list[str]]:
    """Leave out what failed alone, then, while it still fails, one cluster after the other."""
    remaining = [names for names in clusters if names not in failed]
    while True:
        names = [name for name in plan.keep if any(name in cluster for cluster in failed)]
        attempt = trial.of(plan.without(frozenset(names)))
        if attempt is not None:
            return attempt, names
        if not remaining:
            unchanged = Pruned(model=trial.model, kept={})
            return (unchanged, Agreement(error=0.0, relative=0.0)), names
        failed = [*failed, remaining.pop()]


def _confirmed(trial: _Trial, plan: Plan) -> int:
    """How many removals are exact: the model without just those equals the unmodified one.

    Never those of a group that a normalization or a mean sees as a whole: what they change may be
    small, but it is there.
    """
    inexact = frozenset(group.name for group in trial.analysis.groups if not group.exact)
    exact = completed(trial.analysis, only_exact(plan.without(inexact)))
    if not exact.removed():
        return 0
    try:
        agreement = trial.compare(trial.model, prune(trial.model, trial.analysis, exact).model)
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
