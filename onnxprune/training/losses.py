"""Which loss, and what it reads.

`resolve` looks at the user's graph and finds what one term of the loss means for it: an
`Objective`. Its nodes are written by `training.loss_nodes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxprune.base import Array
from onnxprune.data import IGNORED, TARGET, Split, check_target
from onnxprune.errors import ConfigError
from onnxprune.model import constant, shape_of, trainable_dtype
from onnxprune.training.loss_spec import LABELLED, Kind, Loss

__all__ = ["LOSS", "TARGET", "TEACHER", "Kind", "Objective", "resolve"]

LOSS = "onnxprune.loss"
"""The name of the loss, first output of a training copy; its terms are called LOSS/name."""

TEACHER = "onnxprune.teacher"
"""What the original model computes for a batch comes in as TEACHER/value."""

Sizes: TypeAlias = Sequence[int | None]
_SOFTMAX = ("Softmax", "LogSoftmax")
_TEMPERATURE = 4.0  # of a distillation; Hinton et al. 2015 use 2 to 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A term of what is minimized, for one model.

    Attributes:
        kind: what is computed.
        prediction: name of the value the loss reads: logits for both cross-entropies.
        output: name of the value users see; the same where nothing stands between.
        classes: size of the class axis; None unless the output holds classes and it is known.
        class_axis: axis of the classes in the prediction; 1 or the last.
        shape: of the prediction, None where dynamic; None when the rank is unknown.
        loss: what was asked for, with its options.
        nature: what the output holds, as the loss for labels that would fit it: classes
            ("cross-entropy"), yes or no ("binary-cross-entropy") or values ("mse"); None for
            values inside the model, and where a custom loss leaves it open.
        target: key in a batch of what the prediction is compared with.
        weights: per class or output, as `Loss.weights`, in numbers; empty for ones.
        temperature: of a distillation.
        labels: key in a batch of the labels that metrics compare with; None without any: what the
            original model says takes their place.
        graph: of a custom loss.
        needs: values of the model that `graph` reads.
        reads: per input of `graph`, the value or batch key it reads.
    """

    kind: Kind
    prediction: str
    output: str
    classes: int | None = None
    class_axis: int = 1
    shape: tuple[int | None, ...] | None = None
    loss: Loss = field(default_factory=Loss)
    nature: Kind | None = None
    target: str = TARGET
    weights: tuple[float, ...] = ()
    temperature: float | None = None
    labels: str | None = TARGET
    graph: ir.Model | None = field(default=None, compare=False)
    needs: tuple[str, ...] = ()
    reads: Mapping[str, str] = field(default_factory=dict)

    @property
    def values(self) -> tuple[str, ...]:
        """The values of the model that it needs."""
        return tuple(dict.fromkeys((self.prediction, *self.needs)))

    @property
    def is_labelled(self) -> bool:
        """Whether it compares with labels or values of the data."""
        return self.kind in LABELLED

    @property
    def name(self) -> str:
        """What records call the term."""
        return self.loss.name if self.loss.kind != "auto" else self.kind

    def of_any_batch(self) -> Objective:
        """The same term where predictions are not those of one batch of the model's own size."""
        return self if self.shape is None else replace(self, shape=(None, *self.shape[1:]))


# --- choosing ------------------------------------------------------------------------------------


