"""How the axes of the data become the axes of a model's input.

Entry: `arrangements`, which lists every reasonable way; one is an answer, none is impossible, and
several are for the user to choose from. It looks at sizes alone and touches no array.

What `layout` says is how the *data* lies. The layout of the model follows from its sizes; a model
that leaves both open is taken to be NCHW, the convention of ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.base import Array

__all__ = ["LAYOUTS", "Arrangement", "arrangements"]

LAYOUTS = ("auto", "nchw", "nhwc", "none")
"""Deduce it, channels first, channels last, keep the order in which the values lie."""

_TO_FIRST, _TO_LAST = (2, 0, 1), (1, 2, 0)  # H, W, C -> C, H, W and back
_CHANNELS = (1, 3, 4)  # sizes by which a channel axis is recognized


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Reshape, transpose, reshape: what turns an example into what the model expects.

    Attributes:
        shape: the sizes of one example afterwards, without the batch axis.
        before: the sizes it gets first; None for those it has.
        order: then its axes in their new order; None to leave them.
    """

    shape: tuple[int, ...]
    before: tuple[int, ...] | None = None
    order: tuple[int, ...] | None = None

    def __call__(self, examples: Array) -> Array:
        """Rearrange (N, ...) examples; a view where that is possible."""
        count = len(examples)
        if self.before is not None:
            examples = examples.reshape(count, *self.before)
        if self.order is not None:
            examples = examples.transpose(0, *(axis + 1 for axis in self.order))
        return examples.reshape(count, *self.shape)

    def describe(self) -> str:
        """What it does, for people; empty when it does nothing but rename axes."""
        if self.order == _TO_FIRST:
            return "NHWC -> NCHW"
        if self.order == _TO_LAST:
            return "NCHW -> NHWC"
        return ""


def arrangements(
    data: Sequence[int], model: Sequence[int | None], layout: str = "auto"
) -> tuple[Arrangement, ...]:
    """Every way to make one example of the data an example for the model.

    Args:
        data: the sizes of one example, without the batch axis.
        model: the sizes the model declares, without the batch axis; None where any size will do.
        layout: one of `LAYOUTS`.

    Returns:
        The ways, all different in effect: none when the sizes cannot fit, several when `layout`
        has to decide.
    """
    have, want = tuple(data), tuple(model)
    if len(have) == len(want):
        return _same_rank(have, want, layout)
    if _ones(have, want):
        return _with_ones(have, want, layout)
    if len(want) == 1:
        return _flattened(have, want[0], layout)
    if len(have) == 1 and None not in want:
        return _unflattened(have[0], tuple(size for size in want if size is not None), layout)
    return ()


def _matches(have: Sequence[int], want: Sequence[int | None]) -> bool:
    return len(have) == len(want) and all(
        size is None or size == other for other, size in zip(have, want, strict=True)
    )


def _permuted(sizes: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sizes[axis] for axis in order)


def _channels_first(sizes: tuple[int, ...]) -> bool:
    return len(sizes) == 3 and sizes[0] in _CHANNELS and sizes[2] not in _CHANNELS


def _channels_last(sizes: tuple[int, ...]) -> bool:
    return len(sizes) == 3 and sizes[2] in _CHANNELS and sizes[0] not in _CHANNELS


def _same_rank(
    have: tuple[int, ...], want: tuple[int | None, ...], layout: str
) -> tuple[Arrangement, ...]:
    kept = (Arrangement(shape=have),) if _matches(have, want) else ()
    orders = {"auto": (_TO_FIRST, _TO_LAST), "nhwc": (_TO_FIRST,), "nchw": (_TO_LAST,), "none": ()}
    turned = tuple(
        Arrangement(shape=_permuted(have, order), order=order)
        for order in orders[layout]
        if len(have) == 3 and _matches(_permuted(have, order), want)
    )
    if not kept:
        return turned if len({way.shape for way in turned}) == len(turned) else turned[:1]
    if layout == "nhwc" and turned:
        return turned
    if layout != "auto" or not turned or None not in want or _channels_first(have):
        return kept
    # Both orders fit only because the model leaves sizes open. Turning channels-first data round
    # is never meant, because the model would have to be NHWC without saying so.
    return kept + tuple(way for way in turned if way.order == _TO_FIRST)


def _ones(have: tuple[int, ...], want: tuple[int | None, ...]) -> bool:
    return bool(_with_ones(have, want, "auto"))


def _with_ones(
    have: tuple[int, ...], want: tuple[int | None, ...], layout: str
) -> tuple[Arrangement, ...]:
    """Add or drop axes of size 1, which moves no value."""
    if None not in want:
        sizes = tuple(size for size in want if size is not None)
        same = [size for size in have if size != 1] == [size for size in sizes if size != 1]
        return (Arrangement(shape=sizes),) if same else ()
    first, last = (1, *have), (*have, 1)
    choices = {"nchw": (first,), "nhwc": (last,)}.get(layout, (first, last))
    dropped = tuple(have[:axis] + have[axis + 1 :] for axis, size in enumerate(have) if size == 1)
    fitting = dict.fromkeys(sizes for sizes in (*choices, *dropped) if _matches(sizes, want))
    return tuple(Arrangement(shape=sizes) for sizes in fitting)


def _flattened(have: tuple[int, ...], want: int | None, layout: str) -> tuple[Arrangement, ...]:
    size = math.prod(have)
    if want is not None and want != size:
        return ()
    kept = Arrangement(shape=(size,))
    # with one channel or one pixel both orders are the same
    if len(have) != 3 or have[2] in (1, size) or layout in ("nchw", "none"):
        return (kept,)
    turned = Arrangement(shape=(size,), order=_TO_FIRST)
    if layout == "nhwc":
        return (turned,)
    return (kept, turned) if _channels_last(have) else (kept,)


def _unflattened(have: int, want: tuple[int, ...], layout: str) -> tuple[Arrangement, ...]:
    if have != math.prod(want):
        return ()
    kept = Arrangement(shape=want)
    model = "nhwc" if _channels_last(want) else "nchw"
    channels = want[-1 if model == "nhwc" else 0]
    if len(want) != 3 or channels in (1, have) or layout == "none":
        return (kept,)
    order = _TO_LAST if model == "nhwc" else _TO_FIRST
    # `before` is what `order` turns into the model's sizes
    before = _permuted(want, _TO_FIRST if model == "nhwc" else _TO_LAST)
    turned = Arrangement(shape=want, before=before, order=order)
    if layout == "auto":
        return kept, turned
    return (kept,) if layout == model else (turned,)
