"""What no gradient reaches is said in the report and its records."""

from __future__ import annotations

import pytest
from graphs import model
from runs import Train, examples

from onnxprune.reports import Finished

pytestmark = pytest.mark.ort

BRANCH = """(float[N, 6] x) => (float[N, 3] y) <float[6, 8] w, float[1, 3] v, float[6, 3] u> {
    h = MatMul(x, w)
    largest = ArgMax<axis = 1>(h)
    number = Cast<to = 1>(largest)
    a = MatMul(number, v)
    b = MatMul(x, u)
    y = Add(a, b) }"""


def test_parameters_without_a_gradient_are_named_with_the_reason(train: Train) -> None:
    result = train(model(BRANCH), examples(), epochs=1, method="none", loss="cross-entropy")
    (note,) = [note for note in result.report.notes if note.startswith("without a gradient")]
    assert note.startswith("without a gradient: w (")
    (finished,) = result.of(Finished)
    assert note in finished.report["notes"]
