"""Which nodes may give something else each time."""

from __future__ import annotations

import pytest
from graphs import model

from onnxprune.ops.random import draws


@pytest.mark.parametrize(
    ("text", "random"),
    [
        ("y = RandomNormalLike (x)", True),
        ("y = Bernoulli (x)", True),
        ("y = Dropout (x, ratio)", False),
        ("y, m = Dropout (x, ratio, on)", True),
        ("y, m = Dropout (x, ratio, off)", False),
        ("o = Cast <to = 9> (x)  y, m = Dropout (x, ratio, o)", True),
        ("y = Relu (x)", False),
    ],
)
def test_only_what_draws_now_counts(text: str, random: bool) -> None:
    source = model(
        "(float[N, 3] x) => (float[N, 3] y) "
        "<float ratio = {0.5}, bool on = {1}, bool off = {0}> { " + text + " }"
    )
    assert any(map(draws, source.graph)) == random
