"""Files that are on this machine already: in the onnx wheel, in this project, in a corpus."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnxprune_models import path

from onnxprune.model import constant, load, save
from zoo.entries import Entry, Places

__all__ = ["corpus", "light", "shipped"]

_SHIPPED = ("mlp", "lenet", "resnet", "densenet", "vgg", "keras", "jax")


def light() -> Iterator[Entry]:
    """The classics of ONNX's model zoo, which its wheel ships without their weights."""
    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    for file in sorted(folder.glob("*.onnx")):
        yield Entry(
            name=f"onnx/{file.stem}",
            family="classification",
            source="onnx wheel",
            make=functools.partial(_weighted, file),
        )


def shipped() -> Iterator[Entry]:
    """The trained models of this project."""
    for name in _SHIPPED:
        yield _copied(f"shipped/{name}", "digits", "onnxprune_models", path(f"digits_{name}"))


def corpus(folder: Path) -> Iterator[Entry]:
    """All models of a folder of folders, one per framework."""
    for file in sorted(folder.glob("*/*.onnx")):
        yield _copied(f"corpus/{file.parent.name}/{file.stem}", file.parent.name, "corpus", file)


def _weighted(file: Path, out: Path, _places: Places) -> None:
    """Random initializers where the file has nodes that fill a weight with one number."""
    model = load(file)
    rng = np.random.default_rng(0)
    for node in [node for node in model.graph if node.op_type == "ConstantOfShape"]:
        weight = node.outputs[0]
        shape = None if node.inputs[0] is None else constant(node.inputs[0])
        if shape is None or weight.name is None:
            continue
        model.graph.remove(node)
        array = _drawn(tuple(shape), rng)
        initializer = ir.Value(
            name=weight.name,
            type=ir.TensorType(ir.DataType.FLOAT),
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(array, name=weight.name),
        )
        model.graph.initializers[weight.name] = initializer
        ir.convenience.replace_all_uses_with(weight, initializer)
        if (model.ir_version or 0) < 4:  # where initializers are inputs as well
            model.graph.inputs.append(initializer)
    save(model, out)


def _drawn(sizes: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Weights that keep the variance; vectors near 1, which may be a variance."""
    if len(sizes) < 2:
        return rng.uniform(0.7, 1.3, sizes).astype(np.float32)
    scale = np.sqrt(2 / np.prod(sizes[1:]))
    return (scale * rng.standard_normal(sizes)).astype(np.float32)


def _copied(name: str, family: str, source: str, file: Path) -> Entry:
    return Entry(name=name, family=family, source=source, make=functools.partial(_copy, file))


def _copy(file: Path, out: Path, _places: Places) -> None:
    shutil.copyfile(file, out)
    for data in file.parent.glob(f"{file.name}*"):  # external data is found by its name
        if data != file:
            shutil.copyfile(data, out.parent / data.name)
