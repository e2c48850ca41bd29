"""LSTM, GRU and RNN in their rarer forms: Scans over the steps, whose gradient `control` writes.

The products with W, and everything else that needs no state, are taken for all steps at once; a
pass holds one product with R. So sequences of any length train, and the training copy computes the
forward pass once. Equations are those of the ONNX operators' texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.plain_recurrent import (
    ACTIVATIONS,
    GATES,
    Slot,
    is_plain,
    turns_of,
    units_of,
)
from onnxprune.gradients.slots import attribute, data_input, optional_input, wanted
from onnxprune.ops.registry import lowers

__all__: list[str] = []

# What activations take, with ONNX Runtime's defaults.
_ALPHA = {
    "affine": 1.0,
    "leakyrelu": 0.01,
    "thresholdedrelu": 1.0,
    "scaledtanh": 1.0,
    "hardsigmoid": 0.2,
    "elu": 1.0,
}
_BETA = {"affine": 0.0, "scaledtanh": 1.0, "hardsigmoid": 0.5}
_PLAIN = {
    "relu": "Relu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "softsign": "Softsign",
    "softplus": "Softplus",
}
_WITH_ALPHA = {"leakyrelu": "LeakyRelu", "thresholdedrelu": "ThresholdedRelu", "elu": "Elu"}

Activation: TypeAlias = Callable[[Emitter, ir.Value], ir.Value]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Direction:
    """The weights of one direction, and how it computes.

    Attributes:
        r: (H, gates * H), the recurrent weight turned around.
        bias: (gates * H,) of the recurrent product; None when there is none, or added before.
        peepholes: (3 * H,) i, o, f; None when there are none.
        activations: f, g, h of the operator's text, as many as it has.
        clip: bound of what enters the activations; None for none.
        coupled: whether the forget gate is 1 - the input gate.
        linear_before_reset: whether a GRU's reset gate comes behind the product.
        units: H.
    """

    r: ir.Value
    bias: ir.Value | None
    peepholes: ir.Value | None
    activations: Sequence[Activation]
    clip: float | None
    coupled: bool
    linear_before_reset: bool
    units: int


@lowers("LSTM", "GRU", "RNN")
def recurrent(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None] | None:
    """One Scan per direction; Y, Y_h and Y_c put together from what they give."""
    if is_plain(node):
        return None
    directions, units = turns_of(node), units_of(node)
    functions = _functions(node, len(directions))
    if units is None or functions is None:
        return None
    layout = attribute(node, "layout", 0)
    x = data_input(node)
    if layout:
        x = e.op("Transpose", x, perm=[1, 0, 2])
    parts = {
        slot: _parts(
            e, optional_input(node, slot), len(directions), layout and slot in (Slot.H, Slot.C)
        )
        for slot in (Slot.W, Slot.R, Slot.B, Slot.H, Slot.C, Slot.P)
    }
    mask = _mask(e, x, optional_input(node, Slot.LENGTHS))
    runs = []
    for number, turn in enumerate(directions):
        own = {slot: values[number] for slot, values in parts.items()}
        share = len(functions) // len(directions)
        acts = functions[number * share : (number + 1) * share]
        runs.append(_run(e, node, x, own, mask, acts, turn, units, number))
    return _assembled(e, node, runs, layout)


def _parts(e: Emitter, value: ir.Value | None, count: int, axis: int) -> list[ir.Value | None]:
    """`value` per direction, without its axis of directions."""
    if value is None:
        return [None] * count
    names = [f"{e.prefix}/{value.name}/direction_{number}" for number in range(count)]
    split: Sequence[ir.Value] = [value]
    if count > 1:
        split = e.ops("Split", value, e.integers(*[1] * count), outputs=names, axis=axis)
    return [e.op("Squeeze", part, e.integers(axis)) for part in split]


def _mask(e: Emitter, x: ir.Value, lengths: ir.Value | None) -> ir.Value | None:
    """(T, N, 1) bool: which steps of which example are inside its sequence."""
    if lengths is None:
        return None
    steps = e.op("Gather", e.op("Shape", x), e.constant(np.array(0)))
    zero, one = e.constant(np.array(0)), e.constant(np.array(1))
    numbers = e.op("Unsqueeze", e.op("Range", zero, steps, one), e.integers(1))
    counts = e.op("Unsqueeze", e.op("Cast", lengths, to=ir.DataType.INT64), e.integers(0))
    return e.op("Unsqueeze", e.op("Less", numbers, counts), e.integers(2))


# --- activations ---------------------------------------------------------------------------------


def _functions(node: ir.Node, directions: int) -> list[Activation] | None:
    """The activations of all directions, in the order of the attribute; None for unknown ones."""
    names = attribute(node, "activations", None) or ACTIVATIONS[node.op_type] * directions
    alphas = list(attribute(node, "activation_alpha", None) or [])
    betas = list(attribute(node, "activation_beta", None) or [])
    made = []
    for name in (name.lower() for name in names):
        alpha, beta = _ALPHA.get(name), _BETA.get(name)
        if alpha is not None and alphas:
            alpha = alphas.pop(0)
        if beta is not None and betas:
            beta = betas.pop(0)
        function = _function(name, alpha, beta)
        if function is None:
            return None
        made.append(function)
    return made


def _function(name: str, alpha: float | None, beta: float | None) -> Activation | None:
    if name in _PLAIN:
        return lambda e, x: e.op(_PLAIN[name], x)
    if name in _WITH_ALPHA:
        return lambda e, x: e.op(_WITH_ALPHA[name], x, alpha=alpha)
    if name == "hardsigmoid":
        return lambda e, x: e.op("HardSigmoid", x, alpha=alpha, beta=beta)
    if name == "affine":
        return lambda e, x: e.op("Add", e.op("Mul", x, e.scalar(alpha or 0.0)), e.scalar(beta or 0))
    if name == "scaledtanh":
        return lambda e, x: e.op(
            "Mul", e.op("Tanh", e.op("Mul", x, e.scalar(beta or 0.0))), e.scalar(alpha or 0.0)
        )
    return None


def _clipped(e: Emitter, x: ir.Value, bound: float | None) -> ir.Value:
    return x if not bound else e.op("Clip", x, e.scalar(-bound), e.scalar(bound))


# --- one direction -------------------------------------------------------------------------------


def _run(
    e: Emitter,
    node: ir.Node,
    x: ir.Value,
    own: dict[int, ir.Value | None],
    mask: ir.Value | None,
    functions: Sequence[Activation],
    turn: int,
    units: int,
    number: int,
) -> list[ir.Value]:
    """(T, N, H) all h, and the last h (and c): each (N, H)."""
    lstm, gates = node.op_type == "LSTM", GATES[node.op_type]
    reset = node.op_type == "GRU" and bool(attribute(node, "linear_before_reset", 0))
    moved = e.op("MatMul", x, e.op("Transpose", own[Slot.W], perm=[1, 0]))
    inside = None
    if own[Slot.B] is not None:
        moved, inside = _biased(e, moved, own[Slot.B], gates * units, units, reset, number)
    starts = [own[Slot.H], own[Slot.C]] if lstm else [own[Slot.H]]
    direction = _Direction(
        r=e.op("Transpose", own[Slot.R], perm=[1, 0]),
        bias=inside,
        peepholes=own[Slot.P] if lstm else None,
        activations=functions,
        clip=attribute(node, "clip", None),
        coupled=bool(attribute(node, "input_forget", 0)),
        linear_before_reset=reset,
        units=units,
    )
    zero = _zeros(e, x, units) if any(start is None for start in starts) else None
    body = _body(e, node.op_type, direction, masked=mask is not None, number=number)
    slices = [moved] if mask is None else [moved, mask]
    results = e.ops(
        "Scan",
        *(start if start is not None else zero for start in starts),
        *slices,
        outputs=[f"{e.prefix}/run_{number}_{place}" for place in range(len(starts) + 1)],
        body=body,
        num_scan_inputs=len(slices),
        scan_input_directions=[turn] * len(slices),
        scan_output_directions=[turn],
    )
    return [results[-1], *results[:-1]]


def _biased(
    e: Emitter,
    moved: ir.Value,
    bias: ir.Value | None,
    width: int,
    units: int,
    reset: bool,
    number: int,
) -> tuple[ir.Value, ir.Value | None]:
    """`moved` with both biases; that of a GRU's hidden gate apart where it is reset with it."""
    names = [f"{e.prefix}/bias_{number}_{place}" for place in range(2)]
    before, within = e.ops("Split", bias, e.integers(width, width), outputs=names)
    if not reset:
        return e.op("Add", moved, e.op("Add", before, within)), None
    names = [f"{e.prefix}/bias_{number}_{place}" for place in ("gates", "hidden")]
    gates, hidden = e.ops("Split", within, e.integers(2 * units, units), outputs=names)
    zero = e.constant(np.zeros(units, dtype=e.dtype.numpy()))
    early = e.op("Concat", gates, zero, axis=0)
    return e.op("Add", moved, e.op("Add", before, early)), hidden


