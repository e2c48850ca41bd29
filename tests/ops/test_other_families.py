from __future__ import annotations

import numpy as np
import pytest
from graphs import coupled, ended, frozen, group_members, model, straight

from onnxprune.base import Reason
from onnxprune.graph.groups import analyze
from onnxprune.graph.traces import trace
from onnxprune.ops.trace import Kind


def test_batch_normalization_couples_channels_with_its_four_vectors() -> None:
    network = model("""(float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] y)
    <float[3] s, float[3] b, float[3] mean, float[3] var> {
        y = BatchNormalization(x, s, b, mean, var)
    }""")
    for name in ("x[1]", "s[0]", "b[0]", "mean[0]", "var[0]"):
        assert coupled(network, name, "y[1]") == straight(3)
    assert coupled(network, "x[2]", "y[2]") == straight(4)


def test_batch_normalization_is_traced_as_if_folded() -> None:
    network = model("""(float[N, 3] x) => (float[N, 2] y)
    <float[3, 4] w, float[4] s, float[4] b, float[4] mean, float[4] var, float[4, 2] v> {
        h = MatMul(x, w)
        n = BatchNormalization<epsilon = 0.5>(h, s, b, mean, var)
        y = MatMul(n, v)
    }""")
    analysis = analyze(network)
    found = trace(network, analysis, analysis.groups[0])
    w, s, b, mean, var = (
        np.asarray(network.graph.initializers[name].const_value, np.float64)
        for name in ("w", "s", "b", "mean", "var")
    )
    factor = s / np.sqrt(var + 0.5)
    assert found is not None
    assert found.kind is Kind.LINEAR
    np.testing.assert_allclose(
        found.rows, np.column_stack([w.T * factor[:, None], b - mean * factor]), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(
    "op", ["MaxPool<kernel_shape = [2, 2]>", "AveragePool<kernel_shape = [2, 2]>", "GlobalMaxPool"]
)
def test_pools_keep_channels_and_freeze_positions(op: str) -> None:
    network = model(f"(float[N, 3, 4, 4] x) => (float[N, 3, H, W] y) {{ a = Relu(x) y = {op}(a) }}")
    assert coupled(network, "a[1]", "y[1]") == straight(3)
    assert Reason.POSITIONS in frozen(network, "a[2]")


def test_a_reduction_in_the_middle_moves_the_later_axes() -> None:
    network = model("""(float[2, 3, 4] x) => (float[2, 4] y) {
        y = ReduceMax<axes = [1], keepdims = 0>(x)
    }""")
    assert coupled(network, "x[2]", "y[1]") == straight(4)


def test_a_reduction_without_axes_takes_all_and_noop_takes_none() -> None:
    every = model("(float[2, 3] x) => (float[1, 1] y) { y = ReduceSum(x) }")
    assert ended(every) == {"x[0]", "x[1]"}
    none = model("""(float[2, 3] x) => (float[2, 3] y) {
        y = ReduceSum<noop_with_empty_axes = 1>(x)
    }""")
    assert coupled(none, "x[1]", "y[1]") == straight(3)


def test_argmax_freezes_its_axis_and_couples_the_others() -> None:
    network = model("""(float[2, 3, 4] x) => (int64[2, 4] y) {
        y = ArgMax<axis = 1, keepdims = 0>(x)
    }""")
    assert coupled(network, "x[2]", "y[1]") == straight(4)
    assert Reason.POSITIONS in frozen(network, "x[1]")


def test_topk_couples_both_outputs_beside_its_axis() -> None:
    network = model(
        "(float[2, 5] x) => (float[2, 3] y, int64[2, 3] i) { y, i = TopK(x, k) }", k=[3]
    )
    assert coupled(network, "x[0]", "i[0]") == straight(2)
    assert Reason.POSITIONS in frozen(network, "x[1]")


def test_shape_reads_no_values_and_ends_every_axis() -> None:
    network = model("""(float[N, 3] x) => (int64[2] y) <float[3, 4] w> {
        h = MatMul(x, w)
        s = Shape(h)
        y = Neg(s)
    }""")
    assert {"h[0]", "h[1]"} <= ended(network)
    assert analyze(network).groups[0].consumers == ()


def test_sizes_that_the_graph_puts_out_stay() -> None:
    network = model("""(float[N, 3] x) => (float[N, 2] y, int64[2] s)
    <float[3, 4] w, float[4, 2] v> {
        h = MatMul(x, w)
        s = Shape(h)
        y = MatMul(h, v)
    }""")
    assert Reason.GRAPH_OUTPUT in frozen(network, "h[1]")
    assert group_members(network) == []


def test_a_value_whose_elements_are_counted_keeps_its_sizes() -> None:
    network = model("""(float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[4, 2] v> {
        h = MatMul(x, w)
        s = Size(h)
        c = Cast<to = 1>(s)
        z = MatMul(h, v)
        y = Mul(z, c)
    }""")
    assert group_members(network) == []


@pytest.mark.parametrize(("reader", "count"), [("", 1), ("j = Cast<to = 1>(i)", 0)])
def test_indices_of_a_max_pool_count_through_all_channels(reader: str, count: int) -> None:
    network = model(f"""(float[N, 3, 4, 4] x) => (float[N, 2] y)
    <float[4, 3, 1, 1] w, float[4, 2] v> {{
        h = Conv(x, w)
        p, i = MaxPool<kernel_shape = [4, 4]>(h)
        {reader}
        f = Flatten(p)
        y = MatMul(f, v)
    }}""")
    assert len(group_members(network)) == count


def test_generated_values_keep_their_sizes() -> None:
    network = model(
        """(float[N, 4] x) => (float[N, 2] y) <float[4, 4] w, float[4, 2] v> {
            h = MatMul(x, w)
            z = Range(zero, four, one)
            a = Add(h, z)
            y = MatMul(a, v)
        }""",
        zero=np.float32(0),
        one=np.float32(1),
        four=np.float32(4),
    )
    assert Reason.POSITIONS in frozen(network, "z[0]")
    assert group_members(network) == []


def test_dropout_couples_its_mask_too() -> None:
    network = model("(float[N, 4] x) => (float[N, 4] y, bool[N, 4] m) { y, m = Dropout(x) }")
    assert coupled(network, "x[1]", "y[1]") == straight(4)
    assert coupled(network, "x[1]", "m[1]") == straight(4)
