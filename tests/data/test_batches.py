from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.data import TARGET, Split, batches, split_validation
from onnxprune.errors import ConfigError, DataError


def numbered(count: int, classes: int = 3) -> Split:
    x = np.arange(count, dtype=np.float32).reshape(count, 1)
    return Split(sources={"x": x}, target=np.arange(count) % classes)


def order(split: Split, size: int, **options: Any) -> list[list[int]]:
    return [batch["x"][:, 0].astype(int).tolist() for batch in batches(split, size, **options)]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Any:
    yield
    assert not [t for t in threading.enumerate() if t.name == "onnxprune-batches"]


def test_without_rng_the_order_is_kept() -> None:
    assert order(numbered(7), 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert order(numbered(7), 3, drop_last=True) == [[0, 1, 2], [3, 4, 5]]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3))
def test_a_shuffled_pass_sees_every_example_once(count: int, size: int, seed: int) -> None:
    split = numbered(count)
    found = order(split, size, rng=np.random.default_rng(seed))
    assert sorted(itertools.chain(*found)) == list(range(count))
    assert found == order(split, size, rng=np.random.default_rng(seed))


def test_the_order_is_drawn_at_the_call() -> None:
    rng = np.random.default_rng(0)
    first = batches(numbered(20), 20, rng=rng)
    second = batches(numbered(20), 20, rng=rng)
    later = next(second)["x"]
    assert not np.array_equal(next(first)["x"], later)
    expected = np.random.default_rng(0).permutation(20)
    again = batches(numbered(20), 20, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(next(again)["x"][:, 0], expected)
    for iterator in (first, second, again):
        assert list(iterator) == []


def test_inputs_and_target_stay_together() -> None:
    for batch in batches(numbered(10), 4, rng=np.random.default_rng(1)):
        np.testing.assert_array_equal(batch["x"][:, 0] % 3, batch[TARGET])


def test_an_error_in_the_thread_reaches_the_reader() -> None:
    broken = Split(sources={"x": np.zeros((4, 1))}, rows=np.array([0, 1, 99, 2]))
    iterator = batches(broken, 2)
    assert next(iterator)["x"].shape == (2, 1)
    with pytest.raises(IndexError, match="99"):
        next(iterator)


def test_an_abandoned_pass_ends_its_thread() -> None:
    iterator = batches(numbered(1000), 1)
    next(iterator)
    start = time.monotonic()
    iterator.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 5
    batches(numbered(10), 1)  # never started: no thread


def test_impossible_sizes() -> None:
    with pytest.raises(ConfigError, match="--batch-size 0: expected at least 1"):
        batches(numbered(3), 0)
    with pytest.raises(DataError, match="3 examples make no full batch of 4"):
        batches(numbered(3), 4, drop_last=True)


@given(st.integers(2, 80), st.floats(0.01, 0.99), st.integers(1, 8))
def test_validation_takes_a_share_of_every_class(count: int, fraction: float, classes: int) -> None:
    split = numbered(count, classes)
    rest, aside = split_validation(split, fraction, np.random.default_rng(0))
    assert len(aside) >= 1
    together = np.concatenate([rest.inputs["x"][:, 0], aside.inputs["x"][:, 0]])
    assert sorted(together) == list(range(count))
    assert split.target is not None
    assert rest.target is not None
    assert aside.target is not None
    if len(aside) > 1:
        assert set(rest.target) == set(split.target)
        shares = [np.mean(split.target == label) for label in set(split.target)]
        taken = [np.mean(aside.target == label) for label in set(split.target)]
        assert np.abs(np.subtract(shares, taken)).max() * len(aside) <= classes


def test_validation_is_reproducible_and_close_to_the_fraction() -> None:
    for target in (np.arange(200) % 10, np.linspace(0, 1, 200), None):
        split = Split(sources={"x": np.arange(200.0)[:, None]}, target=target)
        first = split_validation(split, 0.1, np.random.default_rng(3))[1]
        again = split_validation(split, 0.1, np.random.default_rng(3))[1]
        assert len(first) == 20
        np.testing.assert_array_equal(first.inputs["x"], again.inputs["x"])


def test_validation_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="--validation-fraction 1: expected more than 0"):
        split_validation(numbered(4), 1.0, np.random.default_rng(0))
    with pytest.raises(DataError, match="1 examples cannot be split"):
        split_validation(numbered(1), 0.5, np.random.default_rng(0))
