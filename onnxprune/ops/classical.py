"""Preparing tabular data (ai.onnx.ml): what scikit-learn's exporter puts before a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnxprune.base import Fact
from onnxprune.emit import Emitter
from onnxprune.ops.registry import View, couples, mimics

_DOMAIN = "ai.onnx.ml"


@couples("Binarizer", "Imputer", "Normalizer", "Scaler", domain=_DOMAIN)
def prepare(view: View) -> Iterator[Fact]:
    """Couple the examples; attributes have a number per feature, or all features count.

    Forward:  y[n, f] = (x[n, f] - offset[f]) * scale[f], and the like
    Couples:  x.N <-> y.N; features keep their places
    """
    x, y = view.input(0), view.output()
    rank = len(view.shape(x))
    if rank > 1:
        yield from view.equal(view.axis(x, 0), view.axis(y, 0))
    for value in (x, y):
        yield from view.fixed(value, *range(min(rank - 1, 1), rank))


@couples("CategoryMapper", "LabelEncoder", domain=_DOMAIN)
def encode(view: View) -> Iterator[Fact]:
    """Couple every axis one to one.

    Forward:  y[...] = table[x[...]]
    Couples:  (x, p)[i] <-> (y, p)[i]
    """
    x, y = view.input(0), view.output()
    for position in range(len(view.shape(x))):
        yield from view.equal(view.axis(x, position), view.axis(y, position))


@couples("ArrayFeatureExtractor", domain=_DOMAIN)
def extract(view: View) -> Iterator[Fact]:
    """Couple all axes but that of the features, which are numbered.

    Forward:  y[..., k] = x[..., indices[k]]
    Couples:  (x, p)[i] <-> (y, p)[i] on the other axes
    """
    x, y = view.input(0), view.output()
    rank = len(view.shape(x))
    for position in range(rank - 1):
        yield from view.equal(view.axis(x, position), view.axis(y, position))
    yield from view.fixed(x, rank - 1)
    yield from view.fixed(y, len(view.shape(y)) - 1)
    yield from view.fixed(view.input(1), *range(len(view.shape(view.input(1)))))


@mimics("Binarizer", "Imputer", "Normalizer", "Scaler", domain=_DOMAIN)
def like_cast(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The sizes of the input."""
    return [e.op("Cast", node.inputs[0], to=int(ir.DataType.FLOAT))]
