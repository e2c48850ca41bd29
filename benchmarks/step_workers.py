"""Both sides of `step_time.py`: a worker process that steps when told, and the one that tells it.

A worker answers every line "n" on its input with one line of JSON: seconds of each of n steps, the
losses, and its peak memory. It imports nothing but the standard library, as it runs in two
environments.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

RATE, MOMENTUM = 0.01, 0.9
Step: TypeAlias = Callable[[], float]


def serve(step: Step) -> None:
    """Answer until the input ends."""
    print("ready", flush=True)
    for line in sys.stdin:
        times, losses = [], []
        for _ in range(int(line)):
            start = time.perf_counter()
            losses.append(step())
            times.append(time.perf_counter() - start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB; kB on Linux
        print(json.dumps({"times": times, "losses": losses, "peak": peak}), flush=True)


class Worker:
    """A process that serves."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def started(self) -> bool:
        """Whether it got as far as serving; waits for that."""
        assert self.process.stdout is not None
        return any(line.strip() == "ready" for line in self.process.stdout)

    def run(self, count: int) -> dict[str, Any]:
        """The answer to `count` steps; KeyError-free but empty where the worker died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{count}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return {}
        line = self.process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {}
        return found

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
