"""How much of a model is to remain: what `--target` says, as data."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from onnxprune.errors import ConfigError

__all__ = ["Target", "parse_target"]

_TARGET = re.compile(
    r"(params|macs)\s*=\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|[kKMGB]?)"
    r"|(latency)\s*=\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|us|ms|s)"
)
_MULTIPLES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9}
_NANOSECONDS = {"us": 10**3, "ms": 10**6, "s": 10**9}
_KINDS = ("params", "macs", "latency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How much of the model is to remain; exactly one of the two sizes is set.

    Attributes:
        kind: "params", "macs" or "latency", the time of one batch.
        fraction: of what the model has at the start, in (0, 1).
        absolute: a number of parameters, multiply-accumulates or nanoseconds, at least 1.
    """

    kind: str
    fraction: float | None = None
    absolute: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigError(
                f"target {self.kind!r}: expected one of {', '.join(_KINDS)}", kind=self.kind
            )
        if (self.fraction is None) == (self.absolute is None):
            raise ConfigError(f"target {self.kind}: expected a fraction or a number, not both")
        if self.fraction is not None and not 0.0 < self.fraction < 1.0:
            raise ConfigError(
                f"target {self}: what remains must be more than 0% and less than 100%",
                fraction=self.fraction,
            )
        if self.absolute is not None and self.absolute < 1:
            raise ConfigError(f"target {self}: expected at least 1", absolute=self.absolute)

    def __str__(self) -> str:
        if self.fraction is not None:
            return f"{self.kind}={self.fraction * 100:.6g}%"
        if self.kind == "latency":
            return f"latency={(self.absolute or 0) / 1e6:.6g}ms"
        return f"{self.kind}={self.absolute}"

    def limit(self, before: int) -> int:
        """What may remain of `before` parameters, multiply-accumulates or nanoseconds."""
        if self.fraction is not None:
            return max(math.floor(self.fraction * before), 1)
        return min(self.absolute or before, before)


def parse_target(text: str) -> Target:
    """Read "params=30%", "macs=1.5M", "latency=50%" or "latency=2ms"; given is what remains.

    Raises:
        ConfigError: anything else.
    """
    match = _TARGET.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"--target {text}: expected what should remain, such as params=30%, macs=50%, "
            "params=100k, latency=50% or latency=2ms",
            target=text,
        )
    kind, number, suffix = [part for part in match.groups() if part is not None]
    if suffix == "%":
        return Target(kind=kind, fraction=float(number) / 100)
    absolute = float(number) * (_NANOSECONDS if kind == "latency" else _MULTIPLES)[suffix]
    if absolute < 1:
        raise ConfigError(
            f"--target {text}: less than one; write {kind}={float(number) * 100:g}% for a share",
            target=text,
        )
    return Target(kind=kind, absolute=round(absolute))
