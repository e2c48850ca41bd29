"""Ctrl-C and SIGTERM that wait for the end of a step, so that what they leave is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

__all__ = ["Interruption", "deferred"]


class Interruption:
    """What came in the meantime.

    Attributes:
        number: of the first signal; None while none came.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    @property
    def is_termination(self) -> bool:
        """Whether the process is to end, not only the training."""
        return self.number == signal.SIGTERM

    def __bool__(self) -> bool:
        return self.number is not None


@contextlib.contextmanager
def deferred() -> Iterator[Interruption]:
    """Yields what tells whether Ctrl-C or SIGTERM came; the second one interrupts at once.

    Where somebody else handles a signal already, and outside the main thread, nothing changes.
    """
    came = Interruption()
    usual: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def come(number: int, frame: FrameType | None) -> None:
        if not came:
            came.number = number
        elif number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        else:
            signal.default_int_handler(number, frame)

    ours = [number for number, handler in usual.items() if signal.getsignal(number) is handler]
    for number in ours:
        signal.signal(number, come)
    try:
        yield came
    finally:
        for number in ours:
            signal.signal(number, usual[number])
