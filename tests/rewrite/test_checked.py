"""Removals that are verified: what fails is put back alone and named, exact ones are counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from checks import DEVICE
from graphs import feeds, model

from onnxprune.base import Axis, Fold, Index, Member, Merge, Plan
from onnxprune.errors import PlanError
from onnxprune.graph.groups import Analysis, analyze
from onnxprune.ops.edit import Edit
from onnxprune.ops.registry import RESIZES
from onnxprune.rewrite.checked import Checked, checked_prune, only_exact
from onnxprune.runtime.verify import compare

THREE = """(float[N, 4] x) => (float[N, 2] y)
    <float[4, 6] w1, float[6, 6] w2, float[6, 6] w3, float[6, 2] w4> {
    h1 = MatMul(x, w1)  a1 = Relu(h1)  h2 = MatMul(a1, w2)  a2 = Relu(h2)
    h3 = MatMul(a2, w3)  a3 = Relu(h3)  y = MatMul(a3, w4) }"""

pytestmark = pytest.mark.ort


def without(*names: str, units: tuple[int, ...] = (1, 4), size: int = 6) -> Plan:
    keep = np.ones(size, np.bool_)
    keep[list(units)] = False
    return Plan(keep={name: keep.copy() for name in names})


def done(network: ir.Model, analysis: Analysis, plan: Plan, *, tolerance: float = 1e-4) -> Checked:
    return checked_prune(
        network, analysis, plan, feeds(network), device=DEVICE, tolerance=tolerance
    )


def shape(found: ir.Model, name: str) -> list[int]:
    value = found.graph.initializers[name].const_value
    assert value is not None
    return list(value.shape.numpy())


def wrong(analysis: Analysis, group: str) -> Analysis:
    """`analysis` with the indices of a weight behind `group` shifted by one: silently wrong."""
    consumer = {"w1": Axis("w2", 0), "w2": Axis("w3", 0), "w3": Axis("w4", 0)}[group]

    def shifted(member: Member) -> Member:
        index: Index = (member.index + 1) % 6
        return Member(member.axis, index) if member.axis == consumer else member

    groups = tuple(
        replace(g, members=tuple(map(shifted, g.members))) if g.name == group else g
        for g in analysis.groups
    )
    return replace(analysis, groups=groups)


def test_a_right_plan_is_applied_whole() -> None:
    network = model(THREE)
    analysis = analyze(network)
    plan = without("w1", "w2", "w3")
    found = done(network, analysis, plan)
    assert found.rolled_back == ()
    assert found.plan is plan
    assert found.agreement.holds
    assert [shape(found.pruned.model, name) for name in ("w1", "w2", "w3", "w4")] == [
        [4, 4],
        [4, 4],
        [4, 4],
        [4, 2],
    ]
    assert (found.exact, found.bounded) == (0, 6)


@pytest.mark.parametrize("group", ["w1", "w2", "w3"])
def test_a_group_that_fails_is_put_back_alone_and_named(group: str) -> None:
    network = model(THREE)
    analysis = wrong(analyze(network), group)
    found = done(network, analysis, without("w1", "w2", "w3"))
    assert found.rolled_back == (group,)
    assert set(found.plan.keep) == {"w1", "w2", "w3"} - {group}
    assert found.bounded == 4
    assert shape(found.pruned.model, group)[1] == 6
    assert found.agreement.holds
    right = checked_prune(network, analyze(network), found.plan, feeds(network), device=DEVICE)
    agreement = compare(
        right.pruned.model, found.pruned.model, feeds(network), device=DEVICE, tolerance=0.0
    )
    assert agreement.holds


def test_two_groups_that_fail_are_both_put_back() -> None:
    network = model(THREE)
    analysis = wrong(wrong(analyze(network), "w1"), "w3")
    found = done(network, analysis, without("w1", "w2", "w3"))
    assert found.rolled_back == ("w1", "w3")
    assert shape(found.pruned.model, "w2") == [6, 4]


def test_when_all_fail_the_model_stays_as_it_is() -> None:
    network = model(THREE)
    analysis = wrong(analyze(network), "w2")
    found = done(network, analysis, without("w2"))
    assert found.rolled_back == ("w2",)
    assert found.pruned.kept == {}
    assert found.plan.removed() == found.exact == found.bounded == 0
    assert found.agreement.error == 0


@contextlib.contextmanager
def sabotaged(op_type: str, rule: Callable[[Edit], None]) -> Iterator[None]:
    """The `@resizes` rule of an operator replaced."""
    key = ("", op_type)
    rows = RESIZES._rows
    before = rows[key]
    rows[key] = [(low, high, rule, lambda _: True) for low, high, _, _ in before]
    try:
        yield
    finally:
        rows[key] = before


RESHAPED = """(float[N, 4] x) => (float[N, 2] y)
    <float[4, 6] w1, float[6, 6] w2, float[6, 2] w3> {
    h1 = MatMul(x, w1)  a1 = Relu(h1)  h2 = MatMul(a1, w2)  r = Reshape(h2, target)
    y = MatMul(r, w3) }"""


def test_a_resize_rule_that_forgets_costs_its_group_only() -> None:
    network = model(RESHAPED, target=np.array([-1, 6], np.int64))
    analysis = analyze(network)
    plan = without("w1", "w2")
    assert done(network, analysis, plan).rolled_back == ()
    with sabotaged("Reshape", lambda edit: None):
        found = done(network, analysis, plan)
    assert found.rolled_back == ("w2",)
    assert shape(found.pruned.model, "w1") == [4, 4]
    assert shape(found.pruned.model, "w2") == [4, 6]


def test_the_model_given_is_never_changed() -> None:
    network = model(THREE)
    before = ir.to_proto(network).SerializeToString()
    done(network, wrong(analyze(network), "w2"), without("w1", "w2"))
    assert ir.to_proto(network).SerializeToString() == before


def test_a_plan_that_does_not_fit_is_refused_and_not_rolled_back() -> None:
    network = model(THREE)
    analysis = analyze(network)
    plan = Plan(keep={**without("w1").keep, "w2": np.zeros(6, np.bool_)})
    with pytest.raises(PlanError, match="w2: the last unit would go"):
        done(network, analysis, plan)


# --- exact -------------------------------------------------------------------------------------


def dead_and_copied() -> tuple[ir.Model, Analysis]:
    """In front of a1, unit 1 is dead and unit 4 is twice unit 2."""
    w1 = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    w1[:, 1] = 0
    w1[:, 4] = 2 * w1[:, 2]
    network = model(THREE, w1=w1)
    return network, analyze(network)


def exchange(*, exact: bool) -> Plan:
    zero = {Axis("a1", 1): np.zeros(1)}
    return Plan(
        keep={**without("w1").keep, **without("w3", units=(0,)).keep},
        folds=(Fold(group="w1", unit=1, values=zero),),
        merges=(Merge(group="w1", victim=4, survivor=2, scale=2.0),),
        exact={"w1": np.array([False, True, False, False, True, False]) & exact},
    )


def test_exact_removals_are_counted_when_the_unmodified_model_agrees() -> None:
    network, analysis = dead_and_copied()
    found = done(network, analysis, exchange(exact=True))
    assert (found.exact, found.bounded) == (2, 1)


def test_nothing_is_exact_that_the_method_does_not_call_so() -> None:
    network, analysis = dead_and_copied()
    found = done(network, analysis, exchange(exact=False))
    assert (found.exact, found.bounded) == (0, 3)


def test_a_wrong_claim_of_exactness_does_not_count() -> None:
    network = model(THREE)  # nothing is dead here
    found = done(network, analyze(network), exchange(exact=True))
    assert found.rolled_back == ()
    assert (found.exact, found.bounded) == (0, 3)


def test_the_exact_part_of_a_plan_leaves_everything_else() -> None:
    plan = only_exact(exchange(exact=True))
    assert plan.removed() == 2
    assert plan.keep["w3"].all()
    assert [fold.unit for fold in plan.folds] == [1]
    assert [merge.victim for merge in plan.merges] == [4]
    assert only_exact(exchange(exact=False)).removed() == 0
