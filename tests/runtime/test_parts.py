"""Models that run stretch by stretch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import feeds, model
from onnxprune_models import builders

from onnxprune.runtime import parts
from onnxprune.runtime.parts import run_in_parts
from onnxprune.runtime.session import Device, Runner

pytestmark = pytest.mark.ort
DEVICE = Device(threads=1)

BRANCHES = """(float[N, 4] x) => (float[N, 4] y, float[N, 4] a, float[4, 4] w)
<float[4, 4] w, float[4, 4] u, float[4, 4] v>
{ a = MatMul(x, w) b = MatMul(a, u) s = Shape(b) c = MatMul(x, v) d = Add(a, c) e = Reshape(d, s)
  y = Mul(e, b) }"""


@pytest.mark.parametrize(
    "network",
    [model(BRANCHES), builders.lenet5(), builders.densenet()],
    ids=["branches", "lenet5", "densenet"],
)
@pytest.mark.parametrize("part", [1, 100, 1 << 28])
def test_stretches_compute_what_the_whole_computes(network: ir.Model, part: int) -> None:
    given = feeds(network)
    whole = Runner(network, device=DEVICE, optimize=False).run(given)
    found = run_in_parts(network, given, device=DEVICE, part=part)
    assert found.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], array)


def test_what_bodies_capture_reaches_their_stretch() -> None:
    network = model("""(float[4] x, bool p) => (float[4] y) <float[4] w, float[4] u> {
      a = Mul(x, w)
      b = Mul(a, u)
      y = If(p) <
        then_branch = t () => (float[4] r) { r = Add(a, b) },
        else_branch = e () => (float[4] q) { q = Mul(a, u) }
      >
    }""")
    x = np.arange(4, dtype=np.float32)
    for flag in (True, False):
        given = {"x": x, "p": np.array(flag)}
        whole = Runner(network, device=DEVICE, optimize=False).run(given)["y"]
        np.testing.assert_array_equal(
            run_in_parts(network, given, device=DEVICE, part=1)["y"], whole
        )


def test_a_stretch_holds_the_weights_of_its_own_nodes_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[set[str]] = []

    class Watched(Runner):
        def __init__(self, network: ir.Model, *args: object, **options: object) -> None:
            held.append(set(network.graph.initializers))
            super().__init__(network, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(parts, "Runner", Watched)
    network = model(BRANCHES)
    run_in_parts(network, feeds(network), device=DEVICE, part=64)
    assert held == [{"w"}, {"u"}, {"v"}]
