"""What a run was asked to do, checked once.

Entry: `RunConfig`, whose fields are the keyword arguments of `onnxprune.train` and the options of
`onnxprune train`. It holds only what can be written to JSON and back, so that a run directory says
exactly how to repeat the run. Nothing here looks at a model or at data.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from onnxprune import schedules
from onnxprune.errors import ConfigError
from onnxprune.methods import METHODS, Pruner, make
from onnxprune.rewrite.residual import RESIDUALS, SHORTCUT
from onnxprune.training.cadence import parse_cadence
from onnxprune.training.loss_spec import Loss, parse_loss
from onnxprune.training.target import Target, parse_target

__all__ = [
    "BATCH_NORM",
    "CHECKS",
    "OPTIMIZERS",
    "PROVIDERS",
    "SCHEDULES",
    "TARGET_SCHEDULES",
    "RunConfig",
    "check_pattern",
    "option_name",
]

OPTIMIZERS: Mapping[str, float] = {"adam": 1e-3, "adamw": 1e-3, "momentum": 1e-2, "sgd": 1e-2}
"""The optimizers, each with the learning rate it gets when none is given."""

SCHEDULES = ("constant", "cosine", "one-cycle", "step")
BATCH_NORM = ("train", "frozen")
PROVIDERS = ("cpu", "cuda")
CHECKS = ("on", "off")

TARGET_SCHEDULES = tuple(schedules.SPARSITY)

_MULTIPLE = 8  # of widths

_CHOICES = {
    "target_schedule": TARGET_SCHEDULES,
    "optimizer": tuple(OPTIMIZERS),
    "schedule": SCHEDULES,
    "batch_norm": BATCH_NORM,
    "provider": PROVIDERS,
    "check": CHECKS,
    "residual": RESIDUALS,
    "layout": ("auto", "nchw", "nhwc", "none"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """All options of a training run.

    Attributes:
        method: a name in `onnxprune.methods.METHODS`.
        method_options: arguments of that method, by name.
        epochs: passes over the training data.
        target: what should remain, as `parse_target` reads it; None leaves it to the method.
        target_schedule: how removal proceeds towards the target, one of `TARGET_SCHEDULES`.
        batch_size: examples per pass through the model.
        accumulate: passes per optimizer step, whose gradients are averaged over the examples,
            however many of their labels are ignored.
        learning_rate: the largest of the schedule; None chooses by optimizer (`rate`).
        optimizer: a key of `OPTIMIZERS`.
        momentum: in [0, 1), for the optimizer "momentum".
        weight_decay: >= 0; decoupled for adamw, part of the gradient otherwise.
        decay_vectors: whether biases and scales (rank 1 and less) decay as well.
        clip: largest global norm of the gradients; None for no limit.
        clip_value: largest magnitude of an element of a gradient, cut before `clip`; None for no
            limit.
        ema: decay of the exponential moving average of weights and running statistics, in [0, 1);
            evaluated and saved is the average then. None for none.
        schedule: of the learning rate, one of `SCHEDULES`.
        loss: what is minimized: a term as text (`loss_spec`) or as a `Loss`, or several, which are
            added up. "auto" finds the loss from the output and the targets.
        output_name: the graph output that terms read which name none; None to find it.
        batch_norm: "train" uses the statistics of the batch and updates the running ones,
            "frozen" uses the running ones.
        scale, mean, std, layout: how data becomes input, as `onnxprune.data.fit` takes them.
        input_shapes: sizes by input name, for axes the model leaves open.
        train_params, freeze: regular expressions searched in parameter names.
        keep: regular expression searched in group names; these groups lose no unit.
        validation_fraction: in [0, 1), of the training data when no validation data is given.
        patience: epochs without improvement after which training ends; None for never.
        max_drop: by how much the validation metric may fall below that of the model given, in
            the metric's own unit (0.01 of accuracy: one percentage point); None for no limit.
        seed: of everything random.
        provider: where to compute, one of `PROVIDERS`.
        threads: of the runtime; None lets it choose.
        check: "on" lets a child process do the first step of every new kind of graph, so that a
            crash of the engine is an error; "off" saves the second that takes.
        run_directory: where records go; None for a new folder runs/<model>-<n>.
        checkpoint_every: when a checkpoint is written, as `parse_cadence` reads it.
        keep_checkpoints: how many are kept, at least 1.
        prune_interval: steps between removals; None leaves it to the method.
        round_to: groups that lose units keep a multiple of this many, or fewer than this many;
            1 for any number; None for 8 with a target and 1 without, where units go as the loss
            allows and few at a time. Convolutions are blocked by 8 or 16 channels: with 8,
            digits_vgg at 40 % of its parameters ran 1.26 times as fast as with 1, digits_lenet 1.38
            times (medians, batch 32), at the same accuracy within one example.
        residual: one of `rewrite.residual.RESIDUALS`: whether what shortcuts pass on may lose other
            channels than the blocks they pass; "decouple" only where models get faster by it.
    """

    method: str = "apoptosis"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 30
    target: str | None = None
    target_schedule: str = "cubic"
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float | None = None
    optimizer: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay_vectors: bool = False
    clip: float | None = None
    clip_value: float | None = None
    ema: float | None = None
    schedule: str = "cosine"
    loss: str | Loss | Sequence[str | Loss] = "auto"
    output_name: str | None = None
    batch_norm: str = "train"
    scale: float | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    layout: str = "auto"
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    train_params: str | None = None
    freeze: str | None = None
    keep: str | None = None
    validation_fraction: float = 0.1
    patience: int | None = None
    max_drop: float | None = None
    seed: int = 0
    provider: str = "cpu"
    threads: int | None = None
    check: str = "on"
    run_directory: str | None = None
    checkpoint_every: str = "2min"
    keep_checkpoints: int = 2
    prune_interval: int | None = None
    round_to: int | None = None
    residual: str = "coupled"

    def __post_init__(self) -> None:
        for name, choices in {**_CHOICES, "method": tuple(METHODS)}.items():
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(
                    f"{option_name(name)} {value}: expected one of {', '.join(choices)}",
                    option=name,
                )
        for name in (
            "epochs",
            "batch_size",
            "accumulate",
            "threads",
            "patience",
            "prune_interval",
            "round_to",
        ):
            _check_number(name, getattr(self, name), low=1, integer=True)
        _check_number("seed", self.seed, low=0, integer=True)
        _check_number("momentum", self.momentum, low=0, below=1)
        _check_number("ema", self.ema, low=0, below=1)
        _check_number("validation_fraction", self.validation_fraction, low=0, below=1)
        for name in ("weight_decay", "max_drop"):
            _check_number(name, getattr(self, name), low=0)
        for name in ("learning_rate", "clip", "clip_value"):
            _check_number(name, getattr(self, name), above=0)
        for name in ("train_params", "freeze", "keep"):
            check_pattern(name, getattr(self, name))
        for name, sizes in self.input_shapes.items():
            if not sizes or any(size < 1 for size in sizes):
                raise ConfigError(f"--input-shape {name}: expected sizes of at least 1")
        _check_number("keep_checkpoints", self.keep_checkpoints, low=1, integer=True)
        parse_cadence(self.checkpoint_every)
        if self.target is not None:
            parse_target(self.target)
        _ = self.losses
        self._check_together(make(self.method, self.method_options))

    def _check_together(self, pruner: Pruner | None) -> None:
        """Refuse what does nothing, or nothing yet, without another option."""
        if self.target is None and pruner is not None and pruner.needs_target:
            raise ConfigError(
                f"--method {self.method}: removes what matters least, and has to be told how much; "
                "give --target params=50% or the like",
                option="method",
            )
        if self.target is not None and (pruner is None or not pruner.removes):
            raise ConfigError(
                f"--target {self.target}: --method {self.method} removes nothing; leave the target "
                "out, or choose another method",
                option="target",
            )
        defaults = {entry.name: entry.default for entry in fields(self)}
        for name, is_met, needed in (
            ("momentum", self.optimizer == "momentum", "--optimizer momentum"),
            ("decay_vectors", self.weight_decay != 0, "--weight-decay"),
            ("target_schedule", self.target is not None, "--target"),
        ):
            if not is_met and getattr(self, name) != defaults[name]:
                raise ConfigError(
                    f"{option_name(name)}: does nothing without {needed}; add that or leave it out",
                    option=name,
                )

    @property
    def losses(self) -> tuple[Loss, ...]:
        """The terms of the loss as data."""
        terms = (self.loss,) if isinstance(self.loss, str | Loss) else tuple(self.loss)
        if not terms:
            raise ConfigError("--loss: expected at least one term, such as auto", option="loss")
        return tuple(parse_loss(term) if isinstance(term, str) else term for term in terms)

    @property
    def files(self) -> tuple[str, ...]:
        """What is read beside model and data: the losses that are files."""
        return tuple(loss.kind for loss in self.losses if loss.is_custom)

    @property
    def multiple(self) -> int:
        """What widths are rounded to."""
        if self.round_to is None:
            return 1 if self.target is None else _MULTIPLE
        return self.round_to

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        return OPTIMIZERS[self.optimizer] if self.learning_rate is None else self.learning_rate

    @property
    def frozen(self) -> str | None:
        """The pattern of constants that are not trained."""
        if self.residual == "coupled":
            return self.freeze
        return SHORTCUT if self.freeze is None else f"(?:{self.freeze})|{SHORTCUT}"

    @property
    def goal(self) -> Target | None:
        """The target as data."""
        return None if self.target is None else parse_target(self.target)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them, with what is used where nothing was said."""
        plain = {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}
        losses = [str(_placed(loss)) for loss in self.losses]
        return plain | {"learning_rate": self.rate, "loss": losses, "round_to": self.multiple}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_dict`.

        Raises:
            ConfigError: an unknown field, or an impossible value.
        """
        known = [entry.name for entry in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(
                f"unknown option {', '.join(unknown)}; expected some of {', '.join(known)}",
                options=tuple(unknown),
            )
        return cls(**values)


def option_name(name: str) -> str:
    """The command line's name of a field."""
    renamed = {"learning_rate": "lr", "run_directory": "run-dir"}
    return f"--{renamed.get(name, name.replace('_', '-'))}"


def _placed(loss: Loss) -> Loss:
    """`loss` with a path that leads to its file from any folder."""
    return replace(loss, kind=os.path.abspath(loss.kind)) if loss.is_custom else loss


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return value


def _check_number(
    name: str,
    value: float | None,
    *,
    low: float | None = None,
    above: float | None = None,
    below: float | None = None,
    integer: bool = False,
) -> None:
    if value is None:
        return
    is_number = isinstance(value, int if integer else (int, float)) and math.isfinite(value)
    if (
        not is_number
        or (low is not None and value < low)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    ):
        kind = "an integer" if integer else "a number"
        limits = {"at least": low, "more than": above, "less than": below}
        wanted = [f"{word} {limit:g}" for word, limit in limits.items() if limit is not None]
        raise ConfigError(
            f"{option_name(name)} {value}: expected {kind}, {' and '.join(wanted)}",
            option=name,
            value=value,
        )


def check_pattern(name: str, pattern: str | None) -> None:
    """Refuse a pattern for the field `name` that is no regular expression.

    Raises:
        ConfigError: it does not compile.
    """
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ConfigError(
            f"{option_name(name)} {pattern}: not a regular expression ({error}); "
            "write \\ before a special character",
            option=name,
        ) from error
