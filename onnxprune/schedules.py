"""Schedules: functions from a step to a factor of a base value, such as the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from onnxprune.errors import ConfigError

__all__ = ["SPARSITY", "WARM", "Schedule", "constant", "cosine", "one_cycle", "step"]

Schedule: TypeAlias = Callable[[int], float]


WARM = 0.3
"""Share of a one-cycle's steps that go up, as optax has it."""


def constant() -> Schedule:
    """1 at every step."""
    return lambda _: 1.0


def cosine(total: int, *, final: float = 0.0) -> Schedule:
    """From 1 to `final` along half a cosine (Loshchilov and Hutter, arXiv:1608.03983, eq. 5).

    final + (1 - final) * (1 + cos(pi * t / total)) / 2, and `final` from step `total` on.

    Args:
        total: steps.
        final: factor at the end.
    """
    _positive("total", total)

    def schedule(t: int) -> float:
        return final + (1 - final) * (1 + math.cos(math.pi * min(t, total) / total)) / 2

    return schedule


def one_cycle(
    total: int, *, warm: float = WARM, start: float = 25.0, final: float = 1e4
) -> Schedule:
    """Up to 1 and down again along two half cosines: optax.cosine_onecycle_schedule with peak 1.

    v0 = 1 / start, v2 = 1 / (start * final), b = int(warm * total)
    t <= b:  (v0 + 1) / 2 + (v0 - 1) / 2 * cos(pi * t / b)
    t > b:   (1 + v2) / 2 + (1 - v2) / 2 * cos(pi * (t - b) / (total - b)), and v2 from `total` on

    Args:
        total: steps.
        warm: share of the steps that go up, in (0, 1).
        start: the first factor is 1 / start.
        final: the last factor is 1 / (start * final).
    """
    _positive("total", total)
    if not 0 < warm < 1:
        raise ConfigError(f"warm: expected a share in (0, 1), got {warm}")
    first, last, peak = 1 / start, 1 / (start * final), int(warm * total)

    def schedule(t: int) -> float:
        if t <= peak and peak > 0:
            return (first + 1) / 2 + (first - 1) / 2 * math.cos(math.pi * t / peak)
        share = (min(t, total) - peak) / (total - peak)
        return (1 + last) / 2 + (1 - last) / 2 * math.cos(math.pi * share)

    return schedule


def step(at: Sequence[int], *, factor: float = 0.1) -> Schedule:
    """Multiplied by `factor` at each of the steps `at`."""
    milestones = sorted(at)
    return lambda t: factor ** sum(t >= milestone for milestone in milestones)


def _one_cycle_sparsity(t: float) -> float:
    """Slow, then fast, then slow (Hubens et al. 2021, arXiv:2107.02086, alpha 14 and beta 5)."""
    alpha, beta = 14.0, 5.0
    return (1 + math.exp(beta - alpha)) / (1 + math.exp(beta - alpha * t)) if t > 0 else 0.0


SPARSITY: Mapping[str, Callable[[float], float]] = {
    "cubic": lambda t: 1 - (1 - t) ** 3,  # Zhu and Gupta 2017, arXiv:1710.01878, eq. 1
    "linear": lambda t: t,
    "one-cycle": _one_cycle_sparsity,
    "one-shot": lambda t: 1.0 if t > 0 else 0.0,
}
"""Share of all removals that should be done, by the share t in [0, 1] of the time for them."""


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name}: expected 1 or more steps, got {value}")
