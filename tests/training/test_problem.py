"""Model, data and options brought together: what is decided, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stages import posed

from onnxprune.errors import ConfigError, DataError
from onnxprune.training.problem import Problem

LINEAR = "(float[N, 4] x) => (float[N, %d] y) <float[4, %d] w> { y = MatMul(x, w) }"


def linear(folder: Path, outputs: int, y: np.ndarray[Any, Any], loss: str) -> Problem:
    x = np.zeros((len(y), 4), np.float32)
    text = LINEAR % (outputs, outputs)
    return posed(folder, text, (x, y), loss=loss, validation_fraction=0.0)


def test_the_trivial_loss_leaves_out_what_the_loss_leaves_out(tmp_path: Path) -> None:
    y = np.array([0, 1, 0, 1, -100, -100])
    assert linear(tmp_path, 3, y, "cross-entropy").trivial_loss == pytest.approx(np.log(2))


def test_the_trivial_loss_of_several_outputs_is_a_mean_over_them(tmp_path: Path) -> None:
    y = np.array([[0, 100], [2, 100]], np.float32)
    assert linear(tmp_path, 2, y, "mse").trivial_loss == pytest.approx(0.5)
    y = np.array([[0, 1], [1, 1]])
    found = linear(tmp_path, 2, y, "binary-cross-entropy").trivial_loss
    assert found == pytest.approx(np.log(2) / 2)


def test_examples_count_those_put_aside(tmp_path: Path) -> None:
    data = (np.zeros((20, 4), np.float32), np.arange(20) % 3)
    problem = posed(tmp_path, LINEAR % (3, 3), data)
    assert (problem.examples, len(problem.train)) == (20, 18)


def two_inputs(first: str, second: str) -> str:
    return f"""(float[{first}, 4] a, float[{second}, 4] b) => (float[N, 4] y) <float[4, 4] w> {{
        s = Add(a, b)  y = MatMul(s, w) }}"""


PAIR = ({name: np.zeros((8, 4), np.float32) for name in "ab"}, np.arange(8) % 4)
SIZES = [("4", "N"), ("N", "4"), ("4", "4")]


@pytest.mark.parametrize(("first", "second"), SIZES)
def test_a_batch_of_one_size_is_opened(tmp_path: Path, first: str, second: str) -> None:
    problem = posed(tmp_path, two_inputs(first, second), PAIR, batch_size=3)
    assert (problem.batch_size, problem.static_batch, problem.own_batch) == (3, False, 4)
    assert {len(array) for array in problem.first_inputs(32).values()} == {4}


@pytest.mark.parametrize(("first", "second"), SIZES)
def test_a_static_batch_of_any_input_counts(tmp_path: Path, first: str, second: str) -> None:
    text = two_inputs(first, second).replace(
        "s = Add(a, b)", "m = ReduceMean<axes = [0]>(a)  s = Sub(b, m)"
    )
    problem = posed(tmp_path, text, PAIR)  # alike in zeros, but not in made-up numbers
    assert (problem.batch_size, problem.static_batch, problem.own_batch) == (4, True, 4)


def test_different_static_batches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"different batch sizes \(a 4, b 1\)"):
        posed(tmp_path, two_inputs("4", "1"), PAIR)


@pytest.mark.parametrize("option", ["patience", "max_drop"])
def test_options_on_validation_metrics_need_validation_data(tmp_path: Path, option: str) -> None:
    data = (np.zeros((20, 4), np.float32), np.arange(20) % 3)
    text = LINEAR % (3, 3)
    with pytest.raises(ConfigError, match="needs validation data; give --val"):
        posed(tmp_path, text, data, validation_fraction=0.0, **{option: 1})
    assert posed(tmp_path, text, data, **{option: 1}).validation is not None


def test_a_teacher_of_static_batches_is_asked_for_whole_ones(tmp_path: Path) -> None:
    text = """(float[4, 4] x) => (float[4, 3] y) <float[4, 3] w> {
        m = ReduceMean<axes = [0]>(x)  s = Sub(x, m)  y = MatMul(s, w) }"""
    x = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    problem = posed(tmp_path, text, (x, None), loss="distill", validation_fraction=0.0)
    assert problem.static_batch
    assert problem.trivial_loss > 0


def test_targets_that_do_not_fit_are_named_with_their_part(tmp_path: Path) -> None:
    x, y = np.zeros((6, 4), np.float32), np.arange(6) % 3
    data = {"x": x, "y": y, "x_test": x + 1, "y_test": y + 1}
    with pytest.raises(DataError, match=r"^test y: labels lie in 1\.\.3"):
        posed(tmp_path, LINEAR % (3, 3), data, loss="cross-entropy")
