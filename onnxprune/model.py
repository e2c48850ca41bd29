"""Models and files: load, check, save; the only module that touches protobuf.

In memory a model is an `onnx_ir.Model`. Weights stay memory-mapped where the file keeps them as
external data, so that a model larger than memory allows can be opened and saved again.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import version_converter
from onnx.reference import ReferenceEvaluator

from onnxprune.base import Array
from onnxprune.errors import InvalidModelError, ModelError
from onnxprune.scopes import name_all_values
from onnxprune.sparse import read
from onnxprune.storage import free_data_name, move_into_place, remove_data
from onnxprune.tensors import (
    Stored,
    all_nodes,
    constant,
    constants,
    detach,
    is_constant,
    keep,
    set_constant,
    tensor_of,
)

__all__ = [
    "PROTOBUF_LIMIT",
    "constant",
    "constants",
    "convert_opset",
    "evaluate",
    "external_files",
    "in_memory",
    "is_constant",
    "keep",
    "list_initializers",
    "load",
    "model_input",
    "nbytes",
    "node_key",
    "opset",
    "parse",
    "save",
    "serialize",
    "set_constant",
    "shape_of",
    "stored_size",
    "tensor_of",
    "trainable_dtype",
]

PROTOBUF_LIMIT = 1_900_000_000  # bytes; protobuf itself stops at 2 GiB
_EXTERNAL_THRESHOLD = 1024  # bytes; smaller tensors stay in the model file


def load(path: str | os.PathLike[str], *, check: bool = True) -> ir.Model:
    """Read and check an ONNX file; external data is mapped, not read.

    Nodes that do not stand in the order they run in are sorted. What was written here for another
    process need not be checked.

    Raises:
        InvalidModelError: no such file, not an ONNX model, or refused by the ONNX checker.
    """
    file = Path(path)
    if not file.is_file():
        raise InvalidModelError(f"{file}: no such file; give the path of an .onnx file", path=file)
    try:
        model = _checked(file) if check else read(file)
    except DecodeError as error:
        raise InvalidModelError(
            f"{file}: not an ONNX model, or truncated ({_first_line(error)}); export it again",
            path=file,
        ) from error
    except (onnx.checker.ValidationError, ir.serde.SerdeError, ValueError, OSError) as error:
        raise InvalidModelError(
            f"{file}: refused by the ONNX checker: {_first_line(error)}; mend or export it again",
            path=file,
        ) from error
    detach(model)
    name_all_values(model)
    _open_negative_sizes(model)
    imports = model.graph.opset_imports
    if "ai.onnx" in imports:  # the other name of the standard operators
        imports.setdefault("", imports.pop("ai.onnx"))
    return model


def _checked(file: Path) -> ir.Model:
    """Load and check; nodes in a wrong order, which runtimes accept, are sorted instead."""
    try:
        onnx.checker.check_model(os.fspath(file))
    except onnx.checker.ValidationError as error:
        if "topologically sorted" not in str(error):
            raise
        model = read(file)
        model.graph.sort()
        for function in model.functions.values():
            function.sort()
        with serialize(model) as data:
            onnx.checker.check_model(data)
        return model
    return read(file)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def save(model: ir.Model, path: str | os.PathLike[str], *, external: bool | None = None) -> None:
    """Write `model` to `path`; the file appears whole or not at all.

    Weights that go beside it are written first, to `<path>.data`, or `<path>.<n>.data` where that
    exists: the file that is replaced keeps its own until the last step. Data files of such a name
    that only the replaced file read are removed afterwards.

    Args:
        model: not changed.
        path: an existing file is replaced.
        external: whether weights go to a file beside it; None where the model is too large for one
            protobuf file, wherever its weights came from.

    Raises:
        ModelError: the folder does not exist or cannot be written.
    """
    target = Path(path)
    apart = nbytes(model) > PROTOBUF_LIMIT if external is None else external
    before = external_files(target)
    try:
        with tempfile.TemporaryDirectory(prefix=".onnxprune-", dir=target.parent) as folder:
            draft = Path(folder) / target.name
            data = free_data_name(target) if apart else None
            _write(model, draft, data)
            move_into_place(draft, target, data)
    except OSError as error:
        raise ModelError(
            f"{target}: cannot be written ({error.strerror or error}); choose another -o",
            path=target,
        ) from error
    needed = {Path(tensor.path).resolve() for tensor in _external_tensors(model)}
    remove_data(before - external_files(target) - needed, target)


def _write(model: ir.Model, file: Path, data: str | None) -> None:
    whole = in_memory(model, initializers=data is None)
    ir.save(whole, file, external_data=data, size_threshold_bytes=_EXTERNAL_THRESHOLD)


def external_files(path: str | os.PathLike[str]) -> frozenset[Path]:
    """The files that hold external data of the model at `path`; none if it is no model."""
    file = Path(path)
    try:
        content = file.read_bytes()
        if b"location" not in content:  # the key that every external tensor has
            return frozenset()
        model = parse(content)
    except (DecodeError, ir.serde.SerdeError, ValueError, OSError):
        return frozenset()
    tensors = _external_tensors(model)
    return frozenset((file.parent / tensor.location).resolve() for tensor in tensors)


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Of all graphs, in initializers and attributes; also where only parts of them are kept."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            tensor = tensor.source if isinstance(tensor, Stored) else tensor
            if isinstance(tensor, ir.ExternalTensor):
                yield tensor
    for node in all_nodes(model):
        for attribute in node.attributes.values():
            if _is_external(attribute):
                yield attribute.value


def _is_external(attribute: ir.Attr) -> bool:
    return not attribute.is_ref() and isinstance(attribute.value, ir.ExternalTensor)


def in_memory(model: ir.Model, *, initializers: bool = True) -> ir.Model:
    """A copy without external tensors, or with none in attributes only; `model` if it has none."""
    if next(_external_tensors(model), None) is None:
        return model
    copy = model.clone()
    if initializers:
        ir.external_data.load_to_model(copy)
    for node in all_nodes(copy):
        for name, attribute in list(node.attributes.items()):
            if _is_external(attribute):
                old = attribute.value
                tensor = ir.Tensor(np.array(old.numpy()), name=old.name, dtype=old.dtype)
                node.attributes[name] = ir.AttrTensor(name, tensor)
    return copy


def nbytes(model: ir.Model) -> int:
    """Size of all initializers in bytes."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def stored_size(path: str | os.PathLike[str]) -> int:
    """Bytes that the model at `path` takes on disk, external data included."""
    return os.path.getsize(path) + sum(file.stat().st_size for file in external_files(path))


