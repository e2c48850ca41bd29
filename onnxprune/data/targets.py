"""Whether the target is something the loss can be computed with.

Entry: `check_target`, which returns the split with its target in the form the loss graph reads:
int64 classes, or floats in the shape of the output. It does not choose a loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import DTypeLike

from onnxprune.base import Array
from onnxprune.data.split import Split
from onnxprune.errors import ConfigError, DataError

__all__ = ["IGNORED", "check_target"]

IGNORED = -100
"""The class number of examples that a cross-entropy leaves out."""

_VALUES = ("mse", "l1", "huber")


def check_target(
    split: Split,
    kind: str,
    classes: int | None,
    *,
    shape: Sequence[int | None] | None = None,
    dtype: DTypeLike = np.float32,
    ignore: int = IGNORED,
    where: str = "",
) -> Split:
    """Check the target of `split` against a loss, and convert it.

    Args:
        split: the examples.
        kind: "cross-entropy", "binary-cross-entropy", or "mse", "l1" or "huber" for values.
        classes: how many classes, or how many values per example, the model's output has; None
            when unknown.
        shape: of the model's output, batch axis first, None where unknown; (N, classes) when not
            given.
        dtype: of the output; what the target becomes unless it holds classes.
        ignore: the class number that is left out; it becomes `IGNORED`.
        where: name of the split, for messages: "test" makes them begin with "test y".

    Returns:
        The split with its target as int64 classes, (N,) or (N, ...) (cross-entropy: one-hot rows
        are converted), or as `dtype` in the shape of the output.

    Raises:
        DataError: no target; labels that are no integers or out of range; other values than 0 and
            1 for binary-cross-entropy; a shape that does not match.
        ConfigError: an unknown kind.
    """
    target, name = split.target, f"{where} y".strip()
    if target is None:
        raise DataError(
            f"{name}: the loss {kind} needs a target, the data has none; add an array y, or choose "
            "--loss distill, which needs none"
        )
    expected = tuple(shape) if shape is not None else (None, classes)
    if kind == "cross-entropy":
        if ignore != IGNORED:
            signed = target if target.dtype.kind in "if" else target.astype(np.int64)
            target = np.where(signed == ignore, IGNORED, signed)
        return replace(split, target=_classes(target, classes, expected, name))
    if kind == "binary-cross-entropy":
        return replace(split, target=_binary(target, expected, name).astype(dtype))
    if kind in _VALUES:
        return replace(split, target=_aligned(target, expected, name).astype(dtype))
    raise ConfigError(
        f"--loss {kind}: expected cross-entropy, binary-cross-entropy or {', '.join(_VALUES)}",
        loss=kind,
    )


def _classes(target: Array, classes: int | None, shape: tuple[int | None, ...], name: str) -> Array:
    """Class indices from labels, or from one-hot rows."""
    if classes is not None and classes < 2:
        raise DataError(
            f"cross-entropy needs at least 2 classes, the model's output has {classes}; "
            "use --loss binary-cross-entropy or mse",
            classes=classes,
        )
    rank = len(shape) - 1 if any(size != 1 for size in shape[2:]) else 1  # (N, classes, 1, 1)
    labels = target
    while labels.ndim > rank and labels.shape[-1] == 1:
        labels = labels[..., 0]
    if labels.ndim == 2 and rank == 1 and labels.shape[1] == classes:
        labels = _from_one_hot(labels, name)
    if labels.ndim != rank:
        raise DataError(
            f"{name}: expected {rank} axes of class labels for an output of {classes} classes, "
            f"got shape {target.shape}; give integers, or one-hot rows of {classes}",
            got=target.shape,
        )
    if labels.dtype.kind == "f" and np.any(labels != np.trunc(labels)):
        raise DataError(
            f"{name}: class labels must be integers, got values {labels.min():g}..{labels.max():g} "
            "with fractions; use --loss mse for values",
        )
    _check_range(labels[labels != IGNORED], classes, name)
    return labels.astype(np.int64)


def _check_range(labels: Array, classes: int | None, name: str) -> None:
    if not labels.size:
        raise DataError(f"{name}: every label is {IGNORED}, which is left out; nothing to train on")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        hint = "subtract 1" if (low, high) == (1, classes) else "renumber the labels"
        has = "classes" if classes is None else f"{classes} classes, 0..{classes - 1}"
        raise DataError(
            f"{name}: labels lie in {low}..{high}, but the model's output has {has}; "
            f"{hint}, or choose another --output-name",
            low=low,
            high=high,
            classes=classes,
        )


def _from_one_hot(rows: Array, name: str) -> Array:
    if not (np.isin(rows, (0, 1)).all() and (rows.sum(axis=1) == 1).all()):
        raise DataError(
            f"{name}: shape {rows.shape} looks one-hot, but not every row is a single 1 among "
            "zeros; give class numbers (N,), or --loss binary-cross-entropy or mse",
            got=rows.shape,
        )
    return np.asarray(rows.argmax(axis=1))


def _binary(target: Array, shape: tuple[int | None, ...], name: str) -> Array:
    if not np.isin(target, (0, 1)).all():
        raise DataError(
            f"{name}: binary-cross-entropy needs 0 and 1, got values {target.min():g}.."
            f"{target.max():g}; use --loss cross-entropy for classes or mse for values",
            low=float(target.min()),
            high=float(target.max()),
        )
    return _aligned(target, shape, name)


def _aligned(target: Array, shape: tuple[int | None, ...], name: str) -> Array:
    """`target` in the shape of the output; only axes of size 1 may come or go."""
    wanted, got = shape[1:], target.shape[1:]
    if len(wanted) == len(got) and all(
        size is None or size == other for size, other in zip(wanted, got, strict=True)
    ):
        return target
    sizes = [size for size in wanted if size is not None]
    squeezed = [size for size in got if size != 1] == [size for size in sizes if size != 1]
    if len(sizes) == len(wanted) and squeezed and math.prod(sizes) == math.prod(got):
        return target.reshape(len(target), *sizes)
    expected = ", ".join(["N", *("any" if size is None else str(size) for size in wanted)])
    raise DataError(
        f"{name}: expected the shape of the model's output, ({expected}), got {target.shape}; "
        "reshape it, or choose another --output-name or --loss",
        expected=shape,
        got=target.shape,
    )
