"""What a one-shot removal was asked to do, checked once: `PruneConfig`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnxprune.data import LAYOUTS
from onnxprune.errors import ConfigError
from onnxprune.methods.allocation import CHOICES, settled_allocation
from onnxprune.methods.importance import WITHOUT_GRADIENTS
from onnxprune.rewrite.residual import RESIDUALS
from onnxprune.training.config import PROVIDERS, check_pattern
from onnxprune.training.target import Target, parse_target

__all__ = ["VERIFICATIONS", "PruneConfig"]

VERIFICATIONS = ("auto", "whole", "parts", "off")
"""What `--verify` takes: parts runs the models stretch by stretch, with little of them in memory;
auto is whole for models of up to 1.9 GB and parts for larger ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneConfig:
    """All options of a one-shot removal.

    One of `target` (or `max_drop`), `lossless` and `recipe` is set.

    Attributes:
        target: what should remain, as `parse_target` reads it.
        max_drop: by how much the metric on the user's labels may fall, in the metric's own unit;
            less goes than the target asks for where that would cost more. Without a target, as
            many parameters go as that allows.
        lossless: remove what changes nothing, and no more.
        recipe: path of a recipe whose removal is repeated.
        importance: a name in `WITHOUT_GRADIENTS`, for a target; None for variance with data,
            magnitude without.
        allocation: one of `allocation.CHOICES`, for a target.
        round_to: groups that lose units keep a multiple of this many.
        residual: one of `rewrite.residual.RESIDUALS`: whether what shortcuts pass on may lose other
            channels than the blocks they pass; "decouple" only where the result is faster by it.
        keep: regular expression searched in group names; these groups lose no unit.
        only: regular expression searched in group names; all other groups lose no unit.
        compensate: with data, let the consumers of removed units take over their means.
        verify: a name in `VERIFICATIONS`: how what is left is compared with what it should compute.
        strict: refuse to write a model that misses the target.
        metadata: whether the recipe is also written into the model.
        input_shapes: sizes by input name, for axes the model leaves open.
        scale, mean, std, layout: how data becomes input, as `onnxprune.data.fit` takes them.
        seed: of random scores and made-up inputs.
        provider: where to compute.
        threads: of the runtime; None lets it choose.
    """

    target: str | None = None
    max_drop: float | None = None
    lossless: bool = False
    recipe: str | None = None
    importance: str | None = None
    allocation: str = "auto"
    round_to: int = 1
    residual: str = "coupled"
    keep: str | None = None
    only: str | None = None
    compensate: bool = True
    verify: str = "auto"
    strict: bool = False
    metadata: bool = True
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    scale: float | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    layout: str = "auto"
    seed: int = 0
    provider: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_work()
        for name, number in (("round-to", self.round_to), ("threads", self.threads)):
            if number is not None and number < 1:
                raise ConfigError(f"--{name} {number}: expected at least 1", value=number)
        if self.seed < 0:
            raise ConfigError(f"--seed {self.seed}: expected at least 0", value=self.seed)
        for name, sizes in self.input_shapes.items():
            if not sizes or any(size < 1 for size in sizes):
                raise ConfigError(f"--input-shape {name}: expected sizes of at least 1")

    def _check_choices(self) -> None:
        choices = {
            "importance": (self.importance, WITHOUT_GRADIENTS),
            "allocation": (self.allocation, CHOICES),
            "layout": (self.layout, LAYOUTS),
            "verify": (self.verify, VERIFICATIONS),
            "residual": (self.residual, RESIDUALS),
            "provider": (self.provider, PROVIDERS),
        }
        for name, (value, allowed) in choices.items():
            if value is not None and value not in allowed:
                raise ConfigError(f"--{name} {value}: expected one of {', '.join(allowed)}")
        for name, pattern in (("keep", self.keep), ("only", self.only)):
            check_pattern(name, pattern)

    def _check_work(self) -> None:
        """Just one thing to do."""
        asked = {
            "--target": self.target is not None,
            "--max-drop": self.max_drop is not None and self.target is None,
            "--lossless": self.lossless,
            "--recipe": self.recipe is not None,
        }
        given = [name for name, is_set in asked.items() if is_set]
        if not given:
            raise ConfigError(
                "nothing to do: give --target params=50% (or macs=50%, latency=50%), --max-drop 1% "
                "with --data, --lossless, or --recipe F"
            )
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} exclude each other; choose one")
        if self.lossless and self.verify in ("parts", "off"):
            raise ConfigError(
                f"--lossless compares whole models on all data; leave out --verify {self.verify}"
            )
        if self.recipe is not None and (self.keep is not None or self.only is not None):
            raise ConfigError("--recipe repeats a removal as it is; leave out --keep and --only")
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise ConfigError(f"--max-drop {self.max_drop}: expected a number, at least 0")
        if self.target is not None:
            parse_target(self.target)

    @property
    def allocated(self) -> str:
        """The allocation that is used: a key of `ALLOCATIONS`."""
        goal = self.goal
        return settled_allocation(self.allocation, None if goal is None else goal.kind)

    @property
    def goal(self) -> Target | None:
        """The target as data."""
        return None if self.target is None else parse_target(self.target)
