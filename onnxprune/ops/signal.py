"""Signals: Fourier transforms, windows, filter banks; positions and frequencies mean something."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.base import Fact
from onnxprune.ops.registry import View, couples

_WINDOWS = ("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix")


@couples("DFT")
def dft(view: View) -> Iterator[Fact]:
    """Couple all axes but that of the signal and that of real and imaginary parts.

    Forward:  y[..., k, ...] = sum_n x[..., n, ...] exp(-2 pi i k n / N) along `axis`
    Couples:  (x, p)[i] <-> (y, p)[i] on the other axes
    """
    x, y = view.input(0), view.output()
    rank = len(view.shape(x))
    axis = _along(view) % rank if _along(view) is not None else None  # type: ignore[operator]
    for position in range(rank):
        if axis is None or position in (axis, rank - 1):
            yield from view.fixed(x, position)
            yield from view.fixed(y, position)
        else:
            yield from view.equal(view.axis(x, position), view.axis(y, position))


def _along(view: View) -> int | None:
    """The axis of the signal: an attribute before opset 20, then an input; None where computed."""
    if view.opset < 20:
        return int(view.attribute("axis", 1))
    given = view.constant(2)
    if view.input(2) is None:
        return -2
    return None if given is None else int(given.reshape(-1)[0])


@couples("STFT")
def stft(view: View) -> Iterator[Fact]:
    """Couple the examples; frames and frequencies are made of all of a signal.

    Forward:  y[n, frame, k] = DFT of x[n, frame * step ...] * window
    Couples:  x.N <-> y.N
    """
    x, y = view.input(0), view.output()
    yield from view.equal(view.axis(x, 0), view.axis(y, 0))
    for value in (x, y):
        yield from view.fixed(value, *range(1, len(view.shape(value))))
    window = view.input(2)
    if window is not None:
        yield from view.fixed(window, 0)


@couples(*_WINDOWS)
def window(view: View) -> Iterator[Fact]:
    """Freeze what is made: one number per position, or per pair of frequencies.

    Forward:  y[n] = window function at n
    Couples:  nothing
    """
    y = view.output()
    yield from view.fixed(y, *range(len(view.shape(y))))
