from __future__ import annotations

import pytest
from graphs import feeds, model

from onnxprune.runtime.latency import _enough, latencies

TEXT = "(float[N, 3] x) => (float[N, 2] y) <float[3, 2] w> { y = MatMul(x, w) }"


@pytest.mark.parametrize(
    ("rounds", "spent", "enough"),
    [
        (4, 0.1, False),
        (1000, 0.1, True),
        (4, 1.1, False),
        (5, 1.1, True),
        (0, 9.0, False),
        (1, 9.0, True),
    ],
)
def test_slow_models_get_fewer_rounds_but_at_least_one(
    rounds: int, spent: float, enough: bool
) -> None:
    assert _enough(rounds, spent) is enough


def test_every_model_gets_a_number_even_without_time() -> None:
    network = model(TEXT)
    found = latencies([network, network], feeds(network), seconds=1e-9)
    assert len(found) == 2
    assert all(taken > 0 for taken in found)
