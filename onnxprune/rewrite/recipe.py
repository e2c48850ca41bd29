"""Recipes: what a removal kept, written so that it can be repeated on another checkpoint.

A recipe names initializers and the indices they kept, not groups, so that it can be read without
onnxprune and stays true when groups are found in another way. It holds one round per removal that
was made in sequence; each round's indices count in what the rounds before have left. `record` makes
a round, `replay` turns it back into a plan for a model of the same architecture: another
checkpoint, or the same weights in another precision.

    {"format": "onnxprune.recipe/1", "model": "lenet.onnx", "rounds": [{
        "initializers": {"conv1.weight": {"shape": [16, 1, 3, 3], "kept": {"0": "0-4,7,9-15"}}},
        "folds": [], "merges": []}]}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Axis, Fold, Group, Index, Mask, Merge, Plan
from onnxprune.errors import ConfigError
from onnxprune.graph.groups import Analysis
from onnxprune.graph.order import kept_indices
from onnxprune.model import constants, tensor_of

__all__ = ["METADATA", "Recipe", "Round", "record", "replay"]

METADATA = "pkg.onnxprune.recipe"
"""The key of a recipe in a model's metadata."""

_FORMAT = "onnxprune.recipe/1"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Round:
    """One removal.

    Attributes:
        shapes: sizes before, per initializer (or Constant node) that lost something.
        kept: ascending kept indices per axis of these.
        folds, merges: compensation, as in `base.Plan`.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kept: Mapping[Axis, Index]
    folds: tuple[Fold, ...] = ()
    merges: tuple[Merge, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Recipe:
    """Removals in sequence; `model` is the name of the file they were made on."""

    model: str
    rounds: tuple[Round, ...] = ()

    def to_json(self, *, indent: int | None = None) -> str:
        """The recipe as text."""
        rounds = [_round_to_dict(each) for each in self.rounds]
        content = {"format": _FORMAT, "model": self.model, "rounds": rounds}
        return json.dumps(content, indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, source: str) -> Recipe:
        """The inverse of `to_json`; `source` is what messages call it.

        Raises:
            ConfigError: not a recipe, or one of another format.
        """
        try:
            content = json.loads(text)
            if content["format"] != _FORMAT:
                raise ConfigError(
                    f"--recipe {source}: format {content['format']}, expected {_FORMAT}; "
                    "write it again with this version"
                )
            rounds = tuple(_round_from_dict(each) for each in content["rounds"])
            return cls(model=str(content["model"]), rounds=rounds)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"--recipe {source}: not a recipe; give a .recipe.json that prune wrote",
                source=source,
            ) from error


def record(
    model: ir.Model, kept: Mapping[Axis, Index], plan: Plan, *, unnamed: frozenset[str]
) -> Round:
    """A removal as a round.

    Args:
        model: the graph before.
        kept: as `rewrite.prune` returned it.
        plan: what was done.
        unnamed: initializers whose names another checkpoint need not have (`rewrite.untie`).
    """
    values = constants(model)
    known = values.keys() - unnamed
    named = {
        axis: np.sort(index)
        for axis, index in kept.items()
        if axis.value in known and axis.by < 0 and not _is_whole(values[axis.value], axis, index)
    }
    shapes = {axis.value: _sizes(values[axis.value]) for axis in named}
    return Round(shapes=shapes, kept=named, folds=plan.folds, merges=plan.merges)


def _is_whole(value: ir.Value, axis: Axis, index: Index) -> bool:
    """Whether an axis lost nothing, and at most changed its order."""
    return len(index) == _sizes(value)[axis.position]


def replay(model: ir.Model, analysis: Analysis, done: Round, *, source: str) -> Plan:
    """The plan that makes the same removal on `model`.

    Args:
        model: of the architecture that the recipe was made on.
        analysis: of this very graph.
        done: one round.
        source: what messages call the recipe.

    Raises:
        ConfigError: the first initializer that is missing, has another shape, or cannot lose what
            the recipe removes.
    """
    values = constants(model)
    for name, shape in done.shapes.items():
        if name not in values:
            raise ConfigError(
                f"--recipe {source}: the model has no initializer {name}; the recipe is for "
                "another architecture",
                initializer=name,
            )
        if _sizes(values[name]) != shape:
            raise ConfigError(
                f"--recipe {source}: {name} has shape {_sizes(values[name])}, the recipe expects "
                f"{shape}; it is for another architecture, or the model is pruned already",
                initializer=name,
            )
    keep = {}
    for group in analysis.groups:
        mask = _mask(group, done, source)
        if not mask.all():
            keep[group.name] = mask
    _check_complete(analysis, keep, done, source)
    folds = tuple(fold for fold in done.folds if fold.group in keep)
    merges = tuple(merge for merge in done.merges if merge.group in keep)
    return Plan(keep=keep, folds=folds, merges=merges)


def _mask(group: Group, done: Round, source: str) -> Mask:
    """(U,) which units all initializers agree to keep."""
    agreed: Mask | None = None
    for member in group.members:
        if member.axis in done.kept:
            present = np.isin(member.index, done.kept[member.axis])
            mask = np.asarray(present.all(axis=1))
            whole = bool((mask == present.any(axis=1)).all())
            if not whole or (agreed is not None and (mask != agreed).any()):
                raise _refusal(member.axis, source)
            agreed = mask
    return np.ones(group.size, np.bool_) if agreed is None else agreed


def _check_complete(analysis: Analysis, keep: Mapping[str, Mask], done: Round, source: str) -> None:
    """The plan must remove just what the recipe removes, from the initializers it names."""
    planned = kept_indices(analysis.groups, keep, analysis.shapes)
    for axis in dict.fromkeys([*done.kept, *(axis for axis in planned if axis.by < 0)]):
        recorded, now = done.kept.get(axis), planned.get(axis)
        if recorded is None and axis.value not in done.shapes:
            continue
        if recorded is None or now is None or not np.array_equal(recorded, now):
            raise _refusal(axis, source)


def _refusal(axis: Axis, source: str) -> ConfigError:
    return ConfigError(
        f"--recipe {source}: {axis.value} cannot keep just these indices of axis {axis.position}; "
        "the recipe is for another architecture",
        initializer=axis.value,
        axis=axis.position,
    )


def _sizes(value: ir.Value) -> tuple[int, ...]:
    tensor = tensor_of(value)  # what a Constant node makes may be declared nowhere
    return () if tensor is None else tuple(tensor.shape.numpy())


def _round_to_dict(done: Round) -> dict[str, Any]:
    initializers: dict[str, Any] = {
        name: {"shape": list(shape), "kept": {}} for name, shape in done.shapes.items()
    }
    for axis, index in done.kept.items():
        initializers[axis.value]["kept"][str(axis.position)] = _ranges(index)
    folds = [
        {
            "group": fold.group,
            "unit": fold.unit,
            "values": [[a.value, a.position, v.tolist()] for a, v in fold.values.items()],
        }
        for fold in done.folds
    ]
    merges = [
        {
            "group": merge.group,
            "victim": merge.victim,
            "survivor": merge.survivor,
            "scale": merge.scale,
            "offset": merge.offset,
        }
        for merge in done.merges
    ]
    return {"initializers": initializers, "folds": folds, "merges": merges}


def _round_from_dict(content: Mapping[str, Any]) -> Round:
    initializers = content["initializers"]
    folds = tuple(
        Fold(
            group=str(fold["group"]),
            unit=int(fold["unit"]),
            values={
                Axis(str(name), int(position)): np.asarray(numbers, np.float64)
                for name, position, numbers in fold["values"]
            },
        )
        for fold in content["folds"]
    )
    return Round(
        shapes={name: tuple(map(int, entry["shape"])) for name, entry in initializers.items()},
        kept={
            Axis(name, int(position)): _indices(text)
            for name, entry in initializers.items()
            for position, text in entry["kept"].items()
        },
        folds=folds,
        merges=tuple(Merge(**merge) for merge in content["merges"]),
    )


def _ranges(index: Index) -> str:
    """Ascending indices as "0-4,7,9-15"."""
    return ",".join(_runs(index))


def _runs(index: Index) -> Iterator[str]:
    for run in np.split(index, np.flatnonzero(np.diff(index) != 1) + 1):
        first, last = int(run[0]), int(run[-1])
        yield str(first) if first == last else f"{first}-{last}"


def _indices(text: str) -> Index:
    parts = []
    for run in text.split(","):
        first, _, last = run.partition("-")
        parts.append(np.arange(int(first), int(last or first) + 1, dtype=np.int64))
    return np.concatenate(parts)
