"""Small networks whose channels lie in blocks: grouped convolutions and channel shuffles."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.emit import Emitter

IMAGE = 6


class _Net:
    """A network that grows by convolutions on (N, C, 6, 6)."""

    def __init__(self, seed: int, opset: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.emit = Emitter("g", opset=opset)

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.emit.op(op_type, *inputs, **attributes)

    def normal(self, *shape: int) -> ir.Value:
        return self.emit.constant(self.rng.normal(0.0, 0.5, shape).astype(np.float32))

    def conv(self, x: ir.Value, inner: int, out: int, group: int = 1, kernel: int = 1) -> ir.Value:
        """Convolution, normalization with statistics that fit nothing in particular, Relu."""
        weight = self.normal(out, inner // group, kernel, kernel)
        h = self.op("Conv", x, weight, self.normal(out), group=group, pads=[kernel // 2] * 4)
        statistics = [self.normal(out) for _ in range(3)]
        spread = self.emit.constant(self.rng.uniform(0.5, 1.5, out).astype(np.float32))
        return self.op("BatchNormalization", h, *statistics, spread)

    def shuffle(self, x: ir.Value, width: int, group: int) -> ir.Value:
        cut = self.emit.integers(0, group, width // group, IMAGE, IMAGE)
        h = self.op("Transpose", self.op("Reshape", x, cut), perm=[0, 2, 1, 3, 4])
        return self.op("Reshape", h, self.emit.integers(0, width, IMAGE, IMAGE))

    def closed(self, x: ir.Value, h: ir.Value, width: int) -> ir.Model:
        """The model from `x` to three numbers."""
        flat = self.op("Flatten", self.op("GlobalAveragePool", h), axis=1)
        y = self.op("Gemm", flat, self.normal(width, 3), self.normal(3), name="y")
        y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 3])
        opsets = {"": self.emit.opset}
        graph = ir.Graph([x], [y], nodes=[], opset_imports=opsets, name="shuffled")
        self.emit.add_to(graph)
        return ir.Model(graph, ir_version=8)


def _image(channels: int = 3) -> ir.Value:
    return ir.val("x", ir.DataType.FLOAT, ["N", channels, IMAGE, IMAGE])


def shufflenet_v1(
    *, width: int = 24, middle: int = 12, group: int = 3, blocks: int = 2, seed: int = 0
) -> ir.Model:
    """Residual blocks: grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; Zhang et al. 2017."""
    net, x = _Net(seed, 17), _image()
    h = net.op("Relu", net.conv(x, 3, width, kernel=3))
    for _ in range(blocks):
        m = net.op("Relu", net.conv(h, width, middle, group))
        m = net.conv(net.shuffle(m, middle, group), middle, middle, middle, 3)
        h = net.op("Relu", net.op("Add", h, net.conv(m, middle, width, group)))
    return net.closed(x, h, width)


def shufflenet_v2(
    *, width: int = 16, blocks: int = 3, slices: bool = False, seed: int = 0
) -> ir.Model:
    """Blocks that split, pass one half on, join and shuffle; Ma et al. 2018."""
    net, x = _Net(seed, 17), _image()
    half = width // 2
    stem = net.op("Relu", net.conv(x, 3, width, kernel=3))
    one = net.op("Relu", net.conv(stem, width, half))
    other = net.op("Relu", net.conv(net.conv(stem, width, width, width, 3), width, half))
    h = net.shuffle(net.op("Concat", one, other, axis=1), width, 2)
    for number in range(blocks):
        one, other = _halves(net, h, half, number, slices=slices)
        other = net.op("Relu", net.conv(other, half, half))
        other = net.op("Relu", net.conv(net.conv(other, half, half, half, 3), half, half))
        h = net.shuffle(net.op("Concat", one, other, axis=1), width, 2)
    return net.closed(x, net.op("Relu", net.conv(h, width, width)), width)


def _halves(
    net: _Net, h: ir.Value, half: int, number: int, *, slices: bool
) -> tuple[ir.Value, ir.Value]:
    if slices:
        axis = net.emit.integers(1)
        bounds = [net.emit.integers(edge) for edge in (0, half, 2 * half)]
        first = net.op("Slice", h, bounds[0], bounds[1], axis)
        return first, net.op("Slice", h, bounds[1], bounds[2], axis)
    names = [f"half_{number}_a", f"half_{number}_b"]
    first, second = net.emit.ops("Split", h, outputs=names, axis=1)
    return first, second


def grouped(*, width: int = 8, group: int = 2, frozen: bool = True, seed: int = 0) -> ir.Model:
    """Two grouped convolutions in a row; `frozen`: the first reads the input's channels."""
    net = _Net(seed, 17)
    x = _image(width if frozen else 3)
    h = x if frozen else net.op("Relu", net.conv(x, 3, width))
    h = net.op("Relu", net.conv(h, width, width, group, 3))
    h = net.op("Relu", net.conv(h, width, width, group))
    return net.closed(x, h, width)


def grouped_behind_a_join(*, width: int = 8, seed: int = 0) -> ir.Model:
    """A grouped convolution each of whose groups reads another layer."""
    net, x = _Net(seed, 17), _image()
    parts = [net.op("Relu", net.conv(x, 3, width // 2)) for _ in range(2)]
    h = net.op("Relu", net.conv(net.op("Concat", *parts, axis=1), width, width, 2, 3))
    return net.closed(x, h, width)


def beside_a_chain(*, length: int = 25, width: int = 12, group: int = 3, seed: int = 0) -> ir.Model:
    """What a shuffle makes, added to what comes out of many operators in a row."""
    net, x = _Net(seed, 17), _image()
    h = net.conv(x, 3, width)
    for _ in range(length):
        h = net.op("Relu", h)
    m = net.conv(net.op("Relu", net.conv(x, 3, width)), width, width, group)
    return net.closed(x, net.op("Add", h, net.shuffle(m, width, group)), width)
