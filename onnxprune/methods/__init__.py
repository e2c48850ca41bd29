"""Pruning methods: functions that return a `Pruner`, by name."""

from collections.abc import Callable, Mapping

from onnxprune.methods.apoptosis import apoptosis
from onnxprune.methods.compose import Limit, Moment, Pruner

METHODS: Mapping[str, Callable[[], Pruner] | None] = {"apoptosis": apoptosis, "none": None}
"""What `--method` takes; "none" trains without removing anything."""

__all__ = ["METHODS", "Limit", "Moment", "Pruner", "apoptosis"]
