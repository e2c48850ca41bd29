"""Duplicates found in the data, and units that nodes use within themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import feeds, model
from moments import DEVICE, normal, observe, value_of

from onnxprune.base import Array, Floats, Group, Merge, Observations, Plan
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis, analyze
from onnxprune.methods.candidates import Folding, Merging, Reader, foldings, readers
from onnxprune.methods.followers import either, followers
from onnxprune.methods.inside import drops
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.verify import compare

pytestmark = pytest.mark.ort

DENSE = """(float[N, 6] x) => (float[N, 3] y) <float[6, 5] w, float[5] b, float[5, 3] v> {
    h = Gemm(x, w, b)  s = Sigmoid(h)  a = Mul(h, s)  y = MatMul(a, v) }"""
CONV = """(float[N, 2, 6, 6] x) => (float[N, 3, OUT, OUT] y)
    <float[5, 2, 3, 3] w, float[5] b, float[3, 5, 3, 3] v> {
    h = Conv(x, w, b)  s = Sigmoid(h)  a = Mul(h, s)
    y = Conv <pads = [PAD, PAD, PAD, PAD]> (a, v) }"""
FLAT = """(float[N, 2, 4, 4] x) => (float[N, 3] y)
    <float[5, 2, 3, 3] w, float[5] b, float[20, 3] v> {
    h = Conv(x, w, b)  s = Sigmoid(h)  a = Mul(h, s)  f = Flatten(a)  y = MatMul(f, v) }"""
TEXTS = {
    "dense": DENSE,
    "conv": CONV.replace("OUT", "2").replace("PAD", "0"),
    "padded": CONV.replace("OUT", "4").replace("PAD", "1"),
    "flat": FLAT,
}


class Case:
    """A network with one group whose unit 3 nearly follows unit 1, and a sample."""

    def __init__(self, name: str, *, batch: int = 300, near: float = 0.02) -> None:
        rng = np.random.default_rng(0)
        kernel = name != "dense"
        w = normal(5, 2, 3, 3, scale=0.4) if kernel else normal(6, 5, scale=0.6)
        rows = w if kernel else w.T
        rows[3] = rows[1] * (1 + near * rng.normal(size=rows[1].shape))
        b = normal(5, seed=3)
        b[3] = b[1]
        self.network: ir.Model = model(TEXTS[name], w=w, b=b)
        self.analysis: Analysis = analyze(self.network)
        (self.group,) = self.analysis.groups
        self.data: dict[str, Array] = feeds(self.network, batch=batch, seed=5)
        self.seen: Observations = observe(self.network, self.analysis, self.data)
        shapes, known = self.analysis.shapes, self.analysis.known
        self.views = {view.key: view for view in views(self.network, shapes, known)}
        parts = readers(self.group, self.views, self.analysis, self.seen)
        assert parts is not None
        self.parts: list[Reader] = parts

    def merging(self, least: float) -> Merging:
        merge = followers(self.parts, self.seen, least)
        assert merge is not None
        return merge

    def units(self) -> Floats:
        """(U, positions and examples) values at the consumer."""
        value = value_of(self.network, "a", self.data).astype(np.float64)
        return np.moveaxis(value, 1, 0).reshape(5, -1)

    def change(self, merge: Merging, unit: int) -> tuple[float, float]:
        """Root mean square and largest change of the consumer's pre-activation, relative."""
        part = self.parts[0]
        plan = Plan(
            keep={self.group.name: np.arange(5) != unit},
            merges=(
                Merge(
                    group=self.group.name,
                    victim=unit,
                    survivor=int(merge.survivor[unit]),
                    scale=float(merge.scale[unit]),
                    offset=float(merge.offset[unit]),
                ),
            ),
        )
        before = value_of(self.network, part.consumer.node, self.data)
        after = value_of(
            reference(self.network, self.analysis, plan), part.consumer.node, self.data
        )
        length = np.linalg.norm((after - before).astype(np.float64), axis=1) / np.sqrt(part.power)
        return float(np.sqrt(np.mean(length**2))), float(length.max())