def _zeros(e: Emitter, x: ir.Value, units: int) -> ir.Value:
    """(N, H)."""
    batch = e.op("Gather", e.op("Shape", x), e.integers(1))
    shape = e.op("Concat", batch, e.integers(units), axis=0)
    return e.op("Expand", e.scalar(0.0), shape)


def _body(e: Emitter, op_type: str, how: _Direction, *, masked: bool, number: int) -> ir.Graph:
    """One step: states and W x_t + b to states and h_t."""
    step = Emitter(f"{e.prefix}/step_{number}", opset=e.opset, dtype=e.dtype)
    real, truth = ir.TensorType(e.dtype), ir.TensorType(ir.DataType.BOOL)
    names = ("h", "c") if op_type == "LSTM" else ("h",)
    states = [ir.Value(name=f"{step.prefix}/{name}", type=real) for name in names]
    moved = ir.Value(name=f"{step.prefix}/moved", type=real)
    inside = ir.Value(name=f"{step.prefix}/inside", type=truth)
    new = {"LSTM": _lstm_step, "GRU": _gru_step, "RNN": _rnn_step}[op_type](
        step, how, states, moved
    )
    shown = new[0]
    if masked:
        new = [step.op("Where", inside, a, b) for a, b in zip(new, states, strict=True)]
        shown = step.op("Where", inside, shown, step.scalar(0.0))
    outputs = [*new, step.op("Identity", shown)]
    for value in outputs:
        value.type = real
    return ir.Graph(
        [*states, moved, *([inside] if masked else [])],
        outputs,
        nodes=list(step.nodes),
        initializers=step.initializers,
        name=step.prefix,
    )


