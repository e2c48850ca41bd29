from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from frames import frame, prunes
from graphs import array, coupled, frozen, model, straight

from onnxprune.base import Reason
from onnxprune.graph.groups import analyze
from onnxprune.model import constant


@pytest.mark.ort
@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space_couples_a_channel_with_its_block(mode: str, opset: int) -> None:
    network = model(
        f"""(float[N, 3, 4, 4] x) => (float[N, 2, 8, 8] y)
        <float[20, 3, 1, 1] w, float[20] b, float[2, 5, 1, 1] v> {{
            h = Conv(x, w, b)
            a = DepthToSpace<blocksize = 2, mode = "{mode}">(h)
            y = Conv(a, v)
        }}""",
        opset=opset,
    )
    owner = [(i, i % 5 if mode == "DCR" else i // 4) for i in range(20)]
    assert coupled(network, "h[1]", "a[1]") == owner
    smaller = prunes(network)
    assert array(smaller, "w").shape[0] == 4 * array(smaller, "v").shape[1]


def test_depth_to_space_of_one_channel_freezes_the_block() -> None:
    network = model("""(float[N, 3, 4, 4] x) => (float[N, 1, 8, 8] y) <float[4, 3, 1, 1] w> {
        h = Conv(x, w)
        y = DepthToSpace<blocksize = 2>(h)
    }""")
    assert analyze(network).groups == ()


@pytest.mark.ort
def test_space_to_depth_couples_a_channel_with_its_copies() -> None:
    network = frame("a = SpaceToDepth<blocksize = 2>(h)", 24)
    assert coupled(network, "h[1]", "a[1]") == sorted((i % 6, i) for i in range(24))
    prunes(network)


@pytest.mark.ort
def test_space_to_depth_and_back_leaves_channels_free() -> None:
    body = "s = SpaceToDepth<blocksize = 2>(h)\n a = DepthToSpace<blocksize = 2>(s)"
    network = frame(body)
    assert analyze(network).groups[0].size == 6
    prunes(network)


@pytest.mark.ort
def test_tile_couples_an_index_with_its_copies() -> None:
    network = frame("a = Tile(h, r)", 18, r=[1, 3, 1, 2])
    assert coupled(network, "h[1]", "a[1]") == sorted((i % 6, i) for i in range(18))
    prunes(network)


@pytest.mark.ort
def test_one_channel_that_is_tiled_follows_its_readers() -> None:
    body = """t = ReduceMean<axes = [1]>(x)
    tiled = Tile(t, r)
    a = Add(h, tiled)"""
    network = frame(body, r=[1, 6, 1, 1])
    smaller = prunes(network)
    tile = next(node for node in smaller.graph if node.op_type == "Tile")
    repeats = constant(tile.inputs[1])
    assert repeats is not None
    assert repeats.tolist() == [1, array(smaller, "w").shape[0], 1, 1]


def test_repeats_that_are_computed_from_data_freeze() -> None:
    network = model("""(float[N, 3] x, int64[2] r) => (float[M, K] y) <float[3, 6] w> {
        h = MatMul(x, w)
        y = Tile(h, r)
    }""")
    assert Reason.DYNAMIC in frozen(network, "h[1]")


@pytest.mark.ort
def test_trilu_and_det_keep_rows_and_columns() -> None:
    network = frame("a = Trilu<upper = 0>(h)")
    assert coupled(network, "h[1]", "a[1]") == straight(6)
    assert Reason.POSITIONS in frozen(network, "h[2]")
    prunes(network)
    network = frame("d = Det(h)\n u = Unsqueeze(d, ax)\n a = Unsqueeze(u, ax)", ax=[2])
    assert coupled(network, "h[1]", "d[1]") == straight(6)
    prunes(network, tolerance=1e-4)


@pytest.mark.ort
def test_reverse_sequence_couples_all_but_time() -> None:
    network = model(
        """(float[T, 5, 3] x) => (float[T, 5, 2] y) <float[3, 6] w, float[6, 2] v> {
            h = MatMul(x, w)
            a = ReverseSequence<time_axis = 0, batch_axis = 1>(h, lengths)
            y = MatMul(a, v)
        }""",
        lengths=[1, 2, 3, 4, 5],
    )
    assert coupled(network, "h[2]", "a[2]") == straight(6)
    prunes(network)


@pytest.mark.ort
def test_a_roll_is_a_permutation_of_units() -> None:
    body = """tail = Slice(h, four, six, one)
    front = Slice(h, zero, four, one)
    a = Concat<axis = 1>(tail, front)"""
    network = frame(body, zero=[0], one=[1], four=[4], six=[6])
    assert analyze(network).groups[0].size + sum(g.size for g in analyze(network).groups[1:]) == 6
    prunes(network)


@pytest.mark.ort
@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("c = ConstantOfShape(shape)", {"shape": [6, 1, 1]}),
        ("c = ConstantOfShape<value = float[1] {0.5}>(shape)", {"shape": [1, 6, 4, 4]}),
        ("c = Expand(one, shape)", {"shape": [6, 1, 4], "one": np.float32([[2.0]])}),
    ],
)
def test_a_value_of_one_number_follows_the_channels(
    body: str, constants: dict[str, object]
) -> None:
    network = frame(f"{body}\n a = Add(h, c)", **constants)
    smaller = prunes(network)
    shape = array(smaller, "shape")
    assert array(smaller, "w").shape[0] in shape.tolist()


@pytest.mark.ort
def test_a_computed_shape_to_fill_is_mended() -> None:
    network = frame("s = Shape(h)\n c = ConstantOfShape(s)\n d = Cos(c)\n a = Add(h, d)")
    prunes(network)


@pytest.mark.ort
def test_a_shape_that_is_shorter_than_the_output_is_mended() -> None:
    network = frame("e = Expand(h, shape)\n a = Relu(e)", shape=[6, 4, 1])
    prunes(network)


@pytest.mark.ort
def test_a_shared_shape_is_changed_for_one_reader_only() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 6] y, float[N, 6] z)
        <float[3, 6] w, float[6, 6] v, float[3, 6] u> {
            h = MatMul(x, w)
            c = ConstantOfShape<value = float[1] {0.5}>(shape)
            a = Add(h, c)
            y = MatMul(a, v)
            other = ConstantOfShape<value = float[1] {2.0}>(shape)
            g = MatMul(x, u)
            z = Add(g, other)
        }""",
        shape=[6],
    )
    smaller = prunes(network)
    assert array(smaller, "shape").tolist() == [6]
    assert isinstance(smaller, ir.Model)


@pytest.mark.ort
def test_an_integer_with_several_readers_is_changed_for_each_alone() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] y, float[6] z)
        <float[3, 6] w, float[6, 2] v> {
            h = MatMul(x, w)
            c = ConstantOfShape<value = float[1] {0.5}>(six)
            e = Expand(half, six)
            t = Tile(half, six)
            s = Slice(h, zero, six, one)
            shifted = Add(s, c)
            scaled = Mul(shifted, e)
            a = Add(scaled, t)
            y = MatMul(a, v)
            z = Expand(half, six)
        }""",
        six=[6],
        zero=[0],
        one=[1],
        half=np.float32([0.5]),
    )
    smaller = prunes(network)
    assert array(smaller, "six").tolist() == [6]
    assert array(smaller, "zero").tolist() == [0]
