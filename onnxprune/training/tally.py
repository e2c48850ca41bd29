"""What a run remembers about itself: losses, counts, and the evaluated stages it may return.

A `Tally` is replaced, never changed, so that a checkpoint can hold one while the run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from onnxprune.base import Array
from onnxprune.reports import Pruned
from onnxprune.training.evaluation import better, main_metric
from onnxprune.training.pruning import Stage

__all__ = ["Mark", "Tally"]

_NAMED = 4  # parameters per note
_SMOOTHING = 0.98  # of the loss, per step


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Mark:
    """A stage that was evaluated: candidates for what the run returns.

    Attributes:
        stage: the stage, with what `Stage.current` needs of its snapshot.
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

    def beats(self, other: Mark, metric: str) -> bool:
        """Whether it is better: by the metric, and by the loss where that says nothing."""
        ahead = better(metric, self.metric, other.metric)
        return ahead > 0 or (ahead == 0 and self.loss < other.loss)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Tally:
    """Where a run stands.

    Attributes:
        epochs: passes over the data that are complete and evaluated.
        loss: of the training, smoothed; NaN before the first step.
        parts: its terms by name, likewise, where there are several.
        exact, bounded: units removed.
        stale: evaluations since the best one.
        fallen: evaluations in a row whose metric had fallen too far.
        settled: whether no more units go.
        metric: name of the one that decides; empty before the first evaluation.
        baseline: that metric of the model given; None without validation data.
        best: since the last removal.
        good: the last one whose metric had not fallen too far.
        last: the last one.
        failed: groups whose removal failed verification; not tried again.
        notes: what the report should say.
    """

    epochs: int = 0
    loss: float = math.nan
    parts: Mapping[str, float] = field(default_factory=dict)
    exact: int = 0
    bounded: int = 0
    stale: int = 0
    fallen: int = 0
    settled: bool = False
    metric: str = ""
    baseline: float | None = None
    best: Mark | None = None
    good: Mark | None = None
    last: Mark | None = None
    failed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def started(self, found: Mapping[str, float], stage: Stage) -> Tally:
        """With the metrics of the model given."""
        name, value = main_metric(found)
        mark = Mark(stage=stage, metric=value, loss=found["loss"])
        return replace(self, metric=name, baseline=value, good=mark)

    def stepped(self, loss: float, step: int, parts: Mapping[str, float] | None = None) -> Tally:
        """After step `step`, from 0: an exponential mean whose window grows with the first."""
        keep = min(_SMOOTHING, (step + 1) / (step + 10))

        def smooth(old: float, new: float) -> float:
            return new if math.isnan(old) else keep * old + (1 - keep) * new

        terms = {name: smooth(self.parts.get(name, v), v) for name, v in (parts or {}).items()}
        return replace(self, loss=smooth(self.loss, loss), parts=terms)

    def checked(self, record: Pruned, said: tuple[str, ...] = ()) -> Tally:
        """After a removal that may have been put back in part; `said` are the plan's notes."""
        names = tuple(name for name in record.rolled_back if name not in self.failed)
        notes = tuple(f"removals from {name} failed the check and were put back" for name in names)
        notes = tuple(note for note in (*said, *notes) if note not in self.notes)
        return replace(self, failed=self.failed + names, notes=self.notes + notes)

    def pruned(self, record: Pruned) -> Tally:
        """After a removal that changed the model: what was best before is another model."""
        exact, bounded = self.exact + record.exact, self.bounded + record.bounded
        return replace(self, exact=exact, bounded=bounded, best=None, stale=0)

    def judged(self, name: str, mark: Mark, max_drop: float | None) -> Tally:
        """After an evaluation; `name` is the metric's."""
        now = replace(self, metric=name)
        if not math.isfinite(mark.loss):
            return now
        if now.best is None or mark.beats(now.best, name):
            now = replace(now, best=mark, stale=0)
        else:
            now = replace(now, stale=now.stale + 1)
        if now.fell(mark, max_drop):
            return replace(now, last=mark, fallen=now.fallen + 1)
        return replace(now, last=mark, good=mark, fallen=0)

    def gone_back(self, good: Mark) -> Tally:
        """After the run has returned to `good`, and lets the rest of its units be."""
        return replace(
            self,
            exact=good.exact,
            bounded=good.bounded,
            best=good,
            last=good,
            stale=0,
            fallen=0,
            settled=True,
        )

    def fell(self, mark: Mark | None, max_drop: float | None) -> bool:
        """Whether the metric of `mark` fell by more than the user allows."""
        if max_drop is None or mark is None or self.baseline is None:
            return False
        return better(self.metric, mark.metric, self.baseline) < -max_drop

    def is_smaller_than(self, mark: Mark) -> bool:
        """Whether units went since `mark`."""
        return (self.exact, self.bounded) != (mark.exact, mark.bounded)

    def noted(self, note: str) -> Tally:
        """With one more thing for the report to say."""
        return replace(self, notes=(*self.notes, note))

    def without_gradient(self, reasons: Mapping[str, str]) -> Tally:
        """With a note per reason why parameters stay as they are; `reasons` is by parameter."""
        now = self
        for reason in dict.fromkeys(reasons.values()):
            names = [name for name, why in reasons.items() if why == reason]
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            now = now.noted(f"without a gradient: {', '.join(names[:_NAMED])}{more} ({reason})")
        return now
