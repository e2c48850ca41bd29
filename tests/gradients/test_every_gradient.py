"""Every operator that has a gradient, against central differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from derivatives import CASES, Case, reference

from onnxprune.errors import ModelError
from onnxprune.gradients.differentiable import FLAT, differentiable
from onnxprune.gradients.lowering import expose, lower
from onnxprune.runtime.session import Runner
from onnxprune.training.losses import LOSS, TARGET

CHANGED = {"Conv", "ConvTranspose", "Gelu", "LayerNormalization", "MatMul", "Max", "Min", "Pad"}


@pytest.fixture
def built(model_from) -> Callable[[Case], ir.Model]:
    def build(case: Case) -> ir.Model:
        model = model_from(case.text())
        for value in model.graph.initializers.values():
            if case.positive and value.name.startswith("p_"):
                array = np.abs(value.const_value.numpy()) + np.float32(0.2)
                value.const_value = ir.tensor(array, name=value.name)
        return model

    return build


# Their slopes are not those of what they compute; test_quantization.py has them.
ESTIMATED = {"DequantizeLinear", "QuantizeLinear"}


def test_every_differentiable_operator_has_a_case():
    covered = {case.partition("/")[0] for case in CASES} | ESTIMATED
    assert covered == {f"{domain}.{op_type}".lstrip(".") for domain, op_type in differentiable()}
    assert not covered & FLAT


@pytest.mark.ort
@pytest.mark.parametrize("name", CASES)
def test_the_training_copy_computes_what_the_model_does(name, built):
    case = CASES[name]
    model, x = built(case), case.sample(3)
    copy = lower(model, ["y"], batch_norm="frozen").model
    actual = Runner(copy, optimize=False).run({"x": x})["y"]
    try:
        expected = Runner(model, optimize=False).run({"x": x})["y"]
    except ModelError:  # newer than the training runtime
        (expected,) = reference(model).run(None, {"x": x.astype(np.float64)})
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=3e-5, atol=3e-6)


@pytest.mark.ort
@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("name", CASES)
def test_slopes_equal_central_differences(name, size, built, training):
    case = CASES[name]
    model, x = built(case), case.sample(size)
    copy = lower(model, ["y"], batch_norm="frozen").model
    names = tuple(n for n in copy.graph.initializers if n.startswith("p_"))
    setup = training(model, output="y", kind="mse", batch_norm="frozen", parameters=names)
    assert setup.graph.parameters == names
    y = Runner(copy, optimize=False).run({"x": x})["y"]
    target = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    feeds = {"x": x, TARGET: target}
    loss, reach, tolerance = _loss_of(setup, feeds, native=case.native)
    rng = np.random.default_rng(2)
    for parameter, slope in setup.gradients(feeds).items():
        start = setup.snapshot.parameters[parameter].astype(np.float64)
        assert slope.shape == start.shape
        direction = rng.normal(size=start.shape)
        direction /= np.linalg.norm(direction)
        ahead, behind = (loss({parameter: start + s * reach * direction}) for s in (1, -1))
        numeric, analytic = (ahead - behind) / (2 * reach), float((slope * direction).sum())
        assert abs(numeric - analytic) <= tolerance * max(abs(numeric), abs(analytic), 1e-2)


def _loss_of(setup, feeds, *, native):
    """The loss by some parameters; how far differences reach, and how exact they are."""
    if native:
        inner = setup.loss_of(feeds)
        return lambda new: inner({n: a.astype(np.float32) for n, a in new.items()}), 1e-2, 2e-2
    model = setup.copy.model.clone()
    expose(model, setup.graph.parameters)
    evaluator = reference(model)
    known = {
        n: a.astype(np.float64) for n, a in (*setup.snapshot.parameters.items(), *feeds.items())
    }
    return lambda new: float(evaluator.run([LOSS], {**known, **new})[0]), 3e-5, 3e-4
