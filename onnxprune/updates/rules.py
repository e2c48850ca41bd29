"""Optimizers, each written once as the nodes of one parameter's update.

A `Rule` says which moments it keeps and emits the nodes that compute their next values and the
parameter's. Everything around it (clipping, weight decay that enters the gradient, noise, masks)
composes in `updates.graph`. Every rule's docstring gives its formula in numpy, and the tests hold
the graph to it.

Where a runtime has a kernel that does what a rule says (`gradients.update_kernels`), it takes the
rule's place, and `updates.split` writes what stands around it. (Of onnxruntime-training's,
AdamOptimizer, a node per tensor, is as fast as AdamWOptimizer, which takes lists, but wrong where
outputs overwrite inputs: off by 4e-2 after 99 steps.)

Symbols: p parameter, g gradient, lr learning rate, t step number from 1, wd weight decay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.errors import ConfigError

__all__ = ["RULES", "Moved", "Moving", "Rule", "Scalars", "adam", "adamw", "momentum", "sgd"]


class Scalars:
    """Values that all parameters of one update share.

    Args:
        e: where they are emitted.
        learning_rate: () of the parameters' dtype.
        step: () int64, 1 at the first update.
    """

    def __init__(self, e: Emitter, learning_rate: ir.Value, step: ir.Value) -> None:
        self.learning_rate = learning_rate
        self._e = e
        self._step = step
        self._made: dict[tuple[str, float], ir.Value] = {}

    def bias_correction(self, beta: float) -> ir.Value:
        """1 - beta^t, computed in float64: float32 loses half the digits of 1 - 0.999."""
        key = ("correction", beta)
        if key not in self._made:
            e = self._e
            t = e.op("Cast", self._step, to=ir.DataType.DOUBLE)
            power = e.op("Pow", e.constant(np.array(beta)), t)
            difference = e.op("Sub", e.constant(np.array(1.0)), power)
            self._made[key] = e.op("Cast", difference, to=e.dtype)
        return self._made[key]

    def root_bias_correction(self, beta: float) -> ir.Value:
        """sqrt(1 - beta^t)."""
        key = ("root", beta)
        if key not in self._made:
            self._made[key] = self._e.op("Sqrt", self.bias_correction(beta))
        return self._made[key]

    def corrected_rate(self, beta: float) -> ir.Value:
        """The rate over the first moment's correction: lr / (1 - beta^t)."""
        key = ("rate", beta)
        if key not in self._made:
            self._made[key] = self._e.op("Div", self.learning_rate, self.bias_correction(beta))
        return self._made[key]

    def warmed_up(self, decay: float) -> ir.Value:
        """The decay of a moving average: min(decay, (1 + t) / (10 + t)).

        As in TensorFlow's ExponentialMovingAverage: it does not remember the first values for long.
        """
        e = self._e
        t = e.op("Cast", self._step, to=e.dtype)
        ramp = e.op("Div", e.op("Add", t, e.scalar(1.0)), e.op("Add", t, e.scalar(10.0)))
        return e.op("Min", ramp, e.scalar(decay))

    def kept_share(self, decay: float) -> ir.Value:
        """1 - lr * wd."""
        key = ("kept", decay)
        if key not in self._made:
            e = self._e
            lost = e.op("Mul", self.learning_rate, e.scalar(decay))
            self._made[key] = e.op("Sub", e.scalar(1.0), lost)
        return self._made[key]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Moving:
    """One parameter about to move.

    Attributes:
        parameter, gradient: values of equal shape.
        moments: one value of that shape per slot of the rule.
        decay: weight decay; 0 unless the rule is decoupled.
    """

    parameter: ir.Value
    gradient: ir.Value
    moments: Mapping[str, ir.Value]
    decay: float = 0.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Moved:
    """The next values of a parameter and its moments."""

    parameter: ir.Value
    moments: Mapping[str, ir.Value]


class Rule(NamedTuple):
    """An optimizer.

    Attributes:
        slots: names of the moments it keeps, each of the parameter's shape, zero at first.
        emit: writes one parameter's update.
        decoupled: whether weight decay is part of the rule; else it enters the gradient as wd * p.
        name: by which kernels that do the same are found; "" where nobody needs to.
        numbers: its arguments, for such a kernel.
    """

    slots: tuple[str, ...]
    emit: Callable[[Emitter, Scalars, Moving], Moved]
    decoupled: bool = False
    name: str = ""
    numbers: Mapping[str, float] = {}


