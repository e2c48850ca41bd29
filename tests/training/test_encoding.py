"""Plain data survives JSON and arrays; what is no plain data is refused."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from graphs import model
from runs import DENSE

from onnxprune.base import Axis, Floats, Window
from onnxprune.errors import DataError, MethodError
from onnxprune.graph.groups import analyze
from onnxprune.methods import METHODS, Course
from onnxprune.training.encoding import decode, encode


class Color(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    left: int
    right: str


@dataclass(frozen=True)
class Inner:
    values: Mapping[Axis, Floats] = field(default_factory=dict)


def through_json(value: Any) -> Any:
    document, arrays = encode(value)
    return decode(json.loads(json.dumps(document, allow_nan=False)), arrays)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -0.5,
        math.inf,
        "text",
        (1, ("a", None)),
        [1, (2,)],
        {"a": 1, 2: "b", Axis("x", 1): (3,)},
        {1, 2},
        frozenset({Axis("x", 0), Axis("y", 3)}),
        Color.RED,
        Pair(1, "b"),
        np.float32(0.1),
        np.int64(-7),
        {"map": [["a", 1]], "float": "nan"},
    ],
    ids=repr,
)
def test_values_come_back_as_they_were(value: Any) -> None:
    found = through_json(value)
    assert type(found) is type(value)
    assert found == value


def test_nan_comes_back() -> None:
    assert math.isnan(through_json({"loss": math.nan})["loss"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_, ml_dtypes.bfloat16])
def test_arrays_come_back_bit_for_bit(dtype: Any) -> None:
    array = np.array([[0, 1, 2], [3, 4, -0.0]]).astype(dtype)
    found = through_json((array,))[0]
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()


def test_dataclasses_come_back_with_their_arrays() -> None:
    low = np.array([1.0, np.nan])
    state = Inner(values={Axis("x", 1): low})
    found = through_json((state, Window(count=3, low=low)))
    assert list(found[0].values) == [Axis("x", 1)]
    np.testing.assert_array_equal(found[0].values[Axis("x", 1)], low)
    assert found[1].count == 3
    assert found[1].high is None


def test_objects_kept_elsewhere_come_back_as_themselves() -> None:
    thing = object()
    document, arrays = encode({"a": (thing, 1)}, lambda value: "it" if value is thing else None)
    assert decode(document, arrays, {"it": thing}.__getitem__) == {"a": (thing, 1)}


@pytest.mark.parametrize("value", [object(), np.random.default_rng(0), lambda: 0, np.array([{}])])
def test_what_is_no_plain_data_is_refused(value: Any) -> None:
    with pytest.raises(MethodError, match="cannot be written to a checkpoint"):
        encode({"state": value})


@pytest.mark.parametrize(
    "name", ["os:system", "builtins:dict", "no.such.module:Thing", "onnxprune.base:Nothing"]
)
def test_reading_calls_nothing_but_data_classes(name: str) -> None:
    with pytest.raises(DataError, match="no data class of this program"):
        decode({"data": name, "fields": {}}, [])


def test_other_kinds_are_of_a_newer_version() -> None:
    with pytest.raises(DataError, match="of a newer version"):
        decode({"quaternion": 1}, [])


@pytest.mark.parametrize("name", [name for name, make in METHODS.items() if make is not None])
def test_the_first_state_of_every_method_is_plain_data(name: str) -> None:
    make = METHODS[name]
    assert make is not None
    state = make().init(analyze(model(DENSE)), Course(steps=100, epoch=20, interval=7))
    document, arrays = encode(state)
    again, others = encode(through_json(state))
    assert again == document
    assert len(others) == len(arrays)
    assert all(map(np.array_equal, others, arrays))
