"""Adaptive neuron apoptosis: what one decision removes, and how decisions follow each other."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import feeds, model
from moments import DEVICE, left, moment, normal

from onnxprune.base import Array, Axis, Plan, Window
from onnxprune.errors import ConfigError
from onnxprune.graph import cost
from onnxprune.graph.groups import analyze
from onnxprune.methods import Course, Limit, Moment, Pruner, apoptosis
from onnxprune.rewrite.prune import prune
from onnxprune.runtime.verify import compare

MLP = """(float[N, 8] x) => (float[N, 3] y)
    <float[8, 12] w, float[12] b, float[12, 10] u, float[10] c, float[10, 3] v> {
    h = Gemm(x, w, b)  a = Relu(h)  g = Gemm(a, u, c)  d = Relu(g)  y = MatMul(d, v) }"""

pytestmark = pytest.mark.ort


def mlp(*, seed: int = 0, **constants: Array) -> ir.Model:
    return model(MLP, seed=seed, **constants)


def with_redundant_units() -> ir.Model:
    """Of the first layer unit 0 is dead and unit 3 is a copy of unit 7, twice as large."""
    w, b = normal(8, 12), np.zeros(12, np.float32)
    b[0] = -100
    w[:, 3] = 2 * w[:, 7]
    return mlp(w=w, b=b)


def at(network: ir.Model, **circumstances: Any) -> Moment:
    return moment(network, feeds(network, batch=300), **circumstances)


def begun(pruner: Pruner, network: ir.Model, interval: int = 10) -> Any:
    return pruner.init(analyze(network), Course(steps=100, epoch=20, interval=interval))


def decided(pruner: Pruner, now: Moment, state: Any = None) -> tuple[Any, Plan]:
    """What a pruner decides that has seen in training what the moment shows."""
    before = begun(pruner, now.model) if state is None else state
    sites = [consumer.axis for group in now.analysis.groups for consumer in group.consumers]
    after, plan = pruner.decide(pruner.observe(before, now.probe(sites, pruner.requires)), now)
    return after, Plan(keep={}) if plan is None else plan


def gone(plan: Plan, group: str) -> set[int]:
    return set(np.flatnonzero(~plan.keep[group]).tolist()) if group in plan.keep else set()


# --- one decision ------------------------------------------------------------------------------


def test_exact_removals_come_first_and_change_nothing() -> None:
    network = with_redundant_units()
    _, plan = decided(apoptosis(epsilon=1e-9), at(network))
    assert gone(plan, "w") in ({0, 3}, {0, 7})
    assert gone(plan, "u") == set()
    np.testing.assert_array_equal(plan.exact["w"], ~plan.keep["w"])
    assert [fold.unit for fold in plan.folds] == [0]
    assert [{merge.victim, merge.survivor} for merge in plan.merges] == [{3, 7}]
    smaller = prune(network, analyze(network), plan).model
    assert compare(network, smaller, feeds(network), device=DEVICE, tolerance=1e-5).holds


def test_nothing_to_remove_is_no_plan() -> None:
    network = mlp()
    _, plan = apoptosis(epsilon=1e-9).decide(begun(apoptosis(), network), at(network))
    assert plan is None


def test_the_budget_says_how_much_goes_inexactly() -> None:
    network = mlp()
    counts = [
        decided(apoptosis(epsilon=epsilon, largest=epsilon), at(network))[1].removed()
        for epsilon in (1e-9, 0.1, 0.3, 0.6)
    ]
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[-1]


def test_what_varies_counts_and_not_the_mean() -> None:
    """As in an untrained deep network: large biases beside which what the inputs say is little."""
    u, v = normal(12, 10), normal(10, 3)
    plain = mlp(b=np.zeros(12, np.float32), c=np.zeros(10, np.float32), u=u, v=v)
    pruner = apoptosis(epsilon=0.4, largest=0.4)
    few = decided(pruner, at(plain))[1].removed()
    lifted = mlp(b=np.full(12, 30, np.float32), c=np.full(10, 300, np.float32), u=u, v=v)
    seen = at(lifted)
    axes = [consumer.axis for group in seen.analysis.groups for consumer in group.consumers]
    for window in seen.probe(axes, pruner.requires).values():
        assert window.low is not None
        assert window.low.min() > 0  # no rectifier acts
    assert decided(pruner, seen)[1].removed() <= few + 2


def test_a_mean_that_drowns_what_varies_makes_no_unit_free() -> None:
    """The squares of 30000 leave float32 no digit for a variance of 30."""
    lifted = mlp(b=np.full(12, 30, np.float32), c=np.full(10, 30000, np.float32))
    now = at(lifted)
    axis = Axis("d", 1)
    window = now.probe([axis], apoptosis().requires)[axis]
    assert window.square is not None
    assert window.total is not None
    mean = window.total / window.count
    assert (window.square / window.count - mean**2).min() < 0
    assert gone(decided(apoptosis(), now)[1], "u") == set()


def test_the_budget_is_shared_by_the_groups() -> None:
    wide = mlp()
    both = apoptosis(epsilon=0.5, largest=0.5)
    _, plan = decided(both, at(wide))
    analysis = at(wide).analysis
    for group in analysis.groups:
        alone = replace(analysis, groups=(group,))
        halved = apoptosis(epsilon=0.5 / math.sqrt(2), largest=0.5 / math.sqrt(2))
        _, only = decided(halved, replace(at(wide), analysis=alone))
        assert gone(plan, group.name) == gone(only, group.name) != set()


def test_a_check_removes_no_more_of_a_group_than_it_may() -> None:
    network = with_redundant_units()
    pruner = apoptosis(epsilon=100.0, largest=100.0, most=0.25)
    _, plan = decided(pruner, at(network))
    assert len(gone(plan, "w")) == 3
    assert len(gone(plan, "u")) == 2
    assert 0 in gone(plan, "w")


def test_a_group_of_dead_units_keeps_one() -> None:
    network = mlp(b=np.full(12, -100, np.float32))
    _, plan = decided(apoptosis(), at(network))
    assert np.count_nonzero(plan.keep["w"]) == 1


def test_of_many_copies_each_survivor_takes_one_victim() -> None:
    w = np.repeat(normal(8, 3), 4, axis=1)
    network = mlp(w=w, b=np.zeros(12, np.float32))
    _, plan = decided(apoptosis(epsilon=1e-9), at(network))
    survivors = [merge.survivor for merge in plan.merges]
    assert len(survivors) == len(set(survivors)) > 0
    assert all(plan.keep["w"][survivor] for survivor in survivors)
    assert all(not plan.keep["w"][merge.victim] for merge in plan.merges)


def test_repeated_checks_leave_one_of_each_kind_of_copy() -> None:
    w = np.repeat(normal(8, 3), 4, axis=1)
    network = mlp(w=w, b=np.zeros(12, np.float32))
    original, pruner, state = network, apoptosis(epsilon=1e-9), None
    for step in range(10, 90, 10):
        analysis = analyze(network)
        state, plan = decided(pruner, at(network, step=step), state)
        network = prune(network, analysis, plan).model
    assert analyze(network).group("w").size == 3
    assert compare(original, network, feeds(original), device=DEVICE, tolerance=1e-5).holds


def test_a_unit_that_moved_in_training_is_not_exact() -> None:
    network = with_redundant_units()
    pruner = apoptosis(epsilon=1e-12)
    state = begun(pruner, network)
    low, high = np.zeros(12), np.zeros(12)
    still = pruner.observe(state, {Axis("a", 1): Window(count=1, batches=1, low=low, high=high)})
    assert 0 in gone(decided(pruner, at(network), still)[1], "w")
    high[0] = 0.5
    moved = pruner.observe(still, {Axis("a", 1): Window(count=1, batches=1, low=low, high=high)})
    after, plan = decided(pruner, at(network), moved)
    assert 0 not in gone(plan, "w")
    assert after.low == after.high == {}


def test_observing_widens_the_ranges() -> None:
    network = mlp()
    pruner = apoptosis()
    state, axis = begun(pruner, network), Axis("a", 1)
    for low, high in (([0, -2], [1, 3]), ([-1, 0], [0, 4])):
        window = Window(count=1, batches=1, low=np.array(low), high=np.array(high))
        state = pruner.observe(state, {axis: window, Axis("d", 1): Window(count=1)})
    np.testing.assert_array_equal(state.low[axis], [-1, -2])
    np.testing.assert_array_equal(state.high[axis], [1, 4])
    assert Axis("d", 1) not in state.low


SILU = """(float[N, 8] x) => (float[N, 3] y) <float[8, 12] w, float[12] b, float[12, 3] v> {
    h = Gemm(x, w, b)  s = Sigmoid(h)  a = Mul(h, s)  y = MatMul(a, v) }"""


def test_what_follows_in_the_data_is_merged_where_that_is_wanted() -> None:
    w, b = normal(8, 12), normal(12, seed=1)
    w[:, 3], b[3] = w[:, 7] * 1.03, b[7]
    network = model(SILU, w=w, b=b)
    how = {"epsilon": 0.05, "largest": 0.05}
    _, plan = decided(apoptosis(**how), at(network))
    assert not plan.merges
    _, plan = decided(apoptosis(correlation=0.9, **how), at(network))
    assert [{merge.victim, merge.survivor} for merge in plan.merges] == [{3, 7}]
    assert not any(exact.any() for exact in plan.exact.values())


def test_bounds_add_up_to_tau_at_most_and_exact_removals_are_not_counted() -> None:
    network = with_redundant_units()
    how = {"epsilon": 0.5, "largest": 0.5}
    _, free = decided(apoptosis(**how), at(network))
    counts = []
    for tau in (1e-9, 1.0, 3.0, 1e9):
        _, plan = decided(apoptosis(tau=tau, **how), at(network))
        counts.append(plan.removed())
        assert {0} <= gone(plan, "w")
    assert counts[0] == 2
    assert counts[0] < counts[1] < counts[3] == free.removed()
    assert counts == sorted(counts)


def test_with_a_target_tau_holds_for_what_it_does_not_ask_for() -> None:
    network = mlp()
    size = cost.parameters(network)
    limit = Limit(kind="params", now=size // 2, final=size // 4)
    _, plan = decided(apoptosis(tau=1e-9), at(network, limit=limit))
    assert left(network, analyze(network), plan) <= limit.now


RECURRENT = """(float[T, N, 4] x) => (float[T, N, 3] y)
    <float[1, 18, 4] w, float[1, 18, 6] r, float[6, 3] v> {
    h = GRU <hidden_size = 6> (x, w, r)  s = Squeeze(h, one)  y = MatMul(s, v) }"""


def test_hidden_units_that_are_always_zero_go_and_a_target_takes_others() -> None:
    w, r = normal(1, 18, 4, scale=0.5), normal(1, 18, 6, scale=0.4, seed=1)
    w[0, 14] = r[0, 14] = 0  # the new state of unit 2
    network = model(RECURRENT, w=w, r=r, one=np.array([1], np.int64))
    data = {"x": normal(7, 30, 4, seed=3)}
    _, plan = decided(apoptosis(epsilon=1e-9), moment(network, data))
    (name,) = plan.keep
    assert gone(plan, name) == {2}
    assert plan.exact[name][2]
    assert not plan.folds
    smaller = prune(network, analyze(network), plan).model
    assert compare(network, smaller, data, device=DEVICE, tolerance=1e-5).holds
    half = cost.parameters(network) // 2
    limit = Limit(kind="params", now=half, final=half)
    _, plan = decided(apoptosis(), moment(network, data, limit=limit))
    assert left(network, analyze(network), plan) <= half
    np.testing.assert_array_equal(plan.exact[name], np.arange(6) == 2)


@pytest.mark.parametrize(("option", "value"), [("correlation", 0.0), ("tau", 0.0)])
def test_impossible_options_are_refused(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=option):
        apoptosis(**{option: value})


# --- the limit ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["params", "macs"])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_a_limit_is_reached_with_the_fewest_units(kind: str, share: float) -> None:
    network = mlp()
    analysis = analyze(network)
    before = cost.parameters(network) if kind == "params" else cost.macs(network, analysis)
    limit = Limit(kind=kind, now=int(share * before), final=int(0.2 * before))
    _, plan = decided(apoptosis(epsilon=1e-9), at(network, limit=limit))
    assert left(network, analysis, plan, kind) <= limit.now
    # without any one of the folds the limit would not hold, or hardly
    units = {"w": 12, "u": 10}
    per_unit = max(before - left(network, analysis, _one(*unit), kind) for unit in units.items())
    assert left(network, analysis, plan, kind) > limit.now - per_unit


def _one(group: str, size: int) -> Plan:
    return Plan(keep={group: np.arange(size) > 0})


def test_a_limit_out_of_reach_leaves_a_unit_in_every_group() -> None:
    network = mlp()
    limit = Limit(kind="params", now=1, final=1)
    _, plan = decided(apoptosis(), at(network, limit=limit))
    for name in ("w", "u"):
        assert 1 <= np.count_nonzero(plan.keep[name]) <= 6


def test_a_target_that_is_reached_ends_inexact_removals() -> None:
    network = with_redundant_units()
    size = cost.parameters(network)
    pruner = apoptosis(epsilon=100.0, largest=100.0)
    _, plan = decided(pruner, at(network, limit=Limit(kind="params", now=size, final=size)))
    assert gone(plan, "w") in ({0, 3}, {0, 7})
    assert gone(plan, "u") == set()


def test_after_its_share_of_the_run_only_exact_removals_follow() -> None:
    network = with_redundant_units()
    pruner = apoptosis(epsilon=100.0, largest=100.0, until=0.5)
    _, plan = decided(pruner, at(network, step=51))
    assert gone(plan, "w") in ({0, 3}, {0, 7})
    assert gone(plan, "u") == set()


@pytest.mark.parametrize("step", [50, 51, 90])
def test_a_target_that_is_missed_by_then_is_asked_for_in_full(step: int) -> None:
    network = mlp()
    size = cost.parameters(network)
    limit = Limit(kind="params", now=size, final=size // 2)
    pruner = apoptosis(epsilon=100.0, largest=100.0)
    _, plan = decided(pruner, at(network, step=step, limit=limit, loss=1.0))
    assert left(network, analyze(network), plan) <= limit.final
    if step > 50:  # and no more than that
        assert left(network, analyze(network), plan) > limit.final - 30


@pytest.mark.parametrize(("interval", "step", "following"), [(10, 10, 20), (40, 40, 50)])
def test_with_a_target_no_wait_passes_the_last_chance(
    interval: int, step: int, following: int
) -> None:
    network = mlp()
    size = cost.parameters(network)
    pruner = apoptosis(epsilon=1e-9)
    state = replace(begun(pruner, network, interval), wait=interval if step > 10 else 5)
    limit = Limit(kind="params", now=size, final=size // 2)
    after, plan = decided(pruner, at(network, step=step, limit=limit), state)
    assert plan.removed() == 0
    assert after.next == following


# --- adaptation --------------------------------------------------------------------------------


def check(pruner: Pruner, network: ir.Model, state: Any, **circumstances: Any) -> tuple[Any, Plan]:
    return decided(pruner, at(network, **circumstances), state)


def test_epsilon_grows_while_the_loss_falls_up_to_the_largest() -> None:
    network = mlp()
    pruner = apoptosis(epsilon=0.01, growth=2.0, largest=0.05)
    state, seen = None, []
    for step, loss in ((10, 1.0), (20, 0.9), (30, 0.8), (40, 0.7)):
        state, _ = check(pruner, network, state, step=step, loss=loss)
        seen.append(state.epsilon)
    np.testing.assert_allclose(seen, [0.02, 0.04, 0.05, 0.05])
    assert state.reference == 0.7


def test_a_loss_that_rose_after_removals_shrinks_epsilon_and_stops_inexact_ones() -> None:
    network = with_redundant_units()
    pruner = apoptosis(epsilon=0.3, growth=2.0, largest=10.0, tolerance=0.05)
    first, plan = check(pruner, network, None, loss=1.0)
    assert first.removed
    assert first.epsilon == 0.6
    assert len(gone(plan, "w")) > 2
    second, plan = check(pruner, network, first, step=20, loss=1.06)
    assert second.epsilon == 0.3
    assert gone(plan, "w") in ({0, 3}, {0, 7})
    assert not second.removed
    third, plan = check(pruner, network, second, step=30, loss=1.06)
    assert third.epsilon == 0.3  # nothing went since, so that the rise is no fault of removals
    recovered, plan = check(pruner, network, third, step=40, loss=1.0)
    assert recovered.epsilon == 0.6
    assert len(gone(plan, "w")) > 2
    assert recovered.reference == 1.0


def test_a_rise_within_tolerance_or_slack_counts_as_none() -> None:
    network = mlp()
    pruner = apoptosis(epsilon=0.01, growth=2.0, tolerance=0.05, slack=0.02)
    first, _ = check(pruner, network, None, loss=1.0, trivial=2.0)
    within, _ = check(pruner, network, first, step=20, loss=1.089, trivial=2.0)
    beyond, _ = check(pruner, network, first, step=20, loss=1.091, trivial=2.0)
    assert within.epsilon == 0.04
    assert beyond.epsilon == 0.02


def test_while_nothing_has_been_learned_only_exact_removals_follow() -> None:
    network = with_redundant_units()
    pruner = apoptosis(epsilon=0.3, growth=2.0, largest=10.0, slack=0.01)
    first, plan = check(pruner, network, None, loss=1.991, trivial=2.0)
    assert first.epsilon == 0.3
    assert gone(plan, "w") in ({0, 3}, {0, 7})
    taught, plan = check(pruner, network, first, step=20, loss=1.979, trivial=2.0)
    assert taught.epsilon == 0.6
    assert len(gone(plan, "w")) > 2
    collapsed, plan = check(
        pruner, network, replace(taught, reference=1.0), step=30, loss=2.0, trivial=2.0
    )
    assert collapsed.epsilon == 0.3  # this is the fault of removals
    assert gone(plan, "w") in ({0, 3}, {0, 7})


def test_small_steps_upwards_are_measured_from_the_lowest_loss() -> None:
    network = mlp()
    pruner = apoptosis(epsilon=0.01, growth=2.0, tolerance=0.05)
    state, _ = check(pruner, network, None, loss=1.0)
    state, _ = check(pruner, network, state, step=20, loss=1.04)
    assert state.reference == 1.0
    after, _ = check(pruner, network, state, step=30, loss=1.08)
    assert after.epsilon == state.epsilon == 0.04


def test_before_the_first_step_there_is_no_rise() -> None:
    network = mlp()
    state, _ = check(apoptosis(epsilon=0.01, growth=2.0), network, None, loss=math.nan)
    assert state.epsilon == 0.02
    assert math.isnan(state.reference)


def test_checks_come_at_intervals_and_less_often_where_nothing_is_found() -> None:
    network = mlp()
    pruner = apoptosis(epsilon=1e-9, largest=1e-9)
    state = begun(pruner, network, 10)
    assert not pruner.due(state, 9)
    assert pruner.due(state, 10)
    waits = []
    for _ in range(3):
        state, plan = check(pruner, network, state, step=state.next)
        assert plan.removed() == 0
        waits.append(state.wait)
    assert waits == [20, 40, 80]
    state, plan = check(pruner, with_redundant_units(), state, step=state.next)
    assert plan.removed() == 2
    assert state.wait == 10


def test_no_wait_grows_while_the_budget_still_does() -> None:
    network, pruner = mlp(), apoptosis(epsilon=1e-9, largest=2e-9, growth=1.5)
    state, waits = begun(pruner, network, 10), []
    for _ in range(4):
        state, plan = check(pruner, network, state, step=state.next)
        assert plan.removed() == 0
        waits.append(state.wait)
    assert waits == [10, 10, 20, 40]
