"""Faster forms of what the engine emits; the gradients stay equal.

Each pass is here because a paired measurement showed a gain on the CPU (2 threads), and the numbers
stand beside it, or because the engine's kernel is wrong or missing. `improve` runs them all over a
finished gradient graph. Together they take a
training step of a ResNet-20 (batch 64, 32x32) from 150 to 101 ms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.gradients import blocked
from onnxprune.gradients.slots import attribute, wanted
from onnxprune.model import opset, shape_of

__all__ = ["improve"]

_ENGINE = "com.microsoft"
_STEEP = 3e38  # times any normal float above 0 this is at least 1
_PAST_FIRST = -(2**31)  # end of a Slice with step -1 that still takes index 0
_FEW_CHANNELS = 8  # below: a convolution with few outputs is no faster than ConvGrad
_LARGE_KERNEL = 9  # elements; above: likewise


# What replaces the node's outputs, None where the node itself keeps computing one.
Rewrite: TypeAlias = Callable[[Emitter, ir.Node], "Sequence[ir.Value | None]"]


def improve(model: ir.Model, *, provider: str = "cpu") -> None:
    """Rewrite `model`, a finished gradient graph, in place.

    Args:
        model: from the engine.
        provider: what it will run on; what was measured on the CPU is done there only.
    """
    _sweep(model, _PASSES, "fast")
    if provider == "cpu":
        _sweep(model, _CPU_PASSES, "blocked")
    for domain in sorted({node.domain for node in model.graph} - model.graph.opset_imports.keys()):
        model.graph.opset_imports[domain] = 1


def _sweep(model: ir.Model, passes: Mapping[tuple[str, str], Rewrite], name: str) -> None:
    for node in list(model.graph):
        rewrite = passes.get((node.domain, node.op_type))
        if rewrite is None:
            continue
        named = next(value.name for value in node.outputs if value.name)
        e = Emitter(f"{named}/{name}", opset=opset(model))
        _take_over(model.graph, node, e, rewrite(e, node))


def _take_over(
    graph: ir.Graph, node: ir.Node, e: Emitter, replacements: Sequence[ir.Value | None]
) -> None:
    """Let `replacements` stand for the node's first outputs; drop what nobody needs any more."""
    e.add_to(graph, before=node)
    names: list[tuple[ir.Value, str | None]] = []
    for old, new in zip(node.outputs, replacements, strict=False):
        if new is None:
            continue
        names.append((new, old.name or new.name))
        new.type, new.shape = old.type, old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = ""
    if names and not any(wanted(value) for value in node.outputs):
        graph.remove(node, safe=True)
    for new, name in names:
        new.name = name


