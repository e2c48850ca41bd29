from __future__ import annotations

import numpy as np
import pytest
from graphs import model

from onnxprune.data.synthetic import synthetic
from onnxprune.errors import ConfigError


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_floats_are_drawn_and_open_axes_of_one_name_agree() -> None:
    network = model("(float[N, T, 4] x, float[N, T] z) => (float[N, T, 4] y) { y = Relu(x) }")
    found = synthetic(network, rng(), examples=3)
    assert found["x"].shape[0] == found["z"].shape[0] == 3
    assert found["x"].shape[1] == found["z"].shape[1]
    assert found["x"].dtype == np.float32
    assert np.unique(found["x"]).size > 10


def test_the_same_seed_draws_the_same() -> None:
    network = model("(float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    assert np.array_equal(synthetic(network, rng())["x"], synthetic(network, rng())["x"])


def test_given_sizes_hold_for_all_axes_of_that_name() -> None:
    network = model("(float[N, T, 4] x, float[N, T] z) => (float[N, T, 4] y) { y = Relu(x) }")
    found = synthetic(network, rng(), input_shapes={"x": (2, 7, 4)})
    assert found["x"].shape == (2, 7, 4)
    assert found["z"].shape == (2, 7)


def test_token_ids_stay_within_every_table_they_reach() -> None:
    network = model(
        """(int64[N, T] ids) => (float[N, T, 3] y) <float[9, 3] big, float[5, 3] small>
        { c = Cast<to = 6>(ids) a = Gather(big, c) b = Gather(small, ids) y = Add(a, b) }"""
    )
    ids = synthetic(network, rng(), examples=50)["ids"]
    assert ids.dtype == np.int64
    assert ids.min() == 0
    assert ids.max() == 4


def test_masks_and_flags_are_ones() -> None:
    network = model(
        """(float[N, 3] x, int64[N, 3] mask, bool[N, 3] flag) => (float[N, 3] y)
        { m = Cast<to = 1>(mask) a = Mul(x, m) y = Where(flag, a, x) }"""
    )
    found = synthetic(network, rng())
    assert (found["mask"] == 1).all()
    assert found["flag"].dtype == np.bool_
    assert found["flag"].all()


def test_lengths_lie_within_the_sequence() -> None:
    network = model(
        """(float[T, N, 3] x, int64[N] lengths) => (float[T, N, 3] y)
        { y = ReverseSequence<time_axis = 0, batch_axis = 1>(x, lengths) }"""
    )
    found = synthetic(network, rng(), input_shapes={"x": (6, 40, 3)})
    assert found["lengths"].shape == (40,)
    assert found["lengths"].min() >= 1
    assert found["lengths"].max() == 6


def test_an_unknown_input_is_refused() -> None:
    network = model("(float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    with pytest.raises(ConfigError, match="image"):
        synthetic(network, rng(), input_shapes={"image": (1, 4)})
