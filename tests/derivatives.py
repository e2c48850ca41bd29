"""One small graph per operator and form that can be trained: what the gradient tests run.

A case is `h = x + p_w`, one or a few nodes from `h` (and further parameters p_a, p_b, ...) to `z`.
The tests compare its slopes with central differences in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxprune.base import Array


@dataclass(frozen=True)
class Case:
    """A graph with one operator in its middle.

    Attributes:
        nodes: text of the nodes from h to z.
        shape: of x behind the batch; an "S" is a size that stays open.
        others: shapes of the parameters p_a, p_b, ...
        opset: of the graph.
        constants: further initializers, as text.
        positive: whether x and all parameters are above 0.2.
        spread: standard deviation of x.
        native: whether the runtime computes the differences, in float32, because the reference
            implementation is wrong or incomplete here.
    """

    nodes: str
    shape: str = "5"
    others: tuple[str, ...] = ()
    opset: int = 17
    constants: str = ""
    positive: bool = False
    spread: float = 1.0
    native: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of x behind the batch."""
        return tuple(int(size) for size in self.shape.replace("S", "4").split(",") if size)

    def text(self) -> str:
        """The graph as ONNX text."""
        shape = f"N,{self.shape}" if self.shape else "N"
        fixed = self.shape.replace("S", "1")
        declared = "".join(
            f", float[{sizes}] p_{name}"
            for sizes, name in zip(self.others, "abcdefg", strict=False)
        )
        inner = f"<{self.constants}>" if self.constants else ""
        return f"""<ir_version: 8, opset_import: ["":{self.opset}, "com.microsoft":1]>
        g (float[{shape}] x, float[{fixed}] p_w{declared}) => (float[] y)
        {inner}
        {{
          h = Add(x, p_w)
          {self.nodes}
          y = Identity(z)
        }}"""

    def sample(self, size: int) -> Array:
        """A batch."""
        x = np.random.default_rng(3).normal(size=(size, *self.sizes)) * self.spread
        return (np.abs(x) + 0.2 if self.positive else x).astype(np.float32)


def one(op: str, **how: object) -> Case:
    """A case of one node that reads h."""
    return Case(f"z = {op}", **how)  # type: ignore[arg-type]


_IMAGE = "3,5,6"
_STATES = "int64[1] two = {2}, int64[1] units = {3}"
_FIRST = (  # of both directions, the same for every example
    "t = Transpose<perm=[1,0,2]>(h) n = Shape<start=0,end=1>(h) "
    "s = Concat<axis=0>(two, n, units) u = Expand(p_d, s) "
)
_UNARY = """
Abs Atan Asinh Cos Cosh Elu Erf Exp HardSigmoid HardSwish Identity LeakyRelu Mish Neg Relu Selu
Sigmoid Sin Sinh Softplus Softsign Tan Tanh ThresholdedRelu
"""

