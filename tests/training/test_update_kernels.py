"""Optimizer kernels: the same steps as the graphs that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from runs import SHRINK, Train, digits
from setups import batch, normalized

from onnxprune.base import Array, Snapshot
from onnxprune.emit import Emitter
from onnxprune.errors import ConfigError
from onnxprune.gradients.update_kernels import GRADIENTS, PARAMETERS, has_kernel, kernel
from onnxprune.runtime.buffers import Listed, Store
from onnxprune.runtime.session import Runner
from onnxprune.training import rounds
from onnxprune.training.session import Session
from onnxprune.updates.around import AVERAGE, GRADIENT_NORM, LEARNING_RATE, STEP, Site
from onnxprune.updates.rules import adam, adamw, momentum, sgd
from onnxprune.updates.split import SplitUpdate, split_update
from onnxprune.updates.transforms import masked

pytestmark = pytest.mark.ort

SHAPES = {"w": (4, 3), "b": (4,), "s": (), "thin": (3, 2, 1, 1)}


def arrays(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {n: np.array(rng.normal(size=s), dtype=np.float32) for n, s in SHAPES.items()}


class Alone:
    """A kernel on buffers, without anything around it."""

    def __init__(self, update: SplitUpdate) -> None:
        self.store, found = Store(), kernel(update)
        for name, array in arrays(0).items():
            for what in (PARAMETERS, GRADIENTS, *update.rule.slots):
                self.store.put(
                    f"{what}/{name}", array if what == PARAMETERS else np.zeros_like(array)
                )
        lists = {key: [f"{what}/{n}" for n in names] for key, (what, names) in found.lists.items()}
        self.listed = Listed(Runner(found.model, optimize=False), self.store, lists)

    def step(self, t: int, *, lr: float) -> None:
        for name, gradient in arrays(t).items():
            self.store.put(f"{GRADIENTS}/{name}", gradient)
        feeds = {LEARNING_RATE: np.array(lr, np.float32), STEP: np.array(t, np.int64)}
        assert self.listed.run(feeds) == {}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("epsilon", [1e-8, 1e-2])
def test_the_kernel_equals_numpy_over_five_steps(decay: float, epsilon: float) -> None:
    update = split_update(adamw(epsilon=epsilon), SHAPES, weight_decay=decay)
    assert update is not None
    assert (update.before, update.after) == (None, None)
    run = Alone(update)
    p = {n: a.astype(np.float64) for n, a in arrays(0).items()}
    m, v = ({n: np.zeros(s) for n, s in SHAPES.items()} for _ in range(2))
    for t in range(1, 6):
        lr = 0.1 / t
        run.step(t, lr=lr)
        for n, g in arrays(t).items():
            g64 = g.astype(np.float64)
            m[n] = 0.9 * m[n] + 0.1 * g64
            v[n] = 0.999 * v[n] + 0.001 * g64**2
            change = (m[n] / (1 - 0.9**t)) / (np.sqrt(v[n] / (1 - 0.999**t)) + epsilon)
            kept = p[n] * (1 - lr * (decay if len(SHAPES[n]) > 1 else 0.0))
            p[n] = kept - lr * change
            for what, expected in ((PARAMETERS, p), ("m", m), ("v", v)):
                held = run.store.get(f"{what}/{n}")
                np.testing.assert_allclose(held, expected[n], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_gradient_descent_by_the_kernel_equals_numpy(decay: float) -> None:
    update = split_update(sgd(), SHAPES, weight_decay=decay)
    assert update is not None
    assert (update.before is None, update.after) == (decay == 0, None)
    run, p = Alone(update), arrays(0)
    for t in range(1, 6):
        run.step(t, lr=0.1)
        p = {n: array - np.float32(0.1) * arrays(t)[n] for n, array in p.items()}
        for n, expected in p.items():
            held = run.store.get(f"{PARAMETERS}/{n}")
            np.testing.assert_allclose(held, expected, rtol=2e-5, atol=1e-6)


def test_only_some_rules_have_a_kernel_and_only_on_a_cpu() -> None:
    assert has_kernel(adamw(), "cpu")
    assert has_kernel(adam(), "cpu")
    assert not has_kernel(adamw(), "cuda")
    assert has_kernel(sgd(), "cpu")
    assert not has_kernel(momentum(), "cpu")


NET = normalized("Tanh")


def halved(e: Emitter, site: Site, value: ir.Value) -> ir.Value:
    return e.op("Mul", value, e.scalar(0.5))


MASK = {"p_head": np.arange(32).reshape(4, 8) % 3 > 0}


@pytest.mark.parametrize(
    "around",
    [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decay_vectors": True},
        {"clip_norm": 1e-2},
        {"clip_value": 1e-3, "clip_norm": 1e-2},
        {"average": 0.9},
        {"gradient_transforms": [halved], "parameter_transforms": [halved]},
        {"gradient_transforms": [masked(MASK)], "parameter_transforms": [masked(MASK)]},
        {"pass_size": 3, "clip_norm": 1e-2, "average": 0.5},
    ],
    ids=lambda options: "+".join(options) or "nothing",
)
@pytest.mark.parametrize("rule", [sgd, adam, adamw])
def test_split_steps_equal_whole_ones(
    model_from: Any, opened: Callable[..., Session], rule: Any, around: dict[str, Any]
) -> None:
    options = dict(around)
    pass_size = options.pop("pass_size", 0)
    snapshots: list[Snapshot] = []
    norms = []
    for split in (False, True):
        session = opened(
            model_from(NET), rule=rule(), update=options, pass_size=pass_size, split=split
        )
        assert isinstance(session._update_graph, SplitUpdate) == split
        with session:
            for seed in range(4):
                result = session.train_step(batch(8, seed=seed), learning_rate=0.01)
            norms.append(result.extra.get(GRADIENT_NORM))
            snapshots.append(session.snapshot())
    whole, parts = snapshots
    assert whole.moments.keys() == parts.moments.keys()
    for slot, held in whole.moments.items():
        assert held.keys() == parts.moments[slot].keys()
        for name, array in held.items():
            np.testing.assert_allclose(parts.moments[slot][name], array, rtol=1e-3, atol=1e-6)
    for name, array in {**whole.parameters, **whole.state}.items():
        found = {**parts.parameters, **parts.state}[name]
        np.testing.assert_allclose(found, array, rtol=1e-4, atol=2e-5)
    if "clip_norm" in around:
        assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    if AVERAGE in whole.moments:
        assert set(whole.moments[AVERAGE]) == {*whole.parameters, *whole.state}
    if any(transform is not halved for transform in around.get("parameter_transforms", ())):
        assert not parts.parameters["p_head"][~MASK["p_head"]].any()


def test_split_steps_continue_bit_by_bit(model_from: Any, opened: Callable[..., Session]) -> None:
    options = {"clip_norm": 1.0, "average": 0.9, "weight_decay": 0.1}
    with opened(model_from(NET), rule=adamw(), update=options, split=True) as session:
        for seed in range(3):
            session.train_step(batch(8, seed=seed), learning_rate=0.05)
        middle = session.snapshot()
        session.train_step(batch(8, seed=3), learning_rate=0.05)
        end = session.snapshot()
        plain, update = session._graph, session._update_graph
    with Session(plain=plain, update=update, snapshot=middle) as resumed:
        resumed.train_step(batch(8, seed=3), learning_rate=0.05)
        again = resumed.snapshot()
    for name, array in {**end.parameters, **end.state}.items():
        np.testing.assert_array_equal({**again.parameters, **again.state}[name], array)
    for slot, held in end.moments.items():
        for name, array in held.items():
            np.testing.assert_array_equal(again.moments[slot][name], array)


def test_what_transforms_cannot_read_is_not_split() -> None:
    options: dict[str, Any] = {"weight_decay": 0.1, "parameter_transforms": [halved]}
    assert split_update(adam(), SHAPES, **options) is None
    assert split_update(adamw(), SHAPES, **options) is not None
    assert split_update(adam(), SHAPES, parameter_transforms=[halved]) is not None


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="clip_norm"):
        split_update(adamw(), SHAPES, clip_norm=0.0)


def test_runs_with_and_without_the_kernel_end_alike(
    train: Train, model_from: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = digits()
    text = """<ir_version: 8, opset_import: ["":17]>
    net (float[N,64] x, float[64,32] p_w, float[32] p_b, float[32,10] p_v) => (float[N,10] y) {
      h = Gemm(x, p_w, p_b)  a = Tanh(h)  y = MatMul(a, p_v) }"""
    options = {**SHRINK, "epochs": 3, "weight_decay": 0.01, "clip": 1.0, "ema": 0.9}
    with_kernel = train(model_from(text), (x, y), **options).report
    monkeypatch.setattr(rounds, "has_kernel", lambda rule, provider: False)
    without = train(model_from(text), (x, y), **options).report
    assert with_kernel.after.parameters == without.after.parameters
    assert with_kernel.after.metrics["loss"] == pytest.approx(
        without.after.metrics["loss"], rel=1e-3
    )
