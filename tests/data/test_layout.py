from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.data import LAYOUTS, arrangements

SIZES = st.integers(1, 6)


def ways(data: tuple[int, ...], model: tuple[int | None, ...], layout: str = "auto") -> int:
    return len(arrangements(data, model, layout))


@pytest.mark.parametrize(
    ("data", "model", "says"),
    [
        ((32, 32, 3), (3, 32, 32), "NHWC -> NCHW"),
        ((3, 32, 32), (32, 32, 3), "NCHW -> NHWC"),
        ((32, 32, 3), (32, 32, 3), ""),
        ((8, 8), (1, 8, 8), ""),
        ((8, 8), (8, 8, 1), ""),
        ((8, 8, 1), (1, 8, 8), "NHWC -> NCHW"),
        ((8, 8, 1), (8, 8), ""),
        ((8, 8), (64,), ""),
        ((64,), (1, 8, 8), ""),
        ((64,), (8, 8, 1), ""),
        ((64,), (8, 8), ""),
        ((1, 8, 8), (64,), ""),
        ((3, 8, 8), (192,), ""),
        ((), (1,), ""),
        ((5,), (None,), ""),
        ((224, 224, 3), (3, None, None), "NHWC -> NCHW"),
        ((3, 224, 224), (None, None, None), ""),
        ((8, 8), (1, None, None), ""),
        ((7, 5), (None, 5), ""),
    ],
)
def test_one_way(data: tuple[int, ...], model: tuple[int | None, ...], says: str) -> None:
    (way,) = arrangements(data, model)
    assert way.describe() == says
    assert way(np.zeros((2, *data))).shape == (2, *way.shape)


@pytest.mark.parametrize(
    ("data", "model"),
    [
        ((32, 32, 3), (3072,)),
        ((3072,), (3, 32, 32)),
        ((3072,), (32, 32, 3)),
        ((224, 224, 3), (None, None, None)),
        ((8, 8), (None, None, None)),
    ],
)
def test_several_ways_become_one_by_layout(
    data: tuple[int, ...], model: tuple[int | None, ...]
) -> None:
    assert ways(data, model) == 2
    for layout in ("nchw", "nhwc"):
        assert ways(data, model, layout) == 1


@pytest.mark.parametrize(
    ("data", "model"),
    [
        ((8, 8), (1, 7, 7)),
        ((63,), (1, 8, 8)),
        ((32, 32, 3), (1, 32, 32)),
        ((8, 8), (63,)),
        ((4, 5), (5, 4)),
        ((4, 4, 4, 4), (4, 4, 4)),
        ((2, 3), ()),
        ((), (5,)),
        ((5,), ()),
    ],
)
def test_no_way(data: tuple[int, ...], model: tuple[int | None, ...]) -> None:
    assert all(ways(data, model, layout) == 0 for layout in LAYOUTS)


@given(SIZES, SIZES, SIZES)
def test_a_transposition_moves_every_value_where_it_belongs(h: int, w: int, c: int) -> None:
    x = np.arange(2 * h * w * c).reshape(2, h, w, c)
    (way,) = arrangements((h, w, c), (c, h, w), "nhwc")
    np.testing.assert_array_equal(way(x), np.moveaxis(x, 3, 1))
    (back,) = arrangements((c, h, w), (h, w, c), "nchw" if (c, h) != (h, w) else "none")
    if (c, h) != (h, w):
        np.testing.assert_array_equal(back(way(x)), x)


@given(SIZES, SIZES)
def test_flat_images_are_read_in_the_layout_of_the_data(h: int, w: int) -> None:
    images = np.arange(2 * h * w * 3).reshape(2, h, w, 3)
    first = np.moveaxis(images, 3, 1)
    flat = (h * w * 3,)
    for layout, x in (("nhwc", images), ("nchw", first)):
        (way,) = arrangements(flat, (3, h, w), layout)
        np.testing.assert_array_equal(way(x.reshape(2, -1)), first)


@given(SIZES, SIZES)
def test_flattening_follows_the_layout_of_the_data(h: int, w: int) -> None:
    images = np.arange(2 * h * w * 3).reshape(2, h, w, 3)
    first = np.moveaxis(images, 3, 1)
    for layout, x in (("nhwc", images), ("nchw", first)):
        (way,) = arrangements(x.shape[1:], (h * w * 3,), layout)
        np.testing.assert_array_equal(way(x), first.reshape(2, -1))


@given(st.lists(SIZES, max_size=4), st.sampled_from(LAYOUTS))
def test_equal_sizes_keep_the_order_unless_told(sizes: list[int], layout: str) -> None:
    found = arrangements(sizes, sizes, layout)
    assert len(found) == 1
    if layout in ("auto", "none", "nchw"):
        assert found[0].order is None
