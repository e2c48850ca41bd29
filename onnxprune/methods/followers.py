"""Units that follow each other on a sample, whatever computes them: duplicates found in the data.

Of a victim j and a survivor i of a group, a_j is about alpha a_i + beta, by least squares over all
examples and positions; the survivor takes over alpha v_j, and the consumers' biases beta v_j. It
needs no rule for what lies between the weights and the consumers, so that it finds duplicates
behind compositions such as x * sigmoid(x) or a GELU written with Erf, too. What it finds holds on
the sample; nothing is promised elsewhere. `correlation` is a method of its own on the same idea.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.base import Axis, Floats, Index, Observations
from onnxprune.methods.candidates import Merging, Reader

__all__ = ["either", "followers", "observable"]

_LARGEST = 4096  # indices of an axis: all pairs are 128 MiB
_NOISE = 1e-5  # of the mean square: a variance below it may be rounding


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Products:
    """Second moments of the units of a group at one consumer, positions taken together.

    Attributes:
        mean, low, high: (U,) of each unit.
        covariance: (U, U).
    """

    mean: Floats
    low: Floats
    high: Floats
    covariance: Floats

    @classmethod
    def of(cls, part: Reader, seen: Observations) -> _Products | None:
        """From what was observed; None where PAIRS was not."""
        window = seen[part.consumer.axis]
        if window.pairs is None:
            return None
        assert window.total is not None
        assert window.low is not None
        assert window.high is not None
        count, index = max(window.count, 1), part.index
        mean = (window.total / count)[index].mean(axis=1)
        places = [window.pairs[np.ix_(own, own)] / count for own in index.T]
        square = np.mean(places, axis=0)
        covariance = square - np.outer(mean, mean)
        still = np.diag(covariance) <= _NOISE * np.diag(square)
        covariance[still], covariance[:, still] = 0.0, 0.0
        low, high = window.low[index].min(axis=1), window.high[index].max(axis=1)
        return cls(mean=mean, low=low, high=high, covariance=covariance)


def observable(parts: Sequence[Reader], sizes: Sequence[int | None]) -> list[Axis]:
    """Axes of consumers that are small enough for all pairs of their indices.

    Args:
        parts: the consumers.
        sizes: of their axes.
    """
    found = zip(parts, sizes, strict=True)
    return [part.consumer.axis for part, size in found if size is not None and size <= _LARGEST]


def followers(parts: Sequence[Reader], seen: Observations, least: float) -> Merging | None:
    """For every unit the survivor whose multiple comes closest, where it explains enough of it.

    Args:
        parts: the consumers of a group.
        seen: ranges, means and pairs there; None is said where a consumer lacks pairs.
        least: correlation from which on a unit counts as following another one, in [0, 1].
    """
    products = [_Products.of(part, seen) for part in parts]
    found = [own for own in products if own is not None]
    count = len(parts[0].index)
    if count < 2 or len(found) < len(parts):
        return None
    through_zero = any(part.padded for part in parts)  # an offset does not pass zero padding
    scale, offset = _fit(found[0], through_zero=through_zero)
    error = np.zeros((count, count))
    follows = np.ones((count, count), np.bool_)
    for part, own in zip(parts, found, strict=True):
        variance = np.diag(own.covariance)
        rest = _rest(own, scale, offset)
        follows &= (variance[:, None] > 0) & (rest <= (1 - least**2) * variance[:, None])
        size = np.sqrt(part.power) or 1.0
        strength = np.sqrt((part.strength**2).sum(axis=1)) / size
        error = np.maximum(error, strength[:, None] * np.sqrt(rest))
    np.fill_diagonal(follows, val=False)
    error = np.where(follows, error, np.inf)
    survivor = error.argmin(axis=1)
    victims = np.arange(count)
    best = error[victims, survivor]
    known = np.isfinite(best)
    factors, shifts = scale[victims, survivor], offset[victims, survivor]
    return Merging(
        survivor=np.where(known, survivor, -1).astype(np.int64),
        scale=np.where(known, factors, 0.0),
        offset=np.where(known, shifts, 0.0),
        error=best,
        bound=np.where(known, _bound(parts, found, survivor, factors, shifts), np.inf),
        exact=np.zeros(count, np.bool_),
    )


def _fit(own: _Products, *, through_zero: bool) -> tuple[Floats, Floats]:
    """Alpha and beta of all victims (rows) and survivors (columns); NaN-free, 0 where undefined."""
    products_ = own.covariance
    if through_zero:
        products_ = products_ + np.outer(own.mean, own.mean)
    power = np.diag(products_)
    scale = np.divide(products_, power, out=np.zeros_like(products_), where=power > 0)
    if through_zero:
        return scale, np.zeros_like(scale)
    return scale, own.mean[:, None] - scale * own.mean[None, :]


def _rest(own: _Products, scale: Floats, offset: Floats) -> Floats:
    """(victims, survivors) mean square of a_j - alpha a_i - beta."""
    variance = np.diag(own.covariance)
    shift = own.mean[:, None] - scale * own.mean[None, :] - offset
    rest = variance[:, None] - 2 * scale * own.covariance + scale**2 * variance[None, :] + shift**2
    return np.maximum(rest, 0.0)


def _bound(
    parts: Sequence[Reader],
    found: Sequence[_Products],
    survivor: Index,
    scale: Floats,
    offset: Floats,
) -> Floats:
    """(U,) largest relative change that the ranges of both units allow."""
    bound = np.zeros(len(scale))
    for part, own in zip(parts, found, strict=True):
        ends = np.stack([scale * own.low[survivor], scale * own.high[survivor]])
        low, high = ends.min(axis=0) + offset, ends.max(axis=0) + offset
        largest = np.maximum(own.high - low, high - own.low)
        size = np.sqrt(part.power) or 1.0
        bound = np.maximum(bound, part.reach.sum(axis=1) / size * largest)
    return bound


def either(first: Merging | None, second: Merging | None) -> Merging | None:
    """Per unit the survivor of the two that costs less; exact ones cost nothing."""
    if first is None or second is None:
        return second if first is None else first
    better = ~first.exact & (second.error < first.error)
    return Merging(
        survivor=np.where(better, second.survivor, first.survivor),
        scale=np.where(better, second.scale, first.scale),
        offset=np.where(better, second.offset, first.offset),
        error=np.where(better, second.error, first.error),
        bound=np.where(better, second.bound, first.bound),
        exact=first.exact & ~better,
    )
