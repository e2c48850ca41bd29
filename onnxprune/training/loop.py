"""Steps, epochs and removals: the loop in the middle of a run.

`Loop.run` takes a stage through all epochs. Whatever stops it early (an interruption, the patience
running out) leaves the last whole stage.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from onnxprune import schedules
from onnxprune.base import Array
from onnxprune.data import batches
from onnxprune.errors import ConfigError, NonFiniteLossError
from onnxprune.graph import cost
from onnxprune.methods import Pruner
from onnxprune.reports import Evaluated, Event, Progress
from onnxprune.training.config import RunConfig
from onnxprune.training.evaluation import better, evaluate, main_metric
from onnxprune.training.problem import Problem, stream
from onnxprune.training.pruning import (
    Stage,
    apply,
    inputs_of,
    limit_at,
    moment,
    sample_size,
)
from onnxprune.training.rounds import Round, opened

__all__ = ["Loop", "Outcome"]

_OBSERVE_EVERY = 16  # steps; an observing step costs up to half a step more
_CHECKS = 30  # a run has by default, as long as they find something to remove
_REPORT_EVERY = 20  # steps
_SMOOTHING = 0.98  # of the loss, per step
_WITNESSES = 32  # examples on which the written file is compared with the session
_VERIFIED = 64  # examples a removal is verified on


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Outcome:
    """Where a run ended.

    Attributes:
        stage: the model to keep.
        exact, bounded: units removed.
        steps: optimizer steps done.
        seconds: that took.
        notes: why it ended early, what was put back.
        witness: inputs, and what the training session predicted for them with the numbers of
            `stage`; None when that was not evaluated.
    """

    stage: Stage
    exact: int
    bounded: int
    steps: int
    seconds: float
    notes: tuple[str, ...]
    witness: tuple[Mapping[str, Array], Array] | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Mark:
    """A stage that was evaluated: candidates for what the run returns.

    Attributes:
        stage: the stage.
        metric, loss: on the validation data.
        exact, bounded: units removed before.
        predicted: what the session predicts for the witnesses then.
    """

    stage: Stage
    metric: float
    loss: float
    exact: int = 0
    bounded: int = 0
    predicted: Array | None = None

    def beats(self, other: _Mark, metric: str) -> bool:
        """Whether it is better: by the metric, and by the loss where that says nothing."""
        ahead = better(metric, self.metric, other.metric)
        return ahead > 0 or (ahead == 0 and self.loss < other.loss)


def learning_rate(config: RunConfig, steps: int) -> Callable[[int], float]:
    """Step -> learning rate over the whole run; "step" falls to a tenth at 1/2 and 3/4."""
    known: dict[str, Callable[[], schedules.Schedule]] = {
        "constant": schedules.constant,
        "cosine": lambda: schedules.cosine(steps),
        "one-cycle": lambda: schedules.one_cycle(steps),
        "step": lambda: schedules.step([steps // 2, steps * 3 // 4]),
    }
    schedule = known[config.schedule]()
    return lambda step: config.rate * schedule(step)


class Loop:
    """The mutable side of a run.

    Args:
        problem: what is trained on what.
        pruner: the method; None trains without removing anything.
        stage: where to begin.
        emit: receives every event.
    """

    def __init__(
        self, problem: Problem, pruner: Pruner | None, stage: Stage, emit: Callable[[Event], None]
    ) -> None:
        self.problem, self.pruner, self.stage, self.emit = problem, pruner, stage, emit
        config = problem.config
        count, size = len(problem.train), problem.step_size
        self.epoch_steps = count // size if problem.static_batch else math.ceil(count / size)
        self.steps = self.epoch_steps * config.epochs
        self.rate = learning_rate(config, self.steps)
        self.before = {
            "params": cost.parameters(stage.model),
            "macs": cost.macs(stage.model, stage.analysis),
        }
        self.rng = {name: stream(config.seed, name) for name in ("order", "probe", "verification")}
        self.state: Any = None
        self.interval = config.prune_interval or max(self.steps // _CHECKS, 1)
        if pruner is not None:
            self.state = pruner.init(stage.analysis, self.interval)
        self.loss = math.nan
        self.exact = self.bounded = 0
        self.baseline: float | None = None
        self.best: _Mark | None = None
        self.good: _Mark | None = None
        self.last: _Mark | None = None
        self.metric_name = ""
        self.stale = 0
        self.notes: list[str] = []
        self.failed: set[str] = set()
        self.observe_every = max(min(_OBSERVE_EVERY, self.interval // 2), 1)
        count = problem.batch_size if problem.static_batch else min(_WITNESSES, count)
        self.witnesses = inputs_of(problem.train.batch(np.arange(count)))
        self._check_target()
        self.round: Round | None = self._open()

    # --- the whole -------------------------------------------------------------------------------

    def run(self, baseline: Mapping[str, float] | None) -> Outcome:
        """All epochs, or as many as the user and the patience allow.

        Args:
            baseline: metrics of the model given, on the validation data; None without any.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite; `best` and `last` are evaluated
                stages.
        """
        if baseline is not None:
            self.metric_name, self.baseline = main_metric(baseline)
            self.good = _Mark(stage=self.stage, metric=self.baseline, loss=baseline["loss"])
        started = time.perf_counter()
        try:
            for epoch in range(1, self.problem.config.epochs + 1):
                self._epoch(epoch)
                if self._is_finished(epoch):
                    break
        except KeyboardInterrupt:
            self._sync()
            self.best = None
            self.notes.append(f"interrupted at step {self.stage.snapshot.step} of {self.steps}")
        finally:
            self._close()
        return self._outcome(time.perf_counter() - started)

    def _outcome(self, seconds: float) -> Outcome:
        mark = self.best
        if self._fell(self.best or self.last) and self.good is not None:
            mark = self.good
            step = mark.stage.snapshot.step
            self.notes.append(f"the metric fell by more than --max-drop; step {step} was kept")
        stage = self.stage if mark is None else mark.stage
        self._check_finite(stage)
        witness = None if mark is None or mark.predicted is None else mark.predicted
        return Outcome(
            stage=stage,
            witness=None if witness is None else (self.witnesses, witness),
            exact=self.exact if mark is None else mark.exact,
            bounded=self.bounded if mark is None else mark.bounded,
            steps=self.stage.snapshot.step,
            seconds=seconds,
            notes=tuple(self.notes),
        )

    def _check_target(self) -> None:
        goal = self.problem.config.goal
        if goal is not None and not self.before[goal.kind]:
            raise ConfigError(
                f"--target {goal}: the model has no {goal.kind} that could be counted"
            )

    def _check_finite(self, stage: Stage) -> None:
        """Never hand out a model whose last step broke it."""
        for name, array in stage.snapshot.parameters.items():
            if not np.isfinite(array).all():
                raise NonFiniteLossError(
                    f"step {stage.snapshot.step}: parameter {name} became NaN or infinite; lower "
                    "the learning rate or clip gradients",
                    step=stage.snapshot.step,
                    loss=math.nan,
                    last_finite=self.loss,
                )

    def _open(self) -> Round:
        observables = frozenset() if self.pruner is None else self.pruner.requires
        sites = [c.axis for group in self.stage.analysis.groups for c in group.consumers]
        return opened(
            self.problem,
            self.stage.model,
            self.stage.analysis,
            self.stage.snapshot,
            dict.fromkeys(sites),
            observables,
        )

    def _sync(self) -> None:
        """Bring the snapshot of the stage up to date with the session, where there is one."""
        if self.round is not None:
            self.stage = replace(self.stage, snapshot=self.round.session.snapshot())

    def _close(self) -> None:
        """End the round; from here on the stage alone holds the numbers."""
        if self.round is not None:
            round_, self.round = self.round, None
            round_.session.close()

    # --- one epoch -------------------------------------------------------------------------------

    def _epoch(self, epoch: int) -> None:
        problem = self.problem
        stream_of_batches = batches(
            problem.train,
            problem.step_size,
            rng=self.rng["order"],
            drop_last=problem.static_batch,
        )
        for batch in stream_of_batches:
            self._step(batch, epoch)
            self._maybe_prune()
        self._sync()
        self._evaluate(epoch)

    def _step(self, batch: Mapping[str, Array], epoch: int) -> None:
        assert self.round is not None
        session = self.round.session
        step = session.step
        observe = self.pruner is not None and step % self.observe_every == 0
        observe = observe and bool(self.round.collector.outputs)
        result = session.train_step(batch, learning_rate=self.rate(step), observe=observe)
        if observe and self.pruner is not None:
            seen = self.round.collector.collect(result.extra)
            self.state = self.pruner.observe(self.state, seen)
        first = math.isnan(self.loss)
        self.loss = result.loss if first else _smoothed(self.loss, result.loss, step)
        if (step + 1) % _REPORT_EVERY == 0 or step + 1 == self.steps:
            self.emit(
                Progress(
                    step=step + 1,
                    steps=self.steps,
                    epoch=epoch - 1,
                    loss=self.loss,
                    parameters=cost.parameters(self.stage.model),
                )
            )

    # --- removals --------------------------------------------------------------------------------

    def _maybe_prune(self) -> None:
        assert self.round is not None
        step = self.round.session.step
        if self.pruner is None or not self.pruner.due(self.state, step) or self._fell(self.last):
            return
        self._sync()
        problem = self.problem
        limit = limit_at(problem.config, self.before, step / self.steps)
        count = sample_size(
            self.interval, problem.step_size, len(problem.train), static=problem.static_batch
        )
        now = moment(
            problem,
            self._without_failed(),
            steps=self.steps,
            loss=self.loss,
            limit=limit,
            sample=self._draw("probe", count),
        )
        self.state, plan = self.pruner.decide(self.state, now)
        if plan is None or not plan.removed():
            return
        size = problem.batch_size if problem.static_batch else _VERIFIED
        stage, record = apply(problem, self.stage, plan, self._draw("verification", size))
        self._note_failed(record.rolled_back)
        if stage is not self.stage:
            self._close()
            self.stage = stage
            self.exact, self.bounded = self.exact + record.exact, self.bounded + record.bounded
            self.best, self.stale = None, 0
            self.round = self._open()
        self.emit(record)  # when it is done: whoever is told may interrupt the run

    def _without_failed(self) -> Stage:
        """The stage as the method may see it: without groups that failed verification."""
        analysis = self.stage.analysis
        groups = tuple(group for group in analysis.groups if group.name not in self.failed)
        return replace(self.stage, analysis=replace(analysis, groups=groups))

    def _note_failed(self, names: tuple[str, ...]) -> None:
        """What failed once is not tried again, and is named in the report."""
        for name in names:
            self.failed.add(name)
            self.notes.append(f"removals from {name} failed the check and were put back")

    def _draw(self, purpose: str, count: int) -> dict[str, Array]:
        """Inputs of `count` random training examples."""
        chosen = self.rng[purpose].permutation(len(self.problem.train))[:count]
        return inputs_of(self.problem.train.batch(np.sort(chosen)))

    # --- judging ---------------------------------------------------------------------------------

    def _evaluate(self, epoch: int) -> None:
        problem = self.problem
        if problem.validation is None or self.round is None:
            return
        found = evaluate(
            self.round.session.evaluate,
            problem.validation,
            problem.objective,
            batch_size=problem.batch_size,
            static=problem.static_batch,
        )
        parameters = cost.parameters(self.stage.model)
        self.emit(
            Evaluated(
                step=self.stage.snapshot.step,
                epoch=epoch,
                split="validation",
                metrics=found,
                parameters=parameters,
            )
        )
        self._remember(main_metric(found), found["loss"])

    def _remember(self, metric: tuple[str, float], loss: float) -> None:
        mark = _Mark(
            stage=self.stage,
            metric=metric[1],
            loss=loss,
            exact=self.exact,
            bounded=self.bounded,
            predicted=self._predicted(),
        )
        self.metric_name = metric[0]
        if not math.isfinite(loss):
            return
        if self.best is None or mark.beats(self.best, metric[0]):
            self.best, self.stale = mark, 0
        else:
            self.stale += 1
        self.last = mark
        if not self._fell(mark):
            self.good = mark

    def _predicted(self) -> Array | None:
        """What the session predicts for the witnesses."""
        if self.round is None:
            return None
        return self.round.session.evaluate(self.witnesses)[self.problem.objective.prediction]

    def _fell(self, mark: _Mark | None) -> bool:
        """Whether the metric of `mark` fell by more than the user allows."""
        drop = self.problem.config.max_drop
        if drop is None or mark is None or self.baseline is None:
            return False
        return better(self.metric_name, mark.metric, self.baseline) < -drop

    def _is_finished(self, epoch: int) -> bool:
        patience = self.problem.config.patience
        if patience is None or self.stale < patience or epoch == self.problem.config.epochs:
            return False
        self.notes.append(f"no improvement for {patience} epochs, stopped after epoch {epoch}")
        return True


def _smoothed(old: float, new: float, step: int) -> float:
    """Exponential mean whose window grows with the first steps."""
    keep = min(_SMOOTHING, (step + 1) / (step + 10))
    return keep * old + (1 - keep) * new
