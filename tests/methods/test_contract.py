"""What every method promises, over the table of methods: a new method is tested by being there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import feeds, model
from moments import DEVICE, left, moment, observe_training, without_entries
from onnxprune_models import builders

from onnxprune.base import Array, Observable, Plan
from onnxprune.graph import cost
from onnxprune.graph.groups import analyze
from onnxprune.methods import METHODS, Course, Limit, Pruner, make
from onnxprune.methods.importance import IMPORTANCES
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.verify import compare

NETWORKS: dict[str, Callable[[], ir.Model]] = {
    "relu": lambda: builders.mlp([10, 24, 16, 4]),
    "tanh": lambda: builders.mlp([10, 24, 16, 4], "tanh", form="matmul", output="softmax"),
    "sigmoid": lambda: builders.mlp([10, 24, 16, 1], "sigmoid", output="sigmoid"),
    "vgg": lambda: builders.vgg(((8, 8), (12,)), hidden=16, image=8),
    "resnet": lambda: builders.resnet(8, image=8),
    "densenet": lambda: builders.densenet((2, 2), growth=4, image=8),
    "lstm": lambda: model(
        """(float[N, 6, 10] x) => (float[N, 4] y)
        <float[1, 48, 10] w, float[1, 48, 12] r, float[1, 96] b, float[12, 4] v> {
            t = Transpose <perm = [1, 0, 2]> (x)  h, last = LSTM <hidden_size = 12> (t, w, r, b)
            q = Squeeze(last, axis)  y = MatMul(q, v) }""",
        axis=[0],
    ),
    "nothing to remove": lambda: model(
        "(float[N, 4] x) => (float[N, 3] y) <float[4, 3] w> { y = MatMul(x, w) }"
    ),
}
COURSE = Course(steps=100, epoch=20, interval=10)
PRUNERS = [name for name, function in METHODS.items() if function is not None]
ALIKE = {*IMPORTANCES} - {"random", "taylor"}  # one function: these see two networks only
NORMALIZED = ("vgg", "resnet", "densenet", "nothing to remove")  # what the others have no scale in
OPTIONS: dict[str, dict[str, Any]] = {"mesimp": {"k": 6}, "meprop": {"k": 6}}

pytestmark = [
    pytest.mark.ort,
    pytest.mark.parametrize(
        ("method", "name"),
        [
            (method, name)
            for method in PRUNERS
            for name in NETWORKS
            if (method not in ("scale", "slimming") or name in NORMALIZED)
            and (method not in ALIKE or name in ("tanh", "resnet"))
        ],
    ),
]


def made(method: str) -> Pruner:
    pruner = make(method, OPTIONS.get(method))
    assert pruner is not None
    return pruner


def frozen(state: Any) -> Any:
    """A state as comparable data."""
    if dataclasses.is_dataclass(state) and not isinstance(state, type):
        names = [entry.name for entry in dataclasses.fields(state)]
        return {name: frozen(getattr(state, name)) for name in names}
    if isinstance(state, Mapping):
        return {key: frozen(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return (state.dtype.str, state.shape, state.tobytes())
    if isinstance(state, (list, tuple)):
        return [frozen(value) for value in state]
    return "nan" if isinstance(state, float) and np.isnan(state) else state


def started(method: str, name: str) -> tuple[Pruner, ir.Model, dict[str, Array], Any]:
    """A method that has seen a few batches of a network."""
    network, pruner = NETWORKS[name](), made(method)
    data = feeds(network, batch=80)
    analysis = analyze(network)
    state = pruner.init(analysis, COURSE)
    for seed in range(2):
        state = watched(pruner, state, network, seed)
    return pruner, network, data, state


def watched(pruner: Pruner, state: Any, network: ir.Model, seed: int) -> Any:
    """The state after a step of training, for methods that look at any."""
    analysis = analyze(network)
    if not pruner.requires or not analysis.groups:
        return state
    batch = feeds(network, batch=16, seed=seed)
    return pruner.observe(state, observe_training(network, analysis, batch, pruner))


def limited(network: ir.Model, share: float, kind: str = "params") -> Limit:
    analysis = analyze(network)
    before = cost.parameters(network) if kind == "params" else cost.macs(network, analysis)
    least = cost.ceiling(network, analysis)[0 if kind == "params" else 1]
    size = max(int(share * before), int(least + 0.2 * (before - least)))
    return Limit(kind=kind, now=size, final=size)


def test_it_observes_what_instruments_provide(method: str, name: str) -> None:
    assert made(method).requires <= set(Observable)


def test_deciding_is_pure(method: str, name: str) -> None:
    pruner, network, data, state = started(method, name)
    before = frozen(state), ir.to_proto(network).SerializeToString()
    limit = limited(network, 0.6)
    results = []
    for _ in range(2):
        after, plan = pruner.decide(state, moment(network, data, limit=limit))
        results.append((frozen(after), frozen(plan)))
    assert results[0] == results[1]
    assert (frozen(state), ir.to_proto(network).SerializeToString()) == before


def test_observing_is_pure(method: str, name: str) -> None:
    pruner, network, data, state = started(method, name)
    analysis = analyze(network)
    seen = observe_training(network, analysis, data, pruner) if pruner.requires else {}
    before = frozen(state), frozen(dict(seen))
    assert frozen(pruner.observe(state, seen)) == frozen(pruner.observe(state, seen))
    assert (frozen(state), frozen(dict(seen))) == before


@pytest.mark.parametrize("share", [None, 0.7, 0.0])
def test_a_plan_is_valid_and_empties_no_group(method: str, name: str, share: float | None) -> None:
    pruner, network, data, state = started(method, name)
    limit = None if share is None else limited(network, share)
    _, plan = pruner.decide(state, moment(network, data, limit=limit))
    if plan is None:
        return
    assert not plan.is_empty()
    analysis = analyze(network)
    for group, mask in plan.keep.items():
        assert mask.any(), group
    removed = [(fold.group, fold.unit) for fold in plan.folds]
    removed += [(merge.group, merge.victim) for merge in plan.merges]
    assert len(removed) == len(set(removed))
    assert all(not plan.keep[group][unit] for group, unit in removed)
    assert all(plan.keep[merge.group][merge.survivor] for merge in plan.merges)
    survivors = [(merge.group, merge.survivor) for merge in plan.merges]
    assert len(survivors) == len(set(survivors))
    for group, exact in plan.exact.items():
        assert exact.shape == (analysis.group(group).size,)
        assert not (exact & plan.keep.get(group, np.ones_like(exact))).any()
    smaller = prune(network, analysis, plan).model
    expected = reference(network, analysis, plan)
    assert compare(expected, smaller, feeds(network), device=DEVICE, tolerance=1e-4).holds


def test_what_it_calls_exact_is(method: str, name: str) -> None:
    pruner, network, data, state = started(method, name)
    _, plan = pruner.decide(state, moment(network, data))
    if plan is None or not any(mask.any() for mask in plan.exact.values()):
        return
    only = Plan(
        keep={group: ~mask for group, mask in plan.exact.items()},
        folds=tuple(fold for fold in plan.folds if plan.exact[fold.group][fold.unit]),
        merges=tuple(merge for merge in plan.merges if plan.exact[merge.group][merge.victim]),
    )
    network = without_entries(network, plan)
    smaller = prune(network, analyze(network), only).model
    assert compare(network, smaller, data, device=DEVICE, tolerance=1e-5).holds


@pytest.mark.parametrize("kind", ["params", "macs"])
def test_a_target_is_reached_by_the_first_decision_in_the_second_half(
    method: str, name: str, kind: str
) -> None:
    pruner, network, data, _ = started(method, name)
    if not pruner.removes:
        idle = pruner.init(analyze(network), COURSE)
        assert not any(pruner.due(idle, step) for step in range(COURSE.steps + 1))
        return
    goal = limited(network, 0.4, kind)
    start = left(network, analyze(network), Plan(keep={}), kind)
    steps = 100
    state = pruner.init(analyze(network), Course(steps=steps, epoch=20, interval=7))
    for step in range(1, steps // 2 + 8):
        if not pruner.due(state, step):
            continue
        state = watched(pruner, state, network, step)
        now = goal.final + (start - goal.final) * max(1 - step / 50, 0) ** 3
        limit = Limit(kind=kind, now=int(now), final=goal.final)
        analysis = analyze(network)
        here = moment(network, data, step=step, steps=steps, limit=limit, analysis=analysis)
        state, plan = pruner.decide(state, here)
        if plan is not None:
            network = prune(without_entries(network, plan), analysis, plan).model
    assert left(network, analyze(network), Plan(keep={}), kind) <= goal.final
