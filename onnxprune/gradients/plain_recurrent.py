"""Slopes of plain LSTM, GRU and RNN: one short loop over the steps, everything else at once.

The operator puts out the states h of all steps. So the gates of all steps come from two large
products with X and the states before, and only what truly runs from step to step is left to loops:
an LSTM's cell forwards, and the slopes of the states backwards. What a pass of these loops does not
need a state for is computed before them, and the slopes of the weights behind them.

Plain means: the operator's own activations, and no clip, lengths, peepholes or coupled gates. Every
other form is a Scan over its steps (`recurrent`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.cells import CELLS
from onnxprune.gradients.engine import SUFFIX
from onnxprune.gradients.hidden import Call
from onnxprune.gradients.slots import attribute, optional_input
from onnxprune.gradients.sweeps import Direction, Slopes
from onnxprune.gradients.thinning import gates_of
from onnxprune.model import shape_of
from onnxprune.ops.registry import gradient

__all__ = ["ACTIVATIONS", "GATES", "Slot", "is_plain", "is_recurrent", "turns_of", "units_of"]

ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class Slot:
    """Inputs of LSTM, GRU and RNN, as far as they have them."""

    X, W, R, B, LENGTHS, H, C, P = range(8)


def is_recurrent(node: ir.Node) -> bool:
    """Whether it is an LSTM, GRU or RNN, in whatever form."""
    return node.domain in ("", "ai.onnx") and node.op_type in GATES


def is_plain(node: ir.Node) -> bool:
    """Whether the slopes of an LSTM, GRU or RNN can be written without looking at every step."""
    turns = turns_of(node)
    usual = ACTIVATIONS[node.op_type] * len(turns)
    names = [name.lower() for name in attribute(node, "activations", None) or usual]
    special = any(attribute(node, name, 0) for name in ("clip", "input_forget", "layout"))
    more = any(optional_input(node, slot) is not None for slot in (Slot.LENGTHS, Slot.P))
    return names == usual and not special and not more and units_of(node) is not None


def turns_of(node: ir.Node) -> tuple[int, ...]:
    """Per direction, 0 forwards and 1 backwards."""
    found = {"forward": (0,), "reverse": (1,)}
    return found.get(attribute(node, "direction", "forward"), (0, 1))


def units_of(node: ir.Node) -> int | None:
    """H, as the attribute or the recurrent weight says it."""
    r = optional_input(node, Slot.R)
    shape = None if r is None else shape_of(r)
    given: int | None = attribute(node, "hidden_size", None)
    return given if given is not None or shape is None else shape[2]


@gradient("LSTM", "GRU", "RNN", when=is_plain)
def recurrent(e: Emitter, call: Call) -> Sequence[ir.Value | None]:
    """Direction by direction; slopes of X add up, all others lie side by side."""
    node, cell = call.node, CELLS[call.node.op_type]
    turns = turns_of(node)
    found = [_direction(e, call, number, turn) for number, turn in enumerate(turns)]
    key = next((value.name for value in node.outputs if value.name in call.top_k), "") or ""
    found = [replace(d, top_k=call.top_k.get(key)) for d in found]
    if turns == (0,) and node.op_type == "LSTM" and call.provider == "cpu":
        kept = tuple(e.op("Squeeze", value, e.integers(1)) for value in _keep(e, node))
        found = [replace(found[0], kept=kept)]
    slopes = [cell(d) for d in found]
    for number, each in enumerate(slopes if key else ()):
        each.moved.name = gates_of(key, number) + SUFFIX
    answer: list[ir.Value | None] = [None] * len(call.wanted)
    pairs = list(zip(found, slopes, strict=True))
    if call.wanted[Slot.X]:
        parts = [e.op("MatMul", s.moved, d.w) for d, s in pairs]
        answer[Slot.X] = parts[0] if len(parts) == 1 else e.op("Add", *parts)
    made: dict[int, Callable[[Direction, Slopes], ir.Value | None]] = {
        Slot.W: lambda d, s: d.sums(s.moved, d.x),
        Slot.R: lambda _, s: s.r,
        Slot.B: lambda d, s: e.op("Concat", *map(d.total, s.biases), axis=0),
        Slot.H: lambda _, s: s.h,
        Slot.C: lambda _, s: s.c,
    }
    for slot, one in made.items():
        if slot < len(call.wanted) and call.wanted[slot]:
            parts = [e.op("Unsqueeze", one(d, s), e.integers(0)) for d, s in pairs]
            answer[slot] = parts[0] if len(parts) == 1 else e.op("Concat", *parts, axis=0)
    return answer


def _keep(e: Emitter, node: ir.Node) -> Sequence[ir.Value]:
    """Let the runtime's kernel for training compute an LSTM, which keeps cells and gates."""
    units = units_of(node) or 0
    node.op_type, node.domain = "LSTMTraining", "com.microsoft"
    node.attributes.clear()
    node.attributes["hidden_size"] = ir.AttrInt64("hidden_size", units)
    node.attributes["activations"] = ir.AttrStrings("activations", ACTIVATIONS["LSTM"])
    first = node.outputs[0]
    node.resize_outputs(5)
    for name, value in zip(("last", "last_cell", "cells", "gates"), node.outputs[1:], strict=True):
        value.name = value.name or f"{e.prefix}/{name}"
        value.type = first.type
    return node.outputs[3:]


def _direction(e: Emitter, call: Call, number: int, turn: int) -> Direction:
    """What belongs to direction `number`."""
    node = call.node
    count = len(turns_of(node))

    def own(value: ir.Value | None, axis: int) -> ir.Value | None:
        if value is None:
            return None
        if count == 1:
            return e.op("Squeeze", value, e.integers(axis))
        return e.op("Gather", value, e.constant(np.array(number)), axis=axis)

    w, r, b, h, c = (
        own(optional_input(node, slot), 0) for slot in (Slot.W, Slot.R, Slot.B, Slot.H, Slot.C)
    )
    states = own(node.outputs[0], 1)
    assert w is not None
    assert r is not None
    assert states is not None
    arrived = [*call.slopes, None, None]
    slope, last, last_c = own(arrived[0], 1), own(arrived[1], 0), own(arrived[2], 0)
    shape = e.op("Slice", e.op("Shape", states), e.integers(1), e.integers(3))
    nothing = e.op("Expand", e.scalar(0.0), shape)
    d = Direction(
        e=e,
        number=number,
        turn=turn,
        units=units_of(node) or 0,
        gates=GATES[node.op_type],
        x=call.input(Slot.X),
        w=w,
        r=r,
        b=b,
        states=states,
        before=states,
        c=c or nothing,
        slope=slope,
        last=last or nothing,
        last_c=last_c or nothing,
        reset_after=bool(attribute(node, "linear_before_reset", 0)),
    )
    return replace(d, before=d.shifted(states, h or nothing))
