"""Prune a file without training: look, choose, remove, verify, write, and say what came of it.

`prune_file` is the entry, and what the command line calls.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.data import Source
from onnxprune.errors import (
    ConfigError,
    InvariantError,
    MethodError,
    ModelError,
)
from onnxprune.graph import cost
from onnxprune.graph.groups import Analysis
from onnxprune.model import load, stored_size, trainable_dtype
from onnxprune.oneshot.config import PruneConfig
from onnxprune.oneshot.delivery import Result, difference_notes, metrics, write
from onnxprune.oneshot.examples import Difference, Examples, differences, gather
from onnxprune.oneshot.removal import Job, Removal, by_recipe, candidates, without_loss
from onnxprune.oneshot.target import to_target
from onnxprune.oneshot.verification import Verification, verification
from onnxprune.reports import Event, Report, Size
from onnxprune.rewrite.inline import inline
from onnxprune.rewrite.recipe import Recipe
from onnxprune.rewrite.residual import decoupled, faster, settled
from onnxprune.rewrite.untie import untie
from onnxprune.runtime.latency import latencies
from onnxprune.runtime.verify import compare, tolerance_of
from onnxprune.training.guards import output_path

__all__ = ["prune_file"]


def prune_file(
    model: str | os.PathLike[str],
    data: Source | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Any,
) -> tuple[ir.Model, Report]:
    """Remove units from a model without training it; write and return the smaller one.

    With `target=`, the least important units go; with `lossless=True`, those that change nothing;
    with `recipe=`, those that went before from another checkpoint.

    Args:
        model: path of an ONNX file; never written to.
        data: path of an .npz file, name of an embedded data set, (x, y), or arrays by name; y is
            needed for metrics only. Without data, made-up inputs are used.
        output: where the result goes; <stem>.pruned.onnx in the current folder by default. The
            recipe of the removal goes to <output>.recipe.json.
        on_event: called with every removal (`onnxprune.reports.Pruned`).
        options: fields of `PruneConfig`.

    Returns:
        The pruned model, and the report on it.

    Raises:
        OnnxPruneError: one of its leaves; see `onnxprune.errors`. Nothing is written then.

    Example:
        >>> import onnxprune, onnxprune_models, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _, report = onnxprune.prune_file(
        ...         onnxprune_models.path("digits_lenet"),
        ...         target="params=50%",
        ...         output=f"{folder}/small.onnx",
        ...     )
        >>> report.reached
        True
    """
    started = time.perf_counter()
    result, job, notes, target = _prune(model, data, output, PruneConfig(**options), on_event)
    report = _report(result, job, model, target, notes)
    return result.after[0], replace(report, seconds=time.perf_counter() - started)


def _prune(
    model: str | os.PathLike[str],
    data: Source | None,
    output: str | os.PathLike[str] | None,
    config: PruneConfig,
    on_event: Callable[[Event], None] | None,
) -> tuple[Result, Job, tuple[str, ...], Path]:
    """Check, remove, verify and write: the result, what led to it, notes, and the file."""
    read = [data, config.recipe]
    protected = [path for path in read if isinstance(path, str | os.PathLike)]
    target = output_path(model, output, protected=protected)
    recipe = None if config.recipe is None else _read_recipe(config.recipe)
    loaded = load(model)
    inlined = inline(loaded)
    graph = untie(inlined)
    analysis = candidates(graph, config)
    examples, checks = _looked_at(graph, data, config)
    job = Job(
        config=config,
        examples=examples,
        runtime=checks.runtime,
        verified=checks.how,
        unnamed=_unnamed(inlined, graph),
    )
    removal = _chosen(graph, analysis, recipe, job)
    result = _result(graph, analysis, removal, job)
    _refuse(result, config)
    if on_event is not None:
        for event in removal.events:
            on_event(event)
    write(result, loaded, target, Path(model).name, job)
    return result, job, checks.notes, target


def _looked_at(
    model: ir.Model, data: Source | None, config: PruneConfig
) -> tuple[Examples, Verification]:
    """Inputs on which the model was seen to run, and how it did.

    A single made-up example is tried too: the batch that a file leaves open may be settled by
    something else, such as a state of fixed size.
    """
    examples = gather(model, data, config)
    try:
        return examples, verification(model, config, examples)
    except ModelError:
        if data is None:
            single = gather(model, None, config, count=1)
            with contextlib.suppress(ModelError):
                return single, verification(model, config, single)
        raise


def _read_recipe(path: str) -> Recipe:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--recipe {path}: cannot be read; give a .recipe.json that prune wrote", path=path
        ) from error
    return Recipe.from_json(text, source=path)


def _unnamed(before: ir.Model, after: ir.Model) -> frozenset[str]:
    """Initializers that `untie` made or took readers from: equal by chance in this checkpoint."""
    old, new = before.graph.initializers, after.graph.initializers
    return frozenset(
        name
        for name, value in new.items()
        if name not in old or len(old[name].uses()) != len(value.uses())
    )


def _chosen(model: ir.Model, analysis: Analysis, recipe: Recipe | None, job: Job) -> Removal:
    """The removal with shortcuts as the configuration asks for: coupled, or the faster one."""
    residual = job.config.residual
    if residual == "coupled":
        return _removed(model, analysis, recipe, job)
    loose, names = decoupled(model, candidates(model, replace(job.config, keep=None, only=None)))
    coupled = None
    if not names or (residual == "decouple" and recipe is None):
        coupled = _removed(model, analysis, recipe, job)
        reason = "the model has no shortcuts" if not names else "no runtime to measure with"
        if not names or job.runtime is None:
            note = f"shortcuts stay coupled: {reason}"
            return replace(coupled, notes=(*coupled.notes, note))
    other = _removed(
        loose, candidates(loose, job.config), recipe, replace(job, unnamed=job.unnamed | names)
    )
    smaller = _settled(other.model, names, job)
    analyzed = candidates(smaller, replace(job.config, keep=None, only=None))
    other = replace(other, model=smaller, analysis=analyzed)
    if coupled is None:
        note = f"{len(names)} shortcuts decoupled"
        return replace(other, notes=(*other.notes, note))
    both = [coupled.model, other.model]
    wins, note = faster(*latencies(both, job.examples.first, device=job.runtime))
    taken = other if wins else coupled
    return replace(taken, notes=(*taken.notes, note))


def _settled(model: ir.Model, names: frozenset[str], job: Job) -> ir.Model:
    """With index operators in the place of what is left of decoupled shortcuts.

    Raises:
        InvariantError: they compute something else.
    """
    smaller = settled(model, names)
    if job.device is not None:
        found = compare(
            model,
            smaller,
            job.examples.first,
            device=job.device,
            tolerance=tolerance_of(model),
            parts=job.parts,
        )
        if not found.holds:
            raise InvariantError(
                "shortcuts: index operators compute something else than the products they stand "
                f"for (difference {found.error:.1e}); leave out --residual, and please report this"
            )
    return smaller


def _removed(model: ir.Model, analysis: Analysis, recipe: Recipe | None, job: Job) -> Removal:
    if recipe is not None:
        assert job.config.recipe is not None
        return by_recipe(model, recipe, job.config.recipe, job)
    return without_loss(model, job) if job.config.lossless else to_target(model, analysis, job)


def _result(model: ir.Model, analysis: Analysis, removal: Removal, job: Job) -> Result:
    after = analysis if removal.analysis is None else removal.analysis
    difference = None
    if job.verified == "whole":
        assert job.device is not None
        difference = differences(
            model,
            removal.model,
            job.examples,
            classes=_class_output(model, analysis, job.examples),
            device=job.device,
        )
    elif job.verified == "parts":
        found = compare(
            model, removal.model, job.examples.first, device=job.device, parts=job.parts
        )
        count = job.examples.first_count
        difference = Difference(
            error=found.error, relative=found.relative, same=None, examples=count
        )
    times = None
    goal = job.config.goal
    if job.verified == "whole" or (goal is not None and goal.kind == "latency"):
        times = tuple(latencies((model, removal.model), job.examples.first, device=job.runtime))
    return Result(
        before=(model, analysis),
        after=(removal.model, after),
        removal=removal,
        difference=difference,
        times=times,
    )


def _class_output(model: ir.Model, analysis: Analysis, examples: Examples) -> str | None:
    """The first output with a number per class, unless the labels say that there are no classes."""
    labels = [split.target for split in examples.parts if split.target is not None]
    if any(label.dtype.kind == "f" and (label % 1).any() for label in labels):
        return None
    for value in model.graph.outputs:
        sizes = analysis.shapes.get(value.name or "", ())
        if trainable_dtype(value.dtype) and len(sizes) == 2 and (sizes[1] or 0) > 1:
            return value.name
    return None


def _shares(result: Result, config: PruneConfig) -> tuple[float, bool] | None:
    """The share of the target's quantity that remains, and whether that is little enough."""
    goal = config.goal
    if goal is None:
        return None
    before, after = _sizes(goal.kind, result)
    return after / before if before else 1.0, after <= goal.limit(before)


