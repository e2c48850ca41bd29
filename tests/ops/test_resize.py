from __future__ import annotations

import numpy as np
import pytest
from frames import frame, prunes
from graphs import array, coupled, frozen, model, node_types, straight

from onnxprune.base import Reason
from onnxprune.graph.groups import analyze

F32 = np.float32
RESIZES = [
    ("a = Resize(h, s)", 10, {"s": F32([1, 1, 2, 2])}),
    ("a = Resize(h, r, s)", 11, {"r": F32([]), "s": F32([1, 1, 2, 2])}),
    ('a = Resize<mode = "linear">(h, , s)', 13, {"s": F32([1, 1, 2, 0.5])}),
    ('a = Resize<mode = "cubic">(h, , , z)', 13, {"z": [5, 6, 7, 8]}),
    (
        'a = Resize<mode = "linear", coordinate_transformation_mode = "align_corners">(h, , , z)',
        19,
        {"z": [5, 6, 7, 8]},
    ),
    ("a = Resize<axes = [2, 3]>(h, , s)", 18, {"s": F32([2, 2])}),
    ("a = Resize<axes = [1, 3]>(h, , , z)", 18, {"z": [6, 7]}),
    (
        'a = Resize<axes = [2, 3], keep_aspect_ratio_policy = "not_larger">(h, , , z)',
        18,
        {"z": [9, 8]},
    ),
    ('a = Resize<mode = "linear", antialias = 1>(h, , s)', 18, {"s": F32([1, 1, 0.5, 0.5])}),
    ("a = Upsample(h, s)", 9, {"s": F32([1, 1, 2, 3])}),
    ("a = Upsample<scales = [1.0, 1.0, 2.0, 2.0]>(h)", 7, {}),
]


@pytest.mark.parametrize(("body", "opset", "constants"), RESIZES)
def test_resize_couples_what_it_does_not_scale(
    body: str, opset: int, constants: dict[str, object]
) -> None:
    network = frame(body, opset=opset, **constants)
    assert coupled(network, "h[1]", "a[1]") == straight(6)
    assert Reason.POSITIONS in frozen(network, "h[3]")


@pytest.mark.ort
@pytest.mark.parametrize(("body", "opset", "constants"), RESIZES)
def test_a_pruned_resize_keeps_the_positions(
    body: str, opset: int, constants: dict[str, object]
) -> None:
    prunes(frame(body, opset=opset, **constants))


@pytest.mark.ort
def test_sizes_of_a_resize_that_are_computed_are_mended() -> None:
    body = """s = Shape(h)
    front = Slice(s, zero, two)
    z = Concat<axis = 0>(front, sides)
    a = Resize(h, , , z)"""
    network = frame(body, zero=[0], two=[2], sides=[8, 8])
    assert "Where" in node_types(prunes(network))


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("a = Resize(h, , s)", {"s": F32([1, 1.1, 1, 1])}),
        ("a = Resize(h, , s)", {"s": F32([1, 2, 1, 1])}),
        (
            'a = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(h, r, s)',
            {"s": F32([1, 1, 1, 1]), "r": F32([0, 0, 0, 0, 1, 0.5, 1, 1])},
        ),
        (
            'a = Resize<keep_aspect_ratio_policy = "not_smaller">(h, , , z)',
            {"z": [5, 6, 4, 4]},
        ),
    ],
)
def test_resize_freezes_scaled_channels(body: str, constants: dict[str, object]) -> None:
    network = frame(body, 6, opset=18, **constants)
    assert Reason.POSITIONS in frozen(network, "h[1]")


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("a = CenterCropPad(h, z)", {"z": [5, 6, 2, 8]}),
        ("a = CenterCropPad<axes = [1, -1]>(h, z)", {"z": [6, 2]}),
        ("a = CenterCropPad<axes = [2, 3]>(h, z)", {"z": [2, 2]}),
    ],
)
@pytest.mark.ort
def test_center_crop_pad_keeps_whole_axes(body: str, constants: dict[str, object]) -> None:
    network = frame(body, opset=18, **constants)
    assert coupled(network, "h[1]", "a[1]") == straight(6)
    prunes(network)


def test_center_crop_pad_freezes_cropped_channels() -> None:
    network = frame("a = CenterCropPad<axes = [1]>(h, z)", 4, opset=18, z=[4])
    assert Reason.POSITIONS in frozen(network, "h[1]")


@pytest.mark.ort
def test_grid_sample_couples_channels() -> None:
    rng = np.random.default_rng(0)
    grid = rng.uniform(-1, 1, (5, 3, 2, 2)).astype(F32)
    network = frame('a = GridSample<mode = "bilinear">(h, grid)', batch="5", opset=16, grid=grid)
    assert coupled(network, "h[1]", "a[1]") == straight(6)
    assert coupled(network, "grid[1]", "a[2]") == straight(3)
    prunes(network)


@pytest.mark.ort
def test_an_affine_grid_keeps_its_size() -> None:
    rng = np.random.default_rng(0)
    body = "grid = AffineGrid(theta, z)\n a = GridSample(h, grid)"
    theta = rng.normal(size=(5, 2, 3)).astype(F32)
    network = frame(body, batch="5", opset=20, theta=theta, z=[5, 6, 3, 3])
    assert coupled(network, "theta[0]", "grid[0]") == straight(5)
    prunes(network)


@pytest.mark.ort
@pytest.mark.parametrize(
    "body",
    [
        "a = RoiAlign<output_height = 2, output_width = 2>(h, rois, which)",
        "a = MaxRoiPool<pooled_shape = [2, 2]>(h, five)",
    ],
)
def test_regions_couple_channels(body: str) -> None:
    rois = F32([[0, 0, 2, 2], [1, 1, 3, 3], [0, 1, 3, 2]])
    five = np.concatenate([F32([[0], [1], [2]]), rois], axis=1)
    network = frame(body, opset=16, rois=rois, five=five, which=[0, 1, 4])
    assert coupled(network, "h[1]", "a[1]") == straight(6)
    prunes(network)


def test_max_unpool_needs_all_channels() -> None:
    body = """p, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(h)
    a = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(p, i)"""
    network = frame(body)
    assert Reason.POSITIONS in frozen(network, "p[1]")
    assert analyze(network).groups == ()


@pytest.mark.ort
def test_col2im_couples_each_channel_with_its_block() -> None:
    network = model(
        """(float[N, 3, 4] x) => (float[N, 2, 4, 4] y)
        <float[24, 3, 1] w, float[2, 6, 1, 1] v> {
            h = Conv(x, w)
            a = Col2Im<strides = [2, 2]>(h, image, block)
            y = Conv(a, v)
        }""",
        opset=18,
        image=[4, 4],
        block=[2, 2],
    )
    assert coupled(network, "h[1]", "a[1]") == [(i, i // 4) for i in range(24)]
    smaller = prunes(network)
    assert array(smaller, "w").shape[0] == 4 * array(smaller, "v").shape[1]