def _split(e: Emitter, x: ir.Value, units: int, names: str) -> tuple[ir.Value, ...]:
    """The gates of `x`, one name each."""
    return e.ops(
        "Split",
        x,
        e.integers(*[units] * len(names)),
        outputs=[f"{e.prefix}/{x.name}/{name}" for name in names],
        axis=-1,
    )


def _lstm_step(
    e: Emitter, how: _Direction, states: Sequence[ir.Value], moved: ir.Value
) -> list[ir.Value]:
    """c_t = f * c_(t-1) + i * g(.);  h_t = o * h(c_t)."""
    (h, c), (f, g, last) = states, how.activations
    gates = e.op("Add", moved, e.op("MatMul", h, how.r))
    peeps: Sequence[ir.Value | None] = (None, None, None)
    if how.peepholes is not None:
        peeps = _split(e, how.peepholes, how.units, "iof")
    else:
        gates = _clipped(e, gates, how.clip)
    i, o, forget, cell = _split(e, gates, how.units, "iofc")
    i = f(e, _peeped(e, i, peeps[0], c, how.clip))
    forget = f(e, _peeped(e, forget, peeps[2], c, how.clip))
    if how.coupled:
        forget = e.op("Sub", e.scalar(1.0), i)
    if how.peepholes is not None:
        cell = _clipped(e, cell, how.clip)
    c = e.op("Add", e.op("Mul", forget, c), e.op("Mul", i, g(e, cell)))
    o = f(e, _peeped(e, o, peeps[1], c, how.clip))
    return [e.op("Mul", o, last(e, c)), c]


def _peeped(
    e: Emitter, gate: ir.Value, peephole: ir.Value | None, c: ir.Value, clip: float | None
) -> ir.Value:
    """A gate that also sees the cell; without a peephole it is clipped already."""
    if peephole is None:
        return gate
    return _clipped(e, e.op("Add", gate, e.op("Mul", peephole, c)), clip)


def _gru_step(
    e: Emitter, how: _Direction, states: Sequence[ir.Value], moved: ir.Value
) -> list[ir.Value]:
    """h_t = (1 - z) * g(.) + z * h_(t-1), with r before or behind the product."""
    (h,), (f, g) = states, how.activations
    two, one = e.integers(2 * how.units, how.units), how.units
    w_zr, w_h = e.ops("Split", moved, two, outputs=_names(e, "w", "zr", "h"), axis=-1)
    r_zr, r_h = e.ops("Split", how.r, two, outputs=_names(e, "r", "zr", "h"), axis=-1)
    gates = f(e, _clipped(e, e.op("Add", w_zr, e.op("MatMul", h, r_zr)), how.clip))
    z, r = _split(e, gates, one, "zr")
    if how.linear_before_reset:
        product = e.op("MatMul", h, r_h)
        if how.bias is not None:
            product = e.op("Add", product, how.bias)
        inner = e.op("Mul", r, product)
    else:
        inner = e.op("MatMul", e.op("Mul", r, h), r_h)
    new = g(e, _clipped(e, e.op("Add", w_h, inner), how.clip))
    return [e.op("Add", new, e.op("Mul", z, e.op("Sub", h, new)))]


def _names(e: Emitter, first: str, *rest: str) -> list[str]:
    return [f"{e.prefix}/{first}_{name}" for name in rest]


def _rnn_step(
    e: Emitter, how: _Direction, states: Sequence[ir.Value], moved: ir.Value
) -> list[ir.Value]:
    """h_t = f(W x_t + R h_(t-1) + b)."""
    total = e.op("Add", moved, e.op("MatMul", states[0], how.r))
    return [how.activations[0](e, _clipped(e, total, how.clip))]


# --- outputs -------------------------------------------------------------------------------------


def _assembled(
    e: Emitter, node: ir.Node, runs: Sequence[Sequence[ir.Value]], layout: int
) -> list[ir.Value | None]:
    """Y (T, directions, N, H), then Y_h and Y_c (directions, N, H); batch first in layout 1."""
    made: list[ir.Value | None] = []
    for place, output in enumerate(node.outputs):
        if not wanted(output):
            made.append(None)
            continue
        axis = 0 if place else 1
        parts = [e.op("Unsqueeze", run[place], e.integers(axis)) for run in runs]
        value = parts[0] if len(parts) == 1 else e.op("Concat", *parts, axis=axis)
        if layout:
            value = e.op("Transpose", value, perm=[1, 0, 2] if place else [2, 0, 1, 3])
        made.append(value)
    return made