def _sizes(kind: str, result: Result) -> tuple[int, int]:
    """Parameters, MACs or nanoseconds before and after."""
    if kind == "latency":
        assert result.times is not None
        before, after = (round(1e6 * taken) for taken in result.times)
    elif kind == "params":
        before, after = (cost.parameters(model) for model, _ in (result.before, result.after))
    else:
        before, after = (cost.macs(*side) for side in (result.before, result.after))
    return before, after


def _refuse(result: Result, config: PruneConfig) -> None:
    """Under `strict` a missed target is an error."""
    shares = _shares(result, config)
    if config.strict and shares is not None and not shares[1]:
        raise MethodError(
            f"target {config.target} not reached: {100 * shares[0]:.1f} % remain; "
            f"{_ceiling(result, config)}; ask for less, or leave out --strict",
            target=config.target,
            achieved=shares[0],
        )


def _ceiling(result: Result, config: PruneConfig) -> str:
    goal, least = config.goal, result.removal.least
    assert goal is not None
    assert least is not None
    if config.max_drop is not None:
        return f"more would cost more than --max-drop {config.max_drop:g}, or cannot go"
    share = 100 * least / max(_sizes(goal.kind, result)[0], 1)
    what = f"{least} {'parameters' if goal.kind == 'params' else 'MACs'}"
    if goal.kind == "latency":
        what = f"about {least / 1e6:.3g} ms"
    return f"at least {what} ({share:.1f} %) must stay"


