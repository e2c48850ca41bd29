"""Examples for a model, converted when they are asked for.

What `fit` hands out: `Split` keeps the raw arrays and one `Conversion` per input, and converts a
batch at a time, so that memory stays near that of the raw arrays. Nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from onnxprune.base import Array, Floats, Index
from onnxprune.data.layout import Arrangement

__all__ = ["TARGET", "Conversion", "Data", "InputSpec", "Split"]

TARGET = "onnxprune.target"
"""The key of the target in a batch; further ones are called TARGET/name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """An input of a model: its name, its dtype, and its sizes with the batch axis first.

    A size is None where the model takes any.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("N" if size is None else str(size) for size in self.shape)
        return f"{self.dtype} ({sizes})"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Conversion:
    """How raw examples become one input: rearranged, then (x * scale - mean) / std.

    Attributes:
        arrangement: None to leave the axes as they are.
        dtype: of the input; None for that of the data.
        scale: factor; 1 leaves the values alone.
        mean, std: broadcast against one example; None to leave out.
    """

    arrangement: Arrangement | None = None
    dtype: np.dtype[Any] | None = None
    scale: float = 1.0
    mean: Floats | None = None
    std: Floats | None = None

    def __call__(self, raw: Array) -> Array:
        """Convert (N, ...) raw examples to a contiguous array."""
        examples = raw if self.arrangement is None else self.arrangement(raw)
        if self.scale == 1.0 and self.mean is None and self.std is None:
            return np.ascontiguousarray(examples, dtype=self.dtype)
        working = np.float64 if self.dtype == np.float64 else np.float32
        scaled = np.multiply(examples, working(self.scale), dtype=working)
        if self.mean is not None:
            scaled -= self.mean.astype(working)
        if self.std is not None:
            scaled /= self.std.astype(working)
        return np.ascontiguousarray(scaled, dtype=self.dtype)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Split:
    """Examples for a model, converted when they are asked for.

    Attributes:
        sources: per input name, the raw array.
        target: (N, ...) in the order of the examples, None when there is none.
        others: (N, ...) further targets by name, in the order of the examples.
        conversions: per input name, what turns raw examples into the input; absent: nothing.
        rows: (N,) which examples of the sources these are; None for all of them.
    """

    sources: Mapping[str, Array]
    target: Array | None = None
    others: Mapping[str, Array] = field(default_factory=dict)
    conversions: Mapping[str, Conversion] = field(default_factory=dict)
    rows: Index | None = None

    def __len__(self) -> int:
        return len(next(iter(self.sources.values()))) if self.rows is None else len(self.rows)

    @property
    def inputs(self) -> dict[str, Array]:
        """All examples by input name, converted at once: for small data only."""
        return self._convert(self.rows)

    def batch(self, indices: ArrayLike) -> dict[str, Array]:
        """The examples at `indices` (n,) by input name, and their targets (`TARGET`)."""
        chosen = np.asarray(indices, dtype=np.int64)
        batch = self._convert(chosen if self.rows is None else self.rows[chosen])
        if self.target is not None:
            batch[TARGET] = self.target[chosen]
        return batch | {f"{TARGET}/{name}": array[chosen] for name, array in self.others.items()}

    def take(self, indices: ArrayLike) -> Split:
        """The same examples reduced to `indices` (n,), in that order; copies no input."""
        chosen = np.asarray(indices, dtype=np.int64)
        rows = chosen if self.rows is None else self.rows[chosen]
        return replace(
            self,
            rows=rows,
            target=None if self.target is None else self.target[chosen],
            others={name: array[chosen] for name, array in self.others.items()},
        )

    def _convert(self, rows: Index | None) -> dict[str, Array]:
        return {
            name: self.conversions.get(name, Conversion())(array if rows is None else array[rows])
            for name, array in self.sources.items()
        }


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Data:
    """Data that fits a model.

    Attributes:
        notes: what was decided on the way, one sentence each.
    """

    train: Split
    validation: Split | None = None
    test: Split | None = None
    notes: tuple[str, ...] = ()