@pytest.mark.parametrize("name", TEXTS)
def test_a_unit_that_follows_another_one_is_found_with_its_line(name: str) -> None:
    """Behind x * sigmoid(x), of which the weights say nothing but equality."""
    case = Case(name)
    merge = case.merging(0.95)
    np.testing.assert_array_equal(merge.survivor >= 0, [False, True, False, True, False])
    assert (merge.survivor[1], merge.survivor[3]) == (3, 1)
    assert not merge.exact.any()
    units = case.units()
    if name == "padded":  # a line through zero: an offset does not pass the padding
        expected = units[3] @ units[1] / (units[1] @ units[1]), 0.0
    else:
        line = np.polyfit(units[1], units[3], 1)
        expected = float(line[0]), float(line[1])
    np.testing.assert_allclose((merge.scale[3], merge.offset[3]), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", TEXTS)
def test_its_bound_holds_on_the_sample_and_its_error_is_near(name: str) -> None:
    case = Case(name, near=0.2)
    merge = case.merging(0.3)
    found = np.flatnonzero(merge.survivor >= 0)
    assert len(found) >= 2
    for unit in map(int, found):
        typical, largest = case.change(merge, unit)
        assert largest <= merge.bound[unit] * (1 + 1e-4)
        factor = 1.01 if name == "dense" else 3.0  # positions of a map are not independent
        assert typical / factor <= merge.error[unit] <= typical * factor


def test_what_follows_too_loosely_is_no_duplicate() -> None:
    case = Case("dense", near=0.5)
    correlation = np.corrcoef(case.units())[1, 3]
    assert case.merging(correlation + 0.01).survivor[3] != 1
    assert case.merging(correlation - 0.01).survivor[3] == 1


def test_a_constant_follows_nobody() -> None:
    case = Case("dense")
    w = normal(6, 5)
    w[:, 2] = 0
    case.network = model(DENSE, w=w)
    case.seen = observe(case.network, case.analysis, case.data)
    assert case.merging(0.01).survivor[2] == -1


def test_the_cheaper_survivor_of_two_is_taken_and_exact_ones_stay() -> None:
    def merging(error: list[float], survivor: int, exact: bool) -> Merging:
        return Merging(
            survivor=np.full(3, survivor),
            scale=np.ones(3),
            offset=np.zeros(3),
            error=np.array(error),
            bound=np.array(error),
            exact=np.array([exact, False, False]),
        )

    first, second = merging([0, 2, 1], 1, exact=True), merging([0, 1, np.inf], 2, exact=False)
    both = either(first, second)
    assert both is not None
    np.testing.assert_array_equal(both.survivor, [1, 2, 1])
    np.testing.assert_array_equal(both.error, [0, 1, 1])
    np.testing.assert_array_equal(both.exact, [True, False, False])
    assert either(None, second) is second
    assert either(first, None) is first


# --- inside ------------------------------------------------------------------------------------

RECURRENT = """(float[T, N, 4] x) => (float[T, N, 3] y)
    <float[1, GATES, 4] w, float[1, GATES, 6] r, float[1, BIAS] b, float[6, 3] v> {
    h = OP <hidden_size = 6> (x, w, r, b)  s = Squeeze(h, one)  y = MatMul(s, v) }"""
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def recurrent(op_type: str, **constants: Any) -> ir.Model:
    gates = 6 * GATES[op_type]
    text = RECURRENT.replace("GATES", str(gates)).replace("BIAS", str(2 * gates))
    arrays = {"w": normal(1, gates, 4, scale=0.5), "r": normal(1, gates, 6, scale=0.4, seed=1)}
    arrays |= {"b": normal(1, 2 * gates, scale=0.3, seed=2)} | constants
    one = np.array([1], np.int64)
    return model(text.replace("OP", op_type), one=one, **arrays)


def dropped(network: ir.Model, data: dict[str, Array]) -> tuple[Group, Folding]:
    analysis = analyze(network)
    group = next(group for group in analysis.groups if group.inner)
    seen = observe(network, analysis, data)
    by_key = {view.key: view for view in views(network, analysis.shapes, analysis.known)}
    assert readers(group, by_key, analysis, seen) is None
    parts = readers(group, by_key, analysis, seen, inside=True)
    assert parts is not None
    found = drops(group, parts, by_key, seen)
    assert found is not None
    return group, found


def sequences(network: ir.Model) -> dict[str, Array]:
    return {"x": normal(7, 40, 4, seed=3)}


def silent(op_type: str, unit: int) -> dict[str, Array]:
    """Constants with which a hidden unit is always zero."""
    gates, rows = 6 * GATES[op_type], {"RNN": [0], "GRU": [2], "LSTM": [3]}[op_type]
    w, r = normal(1, gates, 4, scale=0.5), normal(1, gates, 6, scale=0.4, seed=1)
    b = normal(1, 2 * gates, scale=0.3, seed=2)
    for gate in rows:
        w[0, 6 * gate + unit] = r[0, 6 * gate + unit] = 0
        b[0, 6 * gate + unit] = b[0, gates + 6 * gate + unit] = 0
    return {"w": w, "r": r, "b": b}


@pytest.mark.parametrize("op_type", GATES)
def test_a_hidden_unit_that_is_always_zero_goes_exactly(op_type: str) -> None:
    network = recurrent(op_type, **silent(op_type, 2))
    data = sequences(network)
    group, found = dropped(network, data)
    np.testing.assert_array_equal(found.exact, np.arange(6) == 2)
    assert found.error[2] == found.bound[2] == 0
    assert (np.delete(found.error, 2) > 0).all()
    smaller = prune(network, analyze(network), Plan(keep={group.name: ~found.exact})).model
    assert compare(network, smaller, data, device=DEVICE, tolerance=1e-5).holds


def test_the_bound_of_a_hidden_unit_covers_its_consumers() -> None:
    network = recurrent("GRU")
    data = sequences(network)
    analysis = analyze(network)
    group, found = dropped(network, data)
    h = value_of(network, "s", data).astype(np.float64)
    weight = network.graph.initializers["v"].const_value
    assert weight is not None
    v = weight.numpy().astype(np.float64)
    power = (v**2).sum(axis=1) @ h.var(axis=(0, 1))
    assert group.size == 6
    assert analysis.group(group.name).inner
    for unit in range(6):
        change = np.abs(h[..., unit]) * np.linalg.norm(v[unit]) / np.sqrt(power)
        assert found.bound[unit] >= change.max() * (1 - 1e-6)
        assert found.error[unit] >= np.sqrt((change**2).mean()) * (1 - 1e-6)


def test_inside_too_what_varies_counts_and_not_the_mean() -> None:
    """A unit that nothing else reads, among states that hardly move."""
    v = normal(6, 3, seed=4)
    v[0] = 0
    network = recurrent("RNN", b=np.full((1, 12), 0.8, np.float32), v=v)
    data = sequences(network)
    _, found = dropped(network, data)
    h = value_of(network, "s", data).astype(np.float64)
    strength = np.linalg.norm(normal(1, 6, 6, scale=0.4, seed=1)[0].astype(np.float64), axis=0)
    power = strength**2 @ h.var(axis=(0, 1))
    assert power < 0.5 * (strength**2 @ (h**2).mean(axis=(0, 1)))
    expected = strength[0] * np.sqrt((h[..., 0] ** 2).mean() / power)
    np.testing.assert_allclose(found.error[0], expected, rtol=1e-4)


def test_a_state_that_does_not_begin_at_zero_is_not_exact() -> None:
    text = """(float[T, 5, 4] x) => (float[T, 5, 3] y)
        <float[1, 6, 4] w, float[1, 6, 6] r, float[1, 5, 6] start, float[6, 3] v> {
        h = RNN <hidden_size = 6> (x, w, r, , , start)  s = Squeeze(h, one)  y = MatMul(s, v) }"""
    w, r = normal(1, 6, 4), normal(1, 6, 6, seed=1)
    w[0, 2] = r[0, 2] = 0
    for start, exact in ((np.zeros((1, 5, 6), np.float32), True), (normal(1, 5, 6), False)):
        one = np.array([1], np.int64)
        network = model(text, w=w, r=r, start=start, one=one)
        _, found = dropped(network, {"x": normal(7, 5, 4, seed=3)})
        assert bool(found.exact[2]) == exact


def test_constants_and_drops_compare() -> None:
    """Zero in place of a unit costs no less than its mean."""
    case = Case("dense")
    fold = foldings(case.parts, case.seen)
    drop = drops(case.group, case.parts, case.views, case.seen)
    assert drop is not None
    assert (drop.error >= fold.error * (1 - 1e-9)).all()
    assert drop.values == {}
