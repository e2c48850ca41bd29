"""Statistics of several batches from those of each."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from onnxprune.base import Axis, Floats, Observations, Window

__all__ = ["merge_windows"]

_COMBINED = {"low": np.minimum, "high": np.maximum}  # over batches; all others are added


def merge_windows(first: Observations, second: Observations) -> dict[Axis, Window]:
    """Statistics over both windows; axes that only one knows are taken as they are."""
    merged = dict(first)
    for axis, window in second.items():
        merged[axis] = _merged(merged[axis], window) if axis in merged else window
    return merged


def _merged(a: Window, b: Window) -> Window:
    vectors = {
        entry.name: _both(_COMBINED.get(entry.name, np.add), a, b, entry.name)
        for entry in fields(Window)
        if entry.name not in ("count", "batches")
    }
    return Window(count=a.count + b.count, batches=a.batches + b.batches, **vectors)


def _both(function: np.ufunc, a: Window, b: Window, name: str) -> Floats | None:
    first, second = getattr(a, name), getattr(b, name)
    return None if first is None or second is None else np.asarray(function(first, second))