def _report(
    result: Result,
    job: Job,
    path: str | os.PathLike[str],
    target: Path,
    notes: tuple[str, ...],
) -> Report:
    sides = (result.before, result.after)
    times = (None, None) if result.times is None else result.times
    measured, said = metrics(result, job)
    units = sum(group.size for group in result.before[1].groups)
    sizes = [
        Size(
            parameters=cost.parameters(model),
            macs=cost.macs(model, analysis),
            units=left,
            bytes=stored,
            latency_ms=taken,
            metrics=metrics,
        )
        for (model, analysis), left, stored, taken, metrics in zip(
            sides,
            (units, units - result.removal.removed),
            (stored_size(path), stored_size(target)),
            times,
            measured,
            strict=True,
        )
    ]
    shares = _shares(result, job.config)
    if shares is not None and not shares[1]:
        notes = (f"the target is out of reach: {_ceiling(result, job.config)}", *notes)
    return Report(
        model=os.fspath(path),
        output=os.fspath(target),
        before=sizes[0],
        after=sizes[1],
        exact=result.removal.exact,
        bounded=result.removal.removed - result.removal.exact,
        target=job.config.target,
        achieved=None if shares is None else shares[0],
        reached=None if shares is None else shares[1],
        difference=None if result.difference is None else result.difference.error,
        agreement=None if result.difference is None else result.difference.same,
        notes=(
            *job.examples.notes,
            *result.removal.notes,
            *difference_notes(result, job),
            *said,
            *notes,
        ),
    )
