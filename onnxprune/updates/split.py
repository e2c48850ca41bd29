"""An optimizer step around a rule that somebody else carries out, in place: a kernel.

`split_update` writes what comes before the rule (gradients become what it reads) and what comes
after it (noise, masks, averages, running statistics) as two graphs that overwrite their inputs.
Where nothing comes before or after, there is no graph.
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
from onnxprune.updates.rules import Rule, Scalars

__all__ = ["Piece", "SplitUpdate", "split_update"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Piece:
    """A graph that does a part of a step.

    Attributes:
        model: inputs as those of an `UpdateGraph`, as far as they are needed.
        carried, overwrites: as there.
    """

    model: ir.Model
    carried: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    overwrites: Mapping[str, str]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SplitUpdate:
    """An optimizer step whose middle, the rule itself, is left to a kernel.

    Attributes:
        rule: which reads the gradients as `before` leaves them, and moves parameters and moments.
        decays: per parameter, the weight decay that is up to the rule.
        before: turns gradients into what the rule reads; None where they are that already.
        after: everything behind the rule; None where there is nothing.
        parameters, gradients, sums, moments, carried, scalars: as in an `UpdateGraph`.
    """

    rule: Rule
    decays: Mapping[str, float]
    before: Piece | None
    after: Piece | None
    parameters: tuple[str, ...]
    gradients: Mapping[str, str]
    sums: Mapping[str, str]
    moments: Mapping[str, Mapping[str, str]]
    carried: Mapping[str, tuple[str, str]]
    scalars: tuple[str, ...]

    @property
    def models(self) -> tuple[ir.Model, ...]:
        """The graphs around the rule."""
        return tuple(piece.model for piece in (self.before, self.after) if piece is not None)


def split_update(
    rule: Rule,
    shapes: Mapping[str, Sequence[int]],
    *,
    state: Mapping[str, Sequence[int]] | None = None,
    dtype: ir.DataType = ir.DataType.FLOAT,
    **options: Any,
) -> SplitUpdate | None:
    """The step of `updates.graph.build_update` without its rule, from the same arguments.

    Returns:
        None where transforms of parameters follow a weight decay that enters the gradient: they
        read gradients without it, which nobody keeps here.

    Raises:
        ConfigError: a limit is not positive, the decay negative, or `average` not in [0, 1).
        InvariantError: a graph would read a value after it is overwritten.
    """
    around = Around(**options)
    decays = {name: around.decay(shape) for name, shape in shapes.items()}
    entering = {} if rule.decoupled else {name: decay for name, decay in decays.items() if decay}
    if entering and around.parameter_transforms:
        return None
    moments = {slot: {name: f"{name}/{slot}" for name in shapes} for slot in rule.slots}
    states = tuple(state or {})
    if around.average is not None:
        moments[AVERAGE] = {name: f"{name}/{AVERAGE}" for name in (*shapes, *states)}
    after = _after(shapes, state or {}, around, dtype)
    return SplitUpdate(
        rule=rule,
        decays=decays if rule.decoupled else dict.fromkeys(shapes, 0.0),
        before=_before(shapes, entering, around, dtype),
        after=after,
        parameters=tuple(shapes),
        gradients={name: f"{name}/gradient" for name in shapes},
        sums={name: f"{name}/sum" for name in shapes} if around.accumulated else {},
        moments=moments,
        carried={} if after is None else after.carried,
        scalars=tuple(around.scalars),
    )


def _before(
    shapes: Mapping[str, Sequence[int]],
    entering: Mapping[str, float],
    around: Around,
    dtype: ir.DataType,
) -> Piece | None:
    """Gradients become those that the rule reads; `entering` is the weight decay in them."""
    e = Emitter("before", opset=OPSET, dtype=dtype)
    writer = Writer(dtype)
    given = {name: writer.input(name, (), dtype) for name in around.scalars}
    values = {name: writer.input(name, shape) for name, shape in shapes.items()}
    gradients = {name: writer.input(f"{name}/gradient", shape) for name, shape in shapes.items()}
    clipped = around.clipped(e, writer, around.totals(e, writer, gradients))
    for name in shapes:
        site = Site(name=name, parameter=values[name], gradient=clipped[name], scalars=given)
        gradient = around.transformed(e, site).gradient
        if name in entering:
            decayed = e.op("Mul", values[name], e.scalar(entering[name]))
            gradient = e.op("Add", gradient, decayed)
        if gradient is not gradients[name]:
            writer.overwrite(gradients[name], gradient)
    return _piece(e, writer, {})


def _after(
    shapes: Mapping[str, Sequence[int]],
    state: Mapping[str, Sequence[int]],
    around: Around,
    dtype: ir.DataType,
) -> Piece | None:
    """Moved parameters are transformed and averaged, the next running statistics taken over."""
    e = Emitter("after", opset=OPSET, dtype=dtype)
    writer = Writer(dtype)
    rate = writer.input(LEARNING_RATE, (), dtype)
    shared = Scalars(e, rate, writer.input(STEP, (), ir.DataType.INT64))
    given = {name: writer.input(name, (), dtype) for name in around.scalars}
    for name, shape in shapes.items():
        moved = writer.input(name, shape)
        gradient = writer.input(f"{name}/gradient", shape)
        site = Site(name=name, parameter=moved, gradient=gradient, scalars=given)
        finished = around.finished(e, site, moved)
        if finished is not moved:
            writer.overwrite(moved, finished)
    carried = {name: writer.carry(e, name, shape) for name, shape in state.items()}
    if around.average is not None:
        move_averages(e, writer, shared.warmed_up(around.average), (*shapes, *carried))
    return _piece(e, writer, carried)


def _piece(e: Emitter, writer: Writer, carried: Mapping[str, tuple[str, str]]) -> Piece | None:
    if not e.nodes:
        return None
    writer.inputs = [value for value in writer.inputs if value.uses()]
    model = writer.model(e)
    match_ranks(model, opset=OPSET)
    check_aliasing(model, writer.overwrites)
    return Piece(model=model, carried=carried, overwrites=writer.overwrites)
