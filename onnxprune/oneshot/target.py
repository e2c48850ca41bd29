"""Removal to a target without training: the least important units go, as few as reach it.

`to_target` is the entry. With a limit to what the metric may lose, less goes than the target asks
for where that would cost more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from onnxprune.base import Floats, Observations, Plan
from onnxprune.errors import ConfigError, MethodError
from onnxprune.graph import cost
from onnxprune.graph.balance import completed_keep
from onnxprune.graph.ends import consumer_axes
from onnxprune.graph.groups import Analysis
from onnxprune.graph.timing import Timing
from onnxprune.graph.weights import weights
from onnxprune.methods.allocation import allocate
from onnxprune.methods.importance import importance
from onnxprune.methods.lossless import REQUIRES, means
from onnxprune.oneshot.examples import observe
from onnxprune.oneshot.judge import Judge, judge
from onnxprune.oneshot.removal import Job, Removal, Step, failed_note, stepped, summed
from onnxprune.runtime.latency import latencies
from onnxprune.runtime.session import Device
from onnxprune.training.evaluation import better, main_metric
from onnxprune.training.target import Target
from onnxprune.training.timing import measured

__all__ = ["to_target"]

_TRIES = 5  # to reach a latency that is measured
_HALVINGS = 6  # of the range in which the metric begins to fall too far
_EVERYTHING = Target(kind="params", absolute=1)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Ranking:
    """What decides which units go, whatever the amount.

    Attributes:
        model, analysis: the graph and its groups.
        job: what all work with.
        goal: how much may remain.
        scores: (U,) per group name, larger = keep.
        seen: by which means to replace units; empty for none.
        timing: what a latency is counted by.
        notes: one sentence each.
    """

    model: ir.Model
    analysis: Analysis
    job: Job
    goal: Target
    scores: Mapping[str, Floats]
    seen: Observations
    timing: Timing | None
    notes: tuple[str, ...]

    @property
    def counter(self) -> cost.Remaining:
        """What counts what remains, as the goal does."""
        return cost.Remaining(
            self.model,
            self.analysis,
            self.goal.kind,
            round_to=self.job.config.round_to,
            timing=self.timing,
        )


def to_target(model: ir.Model, analysis: Analysis, job: Job) -> Removal:
    """Remove the least important units until the target is met, as closely as possible.

    Groups that fail verification are left whole, and the others have to give more. A latency is
    measured again on what is left, and more goes while that is above the target.

    Raises:
        MethodError: the criterion can say nothing about any group.
        ConfigError: a latency that cannot be reached, or not be measured; no labels for a limit to
            what the metric may lose.
    """
    config = job.config
    goal = config.goal or _EVERYTHING
    judged = None if config.max_drop is None else judge(model, job, tested=False)
    if config.max_drop is not None and judged is None:
        raise ConfigError(
            f"--max-drop {config.max_drop:g}: needs labelled examples to measure it on: --data "
            "with an array y, and a runtime that holds the whole model",
            option="max_drop",
        )
    timing = _timing(model, analysis, goal, job)
    scores, notes = _scores(model, analysis, job)
    ranking = _Ranking(
        model=model,
        analysis=analysis,
        job=job,
        goal=goal,
        scores=scores,
        seen=_seen_at_consumers(model, analysis, job),
        timing=timing,
        notes=notes,
    )
    start = ranking.counter({})
    final = goal.limit(start)
    if judged is None:
        return _removed(ranking, final)
    return _within_drop(ranking, judged, start, final)


def _removed(ranking: _Ranking, limit: int) -> Removal:
    """The removal after which at most `limit` remains, or as little as can be."""
    model, analysis, job = ranking.model, ranking.analysis, ranking.job
    remaining, budget = ranking.counter, limit
    round_to = job.config.round_to
    complete = partial(completed_keep, analysis, worth=ranking.scores, round_to=round_to)
    failed: set[str] = set()
    attempts = 0
    while True:
        attempts += 1
        allocated = allocate(
            analysis.groups,
            {name: score for name, score in ranking.scores.items() if name not in failed},
            budget,
            remaining,
            allocation=job.config.allocated,
            round_to=round_to,
            complete=complete,
        )
        folds = means(model, analysis, allocated.keep, ranking.seen)
        step = stepped(model, analysis, Plan(keep=allocated.keep, folds=folds), job)
        put_back = allocated.keep.keys() - step.plan.keep.keys()
        failed |= put_back
        # Biases that took over a mean where there was none are parameters too.
        excess = _left(ranking, step) - limit
        if not put_back and (excess <= 0 or allocated.size > budget):
            break
        if ranking.timing is not None:  # measured: what disturbs a measurement must cost little
            excess = min(excess, limit // 10, budget - allocated.least)
            if attempts >= _TRIES or (excess <= 0 and not put_back):
                break
        budget -= 0 if put_back else excess
    notes = (*ranking.notes, *failed_note(failed))
    return replace(summed([step], model), least=allocated.least, notes=notes)


def _left(ranking: _Ranking, step: Step) -> int:
    """Parameters, MACs or nanoseconds of the model after a step."""
    if ranking.timing is not None:
        feeds, device = ranking.job.examples.first, ranking.job.runtime
        before, after = latencies([ranking.model, step.model], feeds, device=device)
        return round(ranking.timing.start * after / before)
    if ranking.goal.kind == "macs":
        return cost.macs(step.model, step.analysis)
    return cost.parameters(step.model)


def _within_drop(ranking: _Ranking, judged: Judge, start: int, final: int) -> Removal:
    """The largest removal that was found whose metric fell by no more than is allowed.

    The amount is halved again and again between the most that was good and the least that was bad.
    """
    job = ranking.job
    allowed = job.config.max_drop
    assert allowed is not None
    name, before = main_metric(judged.metrics(ranking.model))
    best, value = summed([], ranking.model), before
    good, bad, limit = start, final, final  # what remains: of what held, of what fell too far
    for _ in range(_HALVINGS + 1):
        trial = _removed(ranking, limit)
        found = judged.metrics(trial.model)[name]
        if better(name, found, before) >= -allowed:
            best, value, good = trial, found, limit
        else:
            bad = limit
        if good <= bad:
            break
        limit = (good + bad) // 2
    held = f"{name} {before:.4g} before, {value:.4g} after, on {judged.examples}"
    stopped = "" if good == final else "; more would have cost more than --max-drop"
    notes = (*ranking.notes, *best.notes[len(ranking.notes) :], f"{held}{stopped}")
    return replace(best, least=best.least or start, notes=notes)


def _timing(model: ir.Model, analysis: Analysis, goal: Target, job: Job) -> Timing | None:
    """The table that a latency is counted by; None for other targets.

    Raises:
        ConfigError: there is no runtime, or the goal is out of reach.
    """
    if goal.kind != "latency":
        return None
    if job.runtime is None or job.parts:
        raise ConfigError(
            f"--target {goal}: a latency needs a runtime that holds the whole model; choose params "
            "or macs",
            target=goal,
        )
    feeds, round_to = job.examples.first, job.config.round_to
    return measured(model, analysis, feeds, goal, device=job.runtime, round_to=round_to)


def _scores(
    model: ir.Model, analysis: Analysis, job: Job
) -> tuple[dict[str, Floats], tuple[str, ...]]:
    """Scores per group, and which groups have none."""
    name = job.config.importance or ("magnitude" if job.examples.data is None else "variance")
    criterion = importance(name, seed=job.config.seed)
    seen: Observations = {}
    if criterion.requires:
        axes = consumer_axes(analysis.groups)
        where = job.device or Device(provider=job.config.provider, threads=job.config.threads)
        seen = observe(model, analysis, axes, criterion.requires, job.examples, device=where)
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
    notes: tuple[str, ...] = (f"importance {name}, allocation {job.config.allocated}",)
    if unsaid:
        some = ", ".join(unsaid[:5]) + (", ..." if len(unsaid) > 5 else "")
        notes += (f"{name} says nothing about {len(unsaid)} groups, which stay: {some}",)
    return scores, notes


def _seen_at_consumers(model: ir.Model, analysis: Analysis, job: Job) -> Observations:
    """What says by which means to replace units; nothing when inputs are made up."""
    if job.examples.data is None or job.runtime is None or not job.config.compensate:
        return {}
    axes = consumer_axes(analysis.groups)
    return observe(model, analysis, axes, REQUIRES, job.examples, device=job.runtime)
