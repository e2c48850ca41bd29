from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.data import Split, check_target
from onnxprune.errors import ConfigError, DataError


def split(target: Any) -> Split:
    array = None if target is None else np.asarray(target)
    return Split(sources={"x": np.zeros((1 if array is None else len(array), 1))}, target=array)


def checked(target: Any, kind: str, classes: int | None, **options: Any) -> Any:
    return check_target(split(target), kind, classes, **options).target


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64])
def test_class_labels_become_int64(dtype: Any) -> None:
    found = checked(np.array([0, 2, 1], dtype=dtype), "cross-entropy", 3)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, [0, 2, 1])


def test_a_column_of_labels_and_one_hot_rows_are_labels() -> None:
    np.testing.assert_array_equal(checked([[0], [2]], "cross-entropy", 3), [0, 2])
    np.testing.assert_array_equal(checked(np.eye(3)[[2, 0]], "cross-entropy", 3), [2, 0])


def test_labels_per_position_stay_labels() -> None:
    labels = np.array([[0, 1, 0], [1, 0, 0]])
    found = checked(labels, "cross-entropy", 3, shape=(None, 3, 3))
    np.testing.assert_array_equal(found, labels)


@pytest.mark.parametrize(
    ("target", "classes", "says"),
    [
        ([1, 2, 3], 3, r"lie in 1\.\.3, .* 3 classes, 0\.\.2; subtract 1"),
        ([0, 9], 3, r"lie in 0\.\.9, .*renumber.*--output-name"),
        ([-1, 1], 3, r"lie in -1\.\.1"),
        ([0.5, 1.0], 3, "must be integers"),
        ([[0.2, 0.8], [1.0, 0.0]], 2, "looks one-hot"),
        ([[1, 1, 0]], 3, "looks one-hot"),
        ([[0, 1, 2, 3]], 3, r"expected 1 axes of class labels.*got shape \(1, 4\)"),
        ([0, 1], 1, "at least 2 classes.*binary-cross-entropy"),
        (None, 3, "needs a target"),
    ],
)
def test_labels_that_are_none(target: Any, classes: int, says: str) -> None:
    with pytest.raises(DataError, match=says):
        checked(target, "cross-entropy", classes)


def test_a_class_axis_before_axes_of_size_one_takes_plain_labels() -> None:
    for target in (np.array([0, 2]), np.array([[[0]], [[2]]])):
        split = Split(sources={}, target=target)
        labels = check_target(split, "cross-entropy", 3, shape=(None, 3, 1, 1)).target
        np.testing.assert_array_equal(labels, [0, 2])


def test_messages_name_the_split() -> None:
    split = Split(sources={}, target=np.array([0, 9]))
    with pytest.raises(DataError, match=r"^test y: labels lie in"):
        check_target(split, "cross-entropy", 3, where="test")


def test_examples_without_a_label_may_be_left_out() -> None:
    np.testing.assert_array_equal(checked([1, -100], "cross-entropy", 3), [1, -100])
    with pytest.raises(DataError, match="every label is -100"):
        checked([-100], "cross-entropy", 3)


def test_an_unknown_number_of_classes_has_no_upper_limit() -> None:
    np.testing.assert_array_equal(checked([1, 99], "cross-entropy", None), [1, 99])
    with pytest.raises(DataError, match=r"lie in -1\.\.4"):
        checked([-1, 4], "cross-entropy", None)


def test_binary_targets_take_the_shape_of_the_output() -> None:
    found = checked([0, 1, 1], "binary-cross-entropy", 1)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[0], [1], [1]])
    assert checked([[0], [1]], "binary-cross-entropy", 1, shape=(None,)).shape == (2,)
    with pytest.raises(DataError, match=r"needs 0 and 1, got values 0\.\.2"):
        checked([0, 2], "binary-cross-entropy", 1)


def test_values_must_have_the_shape_of_the_output() -> None:
    found = checked(np.ones((4, 2)), "mse", 2, dtype=np.float64)
    assert found.dtype == np.float64
    assert checked(np.ones(4), "mse", 1, shape=(None, 1)).shape == (4, 1)
    assert checked(np.ones((4, 7)), "mse", 7, shape=(None, None)).shape == (4, 7)
    with pytest.raises(DataError, match=r"model's output, \(N, 3\), got \(4, 2\)"):
        checked(np.ones((4, 2)), "mse", 3)


def test_unknown_losses_are_refused() -> None:
    with pytest.raises(ConfigError, match="--loss hinge: expected cross-entropy"):
        checked([0], "hinge", 2)
