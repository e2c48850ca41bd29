"""Slopes of one direction of a plain LSTM, GRU or RNN.

Every function computes its operator's gates of all steps at once, sends the slopes of the states
backwards through one loop, and sums up what the weights get. Equations are those of the ONNX
operators' texts, differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients.sweeps import Direction, Made, Pass, Slopes, loop

__all__ = ["CELLS"]


def _lstm(d: Direction) -> Slopes:
    """Of h = o tanh(c), c = f c' + i g; gates in the order i, o, f, c."""
    (i, o, forget, g), cells = _kept_gates(d) if d.kept else _computed_gates(d)
    shown = d.op("Tanh", cells)
    through = [
        d.op("Mul", g, d.steepness(i)),
        d.op("Mul", shown, d.steepness(o)),
        d.op("Mul", d.shifted(cells, d.c), d.steepness(forget)),
        d.op("Mul", i, d.curvature(g)),
    ]
    slices = [d.op("Mul", o, d.curvature(shown)), forget, d.op("Concat", *through, axis=-1)]

    def backwards(e: Emitter, states: list[ir.Value], slices: list[ir.Value]) -> Made:
        dh = _arriving(e, states[0], slices, given=d.slope is not None)
        dc = e.op("Add", states[1], e.op("Mul", dh, slices[0]))
        da = e.op("Mul", e.op("Concat", dc, dh, dc, dc, axis=-1), slices[2])
        kept = d.thinned(e, da)
        return [e.op("MatMul", kept[0], d.r), e.op("Mul", dc, slices[1])], kept

    h, c, da, *whole = _back(d, [d.last, d.last_c], slices, backwards)
    r = d.sums(da, d.before)
    return Slopes(moved=da, inside=da, r=r, h=h, c=c, whole=_both(whole))


def _kept_gates(d: Direction) -> tuple[tuple[ir.Value, ...], ir.Value]:
    """i, o, f and g of all steps, and the cells, as the forward pass kept them."""
    cells, gates = d.kept
    return d.parts(gates, 1, 1, 1, 1), cells


def _computed_gates(d: Direction) -> tuple[tuple[ir.Value, ...], ir.Value]:
    """The same from the states."""
    ordinary, cell = d.parts(_gates(d), 3, 1)
    i, o, forget = d.parts(d.op("Sigmoid", ordinary), 1, 1, 1)
    g = d.op("Tanh", cell)

    def forwards(e: Emitter, states: list[ir.Value], slices: list[ir.Value]) -> Made:
        c = e.op("Add", e.op("Mul", slices[0], states[0]), slices[1])
        return [c], [c]

    _, cells = loop(d, "cell", d.turn, [d.c], [forget, d.op("Mul", i, g)], forwards)
    return (i, o, forget, g), cells


def _gates(d: Direction) -> ir.Value:
    """(T, N, gates * H) W x + R h + b of all steps."""
    found = d.op("Add", d.product(d.x, d.w), d.product(d.before, d.r))
    if d.b is None:
        return found
    outer, inner = _biases(d)
    return d.op("Add", found, d.op("Add", outer, inner))


def _biases(d: Direction) -> tuple[ir.Value, ir.Value]:
    """(gates * H,) each: of W and of R."""
    assert d.b is not None
    outer, inner = d.parts(d.b, d.gates, d.gates)
    return outer, inner


def _back(
    d: Direction, states: Sequence[ir.Value], slices: Sequence[ir.Value], step: Pass
) -> tuple[ir.Value, ...]:
    """From the last step to the first."""
    own = [] if d.slope is None else [d.slope]
    return loop(d, "back", 1 - d.turn, states, [*own, *slices], step)


def _gru(d: Direction) -> Slopes:
    """Of h = (1 - z) n + z h'; gates in the order z, r, h."""
    return _gru_reset_after(d) if d.reset_after else _gru_reset_before(d)


def _gru_reset_after(d: Direction) -> Slopes:
    """With n = tanh(W x + r (R h' + b))."""
    moved, inside = d.product(d.x, d.w), d.product(d.before, d.r)
    if d.b is not None:
        outer, inner = _biases(d)
        moved, inside = d.op("Add", moved, outer), d.op("Add", inside, inner)
    (moved_zr, moved_n), (inside_zr, q) = d.parts(moved, 2, 1), d.parts(inside, 2, 1)
    z, r = d.parts(d.op("Sigmoid", d.op("Add", moved_zr, inside_zr)), 1, 1)
    n = d.op("Tanh", d.op("Add", moved_n, d.op("Mul", r, q)))
    to_z, to_n = _gru_ways(d, z, n)
    to_r = d.op("Mul", to_n, d.op("Mul", q, d.steepness(r)))
    if d.is_thinned:
        return _gru_thinned(d, z, r, d.op("Concat", to_z, to_r, to_n, axis=-1))
    inner_ways = d.op("Concat", to_z, to_r, d.op("Mul", to_n, r), axis=-1)

    def backwards(e: Emitter, states: list[ir.Value], slices: list[ir.Value]) -> Made:
        dh = _arriving(e, states[0], slices, given=d.slope is not None)
        da = e.op("Mul", e.op("Concat", dh, dh, dh, axis=-1), slices[1])
        return [e.op("Add", e.op("Mul", dh, slices[0]), e.op("MatMul", da, d.r))], [dh, da]

    h, arrived, inside_slope = _back(d, [d.last], [z, inner_ways], backwards)
    shared, _ = d.parts(inside_slope, 2, 1)
    moved_slope = d.op("Concat", shared, d.op("Mul", arrived, to_n), axis=-1)
    return Slopes(moved=moved_slope, inside=inside_slope, r=d.sums(inside_slope, d.before), h=h)


