"""The exceptions of onnxprune, one tree under one root.

    OnnxPruneError                     root, never raised itself
    +- ModelError                      the model is at fault                   (also ValueError)
    |  +- InvalidModelError            not ONNX, truncated, or refused by the checker
    |  +- UnsupportedOperatorError     something the requested work cannot do without
    +- PlanError                       a plan cannot be applied to this model  (also ValueError)
    +- MethodError                     a method cannot do what was asked       (also ValueError)
    |  +- MissingObservationError      it needs statistics that nothing provides
    +- TrainingError                   training cannot start or go on          (also RuntimeError)
    |  +- RuntimeUnavailableError      no usable onnxruntime is installed      (also ImportError)
    |  +- NonFiniteLossError           the loss became NaN or infinite
    +- DataError                       the data does not fit the model         (also ValueError)
    +- ConfigError                     an option has an impossible value       (also ValueError)
    +- InvariantError                  a bug of onnxprune itself; please report it

A message says what, where, expected against got, and what to do; the facts behind it are attributes
of the exception, so that callers test attributes and never parse text.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ConfigError",
    "DataError",
    "InvalidModelError",
    "InvariantError",
    "MethodError",
    "MissingObservationError",
    "ModelError",
    "NonFiniteLossError",
    "OnnxPruneError",
    "PlanError",
    "RuntimeUnavailableError",
    "TrainingError",
    "UnsupportedOperatorError",
]


class OnnxPruneError(Exception):
    """Root of all errors that onnxprune raises on purpose.

    Args:
        message: what, where, expected against got, what to do; one line.
        facts: what the message was made of, readable as attributes (`error.step`, `error.axis`).

    Attributes:
        exit_code: what a command exits with: 1 when the work failed, 2 when the request was wrong.
    """

    exit_code = 1

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["facts"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}") from None


class ModelError(OnnxPruneError, ValueError):
    """The model is at fault."""


class InvalidModelError(ModelError):
    """The file is missing, truncated, not ONNX, or refused by the ONNX checker."""

    exit_code = 2


class UnsupportedOperatorError(ModelError):
    """An operator that the requested work cannot do without is not supported."""


class PlanError(OnnxPruneError, ValueError):
    """A plan names unknown or frozen groups, would empty a group, or has the wrong shapes."""


class MethodError(OnnxPruneError, ValueError):
    """A pruning method cannot do what was asked of it."""


class MissingObservationError(MethodError):
    """A method needs an observation that no instrument provides."""


class TrainingError(OnnxPruneError, RuntimeError):
    """Training cannot start or cannot go on."""


class RuntimeUnavailableError(TrainingError, ImportError):
    """No usable onnxruntime (or none that can train) is installed."""


class NonFiniteLossError(TrainingError):
    """The loss became NaN or infinite. Facts: `step`, `loss`, `last_finite`."""


class DataError(OnnxPruneError, ValueError):
    """The data does not exist, cannot be read, or does not fit the model."""

    exit_code = 2


class ConfigError(OnnxPruneError, ValueError):
    """An option has an impossible value."""

    exit_code = 2


class InvariantError(OnnxPruneError):
    """A postcondition of onnxprune itself failed: our bug, please report it."""
