"""The training copy: the user's graph in a form that the gradient engine can differentiate.

`lower` is pure; the copy lives for one round and is thrown away. Names of values that exist in the
user's graph stay, so that parameters, statistics and gradients can be found by name. What a rewrite
adds is named after the value it computes.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxprune.emit import Emitter
from onnxprune.errors import ConfigError
from onnxprune.gradients import (  # noqa: F401  each registers its rules
    attention,
    compositions,
    contraction,
    control,
    elementwise,
    fused,
    fused_attention,
    joining,
    normalization,
    pooling,
    quantization,
    recurrent,
    resizing,
)
from onnxprune.gradients.slots import wanted
from onnxprune.model import (
    constant,
    convert_opset,
    model_input,
    node_key,
    opset,
    trainable_dtype,
)
from onnxprune.ops.random import GENERATORS
from onnxprune.ops.registry import LOWERS
from onnxprune.runtime.single import read_in_single, to_single
from onnxprune.scopes import nodes, subgraphs

__all__ = ["TrainingCopy", "compose", "drop_unused", "evaluation_copy", "expose", "lower"]

_FIRST_OPSET = 14  # BatchNormalization with training_mode
_TARGET_OPSET = 17  # what older files are converted to
_LAST_OPSET = 21
_FIRST_IR = 8  # initializers need not be inputs
_LAST_IR = 10


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainingCopy:
    """A lowered graph.

    Attributes:
        model: a graph of its own; never saved.
        state: per initializer that forward passes update (running means and variances), the
            graph output that holds its next value.
    """

    model: ir.Model
    state: Mapping[str, str] = field(default_factory=dict)


def lower(
    model: ir.Model,
    outputs: Sequence[str],
    *,
    batch_norm: Literal["train", "frozen"],
    dropout: bool = True,
    seed: int = 0,
) -> TrainingCopy:
    """The ancestors of `outputs`, in operators that can be differentiated, all in float32.

    Args:
        model: the user's graph; left as it is.
        outputs: names of the values that become the graph's outputs, in this order.
        batch_norm: "train" normalizes by the batch and updates the running statistics; "frozen"
            normalizes by the running statistics. A BatchNormalization whose statistics are
            computed, or shared with another one, is always frozen.
        dropout: whether a Dropout that states its ratio drops; all others are identities.
        seed: of the nodes that draw random numbers; each derives its own from its name.

    Raises:
        ConfigError: `outputs` names a value that does not exist.
        ModelError: the graph's opset cannot be converted.
    """
    copy = model.clone()
    if copy.functions:
        passes.InlinePass()(copy)
    _keep_ancestors(copy, outputs)
    copy = _converted(copy)
    _initializers_only(copy.graph)
    to_single(copy)
    _lift_float_constants(copy)
    _infer(copy)
    _set_header(copy)
    state = _set_batch_norm(copy.graph, train=batch_norm == "train")
    _set_dropout(copy.graph, version=opset(copy), drops=dropout, seed=seed)
    compose(copy)
    drop_unused(copy.graph)
    _set_seeds(copy, seed)
    return TrainingCopy(model=copy, state=state)


def evaluation_copy(model: ir.Model, outputs: Sequence[str]) -> ir.Model:
    """The ancestors of `outputs` for forward passes: the user's operators, as they are.

    Files of an opset that the training runtime does not read are lowered like the training copy.
    Nodes that draw random numbers draw the same ones in every session.

    Args:
        model: the user's graph; left as it is.
        outputs: names of the values that become the graph's outputs, in this order.

    Raises:
        ConfigError: `outputs` names a value that does not exist.
    """
    if opset(model) > _LAST_OPSET:
        return lower(model, outputs, batch_norm="frozen", dropout=False).model
    copy = model.clone()
    if copy.functions:
        passes.InlinePass()(copy)
    _keep_ancestors(copy, outputs)
    copy.ir_version = max(copy.ir_version, _FIRST_IR)
    _initializers_only(copy.graph)
    _lift_float_constants(copy)
    _set_seeds(copy, 0)
    return copy


def expose(model: ir.Model, names: Sequence[str]) -> None:
    """Turn the initializers `names` into float32 graph inputs, in this order and in place.

    Those of another float type are cast to it where they are read.
    """
    graph = model.graph
    for name in names:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
        read_in_single(graph, value)


def _keep_ancestors(model: ir.Model, outputs: Sequence[str]) -> None:
    graph = model.graph
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    for name in outputs:
        if name not in values:
            known = ", ".join(value.name or "" for value in graph.outputs)
            raise ConfigError(
                f"value {name!r}: not in the graph; its outputs are {known}", value=name
            )
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in dict.fromkeys(outputs))
    passes.RemoveUnusedNodesPass()(model)
    for value in list(model_input(model)):
        if not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)


def _converted(model: ir.Model) -> ir.Model:
    """The same graph without the spellings of old opsets that the engine fails on."""
    passes.RemoveUnusedOpsetsPass()(model)
    return model if opset(model) >= _FIRST_OPSET else convert_opset(model, _TARGET_OPSET)


def _set_header(model: ir.Model) -> None:
    """Claim an opset and IR version that the engine reads.

    No operator the engine knows changed its meaning since opset 21; new ones are lowered, or
    refused by the engine. Shapes are inferred before, as inference follows the header.
    """
    model.graph.opset_imports[""] = min(opset(model), _LAST_OPSET)
    model.ir_version = min(max(model.ir_version, _FIRST_IR), _LAST_IR)


def _initializers_only(graph: ir.Graph) -> None:
    """Old files list initializers among the inputs; here an initializer is no input."""
    for value in [value for value in graph.inputs if value.is_initializer()]:
        graph.inputs.remove(value)


def _lift_float_constants(model: ir.Model) -> None:
    """What holds floats becomes an initializer of the main graph, of the same name, to be trained.

    That goes for Constant nodes, and for initializers of bodies, which then read them from outside.
    """
    graph = model.graph
    for body in (body for node in nodes(model) for body in subgraphs(node)):
        for value in list(body.initializers.values()):
            if trainable_dtype(value.dtype) and not value.is_graph_output():
                body.initializers.pop(value.name or "")
                graph.register_initializer(value)
    for node in list(nodes(model)):
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            continue
        value = node.outputs[0]
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or value.is_graph_output() or not trainable_dtype(tensor.dtype):
            continue
        lifted = ir.Value(
            name=value.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.numpy().shape),
            const_value=tensor,
        )
        value.replace_all_uses_with(lifted)
        holder = node.graph
        assert isinstance(holder, ir.Graph)
        holder.remove(node)
        graph.register_initializer(lifted)


def _infer(model: ir.Model) -> None:
    """Shapes and types anew; those written in files are often wrong."""
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _initializer_behind(value: ir.Value | None) -> ir.Value | None:
    """The initializer that `value` is or copies."""
    while value is not None and not value.is_initializer():
        producer = value.producer()
        if producer is None or producer.op_type != "Identity":
            return None
        value = producer.inputs[0]
    return value


def _set_batch_norm(graph: ir.Graph, *, train: bool) -> dict[str, str]:
    """Choose every BatchNormalization's mode; next running statistics become graph outputs."""
    nodes = [node for node in graph if node.op_type == "BatchNormalization"]
    statistics = {
        node: [_initializer_behind(node.inputs[slot]) for slot in (3, 4)] for node in nodes
    }
    readers = Counter(value for pair in statistics.values() for value in pair)
    state: dict[str, str] = {}
    for node, pair in statistics.items():
        tracked = train and all(value is not None and readers[value] == 1 for value in pair)
        node.attributes["training_mode"] = ir.AttrInt64("training_mode", int(tracked))
        node.resize_outputs(3 if tracked else 1)
        if not tracked:
            continue
        for slot, value in enumerate(pair):
            assert value is not None
            assert value.name is not None
            node.replace_input_with(3 + slot, value)
            following = node.outputs[1 + slot]
            following.name = f"{value.name}/next"
            following.type, following.shape = value.type, value.shape
            graph.outputs.append(following)
            state[value.name] = following.name
    return state


