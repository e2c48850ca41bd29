"""Reading files that hold sparse weights: they are written out, as everything else expects arrays.

ONNX keeps such a weight as its non-zero numbers and their places, among the initializers of a graph
or in a Constant node; a removal leaves it as an ordinary weight.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

__all__ = ["read"]


def read(file: str | os.PathLike[str]) -> ir.Model:
    """The model in a file, with external data mapped and sparse weights written out."""
    proto = onnx.load(file, load_external_data=False)
    _write_out(proto.graph)
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, Path(file).parent)
    return model


def _write_out(graph: onnx.GraphProto) -> None:
    """Make the sparse weights of `graph` and of all bodies dense, in place."""
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse))
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                tensor = _dense(attribute.sparse_tensor)
                attribute.Clear()
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                attribute.t.CopyFrom(tensor)
            for body in _bodies(attribute):
                _write_out(body)


def _bodies(attribute: onnx.AttributeProto) -> Iterable[onnx.GraphProto]:
    return [attribute.g] if attribute.HasField("g") else attribute.graphs


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """The same numbers among zeros; places are single numbers, or one per axis."""
    values = ir.from_proto(sparse.values).numpy()
    places = ir.from_proto(sparse.indices).numpy()
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    where = tuple(places.T) if places.ndim == 2 else np.unravel_index(places, dense.shape)
    dense[where] = values
    return ir.to_proto(ir.Tensor(dense, name=sparse.values.name))
