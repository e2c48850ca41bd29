"""Steps, epochs and removals: the loop in the middle of a run.

`Loop.run` takes a stage through all epochs. Whatever stops it early (an interruption, the patience
running out) leaves the last whole stage.

Nothing here depends on the clock or on what was drawn before: the order of an epoch follows from
the seed and the epoch, samples and node seeds from the seed and the step. So a run that goes on
from a checkpoint does what it would have done. When checkpoints are written may depend on the clock
(`keeper`), and changes nothing. Latencies are measured once, at the beginning, and then are data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from onnxprune.base import Array
from onnxprune.data import batches
from onnxprune.graph import cost
from onnxprune.graph.balance import completed
from onnxprune.methods import Pruner
from onnxprune.methods.compose import prolonged
from onnxprune.reports import Evaluated, Event, Progress
from onnxprune.training.checkpoint import Checkpoint
from onnxprune.training.evaluation import evaluate, main_metric
from onnxprune.training.garbage import uncollected
from onnxprune.training.guards import check_target
from onnxprune.training.interrupts import Interruption, deferred
from onnxprune.training.keeper import Keeper
from onnxprune.training.loss_nodes import part_names
from onnxprune.training.outcome import Outcome, concluded
from onnxprune.training.pace import course, learning_rate, observe_every
from onnxprune.training.problem import Problem, stream
from onnxprune.training.pruning import (
    Stage,
    apply,
    inputs_of,
    limit_at,
    moment,
    remembering,
    sample_size,
)
from onnxprune.training.rounds import Round, needed, opened
from onnxprune.training.shortcuts import sizes_given
from onnxprune.training.tally import Mark, Tally
from onnxprune.training.timing import timing_of

__all__ = ["Loop"]

_REPORT_EVERY = 20  # steps
_WITNESSES = 32  # examples on which the written file is compared with the session
_VERIFIED = 64  # examples a removal is verified on
_RECOVERS = 0.2  # of the epochs: how long a metric may stay below --max-drop


class Loop:
    """The mutable side of a run.

    Args:
        problem: what is trained on what.
        pruner: the method; None trains without removing anything.
        stage: the model given, as it is trained.
        emit: receives every event.
        resumed: where to go on instead of at the beginning.
    """

    def __init__(
        self,
        problem: Problem,
        pruner: Pruner | None,
        stage: Stage,
        emit: Callable[[Event], None],
        *,
        resumed: Checkpoint | None = None,
    ) -> None:
        self.problem, self.pruner, self.emit = problem, pruner, emit
        layout = course(problem, None if resumed is None else resumed.interval)
        self.epoch_steps, self.steps, self.interval = layout.epoch, layout.steps, layout.interval
        self.rate = learning_rate(problem.config, self.steps)
        self.timing = timing_of(problem, stage) if resumed is None else resumed.timing
        taken = 0 if self.timing is None else self.timing.start
        self.before = {**sizes_given(problem, stage), "latency": taken}
        self.part_names = part_names(problem.objectives)
        self.seconds = 0.0  # of the parts of this run before
        self.keeper: Keeper
        self.spare: Checkpoint | None = None  # a whole one that is not on disk
        if resumed is None:
            rewinds = pruner is not None and pruner.rewinds
            self.stage, self.tally = remembering(stage) if rewinds else stage, Tally()
            self.state: Any = pruner and pruner.init(stage.analysis, layout)
        else:
            self.stage, self.tally = resumed.stage, resumed.tally
            self.state, self.seconds = prolonged(resumed.state, layout), resumed.seconds
        self.observe_every = observe_every(pruner, self.interval)
        self.witnesses = problem.witnesses(_WITNESSES)
        check_target(problem.config.goal, self.before)
        self.round: Round | None = self._open()
        if resumed is None:
            self.tally = self.tally.without_gradient(self.round.untrained)
            for note in self.round.notes:
                self._note(note)

    # --- the whole -------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train: all epochs done, or the patience at its end."""
        config, tally = self.problem.config, self.tally
        if tally.epochs >= config.epochs:
            return True
        return config.patience is not None and tally.stale >= config.patience

    def run(self, baseline: Mapping[str, float] | None, keeper: Keeper) -> Outcome:
        """All epochs, or as many as the user and the patience allow.

        Args:
            baseline: metrics of the model given, on the validation data; None without any.
            keeper: writes checkpoints.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite; `tally` knows the evaluated stages.
        """
        self.keeper = keeper
        if baseline is not None and self.tally.baseline is None:
            self.tally = self.tally.started(baseline, self.stage)
        self.began = time.perf_counter()
        interruption = Interruption()
        try:
            with deferred() as interruption:
                while not self.is_over:
                    self._epoch(interruption)
                self._keep_last()
            if self.tally.epochs < self.problem.config.epochs:
                self._note(
                    f"no improvement for {self.problem.config.patience} epochs, stopped after "
                    f"epoch {self.tally.epochs}"
                )
        except KeyboardInterrupt:
            self._keep_last()
            self._sync()
            self.tally = replace(self.tally, best=None)
            self._note(f"interrupted at step {self.stage.snapshot.step} of {self.steps}")
        finally:
            self._close()
        return concluded(
            self.problem.config,
            self.tally,
            self.stage,
            witnesses=self.witnesses,
            seconds=self._elapsed(),
            notes=self.keeper.notes,
            terminated=interruption.is_termination,
        )

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self.began

    def _note(self, note: str) -> None:
        self.tally = self.tally.noted(note)

    def _open(self) -> Round:
        pruner, stage = self.pruner, self.stage
        observables = frozenset() if pruner is None else pruner.requires
        groups = stage.analysis.groups
        sites = [consumer.axis for group in groups for consumer in group.consumers]
        if any(observable.is_gradient for observable in observables):
            sites += [m.axis for g in groups for m in g.members if m.axis.value in self._trained]
        return opened(
            self.problem,
            stage.model,
            stage.analysis,
            stage.snapshot,
            dict.fromkeys(sites),
            observables,
            None if pruner is None else pruner.influence(stage.model, stage.analysis),
            origins=stage.origins,
        )

    @property
    def _trained(self) -> Mapping[str, Array]:
        return self.stage.snapshot.parameters

    def _sync(self) -> None:
        """Bring the snapshot of the stage up to date with the session, where there is one."""
        if self.round is not None and self.round.session.step != self.stage.snapshot.step:
            self.stage = replace(self.stage, snapshot=self.round.session.snapshot())

    def _close(self) -> None:
        """End the round; from here on the stage alone holds the numbers."""
        if self.round is not None:
            round_, self.round = self.round, None
            round_.session.close()

    # --- one epoch -------------------------------------------------------------------------------

    def _epoch(self, interruption: Interruption) -> None:
        """What is left of the present epoch, and its evaluation."""
        assert self.round is not None
        problem, epoch = self.problem, self.tally.epochs
        done = self.round.session.step - epoch * self.epoch_steps
        stream_of_batches = batches(
            problem.train,
            problem.step_size,
            rng=stream(problem.config.seed, "order", epoch),
            drop_last=problem.static_batch,
            skip=done,
        )
        for batch in stream_of_batches:
            self._step(batch)
            self._maybe_prune()
            if interruption:
                self._spare_now()
                raise KeyboardInterrupt
            done += 1
            if done < self.epoch_steps:
                self._maybe_keep()
        self._sync()
        self._evaluate(epoch + 1)
        self.tally = replace(self.tally, epochs=epoch + 1)
        if not self.is_over:
            self._maybe_keep(whole_epoch=True)

    def _step(self, batch: Mapping[str, Array]) -> None:
        assert self.round is not None
        session = self.round.session
        step = session.step
        observe = self._removes and step % self.observe_every == 0
        observe = observe and bool(self.round.collector.outputs)
        numbers = {} if self.pruner is None else self.pruner.scalars(self.state, step)
        result = session.train_step(
            self.problem.taught(batch),
            learning_rate=self.rate(step),
            scalars=numbers,
            observe=observe,
        )
        if observe and self.pruner is not None:
            seen = self.round.collector.collect(result.extra)
            self.state = self.pruner.observe(self.state, seen)
        parts = {self.part_names.get(n, n): value for n, value in result.parts.items()}
        self.tally = self.tally.stepped(result.loss, step, parts)
        if (step + 1) % _REPORT_EVERY == 0 or step + 1 == self.steps:
            self.emit(
                Progress(
                    step=step + 1,
                    steps=self.steps,
                    epoch=self.tally.epochs,
                    loss=self.tally.loss,
                    parameters=cost.parameters(self.stage.model),
                    parts=dict(self.tally.parts),
                )
            )

    # --- checkpoints -----------------------------------------------------------------------------

    def _maybe_keep(self, *, whole_epoch: bool = False) -> None:
        """Write a checkpoint where one is due, between two steps.

        A session that draws random numbers cannot be continued: its sequences begin again in a new
        one. So such rounds end wherever a checkpoint could be, whether it is written or not.
        """
        assert self.round is not None
        draws = self.round.draws
        candidate = self.keeper.is_candidate(self.round.session.step, draws=draws)
        due = candidate and self.keeper.is_due()
        if candidate and draws:
            self._sync()
            self._close()
            self.round = self._open()
        if due or (candidate if draws else whole_epoch):
            self._sync()
            self.spare = self._checkpoint()
        if due:
            self._keep_last()

    def _spare_now(self) -> None:
        """Take a checkpoint at any step, where the round can be continued in another session."""
        if self.round is not None and not self.round.draws:
            self._sync()
            self.spare = self._checkpoint()

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            stage=self.stage,
            state=self.state,
            tally=self.tally,
            interval=self.interval,
            seconds=self._elapsed(),
            records=self.keeper.directory.length,
            timing=self.timing,
        )

    def _keep_last(self) -> None:
        """Write the last checkpoint taken, if it is not on disk yet; at the end, take one."""
        if self.is_over and self.round is not None:
            self.spare = self._checkpoint()
        spare, self.spare = self.spare, None
        if spare is not None:
            self.keeper.keep(spare)

    # --- removals --------------------------------------------------------------------------------

    @property
    def _removes(self) -> bool:
        """Whether units may still go."""
        return self.pruner is not None and not self.tally.settled

    def _maybe_prune(self) -> None:
        assert self.round is not None
        step, tally = self.round.session.step, self.tally
        if self.pruner is None or not self._removes:
            return
        fell = tally.fell(tally.last, self.problem.config.max_drop)
        if not fell and self.pruner.due(self.state, step):
            with uncollected():
                self._prune(step)

    def _prune(self, step: int) -> None:
        """Let the method decide, carry out what it wants, and go on with a new round."""
        assert self.pruner is not None
        self._sync()
        problem, tally = self.problem, self.tally
        limit = limit_at(problem.config, self.before, step / self.steps, self.timing)
        count = sample_size(
            self.interval, problem.step_size, len(problem.train), static=problem.static_batch
        )
        now = moment(
            problem,
            self._without_failed(),
            steps=self.steps,
            loss=tally.loss,
            validation=math.nan if tally.last is None else tally.last.loss,
            limit=limit,
            sample=self._draw("probe", count),
        )
        self.state, plan = self.pruner.decide(self.state, now)
        if plan is not None:
            plan = completed(now.analysis, plan, round_to=problem.config.multiple)
        if plan is None or plan.is_empty():
            return
        size = problem.own_batch or _VERIFIED
        stage, record = apply(problem, self.stage, plan, self._draw("verification", size))
        self.tally = self.tally.checked(record, plan.notes)
        alters = bool(record.removed or plan.masks or plan.rewind)  # not the optimizer alone
        if stage is not self.stage:
            self._close()
            self.stage = stage
            self.tally = self.tally.pruned(record) if alters else self.tally
            self.round = self._open()
        if alters or record.rolled_back:
            self.emit(record)  # when it is done: whoever is told may interrupt the run

    def _without_failed(self) -> Stage:
        """The stage as the method may see it: without groups that failed verification."""
        analysis, failed = self.stage.analysis, self.tally.failed
        groups = tuple(group for group in analysis.groups if group.name not in failed)
        return replace(self.stage, analysis=replace(analysis, groups=groups))

    def _draw(self, purpose: str, count: int) -> dict[str, Array]:
        """Inputs of `count` random training examples, or all; of just so many where it matters."""
        rng = stream(self.problem.config.seed, purpose, self.stage.snapshot.step)
        chosen = rng.permutation(len(self.problem.train))[:count]
        if self.problem.own_batch is not None:
            chosen = np.resize(chosen, count)
        return inputs_of(self.problem.train.batch(np.sort(chosen)))

    # --- judging ---------------------------------------------------------------------------------

    def _evaluate(self, epoch: int) -> None:
        problem = self.problem
        if problem.validation is None or self.round is None:
            return
        found = evaluate(
            self.round.session.evaluate,
            problem.validation,
            problem.objectives,
            batch_size=problem.batch_size,
            static=problem.static_batch,
            taught=problem.taught,
        )
        self.emit(
            Evaluated(
                step=self.stage.snapshot.step,
                epoch=epoch,
                split="validation",
                metrics=found,
                parameters=cost.parameters(self.stage.model),
            )
        )
        name, metric = main_metric(found)
        mark = Mark(
            stage=replace(self.stage, snapshot=needed(self.stage.snapshot)),
            metric=metric,
            loss=found["loss"],
            exact=self.tally.exact,
            bounded=self.tally.bounded,
            predicted=self.round.session.evaluate(self.witnesses)[problem.objective.prediction],
        )
        self.tally = self.tally.judged(name, mark, problem.config.max_drop)
        self._maybe_go_back()

    def _maybe_go_back(self) -> None:
        """Return to the last size that was good enough, where the network does not recover."""
        good, fallen = self.tally.good, self.tally.fallen
        patience = max(int(_RECOVERS * self.problem.config.epochs), 2)
        if fallen < patience or good is None or not self.tally.is_smaller_than(good):
            return
        step = self.stage.snapshot.step
        self._close()
        self.stage = replace(good.stage, snapshot=replace(good.stage.snapshot, step=step))
        self.tally = self.tally.gone_back(good).noted(
            f"the metric stayed below --max-drop for {fallen} epochs: at step {step} the model of "
            f"step {good.stage.snapshot.step} was taken up again, and nothing more was removed"
        )
        self.round = self._open()
