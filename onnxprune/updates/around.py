"""What happens to gradients before the optimizer's rule, and to parameters after it.

Gradients are accumulated, clipped and transformed; moved parameters are transformed and averaged.
`updates.graph` writes all of it and the rule into one graph, `updates.split` leaves the rule out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.errors import ConfigError
from onnxprune.updates.in_place import Writer

__all__ = [
    "AVERAGE",
    "CONTINUED",
    "GRADIENT_NORM",
    "LEARNING_RATE",
    "SHARE",
    "STEP",
    "Around",
    "Site",
    "Transform",
    "gathered",
    "move_averages",
]

# Inputs of the graphs, called unlike any parameter.
LEARNING_RATE = "update/learning_rate"
STEP = "update/step"
SHARE = "update/share"
CONTINUED = "update/continued"
GRADIENT_NORM = "gradient_norm"
AVERAGE = "average"
"""The moment that holds the moving average of a parameter; it begins at the parameter's value."""

# (emitter, site, value) -> value: of a gradient before the rule, or of a parameter after.
Transform: TypeAlias = Callable[[Emitter, "Site", ir.Value], ir.Value]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Site:
    """One parameter, as transforms see it.

    Attributes:
        name: of the parameter.
        parameter: its value before the step, where gradients are transformed.
        gradient: behind the transforms of gradients so far; behind all of them when parameters are
            transformed.
        scalars: the graph's further scalar inputs, by name.
    """

    name: str
    parameter: ir.Value
    gradient: ir.Value
    scalars: Mapping[str, ir.Value]

    @property
    def shape(self) -> list[int]:
        """Of the parameter."""
        shape = self.parameter.shape
        return [] if shape is None else [int(size) for size in shape.numpy()]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Around:
    """What surrounds the rule.

    Attributes:
        accumulated: whether the gradient is that of the last batch of several: the input `SHARE`
            () is its share of the examples, and the sum over the others comes in an input, which
            counts only where `CONTINUED` () bool says that there were others.
        clip_value: largest magnitude of any element of a gradient.
        clip_norm: largest Euclidean norm of all gradients together (after `clip_value`, before
            decay); the norm before clipping is then an output, `GRADIENT_NORM`.
        weight_decay: >= 0; decoupled or as part of the gradient, as the rule says.
        decay_vectors: whether parameters of rank 1 and less (biases, scales) decay too.
        average: decay of the moving average of parameters and state, in [0, 1); None for none.
        scalars: names of inputs () that the transforms read.
        gradient_transforms: applied to every gradient after clipping, in order.
        parameter_transforms: applied to every moved parameter, in order: noise, masks.

    Raises:
        ConfigError: a limit is not positive, the decay negative, or `average` not in [0, 1).
    """

    accumulated: bool = False
    clip_value: float | None = None
    clip_norm: float | None = None
    weight_decay: float = 0.0
    decay_vectors: bool = False
    average: float | None = None
    scalars: Sequence[str] = ()
    gradient_transforms: Sequence[Transform] = ()
    parameter_transforms: Sequence[Transform] = ()

    def __post_init__(self) -> None:
        for name, limit in (("clip_value", self.clip_value), ("clip_norm", self.clip_norm)):
            if limit is not None and limit <= 0:
                raise ConfigError(f"{name}: expected a positive number, got {limit}")
        if self.weight_decay < 0:
            raise ConfigError(f"weight_decay: expected 0 or more, got {self.weight_decay}")
        if self.average is not None and not 0 <= self.average < 1:
            raise ConfigError(f"average: expected a number in [0, 1), got {self.average}")

    def decay(self, shape: Sequence[int]) -> float:
        """The weight decay of a parameter of that shape."""
        return self.weight_decay if self.decay_vectors or len(shape) > 1 else 0.0

    def totals(
        self, e: Emitter, writer: Writer, gradients: Mapping[str, ir.Value]
    ) -> dict[str, ir.Value]:
        """Per parameter its gradient; where it is accumulated, with what came before."""
        if not self.accumulated:
            return dict(gradients)
        share = writer.input(SHARE, (), e.dtype)
        continued = writer.input(CONTINUED, (), ir.DataType.BOOL)
        totals = {}
        for name, gradient in gradients.items():
            shape = [] if gradient.shape is None else [int(size) for size in gradient.shape.numpy()]
            before = writer.input(f"{name}/sum", shape)
            totals[name] = gathered(e, before, gradient, share, continued)
        return totals

    def clipped(
        self, e: Emitter, writer: Writer, gradients: Mapping[str, ir.Value]
    ) -> dict[str, ir.Value]:
        """Every element by `clip_value`, then all together: g * min(1, limit / (norm + 1e-6)).

        The small number is that of PyTorch's clip_grad_norm_.
        """
        clipped = dict(gradients)
        if self.clip_value is not None:
            low, high = e.scalar(-self.clip_value), e.scalar(self.clip_value)
            clipped = {name: e.op("Clip", g, low, high) for name, g in clipped.items()}
        if self.clip_norm is not None and clipped:
            squares = [e.op("ReduceSumSquare", g, keepdims=0) for g in clipped.values()]
            norm = e.op("Sqrt", e.op("Sum", *squares))
            writer.output(norm, GRADIENT_NORM, ())
            factor = e.op("Div", e.scalar(self.clip_norm), e.op("Add", norm, e.scalar(1e-6)))
            factor = e.op("Min", factor, e.scalar(1.0))
            clipped = {name: e.op("Mul", g, factor) for name, g in clipped.items()}
        return clipped

    def transformed(self, e: Emitter, site: Site) -> Site:
        """The site behind all transforms of gradients."""
        for transform in self.gradient_transforms:
            site = replace(site, gradient=transform(e, site, site.gradient))
        return site

    def finished(self, e: Emitter, site: Site, parameter: ir.Value) -> ir.Value:
        """A moved parameter behind all transforms of parameters."""
        for transform in self.parameter_transforms:
            parameter = transform(e, site, parameter)
        return parameter


def gathered(
    e: Emitter, before: ir.Value, gradient: ir.Value, share: ir.Value, continued: ir.Value
) -> ir.Value:
    """The sum of the gradients of a step so far: continued ? before + share * g : share * g."""
    part = e.op("Mul", gradient, share)
    return e.op("Where", continued, e.op("Add", before, part), part)


def move_averages(e: Emitter, writer: Writer, decay: ir.Value, names: Sequence[str]) -> None:
    """Move the averages of `names`: decay * average + (1 - decay) * next."""
    values = {value.name: value for value in (*writer.inputs, *writer.outputs)}
    rest = e.op("Sub", e.scalar(1.0), decay)
    for name in names:
        following = (f"{name}/next", f"{name}/carried", name)
        now = next(values[key] for key in following if key in values)
        shape = [] if now.shape is None else [int(size) for size in now.shape.numpy()]
        old = writer.input(f"{name}/{AVERAGE}", shape)
        writer.overwrite(old, e.op("Add", e.op("Mul", old, decay), e.op("Mul", now, rest)))