CASES: dict[str, Case] = {
    **{name: one(f"{name}(h)", opset=18, native=name == "Erf") for name in _UNARY.split()},
    "Acos": one("Acos(h)", spread=0.2),
    "Acosh": Case("h2 = Exp(h) h3 = Add(h2, one) z = Acosh(h3)", constants="float one = {1.0}"),
    "Add": one("Add(h, p_a)", others=("5",)),
    "Asin": one("Asin(h)", spread=0.2),
    "Atanh": one("Atanh(h)", spread=0.2),
    "Attention": Case(
        "q = MatMul(h, p_a) k = MatMul(h, p_b) v = MatMul(h, p_c) "
        "z = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v)",
        shape="5,6",
        others=("6,6", "6,6", "6,4"),
        opset=23,
    ),
    "AveragePool": one(
        "AveragePool<kernel_shape=[3,2], strides=[2,2], pads=[1,1,1,0]>(h)", shape="3,7,6"
    ),
    "AveragePool/global": one("AveragePool<kernel_shape=[7,6]>(h)", shape="3,7,6"),
    "AveragePool/ceil": one(
        "AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(h)", shape="2,6,6"
    ),
    "AveragePool/padded": one(
        "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(h)", shape="2,6,6"
    ),
    "AveragePool/same": one(
        'AveragePool<kernel_shape=[3,2], strides=[2,2], auto_pad="SAME_UPPER">(h)', shape="2,6,5"
    ),
    "AveragePool/1d": one("AveragePool<kernel_shape=[3], strides=[3]>(h)", shape="2,9"),
    "AveragePool/3d": one("AveragePool<kernel_shape=[2,2,2], strides=[2,2,2]>(h)", shape="2,4,4,4"),
    "AveragePool/same_padded": one(
        'AveragePool<kernel_shape=[3,2], strides=[2,2], auto_pad="SAME_UPPER", '
        "count_include_pad=1>(h)",
        shape="2,6,5",
    ),
    "BatchNormalization": one(
        "BatchNormalization(h, p_a, p_b, stat_m, stat_v)",
        shape=_IMAGE,
        others=("3", "3"),
        constants="float[3] stat_m = {0.1,0.2,0.3}, float[3] stat_v = {0.5,1.0,1.5}",
    ),
    "Cast": one("Cast<to=1>(h)"),
    "CastLike": one("CastLike(h, x)"),
    "Celu": one("Celu<alpha=0.7>(h)"),
    "Clip": one("Clip(h, low, high)", constants="float low = {-0.5}, float high = {0.7}"),
    "Clip/low": one("Clip(h, low)", constants="float low = {-0.5}"),
    "Concat": one("Concat<axis=0>(h, p_a, h)", others=("2,5",)),
    "Conv": one(
        "Conv<pads=[1,0,1,2], strides=[2,1]>(h, p_a, p_b)", shape="2,7,6", others=("3,2,3,2", "3")
    ),
    "Conv/same": one(
        'Conv<auto_pad="SAME_UPPER", strides=[2,1]>(h, p_a)', shape="2,7,6", others=("3,2,4,2",)
    ),
    "Conv/lower": one('Conv<auto_pad="SAME_LOWER">(h, p_a)', shape="2,7", others=("3,2,4",)),
    "Conv/dynamic": one('Conv<auto_pad="SAME_UPPER">(h, p_a)', shape="2,S", others=("3,2,4",)),
    "Conv/valid": one('Conv<auto_pad="VALID">(h, p_a)', shape="2,7", others=("3,2,4",)),
    "Conv/depthwise": one(
        "Conv<group=4, pads=[1,1,1,1]>(h, p_a)", shape="4,5,5", others=("4,1,3,3",)
    ),
    "Conv/grouped": one(
        "Conv<group=2, dilations=[2,1]>(h, p_a, p_b)", shape="4,6,5", others=("6,2,2,3", "6")
    ),
    "Conv/3d": one("Conv(h, p_a)", shape="2,4,4,3", others=("3,2,2,2,2",)),
    "ConvTranspose": one(
        "ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(h, p_a, p_b)",
        shape="2,4,4",
        others=("2,6,3,3", "6"),
    ),
    "ConvTranspose/grouped": one(
        "ConvTranspose<group=2, pads=[1,1,2,2]>(h, p_a)",
        shape="6,5,5",
        others=("6,2,3,3",),
        native=True,
    ),
    "ConvTranspose/1d": one(
        "ConvTranspose<strides=[3], dilations=[2]>(h, p_a)", shape="2,5", others=("2,3,2",)
    ),
    "ConvTranspose/same": one(
        'ConvTranspose<strides=[2,2], auto_pad="SAME_UPPER">(h, p_a)',
        shape="2,4,4",
        others=("2,3,3,3",),
    ),
    "ConvTranspose/output_shape": one(
        "ConvTranspose<strides=[2,2], output_shape=[8,9]>(h, p_a)",
        shape="2,4,4",
        others=("2,3,3,3",),
    ),
    "CumSum": one("CumSum(h, axis)", shape="4,3", constants="int64 axis = {1}"),
    "CumSum/exclusive": one(
        "CumSum<exclusive=1, reverse=1>(h, axis)", shape="4,3", constants="int64 axis = {-1}"
    ),
    "DepthToSpace": one("DepthToSpace<blocksize=2>(h)", shape="8,3,2"),
    "DepthToSpace/crd": one('DepthToSpace<blocksize=2, mode="CRD">(h)', shape="8,3,2"),
    "DepthToSpace/dynamic": one("DepthToSpace<blocksize=2>(h)", shape="8,S,2"),
    "Div": one("Div(h, p_a)", others=("5",), positive=True),
    "Div/broadcast": one("Div(p_a, h)", shape="2,3", others=("4,1,1,3",), positive=True),
    "Dropout": one("Dropout(h)"),
    "Einsum": one('Einsum<equation="bij,jk->bik">(h, p_a)', shape="4,3", others=("3,2",)),
    "Einsum/heads": one(
        'Einsum<equation="bthd,hde->bte">(h, p_a)', shape="4,2,3", others=("2,3,5",)
    ),
    "Einsum/ellipsis": one(
        'Einsum<equation="...ij,jk->...ik">(h, p_a)', shape="4,3", others=("3,2",)
    ),
    "Einsum/outer": one('Einsum<equation="bi,bj->bij">(h, h)'),
    "Einsum/sum": one('Einsum<equation="bij->bj">(h)', shape="4,3"),
    "Einsum/diagonal": one('Einsum<equation="bii->bi">(h)', shape="3,3"),
    "Einsum/implicit": one('Einsum<equation="bij, jk">(h, p_a)', shape="4,3", others=("3,2",)),
    "Einsum/all": one('Einsum<equation="bi,bi->">(h, h)'),
    "Einsum/twice": one('Einsum<equation="...i,...i->...">(h, h)', shape="4,3"),
    "Einsum/repeated": one(
        'Einsum<equation="bij,bjk->bik">(h, p_a)', shape="4,3", others=("1,3,2",)
    ),
    "Expand": one("Expand(p_a, s)", others=("5",), constants="int64[2] s = {3,5}"),
    "Flatten": one("Flatten(h)", shape="3,4"),
    "GRU": Case(
        "t = Transpose<perm=[1,0,2]>(h) z, zh = GRU<hidden_size=3>(t, p_a, p_b, p_c)",
        shape="4,5",
        others=("1,9,5", "1,9,3", "1,18"),
    ),
    "GRU/reverse": Case(
        "t = Transpose<perm=[1,0,2]>(h) "
        'z, zh = GRU<hidden_size=3, direction="reverse", linear_before_reset=1, clip=0.4>'
        "(t, p_a, p_b, p_c)",
        shape="4,5",
        others=("1,9,5", "1,9,3", "1,18"),
        native=True,
    ),
    "GRU/states": Case(
        _FIRST + 'a, b = GRU<hidden_size=3, direction="bidirectional">(t, p_a, p_b, p_c, , u) '
        "z = Add(a, b)",
        shape="4,5",
        others=("2,9,5", "2,9,3", "2,18", "2,1,3"),
        constants=_STATES,
        native=True,
    ),
    "GRU/after": Case(
        _FIRST + 'a, b = GRU<hidden_size=3, linear_before_reset=1, direction="bidirectional">'
        "(t, p_a, p_b, p_c, , u) z = Add(a, b)",
        shape="4,5",
        others=("2,9,5", "2,9,3", "2,18", "2,1,3"),
        constants=_STATES,
        native=True,
    ),
    "Gather": one("Gather<axis=1>(h, i)", constants="int64[3] i = {2,0,2}"),
    "Gather/scalar": one("Gather<axis=1>(h, i)", shape="4,3", constants="int64 i = {-1}"),
    "Gather/int32": one("Gather(p_a, i)", others=("6,4",), constants="int32[2,2] i = {5,0,0,3}"),
    "Gather/table": one("Gather(p_a, i)", others=("6,4",), constants="int64[2,2] i = {5,0,0,3}"),
    "GatherElements": Case(
        "s = Shape(h) e = Expand(i, s) z = GatherElements<axis=1>(h, e)",
        constants="int64[1,5] i = {4,0,0,1,3}",
    ),
    "GatherND": one(
        "GatherND<batch_dims=0>(p_a, i)", others=("3,4",), constants="int64[2,2] i = {2,1,0,3}"
    ),
    "GatherND/batch": Case(
        "s = Shape<start=0,end=1>(h) e = Concat<axis=0>(s, r) f = Expand(i, e) "
        "z = GatherND<batch_dims=1>(h, f)",
        shape="3,4",
        constants="int64[1,3,1] i = {2,0,2}, int64[2] r = {3,1}",
    ),
    "Gelu": one(
        "Gelu(h)",
        opset=20,
        native=True,
    ),
    "Gelu/tanh": one(
        'Gelu<approximate="tanh">(h)',
        opset=20,
        native=True,
    ),
    "Gemm": one("Gemm<transB=1, alpha=0.5, beta=2.0>(h, p_a, p_b)", others=("3,5", "3")),
    "Gemm/transposed": Case("t = Transpose(h) z = Gemm<transA=1>(t, p_a)", others=("5,3",)),
    "GlobalAveragePool": one("GlobalAveragePool(h)", shape=_IMAGE),
    "GlobalLpPool": one("GlobalLpPool<p=3>(h)", shape=_IMAGE),
    "GlobalMaxPool": one("GlobalMaxPool(h)", shape="3,4,5"),
    "GlobalMaxPool/dynamic": one("GlobalMaxPool(h)", shape="3,S,5"),
    "GridSample": Case(
        "g = Tanh(p_b) s = Shape<start=0,end=1>(h) e = Concat<axis=0>(s, r) "
        "f = Expand(g, e) z = GridSample(h, f)",
        shape=_IMAGE,
        others=("1", "1,3,2,2"),
        constants="int64[3] r = {3,2,2}",
        opset=16,
    ),
    "GroupNormalization": one(
        "GroupNormalization<num_groups=2>(h, p_a, p_b)", shape="4,3,3", others=("4", "4"), opset=21
    ),
    "GroupNormalization/18": one(
        "GroupNormalization<num_groups=2>(h, p_a, p_b)", shape="4,3,3", others=("2", "2"), opset=18
    ),
    "If": Case(
        "m = ReduceMean<keepdims=0>(x) t = Greater(m, low) z = If (t) <then_branch = a () "
        "=> (float[N,5] u) { v = Mul(h, p_a) u = Softplus(v) }, else_branch = b () => "
        "(float[N,5] w) { w = Tanh(h) }>",
        others=("5",),
        constants="float low = {-100.0}",
    ),
    "If/other": Case(
        "m = ReduceMean<keepdims=0>(x) t = Less(m, low) z = If (t) <then_branch = a "
        "() => (float[N,5] u) { v = Mul(h, p_a) u = Softplus(v) }, else_branch = b () "
        "=> (float[N,5] w) { w = Tanh(h) }>",
        others=("5",),
        constants="float low = {-100.0}",
    ),
    "If/normalized": Case(
        "m = ReduceMean<keepdims=0>(x) t = Greater(m, low) z = If (t) <then_branch = a () "
        "=> (float[N,3,4] u) { v = BatchNormalization(h, p_a, p_b, stat_m, stat_v) "
        "d = Dropout(v) u = Tanh(d) }, else_branch = b () => (float[N,3,4] w) { w = Tanh(h) }>",
        shape="3,4",
        others=("3", "3"),
        constants="float low = {-100.0}, float[3] stat_m = {0.1,0.2,0.3}, "
        "float[3] stat_v = {0.5,1.0,1.5}",
    ),
    "If/outer": Case(
        "m = ReduceMean<keepdims=0>(x) t = Greater(m, low) z = If (t) <then_branch = a () "
        "=> (float[N,4] u) { u = ReduceMax<keepdims=0>(h, axes) }, else_branch = b () "
        "=> (float[N,4] w) { w = ReduceProd<keepdims=0>(h, axes) }>",
        shape="3,4",
        opset=18,
        constants="float low = {-100.0}, int64[1] axes = {1}",
    ),
    "InstanceNormalization": one(
        "InstanceNormalization(h, p_a, p_b)", shape="3,4,5", others=("3", "3")
    ),
    "LRN": one("LRN<size=3, alpha=0.5, beta=0.6>(h)", shape="6,3,4"),
    "LSTM": Case(
        "t = Transpose<perm=[1,0,2]>(h) z, zh, zc = LSTM<hidden_size=3>(t, p_a, p_b, p_c)",
        shape="4,5",
        others=("1,12,5", "1,12,3", "1,24"),
    ),
    "LSTM/everything": Case(
        "t = Transpose<perm=[1,0,2]>(h) n = Shape<start=0,end=1>(h) l = Expand(three, n) "
        "s = Concat<axis=0>(two, n, units) u = Expand(p_d, s) v = Expand(p_e, s) "
        'z, zh, zc = LSTM<hidden_size=3, direction="bidirectional", clip=0.6>'
        "(t, p_a, p_b, p_c, l, u, v, p_f)",
        shape="4,5",
        others=("2,12,5", "2,12,3", "2,24", "2,1,3", "2,1,3", "2,9"),
        constants="int32[1] three = {3}, int64[1] two = {2}, int64[1] units = {3}",
        native=True,
    ),
    "LSTM/states": Case(
        _FIRST + "v = Expand(p_e, s) "
        'a, b, c = LSTM<hidden_size=3, direction="bidirectional">(t, p_a, p_b, p_c, , u, v) '
        "d = Add(a, b) z = Add(d, c)",
        shape="4,5",
        others=("2,12,5", "2,12,3", "2,24", "2,1,3", "2,1,3"),
        constants=_STATES,
        native=True,
    ),
    "LSTM/start": Case(
        "t = Transpose<perm=[1,0,2]>(h) n = Shape<start=0,end=1>(h) "
        "s = Concat<axis=0>(one, n, units) u = Expand(p_d, s) v = Expand(p_e, s) "
        "a, b, c = LSTM<hidden_size=3>(t, p_a, p_b, p_c, , u, v) d = Add(a, b) z = Add(d, c)",
        shape="4,5",
        others=("1,12,5", "1,12,3", "1,24", "1,1,3", "1,1,3"),
        constants="int64[1] one = {1}, int64[1] units = {3}",
        native=True,
    ),
    "Loop/recurrent": Case(
        "t = Transpose<perm=[1,0,2]>(h) n = Shape<start=0,end=1>(h) "
        "s = Concat<axis=0>(one, n, units) u = Expand(zero, s) "
        "f, c, all = Loop (three, yes, u, u) <body = b "
        "(int64 i, bool go, float[1,N,3] f0, float[1,N,3] c0) => "
        "(bool more, float[1,N,3] f1, float[1,N,3] c1, float[T,D,N,3] o) "
        "{ more = Identity(go) o, f1, c1 = LSTM<hidden_size=3>(t, p_a, p_b, p_c, , f0, c0) }> "
        "z = Add(f, c)",
        shape="4,5",
        others=("1,12,5", "1,12,3", "1,24"),
        constants="int64 three = {3}, bool yes = {1}, float zero = {0.0}, int64[1] one = {1}, "
        "int64[1] units = {3}",
        native=True,
    ),
    "Mul/twice": one("Mul(p_a, p_a)", others=("5",)),
    "LSTM/last": Case(
        "t = Transpose<perm=[1,0,2]>(h) "
        ', z, c = LSTM<hidden_size=3, direction="reverse">(t, p_a, p_b)',
        shape="4,5",
        others=("1,12,5", "1,12,3"),
        native=True,
    ),
    "LayerNormalization": one("LayerNormalization(h, p_a, p_b)", shape="3,6", others=("6", "6")),
    "LayerNormalization/axis": one(
        "LayerNormalization<axis=1>(h, p_a)", shape="3,6", others=("3,6",)
    ),
    "Log": one("Log(h)", positive=True),
    "LogSoftmax": one("LogSoftmax<axis=1>(h)", shape="4,3"),
    "Loop": Case(
        "z, all = Loop (n, t, h) <body = b (int64 i, bool c, float[N,5] s) => "
        "(bool d, float[N,5] r, float[N,5] o) { d = Identity(c) v = Mul(s, p_a) "
        "r = Tanh(v) o = Relu(v) }>",
        others=("5",),
        constants="int64 n = {3}, bool t = {1}",
    ),
    "Loop/unread": Case(  # a state that begins with another rank, since no pass reads it
        "f, w = Loop (n, t, h, zero) <body = b (int64 i, bool c, float[N,5] s, float[N,5] v0) => "
        "(bool d, float[N,5] r, float[N,5] v1) { d = Identity(c) v1 = Mul(s, p_a) "
        "r = Tanh(v1) }> z = Mul(f, w)",
        others=("5",),
        constants="int64 n = {3}, bool t = {1}, float zero = {0.0}",
        native=True,
    ),
    "Loop/scanned": Case(
        "last, all = Loop (n, t, h) <body = b (int64 i, bool c, float[N,5] s) => "
        "(bool d, float[N,5] r, float[N,5] o) { d = Identity(c) v = Mul(s, p_a) "
        "r = Tanh(v) o = Softplus(v) }> z = Transpose<perm=[1,0,2]>(all)",
        others=("5",),
        constants="int64 n = {3}, bool t = {1}",
        native=True,
    ),
    "LpNormalization": one("LpNormalization<axis=1>(h)", shape="3,6"),
    "LpNormalization/1": one("LpNormalization<p=1>(h)", shape="3,6"),
    "LpPool": one("LpPool<kernel_shape=[2,3], strides=[2,1], p=2>(h)", shape=_IMAGE),
    "MatMul": one("MatMul(h, p_a)", shape="4,3", others=("3,2",)),
    "MatMul/broadcast": one("MatMul(h, p_a)", shape="2,4,3", others=("2,3,2",)),
    "MatMul/vector": one("MatMul(h, p_a)", shape="4,3", others=("3",)),
    "MatMul/left": one("MatMul(p_a, h)", shape="4,3", others=("2,4",)),
    "Max": one("Max(h, x, p_a)", others=("5",)),
    "MaxPool": one("MaxPool<kernel_shape=[2,3], strides=[2,1], pads=[1,0,0,1]>(h)", shape=_IMAGE),
    "MaxPool/dilated": one("MaxPool<kernel_shape=[2,2], dilations=[2,3]>(h)", shape=_IMAGE),
    "MaxPool/ceil": one(
        "MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(h)", shape="2,5,5"
    ),
    "MaxPool/same": one(
        'MaxPool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">(h)', shape=_IMAGE
    ),
    "MaxPool/1d": one("MaxPool<kernel_shape=[3]>(h)", shape="2,7"),
    "MaxPool/3d": one("MaxPool<kernel_shape=[2,2,2]>(h)", shape="2,4,3,4"),
    "MaxPool/columns": one("MaxPool<kernel_shape=[2,2], storage_order=1>(h)", shape="2,4,5"),
    "Mean": one("Mean(h, x, p_a)", others=("5",)),
    "MeanVarianceNormalization": one("MeanVarianceNormalization<axes=[0,2,3]>(h)", shape=_IMAGE),
    "Min": one("Min(h, x, p_a)", others=("5",)),
    "Mod": one("Mod<fmod=1>(h, p_a)", others=("5",)),
    "Mul": one("Mul(h, p_a)", shape="3,5", others=("3,1",)),
    "PRelu": one("PRelu(h, p_a)", shape="3,4,4", others=("3,1,1",)),
    "Pad": one(
        "Pad(h, pads, v)",
        shape="3,4",
        constants="int64[6] pads = {0,1,2,0,0,-1}, float v = {0.5}",
        native=True,
    ),
    "Pad/axes": one(
        "Pad(h, pads, , axes)",
        shape="3,4",
        opset=18,
        constants="int64[2] pads = {1,2}, int64[1] axes = {2}",
    ),
    "Pad/edge": one(
        'Pad<mode="edge">(h, pads)', shape="2,4,5", constants="int64[8] pads = {0,0,1,2,0,0,2,1}"
    ),
    "Pad/reflect": one(
        'Pad<mode="reflect">(h, pads)', shape="2,4,5", constants="int64[8] pads = {0,0,1,2,0,0,2,1}"
    ),
    "Pad/dynamic": one(
        'Pad<mode="reflect">(h, pads)', shape="2,4,S", constants="int64[8] pads = {0,0,1,2,0,0,2,1}"
    ),
    "Pad/wrap": one(
        'Pad<mode="wrap">(h, pads)',
        shape="2,4,5",
        opset=19,
        constants="int64[8] pads = {0,0,1,2,0,0,2,1}",
    ),
    "Pow": one("Pow(h, two)", constants="float two = {2.0}"),
    "Pow/three": one("Pow(h, three)", constants="float three = {3.0}"),
    "Pow/tensor": one("Pow(h, p_a)", shape="3,5", others=("5",), positive=True),
    "Pow/base": one("Pow(p_a, h)", shape="3,5", others=("3,1",), positive=True),
    "Pow/integers": one("Pow(h, e)", constants="int64[5] e = {0,1,2,3,2}"),
    "Pow/itself": one("Pow(h, h)", positive=True),
    "RMSNormalization": one(
        "RMSNormalization<epsilon=0.01>(h, p_a)", shape="3,6", others=("6",), opset=23
    ),
    "RNN/leaky": Case(
        "t = Transpose<perm=[1,0,2]>(h) "
        'z, zh = RNN<hidden_size=3, activations=["LeakyRelu"], activation_alpha=[0.3]>'
        "(t, p_a, p_b)",
        shape="4,5",
        others=("1,3,5", "1,3,3"),
    ),
    "RNN": Case(
        "t = Transpose<perm=[1,0,2]>(h) z, zh = RNN<hidden_size=3>(t, p_a, p_b, p_c)",
        shape="4,5",
        others=("1,3,5", "1,3,3", "1,6"),
    ),
    "RNN/states": Case(
        _FIRST + 'a, b = RNN<hidden_size=3, direction="bidirectional">(t, p_a, p_b, p_c, , u) '
        "z = Add(a, b)",
        shape="4,5",
        others=("2,3,5", "2,3,3", "2,6", "2,1,3"),
        constants=_STATES,
        native=True,
    ),
    "Reciprocal": one("Reciprocal(h)", positive=True),
    "ReduceL1": one("ReduceL1<axes=[2], keepdims=0>(h)", shape="3,4"),
    "ReduceL2": one("ReduceL2<axes=[2]>(h)", shape="3,4"),
    "ReduceL2/dropped": one("ReduceL2<axes=[-1], keepdims=0>(h)", shape="3,4"),
    "ReduceL2/18": one(
        "ReduceL2<keepdims=0>(h, axes)", shape="3,4", opset=18, constants="int64[1] axes={2}"
    ),
    "ReduceL2/all": one("ReduceL2<keepdims=0>(h)", shape="3,4", opset=18),
    "ReduceLogSum": one("ReduceLogSum<axes=[2]>(h)", shape="3,4", positive=True),
    "ReduceLogSumExp": one("ReduceLogSumExp<axes=[1]>(h)", shape="3,4"),
    "ReduceLogSumExp/dropped": one("ReduceLogSumExp<axes=[1], keepdims=0>(h)", shape="3,4"),
    "ReduceLogSumExp/18": one(
        "ReduceLogSumExp<keepdims=0>(h, axes)",
        shape="3,4",
        opset=18,
        constants="int64[1] axes={2}",
    ),
    "ReduceMax": one("ReduceMax<axes=[-1,1], keepdims=0>(h)", shape="3,4"),
    "ReduceMax/18": one("ReduceMax(h, axes)", shape="3,4", opset=18, constants="int64[1] axes={2}"),
    "ReduceMax/number": Case("m = ReduceMean<keepdims=0>(h) t = ReduceMax(m) z = Mul(h, t)"),
    "ReduceMean": one("ReduceMean<axes=[1,2], keepdims=0>(h)", shape="3,4"),
    "ReduceMean/18": one(
        "ReduceMean(h, axes)", shape="3,4", opset=18, constants="int64[1] axes={-1}"
    ),
    "ReduceMean/18_dropped": one(
        "ReduceMean<keepdims=0>(h, axes)", shape="3,4", opset=18, constants="int64[1] axes={1}"
    ),
    "ReduceMin": one("ReduceMin<axes=[1]>(h)", shape="3,4"),
    "ReduceProd": one("ReduceProd<axes=[1]>(h)", shape="3,4"),
    "ReduceSum": one("ReduceSum<keepdims=0>(h, axes)", shape="3,4", constants="int64[1] axes={-1}"),
    "ReduceSum/noop": one("ReduceSum<noop_with_empty_axes=1>(h)", shape="3,4"),
    "ReduceSumSquare": one("ReduceSumSquare<axes=[1]>(h)", shape="3,4"),
    "Reshape": one("Reshape(h, s)", shape="3,4", constants="int64[3] s = {0,-1,2}"),
    "Resize": one(
        'Resize<mode="nearest", nearest_mode="floor", '
        'coordinate_transformation_mode="asymmetric">(h, , scales)',
        shape=_IMAGE,
        constants="float[4] scales = {1.0,1.0,2.0,2.0}",
    ),
    "Resize/linear": Case(
        "s = Shape<start=0, end=2>(h) o = Concat<axis=0>(s, sizes) "
        'z = Resize<mode="linear">(h, , , o)',
        shape="2,3,4",
        constants="int64[2] sizes = {6,7}",
    ),
    "Resize/corners": one(
        'Resize<mode="linear", coordinate_transformation_mode="align_corners">(h, , scales)',
        shape="2,3,4",
        constants="float[4] scales = {1.0,1.0,2.5,1.5}",
        native=True,
    ),
    "Resize/cubic": one(
        'Resize<mode="cubic">(h, , scales)',
        shape="2,5,4",
        constants="float[4] scales = {1.0,1.0,2.0,1.5}",
    ),
    "Resize/antialias": one(
        'Resize<mode="linear", antialias=1>(h, , scales)',
        shape="2,8,6",
        opset=18,
        constants="float[4] scales = {1.0,1.0,0.5,0.5}",
    ),
    "Resize/axes": one(
        'Resize<mode="linear", axes=[2,3]>(h, , scales)',
        shape="2,4,6",
        opset=18,
        constants="float[2] scales = {1.5,2.0}",
    ),
    "Resize/dynamic": one(
        'Resize<mode="nearest">(h, , scales)',
        shape="2,S,4",
        constants="float[4] scales = {1.0,1.0,2.0,2.0}",
    ),
    "Resize/crop": one(
        'Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">'
        "(h, roi, scales)",
        shape="2,5,4",
        constants="float[8] roi = {0.0,0.0,0.1,0.2,1.0,1.0,0.9,0.7}, "
        "float[4] scales = {1.0,1.0,1.0,1.5}",
        native=True,
    ),
    "Resize/10": one(
        "Resize(h, scales)", shape=_IMAGE, opset=10, constants="float[4] scales = {1.0,1.0,2.0,2.0}"
    ),
    "ReverseSequence": Case(
        "s = Shape<start=0,end=1>(h) l = Expand(three, s) "
        "z = ReverseSequence<batch_axis=0, time_axis=1>(h, l)",
        shape="4,3",
        constants="int64[1] three = {3}",
    ),
    "Scan": Case(
        "t = Transpose<perm=[1,0,2]>(h) i = ReduceMean<axes=[0], keepdims=0>(t) "
        "last, all = Scan (i, t) <num_scan_inputs=1, body = b (float[N,5] s, "
        "float[N,5] u) => (float[N,5] r, float[N,5] o) { v = Mul(s, p_a) w = Add(v, u) "
        "r = Tanh(w) o = Softplus(w) }> e = Transpose<perm=[1,0,2]>(all) "
        "f = Unsqueeze(last, axis) z = Add(e, f)",
        shape="4,5",
        others=("5",),
        constants="int64[1] axis = {1}",
    ),
    "Scan/reverse": Case(
        "i = ReduceMean<axes=[1], keepdims=0>(h) last, z = Scan (i, h) "
        "<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1], "
        "scan_input_directions=[1], body = b (float[N,5] s, float[N,5] u) => "
        "(float[N,5] r, float[N,5] o) { v = Mul(s, p_a) w = Add(v, u) "
        "r = Tanh(w) o = Softplus(w) }>",
        shape="4,5",
        others=("5",),
        native=True,
    ),
    "Scan/unread": Case(  # states that no pass reads, in front of and behind one that all do
        "i = ReduceMean<axes=[0], keepdims=0>(h) v, last, w = Scan (i, i, i, h) "
        "<num_scan_inputs=1, body = b (float[5] v0, float[5] s, float[5] w0, float[5] u) => "
        "(float[5] v1, float[5] r, float[5] w1) { v1 = Mul(s, p_a) w1 = Sin(u) a = Add(v1, u) "
        "r = Tanh(a) }> vw = Mul(v, w) z = Add(vw, last)",
        others=("5",),
    ),
    "Scatter": one(
        "Scatter<axis=0>(p_a, i, p_b)",
        others=("3,2", "1,2"),
        opset=10,
        constants="int64[1,2] i = {2,0}",
    ),
    "ScatterElements": one(
        "ScatterElements<axis=0>(p_a, i, p_b)",
        others=("3,2", "1,2"),
        constants="int64[1,2] i = {2,0}",
    ),
    "ScatterElements/add": one(
        'ScatterElements<axis=0, reduction="add">(p_a, i, p_b)',
        others=("3,2", "3,2"),
        constants="int64[3,2] i = {2,0,2,1,-1,1}",
    ),
    "ScatterND": one(
        "ScatterND(p_a, i, p_b)", others=("4,3", "2,3"), constants="int64[2,1] i = {3,1}"
    ),
    "ScatterND/add": one(
        'ScatterND<reduction="add">(p_a, i, p_b)',
        others=("4,3", "3,3"),
        constants="int64[3,1] i = {3,1,3}",
    ),
    "Selu": one("Selu<alpha=1.2, gamma=0.9>(h)"),
    "Shrink": one("Shrink<lambd=0.3, bias=0.1>(h)"),
    "Slice": one(
        "Slice(h, b, e, a, s)",
        shape="5,4",
        constants="int64[2] b = {4,0}, "
        "int64[2] e = {-100,3}, int64[2] a = {1,2}, int64[2] s = {-2,2}",
    ),
    "Softmax": one("Softmax<axis=1>(h)", shape="4,3"),
    "Softmax/11": one("Softmax<axis=1>(h)", shape="4,3", opset=11),
    "SpaceToDepth": one("SpaceToDepth<blocksize=2>(h)", shape="3,4,6"),
    "SpaceToDepth/dynamic": one("SpaceToDepth<blocksize=2>(h)", shape="3,S,6"),
    "Split": Case(
        "a, b = Split<axis=1>(h, s) c = Tanh(a) z = Concat<axis=1>(c, b)",
        constants="int64[2] s = {2,3}",
    ),
    "Split/part": Case("a, z, b = Split<axis=1>(h, s)", constants="int64[3] s = {1,2,2}"),
    "Sqrt": one("Sqrt(h)", positive=True),
    "Squeeze": one("Squeeze(h, axes)", shape="1,4", constants="int64[1] axes = {1}"),
    "Sub": one("Sub(p_a, h)", others=("1",)),
    "Sum": one("Sum(h, x, p_a)", others=("5",)),
    "Swish": one("Swish<alpha=0.7>(h)", opset=24),
    "Tile": one("Tile(h, r)", shape="2,3", constants="int64[3] r = {1,2,3}"),
    "TopK": Case("z, i = TopK<axis=1>(h, k)", constants="int64[1] k = {3}"),
    "Transpose": one("Transpose<perm=[0,2,1]>(h)", shape="2,3"),
    "Trilu": one("Trilu<upper=0>(h)", shape="3,4"),
    "Unsqueeze": one("Unsqueeze(h, axes)", constants="int64[2] axes = {1,-1}"),
    "Upsample": one(
        'Upsample<mode="nearest">(h, scales)',
        shape=_IMAGE,
        opset=9,
        constants="float[4] scales = {1.0,1.0,2.0,3.0}",
    ),
    "Where": Case(
        "c = Greater(x, zero) z = Where(c, h, p_a)", others=("5",), constants="float zero = {0.0}"
    ),
    "Where/repeated": Case(
        "c = Greater(x, zero) z = Where(c, p_a, h)",
        shape="3,5",
        others=("3,1",),
        constants="float zero = {0.0}",
    ),
}


