"""Where a run ends: which of the models that it went through is the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxprune.base import Array
from onnxprune.training.config import RunConfig
from onnxprune.training.guards import check_finite
from onnxprune.training.pruning import Stage
from onnxprune.training.tally import Tally

__all__ = ["Outcome", "concluded"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Outcome:
    """Where a run ended.

    Attributes:
        stage: the model to keep.
        exact, bounded: units removed.
        steps: optimizer steps done.
        seconds: that took, before an interruption and after it.
        notes: why it ended early, what was put back.
        witness: inputs, and what the training session predicted for them with the numbers of
            `stage`; None when that was not evaluated.
        terminated: whether the process is to end, as SIGTERM asked.
    """

    stage: Stage
    exact: int
    bounded: int
    steps: int
    seconds: float
    notes: tuple[str, ...]
    witness: tuple[Mapping[str, Array], Array] | None = None
    terminated: bool = False


def concluded(
    config: RunConfig,
    tally: Tally,
    stage: Stage,
    *,
    witnesses: Mapping[str, Array],
    seconds: float,
    notes: tuple[str, ...],
    terminated: bool = False,
) -> Outcome:
    """The result: the best stage since the last removal, as far as the metric has to hold.

    Args:
        config: of the run.
        tally: what was evaluated.
        stage: the last one.
        witnesses: on which the evaluated stages predicted.
        seconds: that training took.
        notes: what the report should say beside the tally's.
        terminated: whether the process is to end.

    Raises:
        NonFiniteLossError: a parameter of the result is NaN or infinite.
    """
    mark = tally.best
    held = not tally.fell(tally.best or tally.last, config.max_drop)
    if tally.good is not None and (not held or _is_unjudged(config, tally)):
        mark = tally.good
        step = mark.stage.snapshot.step
        tally = tally.noted(f"--max-drop: step {step} was kept, the last that is known to hold it")
    result = stage if mark is None else mark.stage
    check_finite(result.snapshot, tally.loss)
    predicted = None if mark is None else mark.predicted
    return Outcome(
        stage=result,
        witness=None if predicted is None else (witnesses, predicted),
        exact=tally.exact if mark is None else mark.exact,
        bounded=tally.bounded if mark is None else mark.bounded,
        steps=stage.snapshot.step,
        seconds=seconds,
        notes=(*tally.notes, *notes),
        terminated=terminated,
    )


def _is_unjudged(config: RunConfig, tally: Tally) -> bool:
    """Whether units went since the last evaluation, although the metric must hold."""
    last = tally.last or tally.good
    return config.max_drop is not None and last is not None and tally.is_smaller_than(last)
