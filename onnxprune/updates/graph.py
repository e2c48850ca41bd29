"""The update graph: gradients and moments in, next parameters and moments out, in place.

Its outputs are bound to the very buffers of its inputs; `updates.in_place` says when that is sound.
One run of it commits one step, the running
statistics of the forward pass included, so that a step is done as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.updates.around import (
    AVERAGE,
    LEARNING_RATE,
    STEP,
    Around,
    Site,
    move_averages,
)
from onnxprune.updates.in_place import OPSET, Writer, check_aliasing
from onnxprune.updates.ranks import match_ranks
from onnxprune.updates.rules import Moving, Rule, Scalars

__all__ = ["UpdateGraph", "build_update"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class UpdateGraph:
    """A graph that does one optimizer step.

    Attributes:
        model: inputs: `LEARNING_RATE` (), `STEP` () int64 from 1, all those named below, and
            `SHARE` () and `CONTINUED` () bool where there are sums.
        parameters: names of the parameters; these are their input names too.
        gradients: input name per parameter.
        sums: per parameter, the input that holds what `updates.accumulation` gathered from the
            batches before this one; empty when a step is one batch.
        moments: per slot, input name per parameter; those of `AVERAGE` cover the state too.
        carried: per state name, the input with its next value and the output that repeats it.
        overwrites: per output, the input whose buffer it is bound to.
        scalars: names of further inputs () that every step gives.
    """

    model: ir.Model
    parameters: tuple[str, ...]
    gradients: Mapping[str, str]
    sums: Mapping[str, str] = field(default_factory=dict)
    moments: Mapping[str, Mapping[str, str]]
    carried: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    overwrites: Mapping[str, str]
    scalars: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[ir.Model, ...]:
        """All graphs of the step."""
        return (self.model,)


def build_update(
    rule: Rule,
    shapes: Mapping[str, Sequence[int]],
    *,
    state: Mapping[str, Sequence[int]] | None = None,
    dtype: ir.DataType = ir.DataType.FLOAT,
    **options: Any,
) -> UpdateGraph:
    """The graph of one step: accumulate, clip, transform, decay, `rule`, transform, average.

    Args:
        rule: the optimizer.
        shapes: shape per parameter.
        state: shape of every value that forward passes update; carried over unchanged.
        dtype: of all parameters.
        options: fields of `Around`.

    Raises:
        ConfigError: a limit is not positive, the decay negative, or `average` not in [0, 1).
        InvariantError: the graph would read a value after it is overwritten.
    """
    around = Around(**options)
    e = Emitter("update", opset=OPSET, dtype=dtype)
    writer = Writer(dtype)
    rate = writer.input(LEARNING_RATE, (), dtype)
    shared = Scalars(e, rate, writer.input(STEP, (), ir.DataType.INT64))
    given = {name: writer.input(name, (), dtype) for name in around.scalars}
    values = {name: writer.input(name, shape) for name, shape in shapes.items()}
    gradients = {name: writer.input(f"{name}/gradient", shape) for name, shape in shapes.items()}
    clipped = around.clipped(e, writer, around.totals(e, writer, gradients))
    moments = {slot: {name: f"{name}/{slot}" for name in shapes} for slot in rule.slots}
    for name, shape in shapes.items():
        site = Site(name=name, parameter=values[name], gradient=clipped[name], scalars=given)
        site = around.transformed(e, site)
        parameter = _moved(e, writer, rule, shared, site, around.decay(shape))
        writer.overwrite(values[name], around.finished(e, site, parameter))
    carried = {name: writer.carry(e, name, shape) for name, shape in (state or {}).items()}
    if around.average is not None:
        moments[AVERAGE] = {name: f"{name}/{AVERAGE}" for name in (*shapes, *carried)}
        move_averages(e, writer, shared.warmed_up(around.average), (*shapes, *carried))
    model = writer.model(e)
    match_ranks(model, opset=OPSET)
    check_aliasing(model, writer.overwrites)
    return UpdateGraph(
        model=model,
        parameters=tuple(shapes),
        gradients={name: f"{name}/gradient" for name in shapes},
        sums={name: f"{name}/sum" for name in shapes} if around.accumulated else {},
        moments=moments,
        carried=carried,
        overwrites=writer.overwrites,
        scalars=tuple(around.scalars),
    )


def _moved(
    e: Emitter, writer: Writer, rule: Rule, shared: Scalars, site: Site, decay: float
) -> ir.Value:
    """The next value of one parameter; its moments are written."""
    gradient = site.gradient
    if decay and not rule.decoupled:
        gradient = e.op("Add", gradient, e.op("Mul", site.parameter, e.scalar(decay)))
    moments = {slot: writer.input(f"{site.name}/{slot}", site.shape) for slot in rule.slots}
    moving = Moving(
        parameter=site.parameter,
        gradient=gradient,
        moments=moments,
        decay=decay if rule.decoupled else 0.0,
    )
    moved = rule.emit(e, shared, moving)
    for slot in rule.slots:
        writer.overwrite(moments[slot], moved.moments[slot])
    return moved.parameter
