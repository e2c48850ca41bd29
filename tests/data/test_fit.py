from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.data import TARGET, InputSpec, fit, input_specs, read
from onnxprune.errors import ConfigError, DataError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4


def spec(*sizes: int | None, name: str = "image", dtype: Any = np.float32) -> InputSpec:
    return InputSpec(name=name, dtype=np.dtype(dtype), shape=(None, *sizes))


def converted(x: Any, target: InputSpec, **options: Any) -> Any:
    return fit(read((x, None)), [target], **options).train.inputs[target.name]


def test_uint8_images_become_floats_channels_first() -> None:
    data = fit(read((IMAGES, LABELS)), [spec(3, 6, 5)])
    batch = data.train.batch([4, 2])
    assert batch["image"].dtype == np.float32
    assert batch["image"].flags.c_contiguous
    expected = np.moveaxis(IMAGES[[4, 2]], 3, 1) / 255
    np.testing.assert_allclose(batch["image"], expected, rtol=1e-6)
    np.testing.assert_array_equal(batch[TARGET], LABELS[[4, 2]])
    assert data.notes == ("input image: uint8 (6, 5, 3) NHWC -> NCHW, multiplied by 0.00392157",)


@pytest.mark.parametrize("sizes", [(1, 8, 8), (8, 8, 1), (64,), (8, 8)])
def test_the_digits_fit_every_layout_and_are_divided_by_16(sizes: tuple[int, ...]) -> None:
    raw = read("digits")
    data = fit(raw, [spec(*sizes)])
    expected = raw.train.x[""][:9].reshape(9, *sizes) / 16
    np.testing.assert_array_equal(data.train.batch(np.arange(9))["image"], expected)
    assert data.test is not None
    assert data.test.inputs["image"].shape == (360, *sizes)


def test_floats_are_not_scaled_unless_asked() -> None:
    x = RNG.normal(size=(4, 3))
    np.testing.assert_array_equal(converted(x, spec(3)), x.astype(np.float32))
    np.testing.assert_allclose(converted(x, spec(3), scale=0.5), x / 2, rtol=1e-6)


def test_scale_replaces_the_default() -> None:
    np.testing.assert_array_equal(converted(IMAGES, spec(6, 5, 3), scale=1.0), IMAGES)


@pytest.mark.parametrize("sizes", [(3, 6, 5), (6, 5, 3)])
def test_mean_and_std_follow_the_channel_axis_after_scaling(sizes: tuple[int, ...]) -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (IMAGES / 255 - mean) / std
    if sizes[0] == 3:
        expected = np.moveaxis(expected, 3, 1)
    found = converted(IMAGES, spec(*sizes), mean=mean, std=std)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_one_mean_is_for_all_channels_and_other_counts_are_refused() -> None:
    np.testing.assert_allclose(
        converted(IMAGES, spec(6, 5, 3), mean=[0.5]), IMAGES / 255 - 0.5, rtol=1e-5, atol=1e-6
    )
    with pytest.raises(DataError, match="--mean has 2 numbers, expected 1 or one per channel"):
        converted(IMAGES, spec(6, 5, 3), mean=[0.5, 0.5])


def test_integers_keep_their_values() -> None:
    ids = RNG.integers(0, 30_000, (5, 7), dtype=np.int32)
    found = converted(ids, spec(None, dtype=np.int64))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, ids)
    np.testing.assert_array_equal(converted(IMAGES, spec(6, 5, 3, dtype=np.uint8)), IMAGES)


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (np.array([[0.5]]), np.int64),
        (np.array([[300]]), np.uint8),
        (np.array([[-1]]), np.uint8),
        (np.array([[1e6]]), np.float16),
        (np.array([[2]]), np.bool_),
    ],
)
def test_values_that_the_dtype_cannot_hold_are_refused(x: Any, dtype: Any) -> None:
    with pytest.raises(DataError, match=r"cannot hold the .* values"):
        converted(x, spec(1, dtype=dtype))