def _set_dropout(graph: ir.Graph, *, version: int, drops: bool, seed: int) -> None:
    for node in [node for node in graph if node.op_type == "Dropout"]:
        ratio = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if drops and ratio is not None and float(ratio) > 0:
            e = Emitter(node_key(node), opset=version)
            node.resize_inputs(3)
            node.replace_input_with(2, e.constant(np.array(True)))
            e.add_to(graph, before=node)
            node.attributes["seed"] = ir.AttrInt64("seed", _own_seed(node, seed))
            node.resize_outputs(2)  # the gradient reads the mask
            node.outputs[1].name = node.outputs[1].name or f"{node_key(node)}/mask"
        else:
            node.resize_inputs(min(len(node.inputs), 2))


def _set_seeds(model: ir.Model, seed: int) -> None:
    """Give generators a seed where the file gives none: without one, no run can be repeated."""
    for node in nodes(model):
        if node.op_type in GENERATORS and "seed" not in node.attributes:
            number = float(_own_seed(node, seed) >> 8)  # 24 bits: exact in the float attribute
            node.attributes["seed"] = ir.AttrFloat32("seed", number)


def _own_seed(node: ir.Node, seed: int) -> int:
    return zlib.crc32(f"{seed}/{node_key(node)}".encode())


def compose(model: ir.Model) -> None:
    """Write operators that cannot be differentiated as ones that can, in place.

    Repeated until no composition applies: behind an operator without shape inference, sizes become
    known only after its composition stands there.
    """
    while _rewrite(model):
        passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _rewrite(model: ir.Model) -> bool:
    """Apply the compositions to every node of the main graph; whether any applied."""
    applied = False
    for node in list(model.graph):
        version = model.graph.opset_imports.get(node.domain, opset(model))
        lowering = LOWERS.find(node, version)
        if lowering is None:
            continue
        known = [v.dtype for v in (*node.inputs, *node.outputs[:1]) if v is not None and v.dtype]
        floats = [dtype for dtype in known if trainable_dtype(dtype)]
        if known and not floats:
            continue
        dtype = floats[0] if floats else ir.DataType.FLOAT
        e = Emitter(node_key(node), opset=opset(model), dtype=dtype)
        made = lowering(e, node)
        if made is not None:
            values = made if isinstance(made, Sequence) else [made]
            _replace(model.graph, node, e, [_own(e, value) for value in values])
            applied = True
    return applied


def _own(e: Emitter, value: ir.Value | None) -> ir.Value | None:
    """`value`, or a copy of one that was there before and keeps its name."""
    if value is None or value.producer() in e.nodes:
        return value
    return e.op("Identity", value)


def drop_unused(graph: ir.Graph) -> None:
    """Remove nodes and initializers nobody reads, but no output of a node that stays.

    (The pass of onnx_ir takes unread optional outputs too, those of LayerNormalization among them,
    which its gradient needs.)
    """
    for node in reversed(graph):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output()):
            del graph.initializers[name]


def _replace(graph: ir.Graph, node: ir.Node, e: Emitter, values: Sequence[ir.Value | None]) -> None:
    """Let `values` take the places and the names of the node's first outputs."""
    e.add_to(graph, before=node)
    for old, value in zip(node.outputs, values, strict=False):
        if value is None or not (old.name or wanted(old)):
            continue
        name, old.name = old.name, ""
        value.name, value.type, value.shape = name, old.type or value.type, old.shape
        old.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
