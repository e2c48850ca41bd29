"""Every optimizer against a few lines of numpy, in place, over five steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.errors import ConfigError, InvariantError
from onnxprune.runtime.buffers import Bound, Store
from onnxprune.runtime.session import Runner
from onnxprune.updates.around import AVERAGE, GRADIENT_NORM, LEARNING_RATE, STEP
from onnxprune.updates.graph import UpdateGraph, build_update
from onnxprune.updates.in_place import check_aliasing
from onnxprune.updates.rules import RULES, adam, adamw, momentum, sgd

SHAPES = {"w": (4, 3), "b": (4,), "s": (), "thin": (3, 2, 1, 1)}


def numpy_sgd(p, g, slots, *, lr, t, wd):
    return p - lr * (g + wd * p), {}


def numpy_momentum(p, g, slots, *, lr, t, wd, nesterov=False):
    g = g + wd * p
    buffer = 0.9 * slots["momentum"] + g
    return p - lr * (g + 0.9 * buffer if nesterov else buffer), {"momentum": buffer}


def numpy_nesterov(p, g, slots, **how):
    return numpy_momentum(p, g, slots, nesterov=True, **how)


def numpy_adam(p, g, slots, *, lr, t, wd, decoupled=False):
    g = g if decoupled else g + wd * p
    m = 0.9 * slots["m"] + 0.1 * g
    v = 0.999 * slots["v"] + 0.001 * g**2
    change = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    p = p * (1 - lr * wd) if decoupled else p
    return p - lr * change, {"m": m, "v": v}


def numpy_adamw(p, g, slots, **how):
    return numpy_adam(p, g, slots, decoupled=True, **how)


REFERENCES: dict[str, Callable] = {
    "sgd": numpy_sgd,
    "momentum": numpy_momentum,
    "nesterov": numpy_nesterov,
    "adam": numpy_adam,
    "adamw": numpy_adamw,
}


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {n: np.array(rng.normal(size=s), dtype=np.float32) for n, s in SHAPES.items()}


class InPlace:
    """An update graph whose outputs are bound to the buffers of its inputs."""

    def __init__(self, graph: UpdateGraph) -> None:
        self.graph, self.store = graph, Store()
        for name, array in arrays(0).items():
            self.store.put(name, array)
            self.store.put(graph.gradients[name], np.zeros_like(array))
            for names in graph.moments.values():
                self.store.put(names[name], np.zeros_like(array))
        held = [name for name in (v.name for v in graph.model.graph.inputs) if name in self.store]
        runner = Runner(graph.model, optimize=False)
        self.bound = Bound(
            runner, self.store, inputs={n: n for n in held}, outputs=dict(graph.overwrites)
        )

    def step(self, t, *, lr):
        for name, gradient in arrays(t).items():
            self.store.put(self.graph.gradients[name], gradient)
        return self.bound.run({LEARNING_RATE: np.float32(lr), STEP: np.int64(t)})


def test_every_rule_has_a_reference():
    assert set(REFERENCES) == set(RULES)


@pytest.mark.ort
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_equals_numpy_over_five_steps_in_place(name, decay):
    rule, reference = RULES[name](), REFERENCES[name]
    run = InPlace(build_update(rule, SHAPES, weight_decay=decay))
    p = {n: a.astype(np.float64) for n, a in arrays(0).items()}
    slots = {n: {slot: np.zeros(s) for slot in rule.slots} for n, s in SHAPES.items()}
    for t in range(1, 6):
        lr = 0.1 / t
        run.step(t, lr=lr)
        for n, g in arrays(t).items():
            wd = decay if len(SHAPES[n]) > 1 else 0.0
            p[n], slots[n] = reference(p[n], g.astype(np.float64), slots[n], lr=lr, t=t, wd=wd)
            np.testing.assert_allclose(run.store.get(n), p[n], rtol=2e-5, atol=2e-6)
            for slot in rule.slots:
                held = run.store.get(run.graph.moments[slot][n])
                np.testing.assert_allclose(held, slots[n][slot], rtol=1e-5, atol=1e-7)


@pytest.mark.ort
@pytest.mark.parametrize("name", RULES)
def test_in_place_equals_out_of_place(name):
    graph = build_update(RULES[name](), SHAPES, weight_decay=0.1)
    run = InPlace(graph)
    feeds = {n: run.store.get(n) for n in graph.gradients}
    for names in graph.moments.values():
        feeds |= {value: run.store.get(value) for value in names.values()}
    feeds |= {graph.gradients[n]: g for n, g in arrays(1).items()}
    feeds |= {LEARNING_RATE: np.float32(0.1), STEP: np.int64(1)}
    apart = Runner(graph.model, optimize=False).run(feeds)
    run.step(1, lr=0.1)
    for target, source in graph.overwrites.items():
        np.testing.assert_array_equal(run.store.get(source), apart[target])


@pytest.mark.ort
def test_vectors_are_exempt_from_decay():
    run = InPlace(build_update(adamw(), SHAPES, weight_decay=0.5))
    plain = InPlace(build_update(adamw(), SHAPES))
    run.step(1, lr=0.1)
    plain.step(1, lr=0.1)
    assert np.array_equal(run.store.get("b"), plain.store.get("b"))
    assert np.array_equal(run.store.get("s"), plain.store.get("s"))
    assert not np.allclose(run.store.get("w"), plain.store.get("w"))


@pytest.mark.ort
def test_clipping_by_the_norm_of_all_gradients():
    run = InPlace(build_update(sgd(), SHAPES, clip_norm=0.8))
    before = {n: run.store.get(n) for n in SHAPES}
    norm = float(run.step(1, lr=1.0)[GRADIENT_NORM])
    expected = np.sqrt(sum(np.sum(g**2) for g in arrays(1).values()))
    assert norm == pytest.approx(expected, rel=1e-6)
    for n, g in arrays(1).items():
        moved = before[n] - g * min(1.0, 0.8 / (expected + 1e-6))
        np.testing.assert_allclose(run.store.get(n), moved, rtol=1e-5, atol=1e-6)


@pytest.mark.ort
def test_a_small_gradient_is_not_clipped():
    run = InPlace(build_update(sgd(), SHAPES, clip_norm=1e3))
    plain = InPlace(build_update(sgd(), SHAPES))
    run.step(1, lr=0.1)
    plain.step(1, lr=0.1)
    for n in SHAPES:
        np.testing.assert_array_equal(run.store.get(n), plain.store.get(n))


@pytest.mark.ort
def test_transforms_stand_before_and_after_the_rule():
    def halved(e, site, value):
        return e.op("Mul", value, e.scalar(0.5))

    def kept_positive(e, site, value):
        return e.op("Max", value, e.scalar(0.0)) if site.name == "w" else value

    run = InPlace(
        build_update(
            sgd(), SHAPES, gradient_transforms=[halved], parameter_transforms=[kept_positive]
        )
    )
    run.step(1, lr=1.0)
    before, g = arrays(0), arrays(1)
    np.testing.assert_allclose(run.store.get("b"), before["b"] - 0.5 * g["b"], rtol=1e-6, atol=1e-7)
    expected = np.maximum(before["w"] - 0.5 * g["w"], 0)
    np.testing.assert_allclose(run.store.get("w"), expected, rtol=1e-6, atol=1e-7)


def test_a_transform_that_reads_the_parameter_too_late_is_found():
    def drift(e, site, value):
        late = e.op("Mul", value, e.scalar(1.0))
        return e.op("Identity", late)

    graph = build_update(sgd(), {"w": (2,)}, parameter_transforms=[drift])
    model = graph.model
    parameter = model.graph.inputs[2]
    assert parameter.name == "w"
    after = model.graph.outputs[0]
    reader = ir.node("Sub", [after, parameter])
    model.graph.append(reader)
    model.graph.outputs.append(reader.outputs[0])
    with pytest.raises(InvariantError, match="read by Sub"):
        check_aliasing(model, graph.overwrites)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("t = MatMul(w, w)\n y = Identity(t)\n z = Add(w, y)", "after"),
        ("y = MatMul(w, w)", "element by element"),
        ("v = Reshape(w, s)\n t = Mul(v, v)\n y = Add(w, t)", "Reshape"),
    ],
)
def test_unsound_aliasing_is_refused(body, match):
    extra = ", float[2,2] z" if "z =" in body else ""
    model = ir.from_onnx_text(f"""<ir_version: 8, opset_import: ["":17]>
    g (float[2,2] w) => (float[2,2] y{extra}) <int64[2] s = {{2,2}}> {{ {body} }}""")
    with pytest.raises(InvariantError, match=match):
        check_aliasing(model, {"y": "w"})


def test_two_outputs_cannot_overwrite_one_input():
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["":17]>
    g (float[2] w) => (float[2] y, float[2] z) { y = Add(w, w)  z = Mul(w, w) }""")
    with pytest.raises(InvariantError, match="one input"):
        check_aliasing(model, {"y": "w", "z": "w"})