def _relu_grad(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """ReluGrad(dY, Y), which is dY where Y > 0, as dY * HardSigmoid(Y) with a slope of 3e38.

    64x16x32x32 floats: ReluGrad 4.5 ms, Mul(dY, Cast(Greater(Y, 0))) 0.53 ms, this 0.14 ms. Equal
    bits for every Y that is 0 or a normal number.
    """
    if node.outputs[0].dtype is not ir.DataType.FLOAT:
        return ()  # no other kernel of HardSigmoid on the CPU
    slope, y = node.inputs
    return (e.op("Mul", slope, e.op("HardSigmoid", y, alpha=_STEEP, beta=0.0)),)


def _conv_grad(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The input gradient of a convolution with stride 1, as a convolution of its own.

    dX = Conv(dY, W with inputs and outputs exchanged and turned around); ConvGrad keeps the
    gradients of weight and bias. Input gradient alone, batch 64, ConvGrad against this: 16 channels
    32x32 4.1 and 1.6 ms, 32 channels 16x16 2.2 and 1.3, 64 channels 8x8 1.4 and 1.2; depthwise 32
    channels 1.7 and 1.0. With 5x5 kernels or few channels it loses, so those stay. ConvTranspose
    gains nothing: it is what ConvGrad does.
    """
    slope, _, w = node.inputs[:3]
    shape = _static(w)
    if shape is None or not wanted(node.outputs[0]):
        return ()
    spatial = len(shape) - 2
    group = attribute(node, "group", 1)
    depthwise = group > 1 and shape[:2] == [group, 1]
    worth = depthwise or (group == 1 and shape[1] >= _FEW_CHANNELS)
    if not worth or math.prod(shape[2:]) > _LARGE_KERNEL or not _plain(node, spatial):
        return ()
    dilations = list(attribute(node, "dilations", [1] * spatial))
    given = attribute(node, "pads", [0] * (2 * spatial))
    reach = [(size - 1) * step for size, step in zip(shape[2:], dilations, strict=True)]
    pads = [size - pad for size, pad in zip(reach * 2, given, strict=True)]
    if min(pads) < 0:
        return ()
    turned = w if depthwise else e.op("Transpose", w, perm=[1, 0, *range(2, len(shape))])
    turned = _turned_around(e, turned, shape)
    if turned is not None:
        sizes = shape if depthwise else [shape[1], shape[0], *shape[2:]]
        turned.shape, turned.dtype = ir.Shape(sizes), ir.DataType.FLOAT
    return (e.op("Conv", slope, turned, pads=pads, dilations=dilations, group=group),)


def _static(w: ir.Value | None) -> list[int] | None:
    if w is None or w.shape is None or not w.shape.is_static():
        return None
    return [int(size) for size in w.shape.numpy()]


def _turned_around(e: Emitter, w: ir.Value | None, shape: list[int]) -> ir.Value | None:
    """`w` with its kernel axes reversed."""
    axes = [axis for axis in range(2, len(shape)) if shape[axis] > 1]
    if not axes:
        return w
    back = [-1] * len(axes)
    ends = [_PAST_FIRST] * len(axes)
    return e.op(
        "Slice", w, e.integers(*back), e.integers(*ends), e.integers(*axes), e.integers(*back)
    )


def _plain(node: ir.Node, spatial: int) -> bool:
    """Whether strides are 1 and pads explicit."""
    strides = attribute(node, "strides", [1] * spatial)
    auto = attribute(node, "auto_pad", "NOTSET")
    return auto == "NOTSET" and all(stride == 1 for stride in strides)


def _conv_transpose_grad(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The gradients of a transposed convolution, for which there is no kernel on the CPU.

    A transposed convolution Y of X is what a convolution's input gradient is, so the roles of input
    and output change: dX = Conv(dY, W), and dW is the weight gradient of that convolution.
    """
    slope, x, w = node.inputs[:3]
    rank = None if w is None or w.shape is None else len(w.shape)
    if attribute(node, "auto_pad", "NOTSET") != "NOTSET" or rank is None:
        return ()
    kept = ("strides", "pads", "dilations", "group", "kernel_shape")
    options = {name: node.attributes[name].value for name in kept if name in node.attributes}
    names = (f"{e.prefix}/input", f"{e.prefix}/weight")
    unused, dw = e.ops("ConvGrad", x, slope, w, outputs=names, domain=_ENGINE, **options)
    unused.name = ""
    dx = e.op("Conv", slope, w, **options) if wanted(node.outputs[0]) else None
    db = None
    if slope is not None and any(wanted(value) for value in node.outputs[2:]):
        db = e.reduce("ReduceSum", slope, (0, *range(2, rank)), keepdims=False)
    return (dx, dw, db)


def _depthwise_grad(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The weight gradient of a depthwise convolution in the CPU's blocked layout."""
    dw = blocked.weight_gradient(e, node) if wanted(node.outputs[1]) else None
    if dw is None:
        return ()
    db = None
    if len(node.outputs) > 2 and wanted(node.outputs[2]) and node.inputs[0] is not None:
        db = e.reduce("ReduceSum", node.inputs[0], (0, 2, 3), keepdims=False)
    return (None, dw, db)


def _gather_grad(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """The gradient of rows that were looked up, as a GatherNDGrad, which adds them one by one.

    2,048 rows of 384 into a table of 8,192, one thread: GatherGrad, which takes a lock for every
    number, 23.7 ms, this 6.4. A ScatterND takes 1.6, but adds from several threads without a lock:
    rows that were looked up twice may lose a part of their sum, and have other bits each time.
    """
    if attribute(node, "axis", 0) != 0:
        return ()
    sizes, indices, slope = node.inputs
    wide = e.op("Cast", indices, to=ir.DataType.INT64)  # int32 is no index of a GatherNDGrad
    rows = e.op("Unsqueeze", wide, e.integers(-1))
    return (e.op("GatherNDGrad", sizes, rows, slope, domain=_ENGINE),)


def _max_pool_grad(e: Emitter, node: ir.Node) -> Sequence[ir.Value | None]:
    """Slopes at places that lie in an array of the right size.

    The kernel takes the sizes behind the batch from the graph, 0 for open ones, and writes wherever
    the places say: beyond the array then, and in front of it for the -1 that MaxPool puts out where
    it sees nothing but NaN. Either ends the process.
    """
    slope, places = node.inputs
    pool = None if places is None else places.producer()
    assert pool is not None
    inside, x = e.op("Max", places, e.integers(0)), pool.inputs[0]
    sizes = None if x is None else shape_of(x)
    if sizes is not None and None not in sizes[1:]:
        node.replace_input_with(1, inside)
        return ()
    shape = e.op("Shape", x)
    total = e.reduce("ReduceProd", shape, (0,))
    rows, flat = e.op("Reshape", inside, e.integers(-1, 1)), e.op("Reshape", slope, e.integers(-1))
    return (e.op("Reshape", e.op("GatherNDGrad", total, rows, flat, domain=_ENGINE), shape),)


_PASSES: Mapping[tuple[str, str], Rewrite] = {
    (_ENGINE, "ReluGrad"): _relu_grad,
    (_ENGINE, "ConvGrad"): _conv_grad,
    (_ENGINE, "ConvTransposeGrad"): _conv_transpose_grad,
}
_CPU_PASSES: Mapping[tuple[str, str], Rewrite] = {
    ("", "Conv"): blocked.conv,
    (_ENGINE, "ConvGrad"): _depthwise_grad,
    (_ENGINE, "GatherGrad"): _gather_grad,
    ("", "MaxPoolGrad"): _max_pool_grad,
}
