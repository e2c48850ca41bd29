"""Write the tables of README.md from the model files themselves.

Everything comes from the files, and the accuracy from running them in onnxruntime, except the
framework's name and version, which no exporter records fully: those are in `FRAMEWORKS`.

    pip install onnx==1.23.2 onnxruntime==1.31.1 numpy==2.4.6
    python models/make/table.py models/
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import onnx
import onnxruntime
from digits import load

if TYPE_CHECKING:
    from collections.abc import Iterable

FRAMEWORKS = {
    "digits_densenet": ("PyTorch 2.13.0", "torch.onnx (dynamo)"),
    "digits_jax": ("JAX 0.10.2, Flax 0.12.8", "jax2onnx"),
    "digits_keras": ("Keras 3.15.1, TensorFlow 2.21.0", "tf2onnx"),
    "digits_lenet": ("PyTorch 2.13.0", "torch.onnx (TorchScript)"),
    "digits_mlp": ("scikit-learn 1.9.1", "skl2onnx"),
    "digits_resnet": ("PyTorch 2.13.0", "torch.onnx (dynamo)"),
    "digits_vgg": ("PyTorch 2.13.0", "torch.onnx (TorchScript)"),
}
"""Framework and exporter; the exporter's version is read off the file."""


class Input(NamedTuple):
    """Name and shape of a model's input; the batch axis is None when it is dynamic."""

    name: str
    shape: tuple[int | None, ...]


def model_input(model: onnx.ModelProto) -> Input:
    """The one input of `model`."""
    (value,) = model.graph.input
    axes = value.type.tensor_type.shape.dim
    return Input(value.name, tuple(a.dim_value if a.HasField("dim_value") else None for a in axes))


def parameters(model: onnx.ModelProto) -> int:
    """Number of elements of the float initializers, BatchNormalization statistics included."""
    floats = (t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    return sum(math.prod(tensor.dims) for tensor in floats)


def accuracy(file: Path, source: Input) -> float:
    """Fraction of the 360 test images that onnxruntime classifies correctly with `file`."""
    data = load()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    images = data.x_test.reshape(-1, *source.shape[1:])
    scores = session.run(None, {source.name: images})[-1]
    return float((scores.argmax(axis=1) == data.y_test).mean())


def facts_row(file: Path, model: onnx.ModelProto) -> list[str]:
    """One line of the table of facts."""
    framework, exporter = FRAMEWORKS[file.stem]
    version = re.split(r"[ +]", model.producer_version)[0]
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    source = model_input(model)
    shape = ", ".join("N" if size is None else str(size) for size in source.shape)
    return [
        f"`{file.name}`",
        framework,
        f"{exporter} {version}",
        str(opset),
        str(model.ir_version),
        f"`{source.name}` ({shape})",
        f"{parameters(model):,}",
        f"{file.stat().st_size / 1000:.0f}",
        f"{accuracy(file, source):.1%}",
    ]


def operators_row(file: Path, model: onnx.ModelProto) -> list[str]:
    """One line of the table of operators."""
    counts = Counter(node.op_type for node in model.graph.node).most_common()
    return [f"`{file.name}`", ", ".join(f"{count} {operator}" for operator, count in counts)]


def markdown(titles: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Rewrite the marked parts of README.md in the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder of README.md and the .onnx files")
    folder = parser.parse_args().folder
    models = {file: onnx.load(file) for file in sorted(folder.glob("*.onnx"))}
    facts = "file, framework, exporter, opset, IR, input, parameters, size (kB), test accuracy"
    tables = {
        "facts": markdown(facts.split(", "), (facts_row(*item) for item in models.items())),
        "operators": markdown(["file", "nodes"], (operators_row(*i) for i in models.items())),
    }
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name}: written by make/table.py -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2]
        text = f"{before}{begin}\n{table}\n{end}{after}"
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
