"""Verified removals without training: one step, without loss, by a recipe.

Each takes a graph and gives back a `Removal`: the graph after it, and the rounds that repeat it.
Every round is verified, and groups that fail are put back; without a runtime nothing is, and the
caller says so.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.base import Plan
from onnxprune.errors import ConfigError
from onnxprune.graph import cost
from onnxprune.graph.balance import completed, together
from onnxprune.graph.groups import Analysis, analyze
from onnxprune.graph.shapes import with_input_shapes
from onnxprune.methods.lossless import REQUIRES, Findings, lossless, observed_axes
from onnxprune.oneshot.config import PruneConfig
from onnxprune.oneshot.examples import Examples, differences, observe
from onnxprune.reports import Pruned
from onnxprune.rewrite.checked import checked_prune
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.recipe import Recipe, Round, record, replay
from onnxprune.runtime.session import Device
from onnxprune.runtime.verify import TOLERANCE

__all__ = [
    "Job",
    "Removal",
    "Step",
    "by_recipe",
    "candidates",
    "failed_note",
    "stepped",
    "summed",
    "without_loss",
]

_PASSES = 10  # of lossless removal; each exposes little more than the one before


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Job:
    """What all ways work with.

    Attributes:
        config: the options.
        examples: data or made-up inputs.
        runtime: where models run; None when there is no runtime.
        verified: how removals are: "whole", "parts" or "off" (`oneshot.verification`).
        unnamed: see `rewrite.recipe.record`.
    """

    config: PruneConfig
    examples: Examples
    runtime: Device | None
    verified: str
    unnamed: frozenset[str]

    @property
    def device(self) -> Device | None:
        """Where to verify; None when nothing is verified."""
        return None if self.verified == "off" else self.runtime

    @property
    def parts(self) -> bool:
        """Whether to verify stretch by stretch."""
        return self.verified == "parts"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Removal:
    """What was done.

    Attributes:
        model: after it.
        analysis: of that model, without regard to the groups that the user keeps; None where it is
            the model before.
        rounds: what was kept, for a recipe.
        events: one per round.
        removed, exact: units that went, and how many of them changed nothing.
        least: parameters, MACs or nanoseconds that must remain, for a target.
        notes: one sentence each.
    """

    model: ir.Model
    analysis: Analysis | None = None
    rounds: tuple[Round, ...] = ()
    events: tuple[Pruned, ...] = ()
    removed: int = 0
    exact: int = 0
    least: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Step:
    """One verified round: the graph after it with its analysis, what was done, and how it went."""

    model: ir.Model
    analysis: Analysis
    plan: Plan
    round: Round
    event: Pruned | None


def candidates(model: ir.Model, config: PruneConfig, *, before: Analysis | None = None) -> Analysis:
    """The analysis with the groups that the user lets go; names are those of `before`.

    Raises:
        ConfigError: `only` matches no group.
    """
    sizes = {name: tuple(shape) for name, shape in config.input_shapes.items()}
    analysis = analyze(with_input_shapes(model, sizes), before=before)
    groups = analysis.groups
    if config.only is not None:
        wanted = re.compile(config.only)
        groups = tuple(group for group in groups if wanted.search(group.name))
        if analysis.groups and not groups:
            raise ConfigError(
                f"--only {config.only}: matches none of the {len(analysis.groups)} groups; "
                "inspect lists them",
                only=config.only,
            )
    if config.keep is not None:
        unwanted = re.compile(config.keep)
        groups = tuple(group for group in groups if not unwanted.search(group.name))
    return replace(analysis, groups=groups)


def failed_note(names: set[str]) -> tuple[str, ...]:
    """What to say about groups that failed verification."""
    if not names:
        return ()
    return (f"left whole, because they failed verification: {', '.join(sorted(names))}",)


def without_loss(model: ir.Model, job: Job) -> Removal:
    """Remove dead, constant and duplicate units until no more are found.

    The result is compared with the model given over all examples. Should it differ after all,
    groups that differ alone are left whole.
    """
    assert job.device is not None
    steps: list[Step] = []
    counts = {"proven": 0, "observed": 0, "duplicates": 0}
    current = model
    analysis: Analysis | None = None
    for _ in range(_PASSES):
        analysis = candidates(current, job.config, before=analysis)
        findings = _findings(current, analysis, job)
        plan = None if findings is None else completed(analysis, findings.plan)
        plan = None if plan is None else _harmless(current, analysis, plan, job)
        if findings is None or plan is None:
            break
        step = stepped(current, analysis, plan, job)
        if step.event is None:
            break
        steps.append(step)
        current = step.model
        for name in counts:
            counts[name] += getattr(findings, name)
    return replace(summed(steps, model), notes=_lossless_notes(counts, job))


def _findings(model: ir.Model, analysis: Analysis, job: Job) -> Findings | None:
    assert job.device is not None
    axes = observed_axes(model, analysis)
    seen = observe(
        model, analysis, axes, REQUIRES, job.examples, device=job.device, everything=True
    )
    return lossless(model, analysis, seen, trusted=job.examples.data is not None)


def _harmless(model: ir.Model, analysis: Analysis, plan: Plan, job: Job) -> Plan | None:
    """The part of `plan` that changes nothing on any example; None when that is none of it."""
    if _changes_nothing(model, analysis, plan, job):
        return plan
    names = frozenset(plan.keep)
    harmful: frozenset[str] = frozenset()
    for cluster in together(analysis, list(plan.keep)):
        if not _changes_nothing(model, analysis, plan.without(names - cluster), job):
            harmful |= cluster
    rest = plan.without(harmful)
    if harmful == names or not _changes_nothing(model, analysis, rest, job):
        return None
    return rest


def _changes_nothing(model: ir.Model, analysis: Analysis, plan: Plan, job: Job) -> bool:
    assert job.device is not None
    smaller = prune(model, analysis, plan).model
    found = differences(model, smaller, job.examples, classes=None, device=job.device)
    return found.relative <= TOLERANCE


def _lossless_notes(counts: Mapping[str, int], job: Job) -> tuple[str, ...]:
    said = [f"{counts['proven']} dead or constant whatever the input"]
    if job.examples.data is not None:
        said.append(f"{counts['observed']} constant on all {len(job.examples)} examples")
    said.append(f"{counts['duplicates']} duplicates")
    note = f"removed without loss: {', '.join(said)}"
    if job.examples.data is not None:
        return (note,)
    return note, "with --data, units that are constant on the data can go as well"


def by_recipe(model: ir.Model, recipe: Recipe, source: str, job: Job) -> Removal:
    """Repeat what a recipe did.

    Raises:
        ConfigError: the recipe does not fit the model.
    """
    steps: list[Step] = []
    current = model
    analysis: Analysis | None = None
    failed: set[str] = set()
    for done in recipe.rounds:
        analysis = candidates(current, job.config, before=analysis)
        plan = replay(current, analysis, done, source=source)
        step = stepped(current, analysis, plan, job)
        failed |= plan.keep.keys() - step.plan.keep.keys()
        steps.append(step)
        current = step.model
        if failed:  # later rounds count in what this one should have left
            break
    return replace(summed(steps, model), notes=failed_note(failed))


def stepped(model: ir.Model, analysis: Analysis, plan: Plan, job: Job) -> Step:
    """Apply `plan`, verified where there is a runtime."""
    started = time.perf_counter()
    exact, error, tolerance = 0, 0.0, 0.0
    rolled_back: tuple[str, ...] = ()
    if job.device is None:
        pruned = prune(model, analysis, plan)
    else:
        checked = checked_prune(
            model, analysis, plan, job.examples.first, device=job.device, parts=job.parts
        )
        pruned, plan, exact = checked.pruned, checked.plan, checked.exact
        error, tolerance = checked.agreement.error, checked.agreement.allowed
        rolled_back = checked.rolled_back
    after = pruned.model
    analyzed = candidates(after, _unrestricted(job.config))
    removed = {name: int(np.count_nonzero(~mask)) for name, mask in plan.keep.items()}
    event = Pruned(
        step=0,
        removed={name: count for name, count in removed.items() if count},
        exact=exact,
        bounded=plan.removed() - exact,
        error=error,
        tolerance=tolerance,
        rolled_back=rolled_back,
        verified=job.verified,
        parameters=cost.parameters(after),
        macs=cost.macs(after, analyzed),
        seconds=time.perf_counter() - started,
    )
    return Step(
        model=after,
        analysis=analyzed,
        plan=plan,
        round=record(model, pruned.kept, plan, unnamed=job.unnamed),
        event=event if plan.removed() else None,
    )


def _unrestricted(config: PruneConfig) -> PruneConfig:
    return replace(config, keep=None, only=None)


def summed(steps: Sequence[Step], start: ir.Model) -> Removal:
    """What the steps amount to; those that removed nothing are left out."""
    effective = [step for step in steps if step.event is not None]
    events = [step.event for step in effective if step.event is not None]
    return Removal(
        model=steps[-1].model if steps else start,
        analysis=steps[-1].analysis if steps else None,
        rounds=tuple(step.round for step in effective),
        events=tuple(events),
        removed=sum(event.exact + event.bounded for event in events),
        exact=sum(event.exact for event in events),
    )
