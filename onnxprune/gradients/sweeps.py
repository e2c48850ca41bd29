"""One direction of a recurrent operator as arrays over all steps, and loops over these.

What `cells` writes the slopes of LSTM, GRU and RNN with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.thinning import thinned
from onnxprune.methods.compose import TopK

__all__ = ["Direction", "Made", "Pass", "Slopes", "loop"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Direction:
    """What is known of one direction; T steps of N examples, I numbers in and H out.

    Attributes:
        e: where to write.
        number: from 0.
        turn: 0 forwards, 1 backwards.
        units: H.
        gates: how many there are.
        x: (T, N, I).
        w, r: (gates * H, I) and (gates * H, H).
        b: (2 * gates * H,); None without.
        states: (T, N, H), what the operator put out.
        before: (T, N, H), the state each step began with.
        c: (N, H), an LSTM's first cell.
        slope: (T, N, H) of the states; None where only the last ones matter.
        last, last_c: (N, H) slopes of the last state and cell.
        reset_after: whether a GRU's reset gate comes behind the product.
        kept: (T, N, H) the cells and (T, N, 4 * H) the gates of an LSTM; empty where not kept.
        top_k: how many slopes of every gate go on; None for all.
    """

    e: Emitter
    number: int
    turn: int
    units: int
    gates: int
    x: ir.Value
    w: ir.Value
    r: ir.Value
    b: ir.Value | None
    states: ir.Value
    before: ir.Value
    c: ir.Value
    slope: ir.Value | None
    last: ir.Value
    last_c: ir.Value
    reset_after: bool
    kept: tuple[ir.Value, ...] = ()
    top_k: TopK | None = None

    @property
    def is_thinned(self) -> bool:
        """Whether some slopes do not go on."""
        return self.top_k is not None and self.top_k.k < self.units

    def thinned(self, e: Emitter, slope: ir.Value) -> list[ir.Value]:
        """(N, K * H) what goes on of a step's `slope`; and, where that is less, all of it."""
        if self.top_k is None or not self.is_thinned:
            return [slope]
        return [thinned(e, slope, self.units, self.top_k), slope]

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        """A node."""
        return self.e.op(op_type, *inputs, **attributes)  # type: ignore[arg-type]

    def parts(self, value: ir.Value, *sizes: int) -> tuple[ir.Value, ...]:
        """`value` cut along its last axis into multiples of H."""
        names = [f"{self.e.prefix}/{value.name}/part_{n}" for n in range(len(sizes))]
        cuts = self.e.integers(*(size * self.units for size in sizes))
        return self.e.ops("Split", value, cuts, outputs=names, axis=-1)

    def rows(self, weight: ir.Value, start: int, stop: int) -> ir.Value:
        """Some gates of a weight."""
        ends = (self.e.integers(number * self.units) for number in (start, stop))
        return self.op("Slice", weight, *ends, self.e.integers(0))

    def product(self, x: ir.Value, weight: ir.Value) -> ir.Value:
        """X weight^T."""
        return self.op("MatMul", x, self.op("Transpose", weight, perm=[1, 0]))

    def one_less(self, x: ir.Value) -> ir.Value:
        """1 - x."""
        return self.op("Sub", self.e.scalar(1.0), x)

    def steepness(self, sigmoid: ir.Value) -> ir.Value:
        """S (1 - s), the slope of s = sigmoid(.)."""
        return self.op("Mul", sigmoid, self.one_less(sigmoid))

    def curvature(self, tanh: ir.Value) -> ir.Value:
        """1 - t^2, the slope of t = tanh(.)."""
        return self.one_less(self.op("Mul", tanh, tanh))

    def shifted(self, values: ir.Value, first: ir.Value) -> ir.Value:
        """(T, N, H): `first` (N, H), and every step's value at the step behind it."""
        alone = self.op("Unsqueeze", first, self.e.integers(0))
        zero, one, end, back = (self.e.integers(n) for n in (0, 1, 2**31, -1))
        if self.turn:
            return self.op("Concat", self.op("Slice", values, one, end, zero), alone, axis=0)
        return self.op("Concat", alone, self.op("Slice", values, zero, back, zero), axis=0)

    def sums(self, slope: ir.Value, x: ir.Value) -> ir.Value:
        """slope^T x over all steps and examples: (K, T N) times (T N, J)."""
        flat = [self._flat(value) for value in (slope, x)]
        return self.op("Gemm", *flat, transA=1)

    def _flat(self, value: ir.Value) -> ir.Value:
        size = self.op("Gather", self.op("Shape", value), self.e.integers(-1))
        return self.op("Reshape", value, self.op("Concat", self.e.integers(-1), size, axis=0))

    def total(self, slope: ir.Value) -> ir.Value:
        """(K,) the sum over all steps and examples."""
        return self.e.reduce("ReduceSum", slope, (0, 1), keepdims=False)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Slopes:
    """Of one direction.

    Attributes:
        moved: (T, N, gates * H) of W x + b.
        inside: (T, N, gates * H) of R h + b; `moved` but for a GRU that resets behind the product.
        r: of R.
        h, c: (N, H) of the first state and cell.
        whole: `moved` and `inside` before they were thinned, for the biases; None where they
            were not.
    """

    moved: ir.Value
    inside: ir.Value
    r: ir.Value
    h: ir.Value
    c: ir.Value | None = None
    whole: tuple[ir.Value, ir.Value] | None = None

    @property
    def biases(self) -> tuple[ir.Value, ir.Value]:
        """What the slopes of both biases are the sums of."""
        return self.whole or (self.moved, self.inside)


Made: TypeAlias = tuple[list[ir.Value], list[ir.Value]]
Pass: TypeAlias = Callable[[Emitter, list[ir.Value], list[ir.Value]], Made]
"""States (N, .) and slices (N, .) of a step -> the next states, and what is kept of the step."""


def loop(
    d: Direction,
    name: str,
    turn: int,
    states: Sequence[ir.Value],
    slices: Sequence[ir.Value],
    step: Pass,
) -> tuple[ir.Value, ...]:
    """A Scan: the last states, and what was kept of the steps, in the order of time."""
    real = ir.TensorType(d.e.dtype)
    inner = Emitter(f"{d.e.prefix}/{name}_{d.number}", opset=d.e.opset, dtype=d.e.dtype)
    count = len(states) + len(slices)
    flat = ir.Shape([None, None])  # a nested Scan is refused when no rank is known
    inputs = [ir.Value(name=f"{inner.prefix}/in_{n}", type=real, shape=flat) for n in range(count)]
    after, kept = step(inner, inputs[: len(states)], inputs[len(states) :])
    outputs: list[ir.Value] = []
    for value in (*after, *kept):  # each once, and none that only passes through
        made = value not in (*inputs, *outputs)
        outputs.append(value if made else inner.op("Identity", value))
        outputs[-1].type, outputs[-1].shape = real, flat
    body = ir.Graph(
        inputs,
        outputs,
        nodes=list(inner.nodes),
        initializers=inner.initializers,
        name=inner.prefix,
    )
    return d.e.ops(
        "Scan",
        *states,
        *slices,
        outputs=[f"{inner.prefix}/out_{n}" for n in range(len(outputs))],
        body=body,
        num_scan_inputs=len(slices),
        scan_input_directions=[turn] * len(slices),
        scan_output_directions=[turn] * len(kept),
    )
