"""How often a run writes checkpoints."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxprune.errors import ConfigError

__all__ = ["Cadence", "parse_cadence"]

_CADENCE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(epoch|step|min)(?:s|utes?)?")
_STRIDE = 500  # steps between the candidates of rounds that draw random numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """How often checkpoints are written; exactly one is set, or none for never.

    Attributes:
        epochs, steps: at their multiples.
        seconds: after so many, and no more often than takes 3 % of the time.
    """

    epochs: int | None = None
    steps: int | None = None
    seconds: float | None = None

    def stride(self, epoch_steps: int, *, draws: bool) -> int:
        """Steps between candidates, in a round that draws random numbers or in another."""
        if self.epochs is not None:
            return self.epochs * epoch_steps
        return self.steps or (_STRIDE if draws else 1)


def parse_cadence(text: str) -> Cadence:
    """Read "2epochs", "500steps", "10min" or "never".

    Raises:
        ConfigError: anything else.
    """
    match = _CADENCE.fullmatch(text.strip())
    if text.strip() == "never":
        return Cadence()
    count = 0.0 if match is None else float(match[1])
    if match is None or count <= 0 or (match[2] != "min" and count != int(count)):
        raise ConfigError(
            f"--checkpoint-every {text}: expected such as 1epoch, 500steps, 10min, or never",
            value=text,
        )
    if match[2] == "min":
        return Cadence(seconds=60 * count)
    return Cadence(epochs=int(count)) if match[2] == "epoch" else Cadence(steps=int(count))
