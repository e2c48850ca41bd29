from __future__ import annotations

import pytest

from onnxprune.updates.graph import build_update
from onnxprune.updates.rules import RULES

pytestmark = pytest.mark.ort


@pytest.mark.parametrize("rule", RULES)
def test_no_scalar_meets_a_parameter_that_ends_in_axes_of_size_1(rule: str) -> None:
    update = build_update(RULES[rule](), {"w": (6, 4, 1, 1), "v": (5, 3)}, weight_decay=0.1)
    pairs = [
        tuple(len(value.shape) for value in node.inputs if value and value.shape is not None)
        for node in update.model.graph
        if node.op_type in ("Mul", "Add", "Sub", "Div")
    ]
    assert pairs
    assert not [ranks for ranks in pairs if set(ranks) >= {0, 4}]
    assert [ranks for ranks in pairs if set(ranks) == {0, 2}]  # these are fast as they are
