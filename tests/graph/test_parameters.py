from __future__ import annotations

import numpy as np
import pytest
from graphs import model

from onnxprune.errors import ConfigError
from onnxprune.graph.groups import analyze
from onnxprune.graph.parameters import trained

SCALED = """(float[N, 3] x) => (float[N, 2] y)
<float[3] mean, float[3] deviation, float[3, 4] w, float[1, 4] b, float[4, 2] v, float[2] c> {
    d = Sub(x, mean)
    n = Div(d, deviation)
    p = MatMul(n, w)
    q = Add(p, b)
    h = Relu(q)
    r = MatMul(h, v)
    y = Add(c, r)
}"""


def test_means_and_deviations_in_front_are_not_trained() -> None:
    network = model(SCALED)
    result = trained(network, analyze(network))
    assert result.parameters == ("w", "b", "v", "c")
    assert {name for name, _ in result.others} == {"mean", "deviation"}


def test_regular_expressions_change_what_is_trained() -> None:
    network = model(SCALED)
    result = trained(network, analyze(network), train="^mean$", freeze="[vc]")
    assert result.parameters == ("mean", "w", "b")
    assert dict(result.others)["v"] == "frozen on request"
    with pytest.raises(ConfigError, match=r"--train-params \(: not a regular expression"):
        trained(network, analyze(network), train="(")


def test_running_statistics_are_not_trained() -> None:
    network = model("""(float[N, 3] x) => (float[N, 4] y)
    <float[3, 4] w, float[4] scale, float[4] shift, float[4] mean, float[4] var> {
        h = MatMul(x, w)
        y = BatchNormalization(h, scale, shift, mean, var)
    }""")
    assert trained(network, analyze(network)).parameters == ("w", "scale", "shift")


def test_a_weight_behind_operators_on_constants_is_trained() -> None:
    network = model("""(float[N, 3] x) => (float[N, 4] y) <float[4, 3] w> {
        t = Transpose(w)
        y = MatMul(x, t)
    }""")
    assert trained(network, analyze(network)).parameters == ("w",)


def test_scalars_and_integers_are_not_trained() -> None:
    network = model(
        """(float[N, 4] x) => (float[N, 4] y) <float[4, 4] w> {
            h = MatMul(x, w)
            s = Mul(h, half)
            y = Reshape(s, t)
        }""",
        half=0.5,
        t=[-1, 4],
    )
    assert trained(network, analyze(network)).parameters == ("w",)


POSITIONS = """(float[N, 8, 6] x) => (float[N, 8, 4] y)
<float[6, 6] w, float[8, 6] table, float[1, 16, 6] longer, float[6, 4] v> {
    h = MatMul(x, w)
    p = Add(h, table)
    s = Slice(longer, zero, eight, one)
    q = Mul(p, s)
    y = MatMul(q, v)
}"""
BOUNDS = {"zero": [0], "eight": [8], "one": [1]}


def waves(positions: int, dtype: type = np.float32) -> np.ndarray:
    """Sinusoids of six frequencies: sines, then cosines."""
    angle = np.arange(positions)[:, None] / 100.0 ** (np.arange(3) / 3)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(dtype)


def test_sines_and_cosines_of_positions_are_not_trained() -> None:
    network = model(POSITIONS, table=waves(8), longer=waves(16)[None], **BOUNDS)
    result = trained(network, analyze(network))
    assert set(result.parameters) == {"w", "v"}
    why = {name: reason for name, reason in result.others if name in ("table", "longer")}
    assert why == dict.fromkeys(("table", "longer"), "sines and cosines of positions")
    asked = trained(network, analyze(network), train="^table$").parameters
    assert set(asked) == {"w", "table", "v"}


def test_learned_positions_are_trained() -> None:
    moved = waves(8) + np.random.default_rng(0).normal(0, 0.02, (8, 6)).astype(np.float32)
    network = model(POSITIONS, table=moved, longer=np.ones((1, 16, 6), np.float32), **BOUNDS)
    parameters = trained(network, analyze(network)).parameters
    assert set(parameters) == {"w", "table", "longer", "v"}
