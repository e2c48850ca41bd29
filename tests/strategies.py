"""Random small networks and random plans, for hypothesis and for seeded loops.

A network is a list of steps and a seed: every step is a function that puts a few nodes behind the
last value, and leaves things alone where it does not fit. So examples shrink to few steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from onnxprune.base import Array, Axis, Fold, Group, Merge, Plan
from onnxprune.emit import Emitter
from onnxprune.graph.balance import completed
from onnxprune.graph.consumers import absorber
from onnxprune.graph.couplings import views
from onnxprune.graph.groups import Analysis
from onnxprune.ops.registry import View


class Sketch:
    """A network that grows: its last value `h`, (N, width) or (N, width, side, side)."""

    def __init__(self, seed: int, *, image: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.emit = Emitter("g", opset=17)
        self.width, self.side = int(self.rng.integers(2, 5)), 6 if image else 0
        sizes = [self.width, 6, 6] if image else [self.width]
        self.x = ir.val("x", ir.DataType.FLOAT, ["N", *sizes])
        self.h = self.x

    def normal(self, *shape: int, scale: float = 0.5) -> ir.Value:
        return self.emit.constant(self.rng.normal(0.0, scale, shape).astype(np.float32))

    def positive(self, *shape: int) -> ir.Value:
        return self.emit.constant(self.rng.uniform(0.5, 1.5, shape).astype(np.float32))

    def pick(self, *options: int) -> int:
        return int(self.rng.choice(options))

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        return self.emit.op(op_type, *inputs, **attributes)

    def layer(self, x: ir.Value, width: int, *, inputs: int | None = None) -> ir.Value:
        """A weighted operator in one of its forms, from `x` to `width` units."""
        size = self.width if inputs is None else inputs
        if self.side:
            return self._conv(x, size, width)
        form = self.pick(0, 1, 2, 3, 4)
        if form == 0:
            return self.op("Gemm", x, self.normal(width, size), self.normal(width), transB=1)
        if form == 1:
            bias = self.normal(1, width)
            return self.op("Gemm", x, self.normal(size, width), bias, alpha=0.7, beta=1.5)
        if form == 2:
            return self.op("Gemm", x, self.normal(size, width), alpha=1.3)
        product = self.op("MatMul", x, self.normal(size, width))
        bias = self.normal(width) if form == 3 else self.normal(1, width)
        return self.op("Add", *((product, bias) if form == 3 else (bias, product)))

    def _conv(self, x: ir.Value, size: int, width: int) -> ir.Value:
        kernel = self.pick(1, 3) if self.side >= 3 else 1
        inputs = [x, self.normal(width, size, kernel, kernel)]
        if self.pick(0, 1):
            inputs.append(self.normal(width))
        return self.op("Conv", *inputs, pads=[kernel // 2] * 4)

    def per_unit(self, make: Callable[..., ir.Value]) -> ir.Value:
        return make(1, self.width, 1, 1) if self.side else make(self.width)


def _layer(s: Sketch) -> None:
    width = s.pick(2, 3, 4, 6)
    s.h, s.width = s.layer(s.h, width), width


def _norm(s: Sketch) -> None:
    shape = (s.width,)
    statistics = [s.normal(*shape), s.normal(*shape), s.normal(*shape), s.positive(*shape)]
    s.h = s.op("BatchNormalization", s.h, *statistics)


def _activation(s: Sketch) -> None:
    kinds = ("Relu", "Relu", "Tanh", "Sigmoid", "LeakyRelu", "Softplus", "Elu", "HardSwish")
    s.h = s.op(str(s.rng.choice(kinds)), s.h)


def _swish(s: Sketch) -> None:
    s.h = s.op("Mul", s.h, s.op("Sigmoid", s.h))


def _slopes(s: Sketch) -> None:
    slope = s.normal(s.width, 1, 1) if s.side else s.normal(s.width)
    s.h = s.op("PRelu", s.h, slope)


def _affine(s: Sketch) -> None:
    kind = str(s.rng.choice(("Mul", "Add", "Sub", "Div", "Max")))
    s.h = s.op(kind, s.h, s.per_unit(s.positive))


def _residual(s: Sketch) -> None:
    s.h = s.op("Add", s.h, s.op("Relu", s.layer(s.h, s.width)))


def _two_branches(s: Sketch) -> None:
    width = s.pick(2, 3, 4)
    branches = s.layer(s.h, width), s.layer(s.h, width)
    s.h, s.width = s.op(str(s.rng.choice(("Add", "Mul", "Sum"))), *branches), width


def _dense(s: Sketch) -> None:
    width = s.pick(1, 2, 3)
    made = s.layer(s.h, width)
    parts = (s.h, made) if s.pick(0, 1) else (made, s.h)
    s.h, s.width = s.op("Concat", *parts, axis=1), s.width + width


def _split(s: Sketch) -> None:
    if s.width < 2:
        return
    first = s.pick(*range(1, s.width))
    sizes = first, s.width - first
    count = len(s.emit.nodes)
    outputs = [f"split_{count}_a", f"split_{count}_b"]
    a, b = s.emit.ops("Split", s.h, s.emit.integers(*sizes), outputs=outputs, axis=1)
    a = s.layer(a, 2, inputs=sizes[0])
    s.h, s.width = s.op("Concat", b, a, axis=1), sizes[1] + 2


def _halves(s: Sketch) -> None:
    if s.width % 2:
        return
    count = len(s.emit.nodes)
    outputs = [f"half_{count}_a", f"half_{count}_b"]
    a, b = s.emit.ops("Split", s.h, outputs=outputs, axis=1)
    s.h, s.width = s.op("Mul", a, s.op("Sigmoid", b)), s.width // 2


def _slice(s: Sketch) -> None:
    bounds = [(0, s.width - 1, 1), (1, s.width, 1), (0, s.width, 2), (-1, -(2**31), -1)]
    start, end, step = bounds[s.pick(0, 1, 2, 3)]
    taken = len(range(s.width)[slice(start, None if end < -s.width else end, step)])
    if not taken:
        return
    one = s.emit.integers(1)
    inputs = s.emit.integers(start), s.emit.integers(end), one, s.emit.integers(step)
    s.h, s.width = s.op("Slice", s.h, *inputs), taken


def _gather(s: Sketch) -> None:
    count = s.pick(1, 2, 3)
    taken = s.rng.permutation(s.width)[:count] - s.pick(0, s.width)
    s.h = s.op("Gather", s.h, s.emit.integers(*(int(i) for i in taken)), axis=1)
    s.width = len(taken)


def _pad(s: Sketch) -> None:
    before, after = s.pick(0, 1, 2), s.pick(0, 1)
    rest = [0] * (2 if s.side else 0)
    s.h = s.op("Pad", s.h, s.emit.integers(0, before, *rest, 0, after, *rest))
    s.width += before + after


def _pool(s: Sketch) -> None:
    if s.side < 2:
        return
    kind = str(s.rng.choice(("MaxPool", "AveragePool")))
    s.h = s.op(kind, s.h, kernel_shape=[2, 2], strides=[2, 2])
    s.side //= 2


def _depthwise(s: Sketch) -> None:
    if not s.side:
        return
    many = s.pick(1, 2)
    weight = s.normal(s.width * many, 1, 3, 3)
    s.h = s.op("Conv", s.h, weight, s.normal(s.width * many), group=s.width, pads=[1] * 4)
    s.width *= many


def _grouped(s: Sketch) -> None:
    if not s.side or s.width % 2:
        return
    weight = s.normal(4, s.width // 2, 1, 1)
    s.h, s.width = s.op("Conv", s.h, weight, s.normal(4), group=2), 4


def _transposed(s: Sketch) -> None:
    if not s.side:
        return
    h = s.op("Relu", s.op("Transpose", s.h, perm=[0, 2, 3, 1]))
    s.h = s.op("Transpose", s.op("Add", h, s.normal(s.width)), perm=[0, 3, 1, 2])


def _shuffle(s: Sketch) -> None:
    if not s.side or s.width % 2:
        return
    split = s.emit.integers(0, 2, s.width // 2, s.side, s.side)
    h = s.op("Transpose", s.op("Reshape", s.h, split), perm=[0, 2, 1, 3, 4])
    s.h = s.op("Reshape", h, s.emit.integers(0, s.width, s.side, s.side))


def _squeeze_excite(s: Sketch) -> None:
    if not s.side:
        return
    h = s.op("GlobalAveragePool", s.h)
    h = s.op("Relu", s.op("Conv", h, s.normal(2, s.width, 1, 1), s.normal(2)))
    h = s.op("Sigmoid", s.op("Conv", h, s.normal(s.width, 2, 1, 1), s.normal(s.width)))
    s.h = s.op("Mul", s.h, h)


def _heads(s: Sketch) -> None:
    """Reshape to two heads, work on them, and back; the batch size is computed."""
    if s.side or s.width % 2:
        return
    batch = s.op("Gather", s.op("Shape", s.h), s.emit.integers(0))
    target = s.op("Concat", batch, s.emit.integers(2, s.width // 2), axis=0)
    h = s.op("Tanh", s.op("Reshape", s.h, target))
    s.h = s.op("Reshape", h, s.emit.integers(-1, s.width))


def _flatten(s: Sketch) -> None:
    if not s.side:
        return
    size = s.width * s.side**2
    form = s.pick(0, 1, 2)
    if form == 0:
        s.h = s.op("Flatten", s.h, axis=1)
    elif form == 1:
        s.h = s.op("Reshape", s.h, s.emit.integers(-1, size))
    else:
        s.h = s.op("Reshape", s.h, s.emit.integers(0, -1))
    s.width, s.side = size, 0
    _layer(s)


def _softmax(s: Sketch) -> None:
    s.h = s.op("Softmax", s.h, axis=1)


def _layer_norm(s: Sketch) -> None:
    """Over channels: as one operator for rows, in primitives for maps."""
    if not s.side:
        s.h = s.op("LayerNormalization", s.h, s.normal(s.width), s.normal(s.width), epsilon=0.1)
        return
    centered = s.op("Sub", s.h, s.op("ReduceMean", s.h, axes=[1]))
    variance = s.op("ReduceMean", s.op("Pow", centered, s.emit.scalar(2.0)), axes=[1])
    deviation = s.op("Sqrt", s.op("Add", variance, s.emit.scalar(0.1)))
    s.h = s.op("Mul", s.op("Div", centered, deviation), s.per_unit(s.positive))


def _local_norm(s: Sketch) -> None:
    if s.side < 2:
        return
    if s.pick(0, 1):
        s.h = s.op("LRN", s.h, size=3, alpha=0.5)
    else:
        s.h = s.op("InstanceNormalization", s.h, s.normal(s.width), s.normal(s.width), epsilon=0.1)


def _group_norm(s: Sketch) -> None:
    """Two groups of channels, by an InstanceNormalization of what is reshaped to two."""
    if s.side < 2 or s.width % 2:
        return
    h = s.op("Reshape", s.h, s.emit.integers(0, 2, -1))
    h = s.op("InstanceNormalization", h, s.normal(2), s.normal(2), epsilon=0.1)
    h = s.op("Reshape", h, s.emit.integers(0, s.width, s.side, s.side))
    s.h = s.op("Mul", h, s.per_unit(s.positive))


def _gate(s: Sketch) -> None:
    """A gate that the mean, the largest or the sum of all channels opens."""
    kind = s.pick(0, 1, 2)
    if kind == 2:
        total = s.op("ReduceSum", s.h, s.emit.integers(1))
    else:
        total = s.op(("ReduceMean", "ReduceMax")[kind], s.h, axes=[1])
    s.h = s.op("Mul", s.h, s.op("Sigmoid", total))


Step = Callable[[Sketch], None]
STEPS: Mapping[str, Step] = {
    "layer": _layer, "norm": _norm, "activation": _activation, "swish": _swish,
    "slopes": _slopes, "affine": _affine, "residual": _residual, "two branches": _two_branches,
    "dense": _dense, "split": _split, "halves": _halves, "slice": _slice, "gather": _gather,
    "pad": _pad, "pool": _pool, "depthwise": _depthwise, "grouped": _grouped,
    "transposed": _transposed, "shuffle": _shuffle, "squeeze": _squeeze_excite, "heads": _heads,
    "flatten": _flatten, "softmax": _softmax, "layer norm": _layer_norm,
    "local norm": _local_norm, "group norm": _group_norm, "gate": _gate,
}  # fmt: skip


def network(steps: Sequence[str], seed: int, *, image: bool) -> ir.Model:
    """The network of these steps, with a weighted operator in front and behind."""
    s = Sketch(seed, image=image)
    for name in ("layer", *steps):
        STEPS[name](s)
    if s.side:
        pooled = s.op("GlobalAveragePool", s.h)
        s.h, s.side = s.op("Flatten", pooled, axis=1), 0
    y = s.op("Gemm", s.h, s.normal(s.width, 3), s.normal(3), name="y")
    y.type, y.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["N", 3])
    graph = ir.Graph([s.x], [y], nodes=[], opset_imports={"": 17}, name="random")
    s.emit.add_to(graph)
    return ir.Model(graph, ir_version=8)


def random_network(seed: int) -> ir.Model:
    """A network of a few steps, for loops over seeds."""
    rng = np.random.default_rng(seed)
    steps = rng.choice([name for name in STEPS if name != "softmax"], size=rng.integers(2, 6))
    return network([str(step) for step in steps], seed, image=bool(rng.integers(2)))


@st.composite
def networks(draw: st.DrawFn) -> ir.Model:
    """Networks of up to seven steps."""
    steps = draw(st.lists(st.sampled_from(list(STEPS)), min_size=1, max_size=7))
    seed = draw(st.integers(0, 2**16))
    return network(steps, seed, image=draw(st.booleans()))


def random_plan(model: ir.Model, analysis: Analysis, seed: int, *, exchange: bool = True) -> Plan:
    """Random units of random groups go, some folded or merged where the consumers can take it."""
    rng = np.random.default_rng(seed)
    nodes = {view.key: view for view in views(model, analysis.shapes, analysis.known)}
    keep, folds, merges = {}, [], []
    for group in analysis.groups:
        mask = rng.random(group.size) < rng.uniform(0.2, 0.95)
        mask[rng.integers(group.size)] = True
        keep[group.name] = mask
        if not exchange or not takes_over(group, nodes):
            continue
        for unit in np.flatnonzero(~mask):
            choice = rng.integers(3)
            if choice == 1:
                folds.append(_fold(group, int(unit), rng))
            elif choice == 2:
                survivor = int(rng.choice(np.flatnonzero(mask)))
                merges.append(_merge(group, int(unit), survivor, rng))
    return completed(analysis, Plan(keep=keep, folds=tuple(folds), merges=tuple(merges)))


def _fold(group: Group, unit: int, rng: np.random.Generator) -> Fold:
    axes = {consumer.axis for consumer in group.consumers}
    sizes = {axis: group.member(axis).index.shape[1] for axis in axes}
    values: dict[Axis, Array] = {axis: rng.normal(size=(size,)) for axis, size in sizes.items()}
    return Fold(group=group.name, unit=unit, values=values)


def _merge(group: Group, victim: int, survivor: int, rng: np.random.Generator) -> Merge:
    scale, offset = (float(number) for number in rng.normal(size=2))
    return Merge(group=group.name, victim=victim, survivor=survivor, scale=scale, offset=offset)


def takes_over(group: Group, nodes: Mapping[str, View]) -> bool:
    """Whether every consumer of `group` has weights that absorb constants and duplicates."""
    return (
        bool(group.consumers)
        and not group.inner
        and all(
            absorber(nodes[consumer.node], consumer) is not None for consumer in group.consumers
        )
    )