_QKV = "q = MatMul(h, p_a) k = MatMul(h, p_b) v = MatMul(h, p_c) "
_MASK = "bool[5,5] m = {1,0,0,0,0, 1,1,0,0,0, 1,1,1,0,0, 1,1,1,1,0, 1,1,1,1,1}"
_THREE = ("6,6", "6,6", "6,4")
_MS = "com.microsoft"
_ANGLES = (
    "r = Range(zero, five, one) t = Unsqueeze(r, last) a = Mul(t, speeds) c = Cos(a) s = Sin(a) "
)
_SPEEDS = "float zero = {0.0}, float five = {5.0}, float one = {1.0}, int64[1] last = {1}, "

FUSED: dict[str, Case] = {
    "Attention/masked": Case(
        _QKV + "z = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v, m)",
        shape="5,6",
        others=_THREE,
        opset=23,
        constants=_MASK,
    ),
    "Attention/causal": Case(
        _QKV + "z = Attention<q_num_heads=2, kv_num_heads=2, is_causal=1, scale=0.3>(q, k, v)",
        shape="5,6",
        others=_THREE,
        opset=23,
    ),
    "Attention/capped": Case(
        _QKV + "z = Attention<q_num_heads=2, kv_num_heads=2, softcap=0.5>(q, k, v)",
        shape="5,6",
        others=_THREE,
        opset=23,
    ),
    "Attention/shared": Case(
        _QKV + "z = Attention<q_num_heads=4, kv_num_heads=2, is_causal=1>(q, k, v, p_d)",
        shape="5,6",
        others=("6,8", "6,4", "6,6", "5,5"),
        opset=23,
    ),
    "Attention/cached": Case(
        _QKV + "b = Shape<start=0, end=1>(h) e = Concat<axis=0>(b, rest) pk = Expand(p_d, e) "
        "pv = Expand(p_e, e) z, nk, nv = Attention<q_num_heads=2, kv_num_heads=2, is_causal=1>"
        "(q, k, v, , pk, pv)",
        shape="5,6",
        others=("6,4", "6,4", "6,4", "2,3,2", "2,3,2"),
        opset=23,
        constants="int64[3] rest = {2,3,2}",
    ),
    "Attention/heads": Case(
        "t = Reshape(h, s) q = Transpose<perm=[0,2,1,3]>(t) w = MatMul(q, p_a) "
        "z = Attention(q, w, q)",
        shape="5,6",
        others=("3,3",),
        opset=23,
        constants="int64[4] s = {0,0,2,3}",
    ),
    "RotaryEmbedding": Case(
        _ANGLES + "u = Unsqueeze(c, first) v = Unsqueeze(s, first) b = Shape<start=0, end=1>(h) "
        "e = Concat<axis=0>(b, rest) w = Expand(u, e) i = Expand(v, e) "
        "z = RotaryEmbedding<num_heads=2>(h, w, i)",
        shape="5,8",
        opset=23,
        constants=_SPEEDS
        + "int64[1] first = {0}, int64[2] rest = {5,2}, float[2] speeds={1.0,0.3}",
    ),
    "RotaryEmbedding/partial": Case(
        "b = Shape<start=0, end=1>(h) e = Concat<axis=0>(b, five) p = Expand(places, e) "
        "z = RotaryEmbedding<num_heads=2, rotary_embedding_dim=2, interleaved=1>(h, c, s, p)",
        shape="5,8",
        opset=23,
        constants="int64[1] five = {5}, int64[1,5] places = {3,1,0,2,2}, "
        "float[4,1] c = {1.0,0.5,0.2,0.1}, float[4,1] s = {0.0,0.8,0.9,0.95}",
    ),
    f"{_MS}.Attention": one(
        f"{_MS}.Attention<num_heads=2>(h, p_a, p_b)", shape="5,6", others=("6,12", "12")
    ),
    f"{_MS}.Attention/masked": Case(
        "b = Shape<start=0, end=1>(h) e = Concat<axis=0>(b, five) m = Expand(kept, e) "
        f"z = {_MS}.Attention<num_heads=2, unidirectional=1>(h, p_a, p_b, m)",
        shape="5,6",
        others=("6,12", "12"),
        constants="int32[1,5] kept = {1,1,1,0,1}, int64[1] five = {5}",
    ),
    f"{_MS}.Attention/widths": one(
        f"{_MS}.Attention<num_heads=2, qkv_hidden_sizes=[4,4,6], scale=0.4>(h, p_a, p_b)",
        shape="5,6",
        others=("6,14", "14"),
    ),
    f"{_MS}.BiasGelu": one(f"{_MS}.BiasGelu(h, p_a)", shape="3,5", others=("5",), native=True),
    f"{_MS}.EmbedLayerNormalization": Case(
        "b = Shape<start=0, end=1>(h) e = Concat<axis=0>(b, three) i = Expand(ids, e) "
        f"y0, m, s = {_MS}.EmbedLayerNormalization(i, i, p_a, p_b, p_c, p_d, p_e) z = Mul(y0, h)",
        shape="3,4",
        others=("7,4", "5,4", "7,4", "4", "4"),
        constants="int64[1] three = {3}, int32[1,3] ids = {6,0,2}",
    ),
    f"{_MS}.FastGelu": one(f"{_MS}.FastGelu(h, p_a)", shape="3,5", others=("5",)),
    f"{_MS}.FusedConv": one(
        f'{_MS}.FusedConv<pads=[1,1,1,1], activation="LeakyRelu", activation_params=[0.2]>'
        "(h, p_a, p_b)",
        shape="2,4,4",
        others=("3,2,3,3", "3"),
    ),
    f"{_MS}.FusedConv/sum": one(
        f'{_MS}.FusedConv<pads=[1,1,1,1], activation="Relu">(h, p_a, p_b, h)',
        shape="2,4,4",
        others=("2,2,3,3", "2"),
    ),
    f"{_MS}.FusedGemm": one(
        f'{_MS}.FusedGemm<transB=1, activation="Tanh">(h, p_a, p_b)', others=("3,5", "3")
    ),
    f"{_MS}.FusedMatMul": one(
        f"{_MS}.FusedMatMul<transB=1, alpha=0.5>(h, p_a)", shape="4,5", others=("3,5",)
    ),
    f"{_MS}.FusedMatMul/left": one(
        f"{_MS}.FusedMatMul<transA=1>(h, p_a)", shape="4,5", others=("4,3",)
    ),
    f"{_MS}.Gelu": one(f"{_MS}.Gelu(h)", native=True),
    f"{_MS}.GroupQueryAttention": Case(
        _QKV + "b = Shape<start=0, end=1>(h) l = Expand(four, b) "
        f"z, pk, pv = {_MS}.GroupQueryAttention<num_heads=4, kv_num_heads=2>"
        "(q, k, v, , , l, total)",
        shape="5,6",
        others=("6,64", "6,32", "6,32"),
        constants="int32[1] four = {4}, int32[1] total = {5}",
    ),
    f"{_MS}.GroupQueryAttention/rotary": Case(
        _QKV + "b = Shape<start=0, end=1>(h) l = Expand(four, b) "
        f"z, pk, pv = {_MS}.GroupQueryAttention<num_heads=4, kv_num_heads=2, do_rotary=1>"
        "(q, k, v, , , l, total, c, s)",
        shape="5,6",
        others=("6,64", "6,32", "6,32"),
        constants="int32[1] four = {4}, int32[1] total = {5}, float[5,8] c = {"
        + ",".join(f"{np.cos(n / 9):.4f}" for n in range(40))
        + "}, float[5,8] s = {"
        + ",".join(f"{np.sin(n / 9):.4f}" for n in range(40))
        + "}",
    ),
    f"{_MS}.MultiHeadAttention": Case(
        _QKV + f"z = {_MS}.MultiHeadAttention<num_heads=2>(q, k, v, p_d)",
        shape="5,6",
        others=("6,6", "6,6", "6,4", "16"),
    ),
    f"{_MS}.MultiHeadAttention/masked": Case(
        _QKV + "b = Shape<start=0, end=1>(h) e = Concat<axis=0>(b, five) m = Expand(kept, e) "
        f"z = {_MS}.MultiHeadAttention<num_heads=2>(q, k, v, , m)",
        shape="5,6",
        others=("6,6", "6,6", "6,6"),
        constants="int32[1,5] kept = {1,1,1,0,1}, int64[1] five={5}",
    ),
    f"{_MS}.QuickGelu": one(f"{_MS}.QuickGelu<alpha=1.5>(h)"),
    f"{_MS}.RotaryEmbedding": Case(
        "b = Shape<start=0, end=1>(h) e = Concat<axis=0>(b, five) p = Expand(places, e) "
        f"z = {_MS}.RotaryEmbedding(h, p, c, s)",
        shape="5,8",
        constants="int64[1] five = {5}, int64[1,5] places = {3,1,0,2,2}, float[5,2] c = "
        "{1.0,0.5,0.2,0.1,0.9,0.8,0.7,0.6,0.3,0.4}, "
        "float[5,2] s = {0.0,0.8,0.9,0.95,0.4,0.5,0.6,0.7,0.1,0.2}",
    ),
    f"{_MS}.SimplifiedLayerNormalization": one(
        "SimplifiedLayerNormalization<epsilon=0.01, axis=-1>(h, p_a)", shape="3,6", others=("6",)
    ),
    "SimplifiedLayerNormalization": one(
        "SimplifiedLayerNormalization<epsilon=0.01, axis=-1>(h, p_a)", shape="3,6", others=("6",)
    ),
    f"{_MS}.SkipLayerNormalization": one(
        f"{_MS}.SkipLayerNormalization<epsilon=0.01>(h, x, p_a, p_b, p_c)",
        shape="3,6",
        others=("6", "6", "6"),
    ),
    f"{_MS}.SkipLayerNormalization/sum": Case(
        f"n, mu, iv, s = {_MS}.SkipLayerNormalization(h, x, p_a, p_b) z = Add(n, s)",
        shape="3,6",
        others=("6", "6"),
    ),
    f"{_MS}.SkipSimplifiedLayerNormalization/default": Case(
        "a = Mul(h, tiny) b = Mul(x, tiny) "
        f"n, mu, iv, s = {_MS}.SkipSimplifiedLayerNormalization(a, b, p_a) z = Identity(n)",
        shape="3,6",
        others=("6",),
        constants="float tiny = {0.001}",
    ),
    f"{_MS}.SkipSimplifiedLayerNormalization": Case(
        f"n, mu, iv, s = {_MS}.SkipSimplifiedLayerNormalization(h, x, p_a) z = Add(n, s)",
        shape="3,6",
        others=("6",),
    ),
}
CASES |= FUSED


def in_float64(model: ir.Model) -> onnx.ModelProto:
    """A copy of `model` that computes in float64."""
    proto = ir.to_proto(model)
    _widen(proto.graph)
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    del proto.graph.value_info[:]
    return proto


def _widen(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.DOUBLE
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            if attribute.HasField("g"):
                _widen(attribute.g)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == onnx.TensorProto.FLOAT:
        array = ir.from_proto(tensor).numpy().astype(np.float64)
        tensor.CopyFrom(ir.to_proto(ir.Tensor(array, name=tensor.name)))


def reference(model: ir.Model) -> ReferenceEvaluator:
    """ONNX's reference implementation of `model`, in float64."""
    return ReferenceEvaluator(in_float64(model))
