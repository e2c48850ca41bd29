"""Pruning methods: functions that return a `Pruner`, by name."""

from onnxprune.methods.apoptosis import apoptosis
from onnxprune.methods.catalog import METHODS, make
from onnxprune.methods.compose import Course, Limit, Moment, Pruner
from onnxprune.methods.demp import demp
from onnxprune.methods.gradual import gradual, slimming
from onnxprune.methods.mesimp import meprop, mesimp
from onnxprune.methods.nnrelief import nnrelief

__all__ = [
    "METHODS",
    "Course",
    "Limit",
    "Moment",
    "Pruner",
    "apoptosis",
    "demp",
    "gradual",
    "make",
    "meprop",
    "mesimp",
    "nnrelief",
    "slimming",
]