def _gru_thinned(d: Direction, z: ir.Value, r: ir.Value, ways: ir.Value) -> Slopes:
    """What goes on is chosen by the slopes of the gates, which reach R h' + b by the reset gate."""
    ones = d.op("Expand", d.e.scalar(1.0), d.op("Shape", r))
    inward = d.op("Concat", ones, ones, r, axis=-1)

    def backwards(e: Emitter, states: list[ir.Value], slices: list[ir.Value]) -> Made:
        dh = _arriving(e, states[0], slices, given=d.slope is not None)
        kept = d.thinned(e, e.op("Mul", e.op("Concat", dh, dh, dh, axis=-1), slices[1]))
        before = e.op("MatMul", e.op("Mul", kept[0], slices[2]), d.r)
        return [e.op("Add", e.op("Mul", dh, slices[0]), before)], kept

    h, moved, whole = _back(d, [d.last], [z, ways, inward], backwards)
    inside, whole_inside = (d.op("Mul", slope, inward) for slope in (moved, whole))
    r_slope = d.sums(inside, d.before)
    return Slopes(moved=moved, inside=inside, r=r_slope, h=h, whole=(whole, whole_inside))


def _gru_reset_before(d: Direction) -> Slopes:
    """With n = tanh(W x + R (r h') + b)."""
    moved = d.product(d.x, d.w)
    if d.b is not None:
        moved = d.op("Add", moved, d.op("Add", *_biases(d)))
    moved_zr, moved_n = d.parts(moved, 2, 1)
    r_zr, r_n = d.rows(d.r, 0, 2), d.rows(d.r, 2, 3)
    zr = d.op("Sigmoid", d.op("Add", moved_zr, d.product(d.before, r_zr)))
    z, r = d.parts(zr, 1, 1)
    reset = d.op("Mul", r, d.before)
    n = d.op("Tanh", d.op("Add", moved_n, d.product(reset, r_n)))
    to_z, to_n = _gru_ways(d, z, n)
    ways = d.op("Concat", to_z, d.op("Mul", d.before, d.steepness(r)), axis=-1)

    def backwards(e: Emitter, states: list[ir.Value], slices: list[ir.Value]) -> Made:
        dh = _arriving(e, states[0], slices, given=d.slope is not None)
        keep, reset_gate, to_new, to_gates = slices
        new = d.thinned(e, e.op("Mul", dh, to_new))
        dreset = e.op("MatMul", new[0], r_n)
        gates = d.thinned(e, e.op("Mul", e.op("Concat", dh, dreset, axis=-1), to_gates))
        direct = e.op("Add", e.op("Mul", dh, keep), e.op("Mul", dreset, reset_gate))
        return [e.op("Add", direct, e.op("MatMul", gates[0], r_zr))], [*gates, *new]

    h, *found = _back(d, [d.last], [z, r, to_n, ways], backwards)
    gates, new = found[: len(found) // 2], found[len(found) // 2 :]
    da, *whole = (d.op("Concat", *pair, axis=-1) for pair in zip(gates, new, strict=True))
    r_slope = d.op("Concat", d.sums(gates[0], d.before), d.sums(new[0], reset), axis=0)
    return Slopes(moved=da, inside=da, r=r_slope, h=h, whole=_both(whole))


def _gru_ways(d: Direction, z: ir.Value, n: ir.Value) -> tuple[ir.Value, ir.Value]:
    """What a slope of h is multiplied by on its way to the arguments of z and of n."""
    to_z = d.op("Mul", d.op("Sub", d.before, n), d.steepness(z))
    return to_z, d.op("Mul", d.one_less(z), d.curvature(n))


def _rnn(d: Direction) -> Slopes:
    """Of h = tanh(W x + R h' + b)."""

    def backwards(e: Emitter, states: list[ir.Value], slices: list[ir.Value]) -> Made:
        dh = _arriving(e, states[0], slices, given=d.slope is not None)
        kept = d.thinned(e, e.op("Mul", dh, slices[0]))
        return [e.op("MatMul", kept[0], d.r)], kept

    h, da, *whole = _back(d, [d.last], [d.curvature(d.states)], backwards)
    return Slopes(moved=da, inside=da, r=d.sums(da, d.before), h=h, whole=_both(whole))


def _both(whole: Sequence[ir.Value]) -> tuple[ir.Value, ir.Value] | None:
    """The same for both biases; None where nothing was thinned."""
    return (whole[0], whole[0]) if whole else None


def _arriving(e: Emitter, dh: ir.Value, slices: list[ir.Value], *, given: bool) -> ir.Value:
    """The slope of a step's h: that of later steps, and that of its own output."""
    return e.op("Add", dh, slices.pop(0)) if given else dh


CELLS: dict[str, Callable[[Direction], Slopes]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
