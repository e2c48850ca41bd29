"""What a user asks to minimize: terms of a loss, as text and as data.

`parse_loss` reads what `--loss` takes, `Loss` is the same as data; `str` of one is the text again.
Nothing here looks at a model; `training.losses` finds out what a term means for one.

    [WEIGHT*][OUTPUT=]KIND[:OPTION=VALUE,...]

    cross-entropy                         the model's one output against the labels
    cross-entropy:smoothing=0.1,ignore=255
    0.5*distill:temperature=2             half the distance from the original model's outputs
    boxes=huber:delta=0.1                 the output boxes, against the array boxes (or y_boxes)
    0.1*relu.*=distill-hidden             values inside the model whose names match relu.*
    my_loss.onnx                          a graph of the user's own
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from onnxprune.data import IGNORED
from onnxprune.errors import ConfigError

__all__ = ["KINDS", "LABELLED", "Kind", "Loss", "parse_loss"]

Kind: TypeAlias = Literal[
    "cross-entropy",
    "binary-cross-entropy",
    "mse",
    "l1",
    "huber",
    "distill",
    "distill-hidden",
    "custom",
]
LABELLED: tuple[Kind, ...] = ("cross-entropy", "binary-cross-entropy", "mse", "l1", "huber")
"""The kinds that compare an output with labels or values of the data."""

KINDS = ("auto", *LABELLED, "distill", "distill-hidden")
"""What can be asked for by name; any other name is the file of a custom loss."""

_ALIASES = {"bce": "binary-cross-entropy"}
_OPTIONS = {
    "cross-entropy": ("smoothing", "ignore", "weights"),
    "binary-cross-entropy": ("weights",),
    "huber": ("delta",),
    "distill": ("temperature",),
}
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(
    rf"(?:(?P<weight>{_NUMBER})\s*\*\s*)?(?:(?P<output>.+)=)?"
    rf"(?P<kind>{'|'.join((*KINDS, *_ALIASES))}|[^=]+\.onnx)(?::(?P<options>.+))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One term of the loss.

    Attributes:
        kind: one of `KINDS`, or the path of an .onnx file: a graph whose inputs are named like the
            model's outputs, its inputs, `y` or other arrays of the data, and whose one output is
            the loss.
        weight: factor, > 0.
        output: the graph output it reads; None for the model's one. With "distill-hidden" a
            regular expression, searched in the names of all values.
        smoothing: of the labels of a cross-entropy, in [0, 1): q = (1 - s) onehot + s / classes.
        ignore: the class number that a cross-entropy leaves out.
        weights: one factor per class of a cross-entropy, "balanced" for the inverse of how often a
            class occurs, or one factor per output (or one for all) of the ones of a binary one.
        delta: where a Huber loss turns from squares to absolute values, > 0.
        temperature: of a distillation's Softmax, > 0; None for 4 where the model says that its
            outputs are classes, and for the squared error where it does not.
    """

    kind: str = "auto"
    weight: float = 1.0
    output: str | None = None
    smoothing: float = 0.0
    ignore: int = IGNORED
    weights: tuple[float, ...] | Literal["balanced"] = ()
    delta: float = 1.0
    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS and not self.is_custom:
            raise ConfigError(
                f"--loss {self.kind}: expected one of {', '.join(KINDS)}, or the path of an .onnx "
                "file",
                loss=self.kind,
            )
        for name in self._given():
            if name not in _OPTIONS.get(self.kind, ()):
                raise ConfigError(
                    f"--loss {self.kind}: has no option {name}; it takes "
                    f"{', '.join(_OPTIONS.get(self.kind, ())) or 'none'}",
                    loss=self.kind,
                    option=name,
                )
        if self.kind == "distill-hidden" and self.output is None:
            raise ConfigError(
                "--loss distill-hidden: which values? Write NAMES=distill-hidden, where NAMES is a "
                "regular expression"
            )
        self._check_numbers()

    def _check_numbers(self) -> None:
        weights = () if self.weights == "balanced" else self.weights
        positive = {"weight": self.weight, "delta": self.delta, "temperature": self.temperature}
        wrong = [
            name
            for name, value in positive.items()
            if value is not None and not (math.isfinite(value) and value > 0)
        ]
        wrong += ["smoothing"] if not 0 <= self.smoothing < 1 else []
        wrong += ["weights"] if any(not math.isfinite(w) or w < 0 for w in weights) else []
        if wrong:
            raise ConfigError(
                f"--loss {self.kind}: {wrong[0]} {getattr(self, wrong[0])}: expected "
                f"{'a number in [0, 1)' if wrong[0] == 'smoothing' else 'positive numbers'}",
                loss=self.kind,
                option=wrong[0],
            )

    @property
    def is_custom(self) -> bool:
        """Whether it is a graph of the user's own."""
        return self.kind.endswith(".onnx")

    @property
    def name(self) -> str:
        """What records call it: without weight and options."""
        kind = Path(self.kind).stem if self.is_custom else self.kind
        return kind if self.output is None else f"{self.output}={kind}"

    def _given(self) -> Iterator[str]:
        """The options that differ from their defaults."""
        for entry in fields(self)[3:]:
            if getattr(self, entry.name) != entry.default:
                yield entry.name

    def __str__(self) -> str:
        weight = "" if self.weight == 1.0 else f"{self.weight!r}*"
        output = "" if self.output is None else f"{self.output}="
        options = ",".join(f"{name}={_text(getattr(self, name))}" for name in self._given())
        return f"{weight}{output}{self.kind}{':' if options else ''}{options}"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(repr(number) for number in value)
    return str(value)


def parse_loss(text: str) -> Loss:
    """Read one term, such as "0.5*logits=cross-entropy:smoothing=0.1".

    Raises:
        ConfigError: anything that the module's syntax does not allow.
    """
    match = _TERM.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"--loss {text}: expected [WEIGHT*][OUTPUT=]KIND[:OPTION=VALUE,...], where KIND is one "
            f"of {', '.join(KINDS)}, or the path of an .onnx file",
            loss=text,
        )
    kind = _ALIASES.get(match["kind"], match["kind"])
    options = {} if match["options"] is None else _options(text, match["options"])
    return Loss(kind=kind, weight=float(match["weight"] or 1.0), output=match["output"], **options)


def _options(text: str, listed: str) -> dict[str, Any]:
    """The options by name; a part without "=" belongs to the list before it."""
    read: dict[str, list[str]] = {}
    for part in listed.split(","):
        name, found, value = part.partition("=")
        if found:
            read[name.strip()] = [value.strip()]
        elif "weights" in read and next(reversed(read)) == "weights":
            read["weights"].append(part.strip())
        else:
            raise ConfigError(f"--loss {text}: {part!r}: expected OPTION=VALUE", loss=text)
    known = {entry.name for entry in fields(Loss)[3:]}
    found_options: dict[str, Any] = {}
    for name, values in read.items():
        if name not in known:
            raise ConfigError(
                f"--loss {text}: unknown option {name!r}; expected {', '.join(sorted(known))}",
                loss=text,
                option=name,
            )
        found_options[name] = _value(text, name, values)
    return found_options


def _value(text: str, name: str, values: list[str]) -> Any:
    if name == "weights" and values == ["balanced"]:
        return "balanced"
    try:
        if name == "ignore":
            return int(values[0])
        numbers = tuple(float(value) for value in values)
    except ValueError as error:
        raise ConfigError(
            f"--loss {text}: {name} {','.join(values)}: expected "
            f"{'an integer' if name == 'ignore' else 'numbers'}",
            loss=text,
            option=name,
        ) from error
    return numbers if name == "weights" else numbers[0]
