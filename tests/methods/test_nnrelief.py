"""NNrelief: what a round masks and removes, and how rounds follow each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import array, feeds, model
from moments import DEVICE, left, moment, normal, without_entries

from onnxprune.base import Array, Plan
from onnxprune.errors import ConfigError
from onnxprune.graph import cost
from onnxprune.graph.groups import analyze
from onnxprune.methods import Course, Limit, nnrelief
from onnxprune.rewrite.prune import prune
from onnxprune.runtime.verify import compare

pytestmark = pytest.mark.ort

COURSE = Course(steps=100, epoch=20, interval=10)


def decided(
    network: ir.Model,
    data: dict[str, Array] | None = None,
    *,
    step: int = 10,
    limit: Limit | None = None,
    **how: Any,
) -> Plan:
    pruner = nnrelief(**how)
    state = replace(pruner.init(analyze(network), COURSE), next=step)
    sample = feeds(network, batch=200) if data is None else data
    _, plan = pruner.decide(state, moment(network, sample, step=step, limit=limit))
    return Plan(keep={}) if plan is None else plan


def gone(plan: Plan, group: str) -> set[int]:
    return set(np.flatnonzero(~plan.keep[group]).tolist()) if group in plan.keep else set()


def holds(network: ir.Model, plan: Plan) -> ir.Model:
    """The smaller model, after it was found equal to the one that only has the masks."""
    masked = without_entries(network, plan)
    smaller = prune(masked, analyze(network), plan).model
    data = feeds(network, batch=50, seed=4)
    assert compare(masked, smaller, data, device=DEVICE, tolerance=1e-5).holds
    return smaller


# --- connections -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "weights", "bias"),
    [
        (0.5, [True, False, True, False], False),
        (0.8, [True, False, True, False], True),
        (0.9, [True, False, True, False], True),
        (0.95, [True, True, True, False], True),
    ],
)
def test_the_output_layer_loses_connections(alpha: float, weights: list[bool], bias: bool) -> None:
    x = np.array([[1, -2, 0.5, 0], [3, 0, -0.5, 0]], np.float32)
    network = model(
        "(float[N, 4] x) => (float[N, 1] y) <float[4, 1] w, float[1] b> { y = Gemm(x, w, b) }",
        w=np.array([[0.5], [0.25], [2], [7]], np.float32),
        b=np.array([-0.5], np.float32),
    )
    plan = decided(network, {"x": x}, alpha_fc=alpha)
    np.testing.assert_array_equal(plan.masks["w"][:, 0], weights)
    assert bool(plan.masks["b"][0] if "b" in plan.masks else True) == bias
    assert plan.keep == {}


def test_alphas_are_those_of_the_kind_of_layer() -> None:
    network = model(
        """(float[N, 3, 6, 6] x) => (float[N, 4] y) <float[8, 3, 3, 3] w, float[8, 4] v> {
        c = Conv(x, w)  a = Relu(c)  p = GlobalAveragePool(a)  f = Flatten(p)  y = MatMul(f, v) }"""
    )
    dense = decided(network, alpha_fc=0.6, alpha_conv=1.0)
    assert set(dense.masks) == {"v"}
    kernels = decided(network, alpha_fc=1.0, alpha_conv=0.6)
    assert set(kernels.masks) == {"w"}
    whole = kernels.masks["w"].reshape(8, 3, 9)
    assert (whole.all(axis=2) | ~whole.any(axis=2)).all()  # a kernel goes as a whole


def test_lower_alphas_leave_a_part_of_what_higher_ones_leave() -> None:
    network = model(MLP)
    more, less = (decided(network, alpha_fc=alpha).masks for alpha in (0.9, 0.5))
    for name, mask in less.items():
        assert not (mask & ~more.get(name, np.ones_like(mask))).any()
        assert mask.sum() < mask.size


# --- units -------------------------------------------------------------------------------------

MLP = """(float[N, 8] x) => (float[N, 3] y)
    <float[8, 12] w, float[12] b, float[12, 10] u, float[10] c, float[10, 3] v> {
    h = Gemm(x, w, b)  a = Relu(h)  g = Gemm(a, u, c)  d = Relu(g)  y = MatMul(d, v) }"""


def test_units_that_nothing_reads_go_from_the_last_layer_to_the_first() -> None:
    u, v = normal(12, 10, seed=1), normal(10, 3, seed=2)
    v[4] = 1e-6  # unit 4 of the second layer matters to nobody,
    u[7] = 1e-6  # and unit 7 of the first one to nobody but to it
    u[7, 4] = 100
    network = model(MLP, u=u, v=v, b=np.ones(12, np.float32))
    plan = decided(network, alpha_fc=0.999)
    assert gone(plan, "u") == {4}
    assert gone(plan, "w") == {7}
    np.testing.assert_array_equal(plan.exact["u"], ~plan.keep["u"])
    assert not plan.masks["w"][:, 7].any()  # incoming connections and the bias as well
    assert not plan.masks["b"][7]
    assert not plan.masks["u"][7].any()
    holds(network, plan)


def test_a_channel_behind_flatten_goes_when_all_its_positions_are_gone() -> None:
    v = normal(16, 3, seed=1)
    v[8:12] = 1e-6  # the four positions of channel 2
    v[4:7] = 1e-6  # three of channel 1
    network = model(
        """(float[N, 2, 3, 3] x) => (float[N, 3] y)
        <float[4, 2, 2, 2] w, float[4] b, float[16, 3] v> {
        c = Conv(x, w, b)  a = Relu(c)  f = Flatten(a)  y = MatMul(f, v) }""",
        v=v,
        b=np.ones(4, np.float32),
    )
    plan = decided(network, alpha_fc=0.999, alpha_conv=1.0)
    assert gone(plan, "w") == {2}
    quiet = np.isin(np.arange(16), [4, 5, 6, 8, 9, 10, 11])
    np.testing.assert_array_equal(plan.masks["v"].any(axis=1), ~quiet)
    np.testing.assert_array_equal(plan.masks["w"].any(axis=(1, 2, 3)), [True, True, False, True])
    smaller = holds(network, plan)
    assert array(smaller, "w").shape == (3, 2, 2, 2)


def test_dead_units_go() -> None:
    b = np.zeros(12, np.float32)
    b[[2, 5]] = -1000
    network = model(MLP, b=b)
    plan = decided(network, alpha_fc=1.0)
    assert gone(plan, "w") == {2, 5}
    smaller = prune(network, analyze(network), plan).model
    assert compare(network, smaller, feeds(network), device=DEVICE, tolerance=1e-6).holds


def test_the_constant_of_a_unit_that_nothing_reaches_moves_on() -> None:
    w, b = normal(8, 12), np.zeros(12, np.float32)
    w[:, 3] *= 1e-6
    b[3] = 5.0
    network = model(MLP, w=w, b=b)
    plan = decided(network, alpha_fc=0.99)
    assert not plan.masks["w"][:, 3].any()
    assert 3 in gone(plan, "w")
    (fold,) = (fold for fold in plan.folds if (fold.group, fold.unit) == ("w", 3))
    np.testing.assert_allclose(next(iter(fold.values.values())), [5.0], rtol=1e-6)
    assert plan.exact["w"][3]
    holds(network, plan)


def test_a_unit_that_anything_else_reads_stays() -> None:
    network = model(
        """(float[N, 6] x) => (float[N, 3] y, float[N] z) <float[6, 8] w, float[8, 3] v> {
        h = MatMul(x, w)  a = Tanh(h)  y = MatMul(a, v)
        z = ReduceMax <keepdims = 0, axes = [1]> (a) }""",
        v=np.concatenate([normal(7, 3), np.full((1, 3), 1e-6, np.float32)]),
        opset=13,
    )  # fmt: skip
    plan = decided(network, alpha_fc=0.999)
    assert not plan.masks["v"][7].any()
    assert 7 not in gone(plan, "w")


def test_a_group_keeps_a_unit_even_if_nothing_reads_any() -> None:
    network = model(MLP, v=np.zeros((10, 3), np.float32), b=-1000 * np.ones(12, np.float32))
    plan = decided(network)
    for group in ("w", "u"):
        assert plan.keep.get(group, np.ones(1, np.bool_)).any()
    holds(network, plan)


# --- sums --------------------------------------------------------------------------------------

RESIDUAL = """(float[N, 3, 5, 5] x) => (float[N, 2] y)
    <float[4, 3, 3, 3] w, float[4, 4, 3, 3] u, float[4] scale, float[4] shift, float[4] m,
     float[4] var, float[4, 2] v> {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)  r = Relu(a)  b = Conv <pads = [1, 1, 1, 1]> (r, u)
    n = BatchNormalization(b, scale, shift, m, var)  s = Add(n, r)  t = Relu(s)
    p = GlobalAveragePool(t)  f = Flatten(p)  y = MatMul(f, v) }"""


def test_a_branch_that_hardly_adds_to_a_sum_is_silenced_channel_by_channel() -> None:
    scale, shift = np.full(4, 3, np.float32), np.full(4, 0.5, np.float32)
    scale[1], shift[1] = 1e-4, 1e-4
    network = model(RESIDUAL, scale=scale, shift=shift)
    plan = decided(network, alpha_conv=0.9, alpha_fc=1.0)
    quiet = np.array([False, True, False, False])
    for name in ("scale", "shift"):
        np.testing.assert_array_equal(plan.masks[name], ~quiet)
    np.testing.assert_array_equal(~plan.masks["u"].any(axis=(1, 2, 3)), quiet)
    assert "w" not in plan.masks  # the shortcut still carries what it makes
    assert gone(plan, "w") == set()
    other = decided(network, alpha_conv=0.9, alpha_fc=1.0, residual=False)
    assert other.masks == {}


def test_a_projection_that_hardly_adds_to_a_sum_is_silenced_too() -> None:
    w = normal(6, 8)
    w[:, 5] *= 1e-5
    network = model(
        """(float[N, 6] x) => (float[N, 3] y) <float[6, 8] w, float[6, 8] u, float[8] c,
         float[8, 3] v> {
        a = MatMul(x, w)  b = Gemm(x, u, c)  s = Add(b, a)  t = Relu(s)  y = MatMul(t, v) }""",
        w=w,
    )
    plan = decided(network, alpha_fc=0.95)
    np.testing.assert_array_equal(plan.masks["w"].any(axis=0), np.arange(8) != 5)
    assert plan.masks["u"].any(axis=0).all()
    holds(network, plan)


# --- rounds and targets ------------------------------------------------------------------------


def test_rounds_divide_the_first_half_of_the_run() -> None:
    network, pruner = model(MLP), nnrelief(rounds=4)
    data = feeds(network, batch=50)
    state, steps = pruner.init(analyze(network), COURSE), []
    for step in range(1, 101):
        if pruner.due(state, step):
            state, plan = pruner.decide(state, moment(network, data, step=step))
            steps += [step] if plan is not None else []
    assert steps == [12, 25, 37, 50]


def test_each_round_starts_the_optimizer_anew_and_the_weights_where_that_is_wanted() -> None:
    network = model(MLP)
    plan = decided(network)
    assert plan.reset_moments
    assert not plan.rewind
    assert not nnrelief().rewinds
    plan = decided(network, rewind=True, fresh=False)
    assert not plan.reset_moments
    assert plan.rewind
    assert nnrelief(rewind=True).rewinds


def limit(network: ir.Model, share: float, now: float | None = None) -> Limit:
    size = cost.parameters(network)
    at = int((share if now is None else now) * size)
    return Limit(kind="params", now=at, final=int(share * size))


@pytest.mark.parametrize("share", [0.8, 0.5, 0.25])
def test_a_target_is_met_by_the_largest_alphas_that_meet_it(share: float) -> None:
    network = model(MLP)
    plan = decided(network, limit=limit(network, share))
    size = left(network, analyze(network), plan)
    assert size <= share * cost.parameters(network)
    masked = sum(int(np.count_nonzero(~mask)) for mask in plan.masks.values())
    higher = decided(network, limit=limit(network, min(share + 0.2, 1.0)))
    assert masked >= sum(int(np.count_nonzero(~mask)) for mask in higher.masks.values())
    holds(network, plan)


def test_what_no_alpha_reaches_goes_at_the_deadline() -> None:
    """Forty outputs need forty of the hidden units, or one that several share."""
    network = model(
        """(float[N, 8] x) => (float[N, 40] y) <float[8, 60] w, float[60] b, float[60, 40] v> {
        h = Gemm(x, w, b)  a = Relu(h)  y = MatMul(a, v) }"""
    )
    wanted = limit(network, 0.1)
    early, late = (decided(network, limit=wanted, step=step) for step in (10, 50))
    assert left(network, analyze(network), early) > wanted.final
    assert left(network, analyze(network), late) <= wanted.final
    assert len({(fold.group, fold.unit) for fold in late.folds}) == len(late.folds)


def test_after_the_deadline_only_what_is_missing_goes() -> None:
    network, pruner = model(MLP), nnrelief()
    data = feeds(network, batch=50)
    state = replace(pruner.init(analyze(network), COURSE), next=60)
    after, plan = pruner.decide(state, moment(network, data, step=60))
    assert plan is None
    assert after.next == 70
    wanted = limit(network, 0.5)
    _, plan = pruner.decide(state, moment(network, data, step=60, limit=wanted))
    assert plan is not None
    assert not plan.masks
    assert left(network, analyze(network), plan) <= wanted.final


@pytest.mark.parametrize(
    ("option", "value"),
    [("alpha_fc", 0.0), ("alpha_conv", 1.5), ("rounds", 0), ("formula", "mine")],
)
def test_impossible_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        nnrelief(**{option: value})