@pytest.mark.parametrize("how", [{"clip_norm": 0.0}, {"weight_decay": -0.1}])
def test_impossible_options_are_refused(how):
    with pytest.raises(ConfigError, match=next(iter(how))):
        build_update(sgd(), SHAPES, **how)


@pytest.mark.parametrize("make", [lambda: momentum(mu=1.0), lambda: adam(beta1=-0.1)])
def test_impossible_decays_are_refused(make):
    with pytest.raises(ConfigError, match=r"\[0, 1\)"):
        make()


def test_update_graphs_are_reproducible():
    first, second = (build_update(adamw(), SHAPES, weight_decay=0.1) for _ in range(2))
    assert ir.to_proto(first.model) == ir.to_proto(second.model)


@pytest.mark.ort
def test_clipping_by_value_comes_before_clipping_by_norm():
    run = InPlace(build_update(sgd(), SHAPES, clip_value=0.5, clip_norm=1.0))
    found = run.step(3, lr=1.0)
    cut = {n: np.clip(g, -0.5, 0.5) for n, g in arrays(3).items()}
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in cut.values()))
    assert found[GRADIENT_NORM] == pytest.approx(norm, rel=1e-5)
    for name, before in arrays(0).items():
        expected = before - cut[name] / (norm + 1e-6)
        np.testing.assert_allclose(run.store.get(name), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.ort
def test_vectors_decay_only_on_request():
    run = InPlace(build_update(sgd(), SHAPES, weight_decay=0.1, decay_vectors=True))
    run.step(1, lr=0.5)
    for name, before in arrays(0).items():
        expected = before - 0.5 * (arrays(1)[name] + 0.1 * before)
        np.testing.assert_allclose(run.store.get(name), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.ort
def test_the_average_follows_the_moved_parameters_and_the_state():
    graph = build_update(sgd(), {"w": (4, 3)}, state={"mean": (4,)}, average=0.3)
    assert set(graph.moments[AVERAGE]) == {"w", "mean"}
    store, w = Store(), arrays(0)["w"]
    source, target = graph.carried["mean"]
    values = {"w": w, "w/gradient": w, source: w[:, 0], "mean": w[:, 1]}
    values |= {graph.moments[AVERAGE]["w"]: w, graph.moments[AVERAGE]["mean"]: w[:, 1]}
    for name, array in values.items():
        store.put(name, array)
    inputs = {name: name for name in values if name != "mean"}
    outputs = {**graph.overwrites, target: "mean"}
    bound = Bound(Runner(graph.model, optimize=False), store, inputs=inputs, outputs=outputs)
    p, average, mean = w.astype(np.float64), w.astype(np.float64), w[:, 1].astype(np.float64)
    for t in range(1, 6):
        bound.run({LEARNING_RATE: np.float32(0.1), STEP: np.int64(t)})
        p = p - 0.1 * w
        decay = min(0.3, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * p
        mean = decay * mean + (1 - decay) * w[:, 0]
    for name, expected in (("w", p), ("w/average", average), ("mean/average", mean)):
        np.testing.assert_allclose(store.get(name), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrong", [{"clip_value": 0.0}, {"average": 1.0}, {"average": -0.1}])
def test_impossible_limits_and_averages_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        build_update(sgd(), SHAPES, **wrong)