def resolve(
    model: ir.Model,
    output: str | None = None,
    kind: str | Loss = "auto",
    target: Array | None = None,
) -> Objective:
    """Choose loss and prediction.

    The output: `output`, else the only float tensor among the graph's outputs. So a scikit-learn
    export with the outputs (label: int64, probabilities: float) is trained on its probabilities.

    The kind, unless given: "cross-entropy" when the output comes from a Softmax or LogSoftmax;
    "binary-cross-entropy" when it comes from a Sigmoid. Otherwise the targets decide: those of the
    shape of the output are classes when they are one-hot rows, yes or no when they are all 0 or 1
    ("binary-cross-entropy"), else values ("mse"); integers of another shape are classes.

    Both cross-entropies, and the distillation of such outputs, read the logits, which is what
    enters a final Softmax, LogSoftmax or Sigmoid. Identity nodes are skipped, and so is a Transpose
    that only moves the class axis, as exporters write for a Softmax over channels. Two columns
    Concat(1 - p, p), as scikit-learn's binary classifiers have them, count as the Sigmoid p.

    Args:
        model: the user's graph, with shapes where they are known.
        output: name of a graph output; None to choose.
        kind: a term, or its kind; not "distill-hidden" and no custom one.
        target: (n, ...) some targets, for their dtype, shape and values; None when there are none.

    Raises:
        ConfigError: no or several outputs to choose from, an unknown kind, or no way to tell.
    """
    loss = Loss(kind=kind) if isinstance(kind, str) else kind
    value = _output(model, output)
    final = _end(value)
    if shape_of(final) is None:
        inferred = model.clone()
        passes.ShapeInferencePass(check_type=False, strict_mode=False)(inferred)
        value = _output(inferred, output)
        final = _end(value)
    same = final is _through_identity(value)
    shape = shape_of(final) or (shape_of(value) if same else None)
    distills = loss.kind == "distill"
    chosen: Kind = "distill" if distills else _chosen(loss, final, shape, target)
    nature = _nature(loss, final, shape, target) if distills else _of_labels(chosen)
    axis = _class_axis(final, shape, target) if nature == "cross-entropy" else 1
    known = shape is not None and nature == "cross-entropy" and axis < len(shape)
    classes = shape[axis] if known and shape is not None else None
    return Objective(
        kind=chosen,
        prediction=_logits(final, nature).name or "",
        output=value.name or "",
        classes=classes,
        class_axis=axis,
        shape=None if shape is None else tuple(shape),
        loss=loss,
        nature=nature,
        weights=_weights(loss, chosen, classes, shape, target),
        temperature=(loss.temperature or _TEMPERATURE) if distills and nature != "mse" else None,
    )


def _of_labels(kind: Kind) -> Kind:
    """What an output holds that is compared with labels by `kind`."""
    return kind if kind in ("cross-entropy", "binary-cross-entropy") else "mse"


def _chosen(loss: Loss, final: ir.Value, shape: Sizes | None, target: Array | None) -> Kind:
    if loss.kind == "auto":
        return _kind(final, shape, target)
    return next(kind for kind in LABELLED if kind == loss.kind)


def _nature(loss: Loss, final: ir.Value, shape: Sizes | None, target: Array | None) -> Kind:
    """What a distilled output holds: values, unless model, targets or a temperature say more."""
    if target is not None or _final_op(final) in (*_SOFTMAX, "Sigmoid"):
        return _kind(final, shape, target)
    return "mse" if loss.temperature is None else "cross-entropy"


def _weights(
    loss: Loss, kind: Kind, classes: int | None, shape: Sizes | None, target: Array | None
) -> tuple[float, ...]:
    """The weights in numbers: "balanced" is n / (classes * n_c), as in scikit-learn.

    Raises:
        ConfigError: not one per class or output.
        DataError: the labels that are to be balanced are none.
    """
    weights = loss.weights
    if weights == "balanced":
        if kind != "cross-entropy" or classes is None or target is None:
            raise ConfigError(f"--loss {loss}: balanced weights need labels of a known class count")
        split = Split(sources={}, target=target)
        labels = check_target(split, kind, classes, shape=shape, ignore=loss.ignore).target
        assert labels is not None
        counts = np.bincount(labels[labels != IGNORED], minlength=classes)
        return tuple(float(w) for w in counts.sum() / (classes * np.maximum(counts, 1)))
    if kind == "cross-entropy" and weights and classes not in (None, len(weights)):
        raise ConfigError(
            f"--loss {loss}: {len(weights)} weights for {classes} classes; give one per class",
            expected=classes,
            got=len(weights),
        )
    if kind == "binary-cross-entropy" and len(weights) > 1:
        outputs = shape[1] if shape is not None and len(shape) == 2 else None
        if outputs != len(weights):
            raise ConfigError(
                f"--loss {loss}: {len(weights)} weights for {outputs or 'an unknown number of'} "
                "outputs; give one per output of an (N, outputs) model, or one for all",
                expected=outputs,
                got=len(weights),
            )
    return weights


def _output(model: ir.Model, name: str | None) -> ir.Value:
    candidates = {value.name or "": value for value in model.graph.outputs}
    floats = {name: value for name, value in candidates.items() if trainable_dtype(value.dtype)}
    if name is not None:
        if name not in candidates:
            raise ConfigError(
                f"output {name!r}: the model has no such output, only {', '.join(candidates)}",
                output=name,
            )
        return candidates[name]
    if len(floats) != 1:
        raise ConfigError(
            f"expected one float output to train on, got {len(floats)} of "
            f"{', '.join(candidates)}: choose with --output-name NAME",
            outputs=tuple(floats),
        )
    return next(iter(floats.values()))


