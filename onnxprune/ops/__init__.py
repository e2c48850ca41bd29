"""Operator families: one module each, holding all that is known about its operators.

Importing this package registers the built-in rules. An operator is added by adding functions to its
family's module (or to a module of your own), never by editing a list elsewhere.
"""

from onnxprune.ops import (
    activation,
    concat,
    conv,
    elementwise,
    matmul,
    normalization,
    pooling,
    reduction,
    reshape,
    shape,
)

__all__ = [
    "activation",
    "concat",
    "conv",
    "elementwise",
    "matmul",
    "normalization",
    "pooling",
    "reduction",
    "reshape",
    "shape",
]
