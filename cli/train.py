"""`onnxprune train`: train a model and make it smaller on the way.

Every option but those of input and output is a field of `RunConfig`, from which it takes its
default; `onnxprune.train` takes the same names as keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
from click.core import ParameterSource

from onnxprune.data import EMBEDDED
from onnxprune.errors import ConfigError
from onnxprune.methods import METHODS
from onnxprune.training.config import (
    BATCH_NORM,
    CHECKS,
    OPTIMIZERS,
    SCHEDULES,
    TARGET_SCHEDULES,
    RunConfig,
)
from onnxprune.training.guards import output_path
from onnxprune.training.loss_spec import KINDS

from . import _render
from ._types import JSON, OUTPUT, QUIET, analysis_options, assignments, field_option

__all__ = ["train"]

_option = field_option(RunConfig)

_MAIN = (
    click.option("--data", metavar="FILE", help="An .npz file with x and y, or 'digits'."),
    click.option("--val", metavar="FILE", help="Validation data; otherwise a part of --data."),
    OUTPUT,
    _option("method", type=tuple(METHODS), help="How units are chosen for removal."),
    click.option(
        "--set",
        "method_options",
        metavar="NAME=VALUE",
        multiple=True,
        callback=assignments,
        help="An option of the method; may be repeated.",
    ),
    _option("target"),
    _option("target_schedule", type=TARGET_SCHEDULES, help="How removal proceeds to --target."),
    _option("epochs", type=int, help="Passes over the data."),
    _option("max_drop", help="By how much the metric may fall: 0.01 or 1%."),
    _option("keep"),
    _option("prune_interval", type=int, help="Steps between removals.  [default: the method's]"),
    _option(
        "round_to",
        type=int,
        help="Keep a multiple of this many units per group, or fewer.  [default: 8 with --target]",
    ),
    _option("residual"),
    _option("patience", type=int, help="Stop after so many epochs without improvement."),
)
_OPTIMIZATION = (
    _option("batch_size", type=int, help="Examples per pass."),
    _option("accumulate", type=int, help="Passes per optimizer step."),
    _option("learning_rate", "--lr", type=float, help="Learning rate.  [default: by optimizer]"),
    _option("optimizer", type=tuple(OPTIMIZERS), help="Update rule."),
    _option("momentum", type=float, help="For --optimizer momentum."),
    _option("weight_decay", type=float, help="Decoupled for adamw, else L2."),
    _option("decay_vectors", is_flag=True, help="Let biases and scales decay as well."),
    _option("clip", "--clip", "--clip-norm", type=float, help="Largest norm of all gradients."),
    _option("clip_value", type=float, help="Largest magnitude of a gradient's elements."),
    _option("ema", type=float, help="Average the weights with this decay; the average is saved."),
    _option("schedule", type=SCHEDULES, help="Of the learning rate."),
    click.option(
        "--loss",
        metavar="[WEIGHT*][OUTPUT=]LOSS",
        multiple=True,
        default=("auto",),
        show_default=True,
        help=f"{', '.join(KINDS)} or an .onnx file; several are added up.",
    ),
    _option("output_name", metavar="NAME", help="The graph output with the prediction."),
    _option("batch_norm", type=BATCH_NORM, help="Statistics that BatchNormalization uses."),
)
_DATA = (
    *(_option(name) for name in ("scale", "mean", "std", "layout")),
    _option("validation_fraction", type=float, help="Part of --data that is put aside."),
)
_RUN = (
    _option("seed", type=int, help="Of everything random."),
    _option("provider"),
    _option("threads"),
    _option("check", type=CHECKS, help="Try the first step in a child process, against crashes."),
    _option("run_directory", "--run-dir", metavar="DIR", help="For records.  [default: runs/...]"),
    click.option("--resume", metavar="DIR", help="Go on with the run in this folder."),
    _option("checkpoint_every", metavar="1epoch", help="Or 500steps, 10min, never."),
    _option("keep_checkpoints", type=int, help="How many of them are kept."),
    JSON,
    QUIET,
    click.option("--dry-run", is_flag=True, help="Check everything, train and write nothing."),
)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add all options, in the order in which --help shows them."""
    for option in reversed(_RUN):
        command = option(command)
    command = analysis_options(command)
    for option in reversed((*_MAIN, *_OPTIMIZATION, *_DATA)):
        command = option(command)
    return command


@click.command()
@click.argument("model", type=click.Path(), required=False, metavar="MODEL")
@_options
@click.pass_context
def train(
    ctx: click.Context,
    /,
    *,
    model: str | None,
    data: str | None,
    val: str | None,
    output: str | None,
    resume: str | None,
    as_json: bool,
    quiet: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Train MODEL on data and remove what it does not need; write a smaller ONNX file."""
    import onnxprune

    progress = _render.progress(show=not (as_json or quiet))
    if resume is not None:
        if dry_run:
            raise ConfigError("--dry-run: nothing to show for a run that goes on; leave it out")
        given = {name: value for name, value in options.items() if _is_given(ctx, name)}
        with progress as on_event:
            _, report = onnxprune.train(
                model,
                data,
                validation=val,
                output=output,
                resume=resume,
                on_event=on_event,
                **given,
            )
        _render.result(report, as_json=as_json)
        return
    config = RunConfig(**options)
    if model is None:
        raise click.MissingParameter(ctx=ctx, param=ctx.command.params[0])
    if data is None:
        raise ConfigError(
            f"{model}: nothing to train on; give --data FILE.npz with arrays x and y, or an "
            f"embedded data set: --data {', '.join(EMBEDDED)}"
        )
    if dry_run:
        _dry_run(model, data, val, output, config, as_json=as_json)
        return
    with progress as on_event:
        _, report = onnxprune.train(
            model, data, validation=val, output=output, on_event=on_event, **options
        )
    _render.result(report, as_json=as_json)


def _is_given(ctx: click.Context, name: str) -> bool:
    """Whether the user wrote the option, so that it is no default."""
    return ctx.get_parameter_source(name) is not ParameterSource.DEFAULT


def _dry_run(
    model: str,
    data: str,
    val: str | None,
    output: str | None,
    config: RunConfig,
    *,
    as_json: bool,
) -> None:
    """Show what a run would do, after all that it checks before the first step."""
    import onnxprune
    from onnxprune.runtime.session import check_runtime
    from onnxprune.training.problem import pose
    from onnxprune.training.rounds import begin

    read = [data, *([] if val is None else [val]), *config.files]
    target = output_path(model, output, protected=read)
    check_runtime(training=True)
    problem = pose(model, data, validation=val, config=config)
    found = onnxprune.inspect(
        model,
        input_shapes=config.input_shapes or None,
        train=config.train_params,
        freeze=config.freeze,
        provider=config.provider,
        threads=config.threads,
    )
    begin(problem, problem.model, found.trained)
    facts: Mapping[str, Any] = {
        "model": model,
        "output": str(target),
        "data": data,
        "examples": problem.examples,
        "conversions": list(problem.notes),
    }
    if as_json:
        merged = {**facts, "config": config.to_dict(), "inspection": found.to_dict()}
        _render.mapping(merged, as_json=True)
        return
    texts = {**facts, "conversions": "; ".join(problem.notes) or None}
    _render.mapping({**texts, **config.to_dict()}, as_json=False)
    _render.blank()
    _render.result(found, as_json=False)
