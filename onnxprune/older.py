"""A model said in the words of an older opset: for runtimes that are older than the model.

Most operators did not change since, so that a lower number in the header is all that a runtime
needs. Those that are new are functions of older ones by definition, which `spelled_out` writes out.
"""

from __future__ import annotations

import functools

import onnx
import onnx_ir as ir
from onnx import inliner
from onnx_ir.passes import common as passes

from onnxprune.model import opset, serialize

__all__ = ["claiming", "spelled_out"]


def claiming(model: ir.Model, version: int, ir_version: int) -> ir.Model:
    """A copy that claims at most this opset and IR version, without any other change."""
    copy = model.clone()
    copy.ir_version = min(copy.ir_version, ir_version)
    copy.graph.opset_imports[""] = min(opset(model), version)
    return copy


def spelled_out(model: ir.Model, version: int) -> ir.Model | None:
    """A copy in which operators newer than opset `version` are what they are defined to be.

    None where there is none to write out, or it cannot be. What has no definition in older
    operators stays.
    """
    with serialize(model) as source:
        if not isinstance(source, bytes):
            return None  # too large for a copy in one piece
        proto = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(source))
    found: set[tuple[str, str]] = set()
    for node in proto.graph.node:
        schema = _newer(node, opset(model), version)
        if schema is not None:
            found.add((node.domain, node.op_type))
            _fill_in(node, schema)
    if not found:
        return None
    try:
        written = inliner.inline_selected_functions(
            proto, sorted(found), inline_schema_functions=True
        )
    except RuntimeError:  # it does not know inputs that are left out
        return None
    result = ir.from_proto(written)
    passes.RemoveUnusedNodesPass()(result)
    for value in (value for made in result.graph for value in made.outputs):
        if not value.is_graph_output():
            value.shape, value.type = None, None
    return result


def _newer(node: onnx.NodeProto, current: int, version: int) -> onnx.defs.OpSchema | None:
    """The definition of an operator that came after opset `version` and has one."""
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
        return None
    schema = onnx.defs.get_schema(node.op_type, current)
    defined = schema.has_function or schema.has_context_dependent_function  # type: ignore[attr-defined]
    return schema if defined and _first_version(node.op_type) > version else None


@functools.cache
def _first_version(op_type: str) -> int:
    schemas = onnx.defs.get_all_schemas_with_history()
    return min(s.since_version for s in schemas if s.name == op_type and not s.domain)


def _fill_in(node: onnx.NodeProto, schema: onnx.defs.OpSchema) -> None:
    """Write out default attributes, which the definition refers to."""
    given = {attribute.name for attribute in node.attribute}
    for name, declared in schema.attributes.items():
        if name not in given and declared.default_value.name:
            node.attribute.append(declared.default_value)
