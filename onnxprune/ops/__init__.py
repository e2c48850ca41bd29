"""Operator families: one module each, holding all that is known about its operators.

Importing this package registers the built-in rules. An operator is added by adding functions to its
family's module (or to a module of your own), never by editing a list elsewhere.
"""

from onnxprune.ops import (
    activation,
    attention,
    classical,
    concat,
    control,
    conv,
    einsum,
    elementwise,
    fused,
    fused_attention,
    matmul,
    normalization,
    pad,
    pooling,
    qlinear,
    quantize,
    recurrent,
    reduction,
    reshape,
    resize,
    scatter,
    shape,
    signal,
    space,
)

__all__ = [
    "activation",
    "attention",
    "classical",
    "concat",
    "control",
    "conv",
    "einsum",
    "elementwise",
    "fused",
    "fused_attention",
    "matmul",
    "normalization",
    "pad",
    "pooling",
    "qlinear",
    "quantize",
    "recurrent",
    "reduction",
    "reshape",
    "resize",
    "scatter",
    "shape",
    "signal",
    "space",
]