@contextlib.contextmanager
def serialize(model: ir.Model) -> Iterator[bytes | str]:
    """What a runtime can open: the model as bytes, or a temporary file when it is too large."""
    if nbytes(model) <= PROTOBUF_LIMIT:
        yield ir.to_proto(in_memory(model)).SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        file = Path(folder) / "model.onnx"
        _write(model, file, "model.data")
        yield os.fspath(file)


def parse(data: bytes) -> ir.Model:
    """The model that `data` holds, as an engine handed it back.

    Inputs of nodes that nothing in the graph makes are left out.
    """
    proto = onnx.load_model_from_string(data)
    graph = proto.graph
    made = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    made.update(name for node in graph.node for name in node.output)
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name not in made:
                node.input[slot] = ""
    return ir.from_proto(proto)


def evaluate(
    model: ir.Model, nodes: Sequence[ir.Node], feeds: Mapping[str, Array], outputs: Sequence[str]
) -> dict[str, Array]:
    """Run a few nodes of `model` with ONNX's reference implementation, without any runtime.

    Args:
        model: where the nodes stand; decides the opsets.
        nodes: in topological order; what they read is in `feeds` or made by earlier ones.
        feeds: arrays by value name.
        outputs: names of the values wanted; those the reference cannot compute are left out.
    """
    graph = onnx.GraphProto(name="evaluate", node=map(ir.serde.serialize_node, nodes))
    graph.input.extend(onnx.ValueInfoProto(name=name) for name in feeds)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    proto = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    for domain, version in model.graph.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    try:
        results = ReferenceEvaluator(proto).run(list(outputs), dict(feeds))
    except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, KeyError):
        if len(nodes) == 1:
            return {}
        return _evaluate_one_by_one(model, nodes, feeds, outputs)
    return {name: np.asarray(result) for name, result in zip(outputs, results, strict=True)}


def _evaluate_one_by_one(
    model: ir.Model, nodes: Sequence[ir.Node], feeds: Mapping[str, Array], outputs: Sequence[str]
) -> dict[str, Array]:
    """As `evaluate`, stopping only at the nodes that fail and what depends on them."""
    known = dict(feeds)
    for node in nodes:
        reads = {value.name for value in node.inputs if value is not None and value.name}
        if reads <= known.keys():
            made = [value.name for value in node.outputs if value.name]
            given = {name: known[name] for name in reads}
            known.update(evaluate(model, [node], given, made))
    return {name: known[name] for name in outputs if name in known}


def opset(model: ir.Model) -> int:
    """Version of the standard operator set that `model` uses (1 when it declares none)."""
    return model.graph.opset_imports.get("", 1)


def convert_opset(model: ir.Model, version: int) -> ir.Model:
    """`model` with its standard operators rewritten for opset `version`; a new model.

    Raises:
        ModelError: an operator has no conversion.
    """
    try:
        proto = version_converter.convert_version(ir.to_proto(model), version)
    except (RuntimeError, ValueError, version_converter.ConvertError) as error:
        raise ModelError(
            f"opset {opset(model)} cannot be converted to {version}: {_first_line(error)}",
            version=version,
        ) from error
    return ir.from_proto(proto)


def node_key(node: ir.Node) -> str:
    """What names a node: its first named output (node names may be empty or repeated)."""
    return next((value.name for value in node.outputs if value.name), node.name or "")


def model_input(model: ir.Model) -> tuple[ir.Value, ...]:
    """The inputs a caller must feed: graph inputs that are no initializers."""
    return tuple(value for value in model.graph.inputs if not value.is_initializer())


def list_initializers(model: ir.Model) -> None:
    """Before IR 4 every initializer stands among the inputs too: list new ones, in place."""
    listed = set(model.graph.inputs)
    for value in model.graph.initializers.values() if model.ir_version < 4 else ():
        if value not in listed:
            if value.const_value is not None:
                value.dtype = value.const_value.dtype
                value.shape = ir.Shape(value.const_value.shape.numpy())
            model.graph.inputs.append(value)


def trainable_dtype(dtype: ir.DataType | None) -> bool:
    """Whether arrays of `dtype` are real numbers that a gradient can move."""
    return dtype is not None and dtype.is_floating_point()


def _open_negative_sizes(model: ir.Model) -> None:
    """Some exporters write -1 for a size that is open; nobody else reads that so."""
    made = (value for node in all_nodes(model) for value in node.outputs)
    for value in (*model.graph.inputs, *model.graph.outputs, *made):
        if value.shape is not None and any(isinstance(s, int) and s < 0 for s in value.shape):
            sizes = [None if isinstance(s, int) and s < 0 else s for s in value.shape]
            value.shape = ir.Shape(sizes)


def shape_of(value: ir.Value) -> Sequence[int | None] | None:
    """The declared sizes of `value`, None where symbolic or unknown."""
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)
