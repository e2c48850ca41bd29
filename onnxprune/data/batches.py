"""Batches in a reproducible order, converted ahead of time.

Entry: `batches`. One background thread converts the next few batches while the current one trains;
numpy and onnxruntime both release the interpreter lock, so the two overlap. `split_validation`
puts examples aside.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np

from onnxprune.base import Array, Index
from onnxprune.data.split import Split
from onnxprune.errors import ConfigError, DataError

__all__ = ["batches", "split_validation"]

_AHEAD = 3  # batches that wait ready; more would only cost memory
_SMALL = 1 << 18  # bytes; converting less than this is faster than waking a thread for it
_POLL = 0.05  # seconds after which a blocked thread looks whether it is still wanted


def batches(
    split: Split,
    size: int,
    *,
    rng: np.random.Generator | None = None,
    drop_last: bool = False,
    skip: int = 0,
) -> Iterator[dict[str, Array]]:
    """One pass over `split` in batches of `size` examples.

    The order is drawn from `rng` when this is called, not when the first batch is asked for, so
    that runs stay reproducible whatever else draws from the same generator. A reader that stops
    early ends the background thread by closing or dropping the iterator.

    Args:
        split: the examples.
        size: examples per batch, at least 1.
        rng: shuffles; None keeps the order.
        drop_last: leave out a last batch that is smaller than `size`.
        skip: batches of this pass that were seen before, and are left out.

    Raises:
        ConfigError: `size` is smaller than 1.
        DataError: `drop_last` would leave nothing.
    """
    count = len(split)
    if size < 1:
        raise ConfigError(f"--batch-size {size}: expected at least 1", size=size)
    if drop_last and count < size:
        raise DataError(
            f"{count} examples make no full batch of {size}; choose a smaller --batch-size",
            examples=count,
            size=size,
        )
    order = np.arange(count) if rng is None else rng.permutation(count)
    stop = count - count % size if drop_last else count
    chunks = [order[start : start + size] for start in range(skip * size, stop, size)]
    if not chunks or _batch_bytes(split, chunks[0]) < _SMALL:
        return (split.batch(chunk) for chunk in chunks)
    return _prefetched(split, chunks)


def _batch_bytes(split: Split, chunk: Index) -> int:
    return sum(array.nbytes for array in split.batch(chunk[:1]).values()) * len(chunk)


def _prefetched(split: Split, chunks: list[Index]) -> Iterator[dict[str, Array]]:
    ready: queue.Queue[dict[str, Array] | BaseException | None] = queue.Queue(_AHEAD)
    abandoned = threading.Event()

    def put(item: dict[str, Array] | BaseException | None) -> bool:
        while not abandoned.is_set():
            try:
                ready.put(item, timeout=_POLL)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for chunk in chunks:
                if not put(split.batch(chunk)):
                    return
            put(None)
        except BaseException as error:  # raised again in the thread that reads
            put(error)

    thread = threading.Thread(target=produce, name="onnxprune-batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        abandoned.set()
        thread.join()


def split_validation(
    split: Split, fraction: float, rng: np.random.Generator
) -> tuple[Split, Split]:
    """Put `fraction` of the examples aside: (rest, aside), both in their original order.

    With integer labels (N,) every class gives its share, and keeps at least one example.

    Raises:
        ConfigError: `fraction` is not in (0, 1).
        DataError: fewer than two examples.
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"--validation-fraction {fraction:g}: expected more than 0, less than 1")
    count = len(split)
    if count < 2:
        raise DataError(f"{count} examples cannot be split for validation; give --val", count=count)
    wanted = min(max(round(fraction * count), 1), count - 1)
    target = split.target
    if target is not None and target.ndim == 1 and target.dtype.kind in "biu":
        aside = _stratified(target, wanted, rng)
    else:
        aside = rng.permutation(count)[:wanted]
    chosen = np.zeros(count, dtype=bool)
    chosen[aside] = True
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen))


def _stratified(labels: Array, wanted: int, rng: np.random.Generator) -> Index:
    """`wanted` examples in which every class has its share, by largest remainder."""
    classes, numbers = np.unique(labels, return_inverse=True)
    sizes = np.bincount(numbers, minlength=len(classes))
    share = sizes * (wanted / len(labels))
    quota = np.minimum(np.floor(share).astype(np.int64), sizes - 1)
    # by remainder first, then by how many a class could still give
    for label in np.argsort(quota - share, kind="stable"):
        if quota.sum() < wanted and quota[label] < sizes[label] - 1:
            quota[label] += 1
    shuffled = rng.permutation(len(labels))
    chosen = [shuffled[numbers[shuffled] == label][: quota[label]] for label in range(len(classes))]
    picked = np.concatenate(chosen)
    return picked if len(picked) else shuffled[:1]
