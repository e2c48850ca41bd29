"""Training through quantized values: slopes pass straight through, within the range."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.gradients.lowering import lower
from onnxprune.runtime.session import Runner
from onnxprune.training.losses import TARGET

pytestmark = pytest.mark.ort

ACTIVATION = """<ir_version: 8, opset_import: ["":17]>
g (float[N,4] x, float[4] p_w, float[4] p_v) => (float[N,4] y)
<float scale = {0.01}, int8 zero = {28}>
{
  h = Mul(x, p_w)
  q = QuantizeLinear(h, scale, zero)
  d = DequantizeLinear(q, scale, zero)
  y = Mul(d, p_v)
}"""


def feeds():
    x = np.array([[0.5, -0.5, 3.0, -3.0]], dtype=np.float32)
    return {"x": x, TARGET: np.zeros((1, 4), dtype=np.float32)}


def test_slopes_pass_where_the_value_is_within_the_range(model_from, training):
    model = model_from(ACTIVATION)
    for name in ("p_w", "p_v"):
        model.graph.initializers[name].const_value = ir.tensor(np.ones(4, np.float32), name=name)
    setup = training(model, kind="mse", parameters=("p_w", "p_v"))
    slopes, given = setup.gradients(feeds()), feeds()
    # The range is (-128 - 28) * 0.01 to (127 - 28) * 0.01; the loss is the mean of y^2 / 4.
    rounded = np.clip(given["x"], -1.56, 0.99)
    np.testing.assert_allclose(slopes["p_v"], rounded[0] ** 2 * 2 / 4, rtol=1e-4)
    expected = np.where(rounded == given["x"], given["x"] * rounded * 2 / 4, 0)
    np.testing.assert_allclose(slopes["p_w"], expected[0], rtol=1e-4)


def test_the_training_copy_computes_what_the_model_does(model_from):
    model, x = model_from(ACTIVATION), {"x": feeds()["x"]}
    copy = lower(model, ["y"], batch_norm="frozen").model
    expected = Runner(model, optimize=False).run(x)["y"]
    actual = Runner(copy, optimize=False).run(x)["y"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=0)


def test_weights_stored_as_integers_are_not_trained_but_what_is_before_them_is(
    model_from, training
):
    model = model_from("""<ir_version: 8, opset_import: ["":17]>
    g (float[N,2] x, float[2] p_w) => (float[N,2] y)
    <int8[2,2] w = {50, -20, 30, 10}, float scale = {0.1}>
    {
      h = Mul(x, p_w)
      d = DequantizeLinear(w, scale)
      y = MatMul(h, d)
    }""")
    setup = training(model, kind="mse", parameters=("p_w",))
    assert setup.graph.parameters == ("p_w",)
