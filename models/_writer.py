"""Writing a network layer by layer: what `builders` is made of.

A `Writer` draws the weights, and keeps the width and an estimate of the second moment of every
value, so that running statistics can be put where they would be after training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

__all__ = ["Writer"]

_OPSET, _IR_VERSION = 17, 8


class Writer:
    """Writes one model, node by node, and knows the width and second moment of every value.

    Args:
        name: of the graph.
        sizes: of the input `x` without the batch.
        seed: of all random numbers.

    Attributes:
        x: the graph's input, (N, *sizes).
    """

    def __init__(self, name: str, sizes: Sequence[int], seed: int) -> None:
        self.name = name
        self.rng = np.random.default_rng(seed)
        self.x = ir.val("x", ir.DataType.FLOAT, ["N", *sizes])
        self.width: dict[ir.Value, int] = {self.x: sizes[0]}
        self.moment: dict[ir.Value, float] = {self.x: 1.0}
        self._tape = ir.tape.Tape()

    def parameter(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A float32 initializer."""
        return self._tape.initializer(ir.Tensor(array.astype(np.float32), name=name))

    def integers(self, name: str, *numbers: int) -> ir.Value:
        """An int64 initializer."""
        return self._tape.initializer(ir.Tensor(np.array(numbers, np.int64), name=name))

    def op(
        self,
        op_type: str,
        *inputs: ir.Value,
        name: str,
        width: int | None = None,
        moment: float | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """The output, called `name`; width and second moment are the first input's by default."""
        value = self._tape.op(op_type, inputs, attributes or None, name=name)
        value.name = name
        self.width[value] = self.width[inputs[0]] if width is None else width
        self.moment[value] = self.moment[inputs[0]] if moment is None else moment
        return value

    def matrix(self, name: str, outputs: int, inputs: int, gain: float) -> ir.Value:
        """Normal numbers of variance `gain / inputs`, (outputs, inputs)."""
        return self.parameter(name, self.rng.normal(0.0, np.sqrt(gain / inputs), (outputs, inputs)))

    def bias(self, name: str, size: int) -> ir.Value:
        """Small normal numbers."""
        return self.parameter(name, self.rng.normal(0.0, 0.1, size))

    def conv(
        self,
        x: ir.Value,
        width: int,
        kernel: int,
        *,
        name: str,
        stride: int = 1,
        bias: bool = False,
        gain: float = 2.0,
        pad: int | None = None,
    ) -> ir.Value:
        """Conv of a square kernel; padded by half of it unless `pad` says otherwise."""
        fan_in = self.width[x] * kernel**2
        shape = (width, self.width[x], kernel, kernel)
        filters = self.rng.normal(0.0, np.sqrt(gain / fan_in), shape)
        # What comes in behind a Relu has a positive mean, which would drown the signal.
        filters -= filters.mean(axis=(1, 2, 3), keepdims=True)
        inputs = [x, self.parameter(f"{name}.weight", filters)]
        if bias:
            inputs.append(self.bias(f"{name}.bias", width))
        return self.op(
            "Conv",
            *inputs,
            name=name,
            width=width,
            moment=gain * self.moment[x],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2 if pad is None else pad] * 4,
        )

    def batch_norm(self, x: ir.Value, *, name: str) -> ir.Value:
        """BatchNormalization with statistics around those of `x`."""
        size, spread = self.width[x], np.sqrt(self.moment[x])
        statistics = {
            "scale": self.rng.uniform(0.7, 1.3, size),
            "shift": self.rng.normal(0.0, 0.2, size),
            "mean": self.rng.normal(0.0, 0.2 * spread, size),
            "var": self.rng.uniform(0.7, 1.3, size) * self.moment[x],
        }
        values = [self.parameter(f"{name}.{part}", array) for part, array in statistics.items()]
        return self.op("BatchNormalization", x, *values, name=name, moment=1.0)

    def relu(self, x: ir.Value, *, name: str) -> ir.Value:
        """Relu, which halves the second moment."""
        return self.op("Relu", x, name=name, moment=self.moment[x] / 2)

    def add(self, x: ir.Value, y: ir.Value, *, name: str) -> ir.Value:
        """Add, as if the two were independent."""
        return self.op("Add", x, y, name=name, moment=self.moment[x] + self.moment[y])

    def concat(self, x: ir.Value, y: ir.Value, *, name: str) -> ir.Value:
        """Concat of channels."""
        width = self.width[x] + self.width[y]
        moments = [self.moment[value] * self.width[value] for value in (x, y)]
        return self.op("Concat", x, y, name=name, width=width, moment=sum(moments) / width, axis=1)

    def max_pool(self, x: ir.Value, *, name: str, kernel: int = 2, pad: int = 0) -> ir.Value:
        """MaxPool that halves both sides."""
        return self.op(
            "MaxPool",
            x,
            name=name,
            kernel_shape=[kernel, kernel],
            strides=[2, 2],
            pads=[pad] * 4,
        )

    def linear(self, x: ir.Value, width: int, *, name: str, gain: float = 1.0) -> ir.Value:
        """Gemm with the weight transposed, as PyTorch writes it."""
        size = self.width[x]
        weight = self.matrix(f"{name}.weight", width, size, gain)
        bias = self.bias(f"{name}.bias", width)
        moment = gain * self.moment[x]
        return self.op("Gemm", x, weight, bias, name=name, width=width, moment=moment, transB=1)

    def classifier(self, x: ir.Value, classes: int) -> ir.Value:
        """Global average, Flatten and the last Gemm, called `y`."""
        pooled = self.op("GlobalAveragePool", x, name="pool", moment=self.moment[x] / 4)
        return self.linear(self.op("Flatten", pooled, name="flat", axis=1), classes, name="y")

    def dense(self, x: ir.Value, width: int, *, name: str, gain: float = 1.0) -> ir.Value:
        """MatMul and Add."""
        size = self.width[x]
        scale = np.sqrt(gain / size)
        weight = self.parameter(f"{name}.weight", self.rng.normal(0.0, scale, (size, width)))
        moment = gain * self.moment[x]
        product = self.op("MatMul", x, weight, name=f"{name}.product", width=width, moment=moment)
        return self.op("Add", product, self.bias(f"{name}.bias", width), name=name)

    def model(self, y: ir.Value) -> ir.Model:
        """The finished model, whose output is `y`."""
        y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", self.width[y]])
        graph = ir.Graph(
            [self.x],
            [y],
            nodes=self._tape.nodes,
            initializers=self._tape.initializers,
            opset_imports={"": _OPSET},
            name=self.name,
        )
        return ir.Model(graph, ir_version=_IR_VERSION, producer_name="onnxprune")
