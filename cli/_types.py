"""Option values that need reading (shapes, numbers, shares), and options that commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import click

from onnxprune.data import LAYOUTS
from onnxprune.graph.shapes import parse_input_shape
from onnxprune.rewrite.residual import RESIDUALS
from onnxprune.training.config import PROVIDERS

__all__ = [
    "INPUT_SHAPE",
    "JSON",
    "OUTPUT",
    "QUIET",
    "analysis_options",
    "assignments",
    "field_option",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def shapes(
    _ctx: click.Context, _param: click.Parameter, value: Sequence[str]
) -> Mapping[str, Sequence[int]]:
    """Read `name:1,3,224,224`, given any number of times."""
    return dict(parse_input_shape(text) for text in value)


def numbers(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    """Read `0.485,0.456,0.406`."""
    if value is None:
        return None
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected numbers such as 0.485,0.456,0.406") from None


def share(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Read `0.01` or `1%`."""
    if value is None:
        return None
    try:
        number = float(value.removesuffix("%"))
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected a number such as 0.01 or 1%") from None
    return number / 100 if value.endswith("%") else number


def assignments(
    _ctx: click.Context, _param: click.Parameter, value: Sequence[str]
) -> Mapping[str, str]:
    """Read `name=value`, given any number of times."""
    pairs = [text.partition("=") for text in value]
    for name, sign, text in pairs:
        if not (name and sign and text):
            raise click.BadParameter(f"{name}{sign}{text!r}: expected NAME=VALUE such as k=160")
    return {name.strip().replace("-", "_"): text.strip() for name, _, text in pairs}


def field_option(config: type[Any]) -> Callable[..., Callable[..., Any]]:
    """What makes options for the fields of `config`, named after them, with their defaults.

    Fields that several commands have bring their settings along, unless others are given.
    """
    defaults = {entry.name: entry.default for entry in fields(config)}

    def option(field: str, *names: str, **settings: Any) -> Callable[..., Any]:
        default, settings = defaults[field], {**_COMMON.get(field, {}), **settings}
        flags = names or (f"--{field.replace('_', '-')}",)
        if isinstance(settings.get("type"), tuple):
            settings["type"] = click.Choice(settings["type"])
        shown = default is not None and not isinstance(default, bool)
        return click.option(*flags, field, default=default, show_default=shown, **settings)

    return option


_COMMON: Mapping[str, Mapping[str, Any]] = {
    "target": {
        "metavar": "params=30%",
        "help": "What should remain; macs=50%, params=9k, latency=50% and latency=2ms do as well.",
    },
    "max_drop": {"metavar": "FLOAT", "callback": share},
    "residual": {
        "type": RESIDUALS,
        "help": "Whether shortcuts lose the same channels as their blocks; decouple: where faster.",
    },
    "keep": {"metavar": "REGEX", "help": "Remove nothing from these groups."},
    "scale": {"type": float, "help": "Factor for the data.  [default: 1/255 for uint8, else 1]"},
    "mean": {"metavar": "A,B,C", "callback": numbers, "help": "Subtracted, after --scale."},
    "std": {"metavar": "A,B,C", "callback": numbers, "help": "Divided by, after --mean."},
    "layout": {"type": LAYOUTS, "help": "How the axes of the data lie."},
    "provider": {"type": PROVIDERS, "help": "Where to compute."},
    "threads": {"type": int, "help": "Of the runtime.  [default: it chooses]"},
}

OUTPUT = click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Where the result goes; an existing file of that name is replaced.  "
    "[default: MODEL's name with .pruned.onnx, in this folder]",
)
INPUT_SHAPE = click.option(
    "--input-shape",
    "input_shapes",
    metavar="NAME:1,3,224,224",
    multiple=True,
    callback=shapes,
    help="Sizes of an input that the model leaves open; may be repeated.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, show no progress.")
QUIET = click.option("--quiet", is_flag=True, help="Show no progress.")


def analysis_options(command: _Command) -> _Command:
    """Add the options that say how a model is to be read."""
    options = (
        INPUT_SHAPE,
        click.option("--train-params", metavar="REGEX", help="Train these constants as well."),
        click.option("--freeze", metavar="REGEX", help="Do not train these parameters."),
    )
    for option in reversed(options):
        command = option(command)
    return command
