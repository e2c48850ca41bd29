"""Ctrl-C that waits for the end of a step, so that what it leaves is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["deferred"]


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Yields what tells whether Ctrl-C was pressed; the second one interrupts at once.

    Where somebody else handles the signal already, and outside the main thread, nothing changes.
    """
    pressed = threading.Event()
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield pressed.is_set
        return

    def press(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            signal.default_int_handler(number, frame)
        pressed.set()

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