def _step_against(e: Emitter, scalars: Scalars, moving: Moving, direction: ir.Value) -> ir.Value:
    """The parameter moved downhill: p - lr * direction."""
    scaled = e.op("Mul", direction, scalars.learning_rate)
    return e.op("Sub", moving.parameter, scaled)


def sgd() -> Rule:
    """Stochastic gradient descent.

    p -= lr * g
    """

    def emit(e: Emitter, scalars: Scalars, moving: Moving) -> Moved:
        after = _step_against(e, scalars, moving, moving.gradient)
        return Moved(parameter=after, moments={})

    return Rule(slots=(), emit=emit, name="sgd")


def momentum(*, mu: float = 0.9, nesterov: bool = False) -> Rule:
    """Gradient descent with momentum, without dampening (Sutskever et al. 2013, as in PyTorch).

    buffer = mu * buffer + g
    p -= lr * (g + mu * buffer if nesterov else buffer)

    Args:
        mu: in [0, 1).
        nesterov: whether to look ahead.
    """
    _check_decay("momentum", mu)

    def emit(e: Emitter, scalars: Scalars, moving: Moving) -> Moved:
        g = moving.gradient
        buffer = e.op("Add", e.op("Mul", moving.moments["momentum"], e.scalar(mu)), g)
        direction = e.op("Add", g, e.op("Mul", buffer, e.scalar(mu))) if nesterov else buffer
        after = _step_against(e, scalars, moving, direction)
        return Moved(parameter=after, moments={"momentum": buffer})

    return Rule(slots=("momentum",), emit=emit)


def adam(*, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> Rule:
    """Adam (Kingma and Ba, arXiv:1412.6980, algorithm 1); weight decay enters the gradient.

    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    p -= lr / (1 - beta1**t) * m / (sqrt(v) / sqrt(1 - beta2**t) + epsilon)

    Args:
        beta1: decay of m, in [0, 1).
        beta2: decay of v, in [0, 1).
        epsilon: added to the corrected root of v, as in the paper.
    """
    numbers = {"beta1": beta1, "beta2": beta2, "epsilon": epsilon}
    return Rule(slots=("m", "v"), emit=_adam(**numbers), name="adam", numbers=numbers)


def adamw(*, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8) -> Rule:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101, algorithm 2).

    m, v as in `adam`
    p = p * (1 - lr * wd) - lr / (1 - beta1**t) * m / (sqrt(v) / sqrt(1 - beta2**t) + epsilon)

    Deviation: the paper multiplies wd by a schedule of its own; here, as in PyTorch, by lr.
    """
    return adam(beta1=beta1, beta2=beta2, epsilon=epsilon)._replace(decoupled=True, name="adamw")


def _adam(
    beta1: float, beta2: float, epsilon: float
) -> Callable[[Emitter, Scalars, Moving], Moved]:
    _check_decay("beta1", beta1)
    _check_decay("beta2", beta2)

    def average(e: Emitter, old: ir.Value, new: ir.Value, beta: float) -> ir.Value:
        kept = e.op("Mul", old, e.scalar(beta))
        return e.op("Add", kept, e.op("Mul", new, e.scalar(1 - beta)))

    def emit(e: Emitter, scalars: Scalars, moving: Moving) -> Moved:
        p, g = moving.parameter, moving.gradient
        m = average(e, moving.moments["m"], g, beta1)
        v = average(e, moving.moments["v"], e.op("Mul", g, g), beta2)
        root = e.op("Div", e.op("Sqrt", v), scalars.root_bias_correction(beta2))
        direction = e.op("Div", m, e.op("Add", root, e.scalar(epsilon)))
        change = e.op("Mul", direction, scalars.corrected_rate(beta1))
        kept = e.op("Mul", p, scalars.kept_share(moving.decay)) if moving.decay else p
        return Moved(parameter=e.op("Sub", kept, change), moments={"m": m, "v": v})

    return emit


def _check_decay(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{name}: expected a number in [0, 1), got {value}")


RULES: Mapping[str, Callable[[], Rule]] = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": lambda: momentum(nesterov=True),
    "adam": adam,
    "adamw": adamw,
}
