"""The methods by name, and how one is made from options that came as text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from onnxprune.errors import ConfigError
from onnxprune.methods.apoptosis import apoptosis
from onnxprune.methods.compose import Pruner
from onnxprune.methods.correlation import correlation
from onnxprune.methods.demp import demp
from onnxprune.methods.gradual import gradual, slimming
from onnxprune.methods.importance import IMPORTANCES
from onnxprune.methods.mesimp import meprop, mesimp
from onnxprune.methods.nnrelief import nnrelief

__all__ = ["METHODS", "make"]

METHODS: Mapping[str, Callable[..., Pruner] | None] = {
    "apoptosis": apoptosis,
    "demp": demp,
    "nnrelief": nnrelief,
    "mesimp": mesimp,
    "meprop": meprop,
    "slimming": slimming,
    "correlation": correlation,
    **{name: partial(gradual, name) for name in IMPORTANCES},
    "none": None,
}
"""What `--method` takes; "none" trains without removing anything."""

_TRUTH = {"true": True, "false": False}


def make(method: str, options: Mapping[str, Any] | None = None, *, seed: int = 0) -> Pruner | None:
    """The method called `method`, with `options`; None for "none".

    Args:
        method: a key of `METHODS`.
        options: its keyword arguments; text is read as the type of the argument's default.
        seed: of methods that take one, unless the options say otherwise.

    Raises:
        ConfigError: an unknown method or option, or a value the option cannot have.
    """
    if method not in METHODS:
        raise ConfigError(f"--method {method}: expected one of {', '.join(METHODS)}", option=method)
    function, given = METHODS[method], dict(options or {})
    known = {} if function is None else dict(inspect.signature(function).parameters)
    for name in given:
        if name not in known:
            choices = ", ".join(known) or "none"
            raise ConfigError(f"--set {name}: {method} has the options {choices}", option=name)
    if function is None:
        return None
    if "seed" in known:
        given.setdefault("seed", seed)
    return function(**{name: _read(name, known[name].default, v) for name, v in given.items()})


def _read(name: str, default: Any, value: Any) -> Any:
    """`value` as the type of `default`."""
    kind = type(default)
    try:
        if isinstance(value, str) and kind is bool:
            return _TRUTH[value.lower()]
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is int and not isinstance(value, (bool, float)):
            return int(value)
    except (KeyError, TypeError, ValueError):
        pass
    if isinstance(value, kind):
        return value
    raise ConfigError(
        f"--set {name}={value}: expected {_KINDS.get(kind, kind.__name__)}", option=name
    )


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
