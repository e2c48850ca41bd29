"""What comes of a removal without training: the result, its file and recipe, its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxprune.errors import ConfigError, DataError, InvariantError, ModelError
from onnxprune.graph.groups import Analysis
from onnxprune.model import load, save
from onnxprune.oneshot.examples import Difference
from onnxprune.oneshot.judge import judge
from onnxprune.oneshot.removal import Job, Removal
from onnxprune.rewrite.recipe import METADATA, Recipe
from onnxprune.runtime.verify import compare
from onnxprune.storage import write_text

__all__ = ["Result", "difference_notes", "metrics", "write"]

_FILE_TOLERANCE = 1e-5  # of an output's magnitude: the file computes what the graph computed


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Result:
    """Graphs before and after with their analyses, and how they compare.

    Attributes:
        times: milliseconds per batch before and after; None where models are not run as a whole.
    """

    before: tuple[ir.Model, Analysis]
    after: tuple[ir.Model, Analysis]
    removal: Removal
    difference: Difference | None
    times: tuple[float, ...] | None = None


def write(result: Result, loaded: ir.Model, target: Path, name: str, job: Job) -> None:
    """The model and its recipe; an empty removal writes the model as it was given."""
    graph = result.after[0] if result.removal.rounds else loaded
    recipe = Recipe(model=name, rounds=result.removal.rounds)
    final = graph.clone()
    final.metadata_props.pop(METADATA, None)
    if job.config.metadata and recipe.rounds:
        final.metadata_props[METADATA] = recipe.to_json()
    save(final, target)
    _write_recipe(recipe, Path(f"{target}.recipe.json"), job.config.recipe)
    written = load(target)
    if job.device is None:
        return
    found = compare(
        result.after[0],
        written,
        job.examples.first,
        device=job.device,
        tolerance=_FILE_TOLERANCE,
        parts=job.parts,
    )
    if not found.holds:
        raise InvariantError(
            f"{target}: computes something else than the pruned graph (difference "
            f"{found.error:.1e}); please report this",
            path=target,
        )


def _write_recipe(recipe: Recipe, path: Path, given: str | None) -> None:
    """Next to the model; a recipe that is being repeated is not overwritten by itself."""
    if given is not None and path.exists() and path.samefile(given):
        return
    try:
        write_text(path, recipe.to_json(indent=1) + "\n")
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be written ({error.strerror or error}); choose another -o", path=path
        ) from error


def difference_notes(result: Result, job: Job) -> tuple[str, ...]:
    """The numbers that say how far the result is from the model given."""
    found = result.difference
    if found is None:
        return ()
    kind = "examples" if job.examples.data is not None else "made-up inputs"
    text = (
        f"largest difference to the model given: {found.error:.2g} (relative {found.relative:.1e}) "
        f"on {found.examples} {kind}"
    )
    return (text if found.same is None else f"{text}; {100 * found.same:.2f} % same top class",)


def metrics(result: Result, job: Job) -> tuple[list[dict[str, float]], tuple[str, ...]]:
    """Metrics before and after where there are labels; why not where they do not fit."""
    nothing: list[dict[str, float]] = [{}, {}]
    try:
        judged = judge(result.before[0], job, tested=True)
    except (ConfigError, DataError) as error:
        return nothing, (f"no metrics: {error}",)
    if judged is None:
        return nothing, ()
    found = [judged.metrics(model) for model, _ in (result.before, result.after)]
    return found, (f"metrics on {judged.examples}",)
