"""The three ways to remove units without training: to a target, without loss, by a recipe.

Each takes a graph and gives back a `Removal`: the graph after it, and the rounds that repeat it.
Every round is verified, and groups that fail are put back; without a runtime nothing is, and the
caller says so.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxprune.base import Floats, Observations, Plan
from onnxprune.errors import ConfigError, MethodError
from onnxprune.graph import cost
from onnxprune.graph.balance import completed, completed_keep, together
from onnxprune.graph.groups import Analysis, analyze
from onnxprune.graph.shapes import with_input_shapes
from onnxprune.graph.weights import weights
from onnxprune.methods.allocation import allocate
from onnxprune.methods.importance import importance
from onnxprune.methods.lossless import REQUIRES, Findings, lossless, means, observed_axes
from onnxprune.oneshot.config import PruneConfig
from onnxprune.oneshot.examples import Examples, differences, observe
from onnxprune.reports import Pruned
from onnxprune.rewrite.checked import checked_prune
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.recipe import Recipe, Round, record, replay
from onnxprune.runtime.session import Device
from onnxprune.runtime.verify import TOLERANCE

__all__ = ["Job", "Removal", "by_recipe", "candidates", "to_target", "without_loss"]

_PASSES = 10  # of lossless removal; each exposes little more than the one before


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Job:
    """What all three ways work with.

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
        least: parameters or MACs that must remain, for a target.
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
class _Step:
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


def to_target(model: ir.Model, analysis: Analysis, job: Job) -> Removal:
    """Remove the least important units until the target is met, as closely as possible.

    Groups that fail verification are left whole, and the others have to give more.

    Raises:
        MethodError: the criterion can say nothing about any group.
    """
    scores, notes = _scores(model, analysis, job)
    seen = _seen_at_consumers(model, analysis, job)
    failed: set[str] = set()
    remaining = cost.Remaining(model, analysis, _kind(job))
    goal = job.config.goal
    assert goal is not None
    limit = budget = goal.limit(remaining({}))
    complete = partial(completed_keep, analysis, worth=scores, round_to=job.config.round_to)
    while True:
        allocated = allocate(
            analysis.groups,
            {name: score for name, score in scores.items() if name not in failed},
            budget,
            remaining,
            allocation=job.config.allocation,
            round_to=job.config.round_to,
            complete=complete,
        )
        folds = means(model, analysis, allocated.keep, seen)
        step = _step(model, analysis, Plan(keep=allocated.keep, folds=folds), job)
        put_back = allocated.keep.keys() - step.plan.keep.keys()
        failed |= put_back
        # Biases that took over a mean where there was none are parameters too.
        excess = _left(step, job) - limit
        if not put_back and (excess <= 0 or allocated.size > budget):
            break
        budget -= 0 if put_back else excess
    done = _removal([step], model)
    return replace(done, least=allocated.least, notes=(*notes, *_failed_note(failed)))


def _failed_note(names: set[str]) -> tuple[str, ...]:
    if not names:
        return ()
    return (f"left whole, because they failed verification: {', '.join(sorted(names))}",)


def _scores(
    model: ir.Model, analysis: Analysis, job: Job
) -> tuple[dict[str, Floats], tuple[str, ...]]:
    """Scores per group, and which groups have none."""
    name = job.config.importance or ("magnitude" if job.examples.data is None else "variance")
    criterion = importance(name, seed=job.config.seed)
    seen: Observations = {}
    if criterion.requires:
        axes = {consumer.axis for group in analysis.groups for consumer in group.consumers}
        where = job.device or Device(provider=job.config.provider, threads=job.config.threads)
        seen = observe(
            model, analysis, sorted(axes), criterion.requires, job.examples, device=where
        )
    held = weights(model, analysis)
    found = {group.name: criterion.score(group, held, seen) for group in analysis.groups}
    scores = {name: score for name, score in found.items() if score is not None}
    unsaid = [name for name in found if name not in scores]
    if found and not scores:
        raise MethodError(
            f"--importance {name}: says nothing about any of the {len(found)} groups of this "
            "model; choose another",
            importance=name,
        )
    notes: tuple[str, ...] = (f"importance {name}, allocation {job.config.allocation}",)
    if unsaid:
        some = ", ".join(unsaid[:5]) + (", ..." if len(unsaid) > 5 else "")
        notes += (f"{name} says nothing about {len(unsaid)} groups, which stay: {some}",)
    return scores, notes


def _seen_at_consumers(model: ir.Model, analysis: Analysis, job: Job) -> Observations:
    """What says by which means to replace units; nothing when inputs are made up."""
    if job.examples.data is None or job.runtime is None or not job.config.compensate:
        return {}
    axes = {consumer.axis for group in analysis.groups for consumer in group.consumers}
    return observe(model, analysis, sorted(axes), REQUIRES, job.examples, device=job.runtime)


def _kind(job: Job) -> str:
    """What the target counts: "params" or "macs"."""
    goal = job.config.goal
    assert goal is not None
    return goal.kind


def _left(step: _Step, job: Job) -> int:
    """Parameters or MACs of the model after a step."""
    if _kind(job) == "macs":
        return cost.macs(step.model, step.analysis)
    return cost.parameters(step.model)


def without_loss(model: ir.Model, job: Job) -> Removal:
    """Remove dead, constant and duplicate units until no more are found.

    The result is compared with the model given over all examples. Should it differ after all,
    groups that differ alone are left whole.
    """
    assert job.device is not None
    steps: list[_Step] = []
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
        step = _step(current, analysis, plan, job)
        if step.event is None:
            break
        steps.append(step)
        current = step.model
        for name in counts:
            counts[name] += getattr(findings, name)
    return replace(_removal(steps, model), notes=_lossless_notes(counts, job))


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
    steps: list[_Step] = []
    current = model
    analysis: Analysis | None = None
    failed: set[str] = set()
    for done in recipe.rounds:
        analysis = candidates(current, job.config, before=analysis)
        plan = replay(current, analysis, done, source=source)
        step = _step(current, analysis, plan, job)
        failed |= plan.keep.keys() - step.plan.keep.keys()
        steps.append(step)
        current = step.model
        if failed:  # later rounds count in what this one should have left
            break
    return replace(_removal(steps, model), notes=_failed_note(failed))


def _step(model: ir.Model, analysis: Analysis, plan: Plan, job: Job) -> _Step:
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
    return _Step(
        model=after,
        analysis=analyzed,
        plan=plan,
        round=record(model, pruned.kept, plan, unnamed=job.unnamed),
        event=event if plan.removed() else None,
    )


def _unrestricted(config: PruneConfig) -> PruneConfig:
    return replace(config, keep=None, only=None)


def _removal(steps: Sequence[_Step], start: ir.Model) -> Removal:
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
