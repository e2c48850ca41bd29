"""Which operators can be trained through, and by what means: read off the rules.

A float operator that is in none of the tables here has no gradient: parameters in front of it are
not trained, and the run says so.
"""

from __future__ import annotations

from enum import Enum

from onnxprune.gradients import lowering  # noqa: F401  registers the rules
from onnxprune.ops.registry import GRADIENTS, LOWERS

__all__ = ["CONVERTED", "ENGINE", "FLAT", "LOSSES", "Means", "differentiable", "means"]


class Means(Enum):
    """How an operator gets its gradient."""

    ENGINE = "engine"
    REWRITTEN = "rewritten"
    OWN = "own"
    FLAT = "flat"
    NONE = ""


# Tried one by one with onnxruntime-training 1.19.2, at batches of 1 and 7 behind a symbolic axis.
_ENGINE = """
Abs Add BatchNormalization Cast Clip Concat Conv ConvTranspose Cos Div Dropout Erf Exp Expand
Flatten Gather GatherElements GatherND Gelu Gemm GlobalAveragePool Identity LayerNormalization
LeakyRelu Log LogSoftmax MatMul Max MaxPool Min Mul Neg Pad Pow Reciprocal ReduceL2
ReduceLogSumExp ReduceMean ReduceSum Relu Reshape ScatterElements ScatterND Sigmoid Sin Slice
Softmax Split Sqrt Squeeze Sub Tanh Tile TopK Transpose Trilu Unsqueeze
"""
ENGINE = frozenset(_ENGINE.split())

LOSSES = frozenset({"NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"})  # with a gradient too

# Their values are positions, truths or steps: the slope is 0 wherever there is one.
_FLAT = """
And ArgMax ArgMin Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Constant
ConstantOfShape Equal EyeLike Floor Greater GreaterOrEqual Hardmax IsInf IsNaN Less LessOrEqual
Multinomial NonMaxSuppression NonZero Not OneHot Or RandomNormal RandomNormalLike RandomUniform
RandomUniformLike Range Round Shape Sign Size Xor
"""
FLAT = frozenset(_FLAT.split())

# Old operators that the conversion to a newer opset writes as others.
CONVERTED = frozenset({"Scatter", "Upsample"})


def means(domain: str, op_type: str) -> Means:
    """How the gradient of an operator comes about."""
    key = (domain, op_type)
    if not domain and op_type in FLAT:
        return Means.FLAT
    if key in {row[:2] for row in LOWERS.rows()} or (not domain and op_type in CONVERTED):
        return Means.REWRITTEN
    if not domain and op_type in ENGINE:
        return Means.ENGINE
    return Means.OWN if key in {row[:2] for row in GRADIENTS.rows()} else Means.NONE


def differentiable() -> frozenset[tuple[str, str]]:
    """(domain, operator) of all that has a gradient."""
    tables = {row[:2] for facet in (LOWERS, GRADIENTS) for row in facet.rows()}
    known = tables | {("", op_type) for op_type in ENGINE | CONVERTED}
    return frozenset(key for key in known if key[0] or key[1] not in FLAT)
