"""Demon pruning: the schedule of its pressure, what counts as dead, and how it follows a target."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import feeds, model
from moments import DEVICE, moment, normal
from onnxprune_models import builders

from onnxprune.base import Plan
from onnxprune.errors import ConfigError
from onnxprune.graph import cost
from onnxprune.graph.groups import analyze
from onnxprune.methods import Course, Limit, demp
from onnxprune.methods.compose import NOISE, PENALTY, prolonged
from onnxprune.rewrite.prune import prune
from onnxprune.runtime.verify import compare

pytestmark = pytest.mark.ort

COURSE = Course(steps=100, epoch=20, interval=10)
NORMALIZED = """(float[N, 3, 6, 6] x) => (float[N, 4] y)
    <float[8, 3, 3, 3] w, float[8] scale, float[8] shift, float[8] m, float[8] var,
     float[8, 4] v> {
    c = Conv(x, w)  n = BatchNormalization(c, scale, shift, m, var)  a = Relu(n)
    p = GlobalAveragePool(a)  f = Flatten(p)  y = MatMul(f, v) }"""


def network(dead: tuple[int, ...] = (1, 5), at: float = -1e3) -> ir.Model:
    shift = np.zeros(8, np.float32)
    shift[list(dead)] = at
    return model(NORMALIZED, shift=shift, scale=np.ones(8, np.float32), m=np.zeros(8, np.float32))


def decided(net: ir.Model, *, step: int = 10, limit: Limit | None = None, **how: Any) -> Any:
    pruner = demp(**how)
    state = pruner.init(analyze(net), COURSE)
    return pruner.decide(state, moment(net, feeds(net, batch=64), step=step, limit=limit))


def test_the_pressure_is_one_cycle_with_the_defaults_of_optax() -> None:
    pruner = demp(strength=1.0, noise=0.5)
    state = pruner.init(analyze(network()), COURSE)
    expected = {0: 0.04, 15: 0.52, 30: 1.0, 65: 0.500002, 100: 4e-6}
    for step, value in expected.items():
        found = pruner.scalars(state, step)
        assert found[PENALTY] == pytest.approx(value, abs=1e-6)
        assert found[NOISE] == pytest.approx(0.5 * value, abs=1e-6)


def test_scales_of_normalizations_are_penalized_and_nothing_else() -> None:
    net = network()
    assert demp().influence(net, analyze(net)).penalized == ("scale",)
    resnet = builders.resnet(8, image=8)
    names = demp().influence(resnet, analyze(resnet)).penalized
    kinds = {name.rpartition("/")[2].rpartition(".")[2] for name in names}
    assert names
    assert not any("conv" in kind for kind in kinds)


def test_a_model_without_normalizations_is_penalized_at_its_weights() -> None:
    net = builders.mlp([10, 24, 16, 4])
    names = demp().influence(net, analyze(net)).penalized
    ranks = {len(net.graph.initializers[name].shape or ()) for name in names}
    assert len(names) == 2
    assert ranks == {2}


def test_dead_units_go_and_the_outputs_stay() -> None:
    net = network()
    _, plan = decided(net)
    assert isinstance(plan, Plan)
    (mask,) = plan.keep.values()
    assert np.flatnonzero(~mask).tolist() == [1, 5]
    (exact,) = plan.exact.values()
    assert np.flatnonzero(exact).tolist() == [1, 5]
    smaller = prune(net, analyze(net), plan).model
    assert compare(net, smaller, feeds(net, batch=64), device=DEVICE, tolerance=1e-6).holds


def test_a_unit_that_is_alive_on_one_example_stays() -> None:
    net = network(dead=())
    data = feeds(net, batch=600)
    data["x"][:] = 0
    data["x"][511] = 3.0
    pruner = demp()
    _, plan = pruner.decide(pruner.init(analyze(net), COURSE), moment(net, data))
    gone = np.zeros(8, np.bool_) if plan is None else ~next(iter(plan.keep.values()))
    w = net.graph.initializers["w"].const_value.numpy()
    alive = w.sum(axis=(1, 2, 3)) > 0
    assert alive.any()
    assert not (gone & alive).any()


def test_a_network_that_is_all_dead_keeps_one_unit() -> None:
    _, plan = decided(network(dead=tuple(range(8))))
    assert plan is not None
    assert next(iter(plan.keep.values())).sum() == 1


def test_quasi_dead_units_go_with_their_mean_where_activations_never_stand_still() -> None:
    w = normal(8, 6)
    w[:, 2] *= 1e-3
    net = model(
        """(float[N, 8] x) => (float[N, 3] y) <float[8, 6] w, float[6] b, float[6, 3] v>
        { h = MatMul(x, w) s = Add(h, b) a = Tanh(s) y = MatMul(a, v) }""",
        w=w,
    )
    assert decided(net)[1] is None
    _, plan = decided(net, variance=0.01)
    (mask,) = plan.keep.values()
    assert np.flatnonzero(~mask).tolist() == [2]
    assert [fold.unit for fold in plan.folds] == [2]
    assert not any(exact.any() for exact in plan.exact.values())


def test_pressure_follows_a_target_and_ends_with_it() -> None:
    net = network()
    size = cost.parameters(net)
    behind = Limit(kind="params", now=size // 2, final=size // 4)
    ahead = Limit(kind="params", now=size, final=size // 4)
    met = Limit(kind="params", now=size, final=size)
    assert decided(net, limit=behind)[0].pressure == pytest.approx(1.5)
    assert decided(net, limit=ahead)[0].pressure == pytest.approx(1 / 1.5)
    assert decided(net, limit=met)[0].pressure == 0


@pytest.mark.parametrize(
    ("pressure", "after"), [(4.0, 4 / 1.5), (1.2, 1.0), (1.0, 1.0), (0.5, 0.5)]
)
def test_a_loss_that_has_risen_takes_back_only_what_the_pressure_had_grown(
    pressure: float, after: float
) -> None:
    net = network()
    size = cost.parameters(net)
    behind = Limit(kind="params", now=size // 2, final=size // 4)
    pruner = demp()
    state = replace(pruner.init(analyze(net), COURSE), pressure=pressure, reference=0.1)
    found, _ = pruner.decide(state, moment(net, feeds(net, batch=64), loss=1.0, limit=behind))
    assert found.pressure == pytest.approx(after)


def test_of_what_is_nearly_dead_no_more_goes_than_a_target_asks_for() -> None:
    scale = np.array([1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3, 1, 1], np.float32)
    net = model(NORMALIZED, scale=scale, shift=np.zeros(8, np.float32), m=np.zeros(8, np.float32))
    _, plan = decided(net, variance=0.01)
    (mask,) = plan.keep.values()
    assert mask.sum() == 2
    five = prune(net, analyze(net), Plan(keep={next(iter(plan.keep)): np.arange(8) > 2})).model
    limit = Limit(kind="params", now=cost.parameters(net), final=cost.parameters(five))
    state, plan = decided(net, variance=0.01, limit=limit)
    (mask,) = plan.keep.values()
    assert mask.sum() == 5
    assert mask[6:].all()
    pruner = demp(variance=0.01)
    smaller = moment(five, feeds(five, batch=64), step=20, limit=limit)
    assert pruner.decide(replace(state, pressure=0.0), smaller)[1] is None


def test_equal_parts_of_what_is_missing_go_from_the_peak_of_the_cycle_on() -> None:
    scale = np.arange(1, 9, dtype=np.float32)
    net = model(NORMALIZED, scale=scale)
    size = cost.parameters(net)
    limit = Limit(kind="params", now=size // 2, final=size // 2)
    assert decided(net, step=20, limit=limit)[1] is None
    _, plan = decided(net, step=30, limit=limit)  # checks at 30, 40 and 50
    assert plan.keep[next(iter(plan.keep))].tolist() == [False] * 2 + [True] * 6
    state, _ = decided(net, step=30, limit=limit)
    assert state.pressure > 0


TWO_LAYERS = """(float[N, 8] x) => (float[N, 4] y)
<float[8, 32] w, float[32] b, float[32, 32] u, float[32] c, float[32, 4] v>
{ h = MatMul(x, w) i = Add(h, b) a = Relu(i) k = MatMul(a, u) l = Add(k, c) r = Relu(l)
  y = MatMul(r, v) }"""


@pytest.mark.parametrize("allocation", ["uniform", "global", "gain"])
def test_the_dead_go_before_anything_that_lives_whatever_the_allocation(allocation: str) -> None:
    bias = np.ones(32, np.float32)
    bias[:20] = -1e3
    net = model(TWO_LAYERS, b=bias, c=np.full(32, 3, np.float32))
    size = cost.parameters(net)
    limit = Limit(kind="params", now=size // 4, final=size // 4)
    _, plan = decided(net, step=40, limit=limit, allocation=allocation)
    first, second = "w", "u"
    assert not plan.keep[first][:20].any()
    assert plan.exact[first].sum() == 20
    assert plan.keep[first][20:].any()
    assert plan.keep[second].any()


def test_what_is_missing_at_the_deadline_goes_by_the_smallest_scale() -> None:
    scale = np.arange(1, 9, dtype=np.float32)
    net = model(NORMALIZED, scale=scale)
    size = cost.parameters(net)
    limit = Limit(kind="params", now=size // 2, final=size // 2)
    state, plan = decided(net, step=COURSE.deadline, limit=limit)
    (mask,) = plan.keep.values()
    assert np.flatnonzero(mask).tolist() == list(range(8 - mask.sum(), 8))
    assert state.pressure == 0


@pytest.mark.parametrize(
    ("option", "value"), [("strength", -1.0), ("span", 0.0), ("span", 1.5), ("mask", "some")]
)
def test_impossible_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=option):
        demp(**{option: value})


def test_a_longer_course_takes_the_place_of_the_one_before() -> None:
    net, longer = network(), Course(steps=300, epoch=20, interval=10)
    state = prolonged(demp().init(analyze(net), COURSE), longer)
    assert (state.course, state.next) == (longer, 10)
    assert prolonged(None, longer) is None
