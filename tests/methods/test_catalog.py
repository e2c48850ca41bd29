"""Methods by name: options that come as text, defaults, refusals."""

from __future__ import annotations

from typing import Any

import pytest

from onnxprune.errors import ConfigError
from onnxprune.methods import METHODS, make


def test_every_method_can_be_made_without_options() -> None:
    made = {name: make(name) for name in METHODS}
    assert [name for name, pruner in made.items() if pruner is None] == ["none"]


def test_text_is_read_as_the_type_of_the_default() -> None:
    pruner = make("mesimp", {"k": "7", "rate": "0.2", "unified": "true"})
    assert pruner is not None
    top_k = pruner.influence(None, None).top_k  # type: ignore[arg-type]
    assert top_k is not None
    assert (top_k.k, top_k.unified) == (7, True)


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("magic", {}, "expected one of apoptosis, demp"),
        ("mesimp", {"q": 1}, "mesimp has the options k, rate, cycle, unified"),
        ("none", {"k": 1}, "none has the options none"),
        ("mesimp", {"k": "many"}, "expected a whole number"),
        ("mesimp", {"k": 1.5}, "expected a whole number"),
        ("mesimp", {"unified": "maybe"}, "expected true or false"),
        ("demp", {"strength": "strong"}, "expected a number"),
        ("demp", {"mask": 3}, "expected a word"),
        ("demp", {"strength": None}, "expected a number"),
        ("demp", {"strength": "nan"}, r"--set strength=nan: expected a number in \[0, inf\)"),
        ("apoptosis", {"growth": "0"}, r"--set growth=0.0: expected a number in \(1, inf\)"),
        ("apoptosis", {"most": 1.5}, r"--set most=1.5: expected a number in \(0, 1\]"),
        ("magnitude", {"allocation": "round"}, "--set allocation=round: expected one of auto"),
        ("correlation", {"allocation": "round"}, "--set allocation=round: expected one of auto"),
        ("correlation", {"tolerance": -1.0}, "--set tolerance=-1.0: expected a number in"),
        ("slimming", {"seed": 1}, "slimming has the options strength, allocation"),
        ("taylor", {"criterion": "random"}, "taylor has the options allocation"),
    ],
)
def test_unknown_names_and_impossible_values_are_refused(
    method: str, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        make(method, options)
