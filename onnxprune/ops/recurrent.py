"""Recurrent networks: LSTM, GRU and RNN, in one or two directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Balanced, Coupling, Fact, Floats, Inexact, Inner
from onnxprune.emit import Emitter
from onnxprune.ops.edit import Absorber, Edit, shifts
from onnxprune.ops.opening import Opening, opens
from onnxprune.ops.registry import (
    Role,
    View,
    absorbs,
    arange,
    couples,
    dequantizes,
    macs,
    mimics,
    parameters,
    resizes,
)

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_X, _W, _R, _B, _LENGTHS, _P = 0, 1, 2, 3, 4, 7
_STATES = (5, 6)  # input slots of initial_h and initial_c

parameters("LSTM", slots={_W: Role.WEIGHT, _R: Role.WEIGHT, _B: Role.AFFINE, _P: Role.AFFINE})
parameters("GRU", "RNN", slots={_W: Role.WEIGHT, _R: Role.WEIGHT, _B: Role.AFFINE})


@couples("LSTM", "GRU", "RNN")
def recurrent(view: View) -> Iterator[Fact]:
    """Couple each hidden unit with its rows in all gates and with where it is read again.

    Forward:  h_t = f(W x_t + Wb, R h_(t-1) + Rb), per direction; W and R hold the gates' rows one
              below the other, row g * H + i is gate g of unit i; B = [Wb, Rb]; an LSTM also has a
              cell c_t and peepholes P. Y = all h_t, Y_h and Y_c = the last h_t and c_t
    Couples:  X.I <-> W.2;  R.2[i] <-> W.1, R.1, B.1, P.1 [every n with n mod H = i]
              <-> Y.H, Y_h.H, Y_c.H, initial_h.H, initial_c.H [i];  batch one to one. Two
              directions have equally many units, each its own
    """
    hub = view.axis(view.input(_R), 2)
    yield from view.equal(view.axis(view.input(_X), 2), view.axis(view.input(_W), 2))
    for slot in (_W, _R, _B, _P):
        if view.input(slot) is not None:
            yield from view.fixed(view.input(slot), 0)
    stripes = (Inner(hub), *_units(view))
    directions = view.size(view.axis(view.input(_R), 0)) or 1
    if directions == 1:
        yield from stripes
    else:
        yield _apart(view, directions, stripes)
    yield from _batch_and_time(view)


def _units(view: View) -> Iterator[Fact]:
    """The same unit in every weight, state and output, whatever the direction."""
    hub = view.axis(view.input(_R), 2)
    for slot in (_W, _R, _B, _P):
        if view.input(slot) is not None:
            yield from _stacked(view, view.axis(view.input(slot), 1), hub)
    for value in _data(view):
        yield from view.equal(view.axis(value, -1), hub)


def _apart(view: View, directions: int, stripes: tuple[Fact, ...]) -> Fact:
    """Each direction has units of its own, equally many: one `hidden_size` serves both."""
    hub = replace(view.axis(view.input(_R), 2), by=0)
    weights = [view.input(slot) for slot in (_W, _R, _B, _P)]
    pairs = [
        hub,
        *(replace(view.axis(value, 1), by=0) for value in weights if value is not None),
        *(replace(view.axis(v, -1), by=_direction_axis(view, v)) for v in _data(view)),
    ]
    units = view.size(replace(hub, by=-1)) or 1
    couplings: list[Fact] = [Inner(hub)]
    for axis in pairs[1:]:
        size = view.size(replace(axis, by=-1)) or 1
        every = arange(directions * size)
        unit = every // size * units + every % size % units
        couplings.append(Coupling(left=axis, right=hub, left_index=every, right_index=unit))
    blocks = tuple((axis, directions) for axis in pairs)
    return Balanced(blocks=blocks, couplings=tuple(couplings), stripes=stripes)


def _direction_axis(view: View, value: ir.Value) -> int:
    """Y is (T, directions, N, H), or (N, T, directions, H); states lack the T."""
    full = len(view.shape(value)) == 4
    return int(view.attribute("layout", 0)) + int(full)


def _stacked(view: View, axis: Axis, hub: Axis) -> Iterator[Fact]:
    """`axis` holds the units several times, one set behind the other."""
    size, units = view.size(axis), view.size(hub)
    if size is None or units is None or size % units:
        yield from view.equal(axis, hub)
        return
    yield Coupling(left=axis, right=hub, left_index=arange(size), right_index=arange(size) % units)


def _data(view: View) -> list[ir.Value]:
    """Values whose last axis are the units: outputs and initial states, as far as present."""
    states = [view.input(slot) for slot in _STATES]
    outputs = [value for value in view.node.outputs if value.name]
    return [*(value for value in states if value is not None), *outputs]


def _batch_and_time(view: View) -> Iterator[Fact]:
    """Examples are independent; steps and directions keep their number."""
    x, lengths = view.input(_X), view.input(_LENGTHS)
    layout = view.attribute("layout", 0)
    time, batch = (1, 0) if layout else (0, 1)
    yield from view.fixed(x, time)
    if lengths is not None:
        yield from view.equal(view.axis(lengths, 0), view.axis(x, batch))
    for value in _data(view):
        full = len(view.shape(value)) == 4
        # Y is (T, directions, N, H), or (N, T, directions, H); states lack the T.
        own = 0 if layout else 2 if full else 1
        yield from view.equal(view.axis(value, own), view.axis(x, batch))
        rest = set(range(len(view.shape(value)) - 1)) - {own}
        yield from view.fixed(value, *sorted(rest))


@resizes("LSTM", "GRU", "RNN")
def resize_hidden(edit: Edit) -> None:
    """`hidden_size` is the number of units that were kept."""
    kept = edit.kept_at(edit.view.input(_R), 2)
    if kept is not None:
        edit.view.node.attributes.add(ir.AttrInt64("hidden_size", len(kept)))


@opens("LSTM", "GRU", "RNN")
def open_states(opening: Opening) -> bool:
    """Lengths and initial states that are the same for all examples are repeated."""
    x, axis = opening.view.input(_X), opening.follows(opening.view.input(_X))
    if x is None or axis is None:
        return False
    own = 0 if opening.view.attribute("layout", 0) else 1
    places = {_LENGTHS: 0, **dict.fromkeys(_STATES, own)}
    repeated = [opening.repeat(slot, place, x, axis) for slot, place in places.items()]
    return any(repeated)


@macs("LSTM", "GRU", "RNN")
def recurrent_macs(view: View) -> int:
    """Batch x steps x (input weights + recurrent weights)."""
    steps, batch = (size or 1 for size in view.shape(view.input(_X))[:2])  # or the other way round
    weights = [view.shape(view.input(slot)) for slot in (_W, _R)]
    return (
        batch
        * steps
        * sum(int(np.prod([size or 1 for size in sizes], dtype=np.int64)) for sizes in weights)
    )


@absorbs("LSTM", "GRU", "RNN")
def recurrent_absorber(view: View, slot: int) -> Absorber | None:
    """Constant inputs are the same at every step; with two directions there are two biases."""
    known = view.input(_B) is None or view.is_constant(_B)
    one = view.is_constant(_W) and view.shape(view.input(_W))[0] == 1
    if slot != _X or not one or not known:
        return None
    return Absorber(slot=_W, in_axis=2, out_axis=1)


@shifts("LSTM", "GRU", "RNN")
def recurrent_shift(edit: Edit, vector: Floats) -> None:
    """Add `vector` (gates * H,) to the first half of B, or make it that."""
    bias, r = edit.view.constant(_B), edit.view.input(_R)
    whole = np.concatenate([vector, np.zeros_like(vector)])[None]
    if bias is not None:
        edit.write(_B, (bias + whole).astype(bias.dtype), role="bias")
        return
    made = edit.write(_B, whole, role="bias")
    kept = edit.kept_at(r, 2)
    if kept is not None:
        units = edit.view.size(edit.view.axis(r, 2)) or 1
        blocks = np.arange(whole.shape[1] // units)[:, None] * units
        edit.kept[Axis(made.name or "", 1)] = (blocks + kept[None]).reshape(-1)


@couples("DynamicQuantizeLSTM", domain="com.microsoft")
def quantized_lstm(view: View) -> Iterator[Fact]:
    """Couple as LSTM does; weights lie the other way round, with scales per row of the gates.

    Forward:  LSTM with W (directions, I, 4 H) and R (directions, H, 4 H) of 8 bits, and x and h
              quantized at every step to their own range
    Couples:  X.I <-> W.1;  R.1[i] <-> W.2, R.2, B.1, P.1, scales.1, zero points.1 [every n with
              n mod H = i] <-> Y.H, Y_h.H, Y_c.H, initial_h.H, initial_c.H [i];  batch one to one
    Inexact:  along inputs and units, which the ranges depend on
    """
    x, r = view.input(_X), view.input(_R)
    hub = view.axis(r, 1)
    yield Inner(hub)
    yield from view.equal(view.axis(x, 2), view.axis(view.input(_W), 1))
    for axis in (hub, view.axis(x, 2)):
        yield Inexact(axis, view.key, "the range of all values")
    stacked = [(_W, 2), (_R, 2), (_B, 1), (_P, 1), *((slot, 1) for slot in range(8, 12))]
    for slot, position in stacked:
        value = view.input(slot)
        if value is not None:
            yield from view.fixed(value, 0)
            if len(view.shape(value)) > 1:
                yield from _stacked(view, view.axis(value, position), hub)
    for value in _data(view):
        yield from view.equal(view.axis(value, -1), hub)
    yield from _batch_and_time(view)


@resizes("DynamicQuantizeLSTM", domain="com.microsoft")
def resize_quantized(edit: Edit) -> None:
    """`hidden_size` is the number of units that were kept."""
    kept = edit.kept_at(edit.view.input(_R), 1)
    if kept is not None:
        edit.view.node.attributes.add(ir.AttrInt64("hidden_size", len(kept)))


@mimics("DynamicQuantizeLSTM", domain="com.microsoft")
def like_lstm(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of an LSTM of the same number of units."""
    names = [f"{e.prefix}/{part}" for part in ("Y", "Y_h", "Y_c")]
    wanted = [name for name in ("hidden_size", "direction") if name in node.attributes]
    given = {name: node.attributes[name].value for name in wanted}
    return e.ops("LSTM", node.inputs[0], None, None, outputs=names, **given)[: len(node.outputs)]


@dequantizes("DynamicQuantizeLSTM", domain="com.microsoft")
def real_gates(view: View, slot: int) -> Callable[[], Array] | None:
    """(w - zero) * scale of W and R: one pair for each direction, or for each of its columns."""
    places = {_W: (_W, 8, 9), _R: (_R, 10, 11)}.get(slot, ())
    known = bool(places) and all(map(view.is_constant, places))
    return partial(_real_gates, view, places) if known else None


def _real_gates(view: View, places: Sequence[int]) -> Array:
    weight, scale, zero = (view.constant(place) for place in places)
    assert weight is not None
    assert scale is not None
    assert zero is not None
    columns = [array.astype(np.float64).reshape(len(weight), 1, -1) for array in (scale, zero)]
    real: Array = (weight.astype(np.float64) - columns[1]) * columns[0]
    return real