def test_sizes_that_do_not_fit_are_shown_side_by_side() -> None:
    with pytest.raises(
        DataError, match=r"expected float32 \(N, 1, 8, 8\), got uint8 \(20, 6, 5, 3"
    ):
        converted(IMAGES, spec(1, 8, 8))
    with pytest.raises(DataError, match=r"fits in 2 ways; say how the data lies: --layout nchw"):
        converted(IMAGES, spec(90))
    np.testing.assert_allclose(
        converted(IMAGES, spec(90), layout="none"), IMAGES.reshape(20, 90) / 255, rtol=1e-6
    )


def test_inputs_are_matched_by_name() -> None:
    a, b = np.zeros((4, 2), np.float32), np.ones((4, 3), np.float32)
    inputs = [spec(2, name="a"), spec(3, name="b")]
    batch = fit(read(({"b": b, "a": a}, None)), inputs).train.batch([0])
    assert batch["a"].shape == (1, 2)
    assert batch["b"].shape == (1, 3)
    renamed = fit(read(({"p": a, "q": b}, None)), inputs, input_names={"p": "a", "q": "b"})
    assert set(renamed.train.inputs) == {"a", "b"}


def test_a_missing_input_lists_what_there_is() -> None:
    inputs = [spec(2, name="a"), spec(3, name="b")]
    with pytest.raises(DataError, match="no array for input b; expected arrays named a, b, got a"):
        fit(read(({"a": np.zeros((4, 2))}, None)), inputs)
    with pytest.raises(DataError, match=r"no array for input a, b; .* got x"):
        fit(read((np.zeros((4, 2)), None)), inputs)


def test_spare_arrays_are_mentioned() -> None:
    data = fit(read({"x": IMAGES, "y": LABELS, "writer": LABELS}), [spec(3, 6, 5)])
    assert any("writer not used" in note for note in data.notes)


def test_validation_must_look_like_training() -> None:
    raw = read((IMAGES, LABELS), validation=(IMAGES[:, :5], LABELS))
    with pytest.raises(DataError, match=r"must look like the training data, uint8 \(20, 6, 5, 3\)"):
        fit(raw, [spec(3, 6, 5)])


def test_nothing_is_converted_before_it_is_asked_for() -> None:
    raw = read((IMAGES, LABELS))
    split = fit(raw, [spec(3, 6, 5)]).train
    assert np.shares_memory(split.take(np.arange(10)).sources["image"], raw.train.x[""])


def test_taking_twice_is_taking_once() -> None:
    split = fit(read((IMAGES, LABELS)), [spec(3, 6, 5)]).train
    twice = split.take([5, 3, 8, 1]).take([2, 0])
    once = split.take([8, 5])
    assert len(twice) == 2
    for name, array in once.batch([0, 1]).items():
        np.testing.assert_array_equal(twice.batch([0, 1])[name], array)


def test_impossible_options() -> None:
    for options in ({"scale": 0.0}, {"std": [0.0]}, {"mean": [np.nan]}, {"scale": np.inf}):
        with pytest.raises(ConfigError, match="must be finite"):
            converted(IMAGES, spec(3, 6, 5), **options)
    with pytest.raises(ConfigError, match="--layout chwn: expected one of auto"):
        converted(IMAGES, spec(3, 6, 5), layout="chwn")
    with pytest.raises(ConfigError, match="need a float input"):
        converted(IMAGES, spec(6, 5, 3, dtype=np.uint8), scale=2.0)


def test_input_specs_come_from_the_model() -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    graph (float[N, 3, H, 4] image, int64[2, 7] ids, float w) => (float[N, 3, H, 4] y)
    <float w = {2.0}> { y = Mul(image, w) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    image, ids = input_specs(model)
    assert image == InputSpec(name="image", dtype=np.dtype("f4"), shape=(None, 3, None, 4))
    assert ids == InputSpec(name="ids", dtype=np.dtype("i8"), shape=(2, 7))
    assert input_specs(model, {"image": (1, 3, 9, 4)})[0].shape == (None, 3, 9, 4)
    with pytest.raises(ConfigError, match="no such input; it has image, ids"):
        input_specs(model, {"picture": (1, 3)})