def _through_identity(value: ir.Value) -> ir.Value:
    producer = value.producer()
    while producer is not None and producer.op_type == "Identity":
        assert producer.inputs[0] is not None
        value = producer.inputs[0]
        producer = value.producer()
    return value


def _end(value: ir.Value) -> ir.Value:
    """The value behind which nothing more than renaming and moving of axes is done."""
    value = _through_identity(value)
    return _one_of_two(_before_transpose(value))


def _before_transpose(value: ir.Value) -> ir.Value:
    """The Softmax whose class axis the Transpose behind it moves, or `value` itself.

    The order of all other axes must stay, so that targets fit before the Transpose as after it.
    """
    transpose = value.producer()
    if transpose is None or transpose.op_type != "Transpose" or transpose.inputs[0] is None:
        return value
    source = _through_identity(transpose.inputs[0])
    node, perm = source.producer(), transpose.attributes.get("perm")
    if node is None or node.op_type not in _SOFTMAX or perm is None:
        return value
    order = list(perm.as_ints())
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    others = [position for position in order if position != axis % len(order)]
    return source if others == sorted(others) else value


def _one_of_two(value: ir.Value) -> ir.Value:
    """The Sigmoid p behind Concat(1 - p, p), or `value` itself."""
    concat = value.producer()
    if concat is None or concat.op_type != "Concat" or len(concat.inputs) != 2:
        return value
    rest, p = concat.inputs
    sub = None if rest is None else rest.producer()
    if sub is None or sub.op_type != "Sub" or p is None or sub.inputs[1] is not p:
        return value
    one, final = constant(sub.inputs[0]), _through_identity(p)
    whole = one is not None and bool(np.all(one == 1))
    return final if whole and _final_op(final) == "Sigmoid" else value


def _final_op(value: ir.Value) -> str:
    producer = value.producer()
    return "" if producer is None else producer.op_type


def _kind(final: ir.Value, shape: Sizes | None, target: Array | None) -> Kind:
    op_type = _final_op(final)
    if op_type in _SOFTMAX:
        return "cross-entropy"
    if op_type == "Sigmoid":
        return "binary-cross-entropy"
    if target is None:
        raise ConfigError(
            f"output {final.name!r}: cannot tell the loss from {op_type or 'a graph input'} "
            f"alone; choose --loss {', '.join((*LABELLED, 'distill'))}",
            output=final.name,
        )
    integral = np.issubdtype(target.dtype, np.integer) or target.dtype == np.bool_
    if shape is None or not _has_shape(target, shape):
        return "cross-entropy" if integral else "mse"
    if not np.isin(target, (0, 1)).all():
        return "mse"
    one_hot = target.ndim == 2 and target.shape[1] > 1 and (target.sum(axis=1) == 1).all()
    return "cross-entropy" if one_hot and integral else "binary-cross-entropy"


def _has_shape(target: Array, shape: Sizes) -> bool:
    """Whether there is a target per element of an output of `shape`; axes of size 1 are no axes."""
    wanted = [size for size in shape[1:] if size != 1]
    got = [size for size in target.shape[1:] if size != 1]
    return len(wanted) == len(got) and _fits(wanted, got)


def _fits(sizes: Sizes, got: Sequence[int]) -> bool:
    return len(sizes) == len(got) and all(
        size is None or size == other for size, other in zip(sizes, got, strict=True)
    )


def _logits(final: ir.Value, nature: Kind) -> ir.Value:
    """What enters the final activation that the loss includes."""
    included = {"cross-entropy": _SOFTMAX, "binary-cross-entropy": ("Sigmoid",)}
    producer = final.producer()
    if producer is not None and producer.op_type in included.get(nature, ()):
        assert producer.inputs[0] is not None
        return _through_identity(producer.inputs[0])
    return final


def _class_axis(final: ir.Value, shape: Sizes | None, target: Array | None) -> int:
    """1, or the last axis for predictions like (N, T, classes).

    Where only targets can tell and both would do: the one of known size, as models know how many
    classes they have; else the last of three axes (tokens), else 1 (pixels).
    """
    if shape is None or len(shape) <= 2:
        return 1
    last = len(shape) - 1
    producer = final.producer()
    if producer is not None and producer.op_type in _SOFTMAX:
        axis = producer.attributes.get("axis")
        first = axis is not None and axis.value % len(shape) == 1
        return 1 if first or shape[last] == 1 else last  # one class is none
    if target is None:
        return 1
    positions = target.shape[1:]
    behind = _fits(shape[1:last], positions)
    before = _fits(shape[2:], positions) and (shape[1] is not None or shape[last] is None)
    return last if behind and (not before or last == 2) else 1
