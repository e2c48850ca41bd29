"""All terms of a loss brought together with a model and its data.

Entry: `goals`. It resolves what was asked for, finds the target of every term, and converts the
targets of all splits to what the terms read. The term that metrics are about comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from scipy.special import log_softmax, softmax

from onnxprune.base import Array
from onnxprune.data import TARGET, Data, Split, check_target
from onnxprune.errors import ConfigError, DataError
from onnxprune.training.custom_loss import read_custom, sources
from onnxprune.training.loss_spec import Loss
from onnxprune.training.losses import TEACHER, Objective, resolve
from onnxprune.training.teacher import hidden_values

__all__ = ["divergence_of_mean", "goals", "target_names", "taught_values"]


def target_names(model: ir.Model, losses: Sequence[Loss]) -> frozenset[str]:
    """Names under which the data may hold targets beside y."""
    outputs = [value.name or "" for value in model.graph.outputs]
    names = {name for output in outputs for name in (output, f"y_{output}")}
    for loss in losses:
        if loss.is_custom:
            names |= {value.name or "" for value in read_custom(loss.kind).graph.inputs}
    return frozenset(names)


def goals(
    model: ir.Model, data: Data, losses: Sequence[Loss], output: str | None
) -> tuple[tuple[Objective, ...], Data]:
    """Every term for this model, and the data with a target for each.

    Args:
        model: the user's graph, with shapes where they are known.
        data: laid out for the model; targets as they came.
        losses: what was asked for.
        output: the graph output that terms without one read; None to find it.

    Raises:
        ConfigError: a term does not fit the model, or only values inside it are compared.
        DataError: a target is missing or does not fit.
    """
    outer = sorted((loss for loss in losses if loss.kind != "distill-hidden"), key=_is_custom)
    if not outer:
        raise ConfigError(
            "--loss distill-hidden alone leaves the outputs open; add --loss distill, for example"
        )
    found = []
    for number, loss in enumerate(outer):
        key = TARGET if number == 0 else f"{TARGET}/{number}"
        resolved = _custom if loss.is_custom else _resolved
        found.append(resolved(model, data, loss, loss.output or output, key))
    main = found[0]
    checked = _with_targets(data, found)
    hidden = [
        _hidden(name, loss)
        for loss in losses
        if loss.kind == "distill-hidden"
        for name in hidden_values(model, loss.output or "", main.prediction)
        if name != main.prediction
    ]
    return (*found, *hidden), checked


def _is_custom(loss: Loss) -> bool:
    return loss.is_custom


def _resolved(model: ir.Model, data: Data, loss: Loss, output: str | None, key: str) -> Objective:
    """A term on an output; labels are known when any split has them."""
    target = _some_target(data, output)
    objective = resolve(model, output, loss, target)
    if objective.kind != "distill":
        return replace(objective, target=key, labels=key)
    labels = None if target is None else key
    return replace(objective, target=f"{TEACHER}/{objective.prediction}", labels=labels)


def _hidden(name: str, loss: Loss) -> Objective:
    return Objective(
        kind="distill-hidden",
        prediction=name,
        output=name,
        loss=loss,
        target=f"{TEACHER}/{name}",
        labels=None,
    )


def _custom(model: ir.Model, data: Data, loss: Loss, output: str | None, key: str) -> Objective:
    """The term of a custom loss; metrics are about its first output where y fits that."""
    graph = read_custom(loss.kind)
    arrays = [*data.train.others, *(["y"] if data.train.target is not None else [])]
    origin = sources(loss.kind, graph, model, arrays)
    read = [name for kind, name in origin.values() if kind == "output"]
    output = output if output in read else read[0]
    objective = Objective(kind="custom", prediction=output, output=output, labels=None)
    target = _some_target(data, output)
    if target is not None:
        try:
            judged = resolve(model, output, "auto", target)
            _converted(judged, target)
            objective = replace(judged, kind="custom", labels=key)
        except (ConfigError, DataError):
            pass  # a target of the loss's own kind: there is no metric but the loss
    reads = {
        name: f"{key}/{source}" if kind == "data" else source
        for name, (kind, source) in origin.items()
    }
    return replace(objective, loss=loss, graph=graph, needs=tuple(read), reads=reads, target=key)


# --- targets --------------------------------------------------------------------------------------


def _some_target(data: Data, output: str | None) -> Array | None:
    """The target for `output` in the first split that has one."""
    splits = (data.train, data.validation, data.test)
    found = (None if split is None else _target(split, output) for split in splits)
    return next((target for target in found if target is not None), None)


def _target(split: Split, output: str | None) -> Array | None:
    """The array called like the output, or y_ and that; else y."""
    for name in () if output is None else (output, f"y_{output}"):
        if name in split.others:
            return split.others[name]
    return split.target


def _with_targets(data: Data, objectives: Sequence[Objective]) -> Data:
    named = {"": data.train, "validation": data.validation, "test": data.test}
    train, validation, test = (
        None if split is None else _converted_split(split, objectives, where)
        for where, split in named.items()
    )
    assert train is not None
    return replace(data, train=train, validation=validation, test=test)


def _converted_split(split: Split, objectives: Sequence[Objective], where: str) -> Split:
    """`split` with the target of every term under that term's key, less `TARGET`/.

    Args:
        split: with targets as they came.
        objectives: the terms.
        where: name of the split, for messages.
    """
    found: dict[str, Array] = {}
    for objective in objectives:
        target = _target(split, objective.output)
        if objective.labels is not None and (target is not None or objective.is_labelled):
            found[objective.labels] = _converted(objective, target, where)
        if objective.graph is not None:
            found |= _custom_targets(split, objective)
    main = found.pop(TARGET, None)
    others = {key.removeprefix(f"{TARGET}/"): array for key, array in found.items()}
    return replace(split, target=main, others=others)


def _converted(objective: Objective, target: Array | None, where: str = "") -> Array:
    kind = objective.kind if objective.is_labelled else objective.nature or "mse"
    checked = check_target(
        Split(sources={}, target=target),
        kind,
        objective.classes,
        shape=objective.shape,
        ignore=objective.loss.ignore,
        where=where,
    ).target
    assert checked is not None
    return checked


def _custom_targets(split: Split, objective: Objective) -> dict[str, Array]:
    """What a custom loss reads from the data, in the element types that it declares."""
    assert objective.graph is not None
    found = {}
    for value in objective.graph.graph.inputs:
        key = objective.reads[value.name or ""]
        if not key.startswith(f"{TARGET}"):
            continue
        name = key.removeprefix(f"{objective.target}/")
        array = split.target if name == "y" else split.others.get(name)
        if array is None:
            raise DataError(
                f"--loss {objective.loss}: the data has no array {name} in every part", array=name
            )
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        found[key] = array.astype(dtype)
    return found


# --- teachers -------------------------------------------------------------------------------------


def taught_values(objectives: Sequence[Objective]) -> tuple[str, ...]:
    """The values that a teacher computes: those of distillations, and of what has no labels."""
    return tuple(
        dict.fromkeys(
            objective.prediction for objective in objectives if objective.target.startswith(TEACHER)
        )
    )


def divergence_of_mean(objective: Objective, taught: Array) -> float:
    """The distillation loss of the best constant prediction, about.

    Args:
        objective: a distillation of an output.
        taught: (n, ...) what the teacher says of some examples.
    """
    z = taught.astype(np.float64)
    if objective.temperature is None:
        return float(np.var(z, axis=0).mean())
    if objective.nature == "binary-cross-entropy":
        z = np.stack([z, np.zeros_like(z)], axis=-1)
    else:
        z = np.moveaxis(z, objective.class_axis, -1)
    z = z.reshape(-1, z.shape[-1]) / objective.temperature
    p = softmax(z, axis=1)
    divergence = np.sum(p * (log_softmax(z, axis=1) - np.log(p.mean(axis=0))), axis=1)
    return float(objective.temperature**2 * divergence.mean())
