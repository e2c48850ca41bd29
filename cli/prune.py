"""`onnxprune prune`: make a model smaller without training it.

Every option but those of input and output is a field of `PruneConfig`, from which it takes its
default; `onnxprune.prune_file` takes the same names as keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from onnxprune.methods.allocation import CHOICES
from onnxprune.methods.importance import WITHOUT_GRADIENTS
from onnxprune.oneshot.config import VERIFICATIONS, PruneConfig

from . import _render
from ._types import INPUT_SHAPE, JSON, OUTPUT, QUIET, field_option

__all__ = ["prune"]

_option = field_option(PruneConfig)

_OPTIONS = (
    OUTPUT,
    _option("target"),
    _option("max_drop", help="By how much the metric on --data may fall: 0.01 or 1%."),
    _option("lossless", is_flag=True, help="Remove only what changes nothing, and prove it."),
    _option("recipe", metavar="FILE", help="Repeat the removal in a .recipe.json."),
    click.option(
        "--data", metavar="FILE", help="An .npz file, or 'digits'.  [default: made-up inputs]"
    ),
    _option(
        "importance",
        type=WITHOUT_GRADIENTS,
        help="What makes a unit worth keeping.  [default: variance with --data, else magnitude]",
    ),
    _option("allocation", type=CHOICES, help="How groups share the removals."),
    _option("round_to", type=int, help="Keep a multiple of this many units per group."),
    _option("residual"),
    _option("keep"),
    _option("only", metavar="REGEX", help="Remove nothing from all other groups."),
    click.option(
        "--compensate/--no-compensate",
        default=True,
        help="With --data, whether biases take over the means of removed units.",
    ),
    _option(
        "verify",
        type=VERIFICATIONS,
        help="How to check the result: in parts takes little memory, for large models.",
    ),
    _option("strict", is_flag=True, help="Fail and write nothing when the target is missed."),
    click.option(
        "--metadata/--no-metadata",
        default=True,
        help="Whether the recipe is also written into the model.",
    ),
    INPUT_SHAPE,
    *(_option(name) for name in ("scale", "mean", "std", "layout")),
    _option("seed", type=int, help="Of random scores and made-up inputs."),
    _option("provider"),
    _option("threads"),
    JSON,
    QUIET,
)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("model", type=click.Path())
@_options
def prune(
    *,
    model: str,
    output: str | None,
    data: str | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Remove units from MODEL without training; write a smaller ONNX file.

    Needs --target, --max-drop, --lossless or --recipe.
    """
    import onnxprune

    with _render.progress(show=not (as_json or quiet)) as on_event:
        _, report = onnxprune.prune_file(model, data, output=output, on_event=on_event, **options)
    _render.result(report, as_json=as_json)
