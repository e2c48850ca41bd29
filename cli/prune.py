"""`onnxprune prune`: make a model smaller without training it.

Every option but those of input and output is a field of `PruneConfig`, from which it takes its
default; `onnxprune.prune_file` takes the same names as keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from onnxprune.data import LAYOUTS
from onnxprune.methods.allocation import CHOICES
from onnxprune.methods.importance import WITHOUT_GRADIENTS
from onnxprune.oneshot.config import VERIFICATIONS, PruneConfig
from onnxprune.rewrite.residual import RESIDUALS
from onnxprune.training.config import PROVIDERS

from . import _render
from ._types import field_option, numbers, shapes, share

__all__ = ["prune"]

_option = field_option(PruneConfig)

_OPTIONS = (
    click.option(
        "-o",
        "--output",
        metavar="FILE",
        help="Where the result goes; an existing file of that name is replaced.  "
        "[default: MODEL's name with .pruned.onnx, in this folder]",
    ),
    _option(
        "target",
        metavar="params=30%",
        help="What should remain; macs=50%, params=9k, latency=50% and latency=2ms do as well.",
    ),
    _option(
        "max_drop",
        metavar="FLOAT",
        callback=share,
        help="By how much the metric on --data may fall: 0.01 or 1%.",
    ),
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
    _option(
        "residual",
        type=RESIDUALS,
        help="Whether shortcuts lose the same channels as their blocks; decouple: where faster.",
    ),
    _option("keep", metavar="REGEX", help="Remove nothing from these groups."),
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
    click.option(
        "--input-shape",
        "input_shapes",
        metavar="NAME:1,3,224,224",
        multiple=True,
        callback=shapes,
        help="Sizes of an input that the model leaves open; may be repeated.",
    ),
    _option("scale", type=float, help="Factor for the data.  [default: 1/255 for uint8, else 1]"),
    _option("mean", metavar="A,B,C", callback=numbers, help="Subtracted, after --scale."),
    _option("std", metavar="A,B,C", callback=numbers, help="Divided by, after --mean."),
    _option("layout", type=LAYOUTS, help="How the axes of the data lie."),
    _option("seed", type=int, help="Of random scores and made-up inputs."),
    _option("provider", type=PROVIDERS, help="Where to compute."),
    _option("threads", type=int, help="Of the runtime.  [default: it chooses]"),
    click.option("--json", "as_json", is_flag=True, help="Print JSON, show no progress."),
    click.option("--quiet", is_flag=True, help="Show no progress."),
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
