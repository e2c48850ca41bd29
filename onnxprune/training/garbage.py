"""Python's garbage collector, kept out of the way while graphs are rebuilt."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["uncollected"]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Nothing is collected inside; a collector that was off stays off behind it.

    A removal makes tens of thousands of small objects and soon drops them. That starts the
    collector again and again, and what it walks is all of the process.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
