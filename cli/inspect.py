"""`onnxprune inspect`: what can be removed from a model, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from onnxprune.training.config import RunConfig

from . import _render
from ._types import analysis_options, field_option

__all__ = ["inspect"]

_option = field_option(RunConfig)


@click.command()
@click.argument("model", type=click.Path())
@analysis_options
@_option("provider", help="Where a model is run that takes one batch size only.")
@_option("threads")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def inspect(
    *,
    model: str,
    input_shapes: Mapping[str, Sequence[int]],
    train_params: str | None,
    freeze: str | None,
    provider: str,
    threads: int | None,
    as_json: bool,
) -> None:
    """Show what can be removed from MODEL, and why the rest cannot."""
    import onnxprune

    found = onnxprune.inspect(
        model,
        input_shapes=input_shapes or None,
        train=train_params,
        freeze=freeze,
        provider=provider,
        threads=threads,
    )
    _render.result(found, as_json=as_json)
