"""Optimizer kernels of the engine's runtime: all parameters in one node, in place.

Entry: `kernel`. A part of the engine door like `passes`: only here are these operators
known. They take lists of tensors, which Python can give on CPUs alone, and keep no order among
parameters, so that everything else stays in the graphs around them (`updates.split`).

AdamWOptimizer computes `updates.rules.adamw`, with beta and 1 - beta rounded to float32 (moments
agree to 1.3e-5 of themselves after five steps, parameters to 1e-6); without decay that is `adam`.
SGDOptimizerV2 computes `sgd`; there is none with momentum.

Updates on one thread of a busy machine, kernel over graph of nodes (medians of 160 turns): AdamW
0.40 for 648 k parameters (784-500-500-10; 0.47 with clipping, 0.40 with averages as well), 0.49 for
431 k (LeNet-5), 0.65 for 17 k (64-128-64-10); SGD 0.54 for 648 k and 0.64 for 17 k. A whole AdamW
step of LeNet-5 at a batch of 32 took 0.93 of the time, of 64-128-64-10 0.80.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.updates.around import LEARNING_RATE, STEP
from onnxprune.updates.in_place import OPSET
from onnxprune.updates.rules import Rule
from onnxprune.updates.split import SplitUpdate

__all__ = ["GRADIENTS", "PARAMETERS", "Kernel", "has_kernel", "kernel"]

_DOMAIN = "com.microsoft"
_IR = 8

_OPERATORS = {"adam": "AdamWOptimizer", "adamw": "AdamWOptimizer", "sgd": "SGDOptimizerV2"}

PARAMETERS, GRADIENTS = "parameters", "gradients"
"""What a list holds that holds no moments."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Kernel:
    """A graph that moves lists of parameters and moments in place.

    Attributes:
        model: inputs: `LEARNING_RATE` (), `STEP` () int64 from 1 where the rule has moments, and
            lists of tensors.
        lists: per list, what it holds (`PARAMETERS`, `GRADIENTS` or a slot of the rule) of which
            parameters.
    """

    model: ir.Model
    lists: Mapping[str, tuple[str, tuple[str, ...]]]


def has_kernel(rule: Rule, provider: str) -> bool:
    """Whether there is a kernel for the rule where it would run."""
    return provider == "cpu" and rule.name in _OPERATORS


def kernel(update: SplitUpdate) -> Kernel:
    """The middle of a split step, for a rule that has one: one node per weight decay."""
    e = Emitter("kernel", opset=OPSET)
    inputs, outputs = [_scalar(LEARNING_RATE, ir.DataType.FLOAT)], []
    if update.rule.slots:
        inputs.append(_scalar(STEP, ir.DataType.INT64))
    lists: dict[str, tuple[str, tuple[str, ...]]] = {}
    shared = [e.op("Unsqueeze", value, e.integers(0)) for value in inputs]
    kind = ir.SequenceType(ir.TensorType(ir.DataType.FLOAT))
    for number, decay in enumerate(dict.fromkeys(update.decays.values())):
        names = tuple(name for name in update.parameters if update.decays[name] == decay)
        given = []
        for what in (PARAMETERS, GRADIENTS, *update.rule.slots):
            given.append(ir.Value(name=f"{what}/{number}", type=kind))
            lists[f"{what}/{number}"] = (what, names)
        inputs += given
        operator, attributes = _OPERATORS[update.rule.name], _attributes(update.rule, decay)
        done = e.op(operator, *shared, *given, name=f"done/{number}", domain=_DOMAIN, **attributes)
        done.type, done.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([1])
        outputs.append(done)
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=e.nodes,
        initializers=e.initializers,
        opset_imports={"": OPSET, _DOMAIN: 1},
        name="kernel",
    )
    return Kernel(model=ir.Model(graph, ir_version=_IR), lists=lists)


def _scalar(name: str, dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape([]))


def _attributes(rule: Rule, decay: float) -> dict[str, float]:
    if not rule.slots:
        return {}
    return {
        "alpha": rule.numbers["beta1"],
        "beta": rule.numbers["beta2"],
        "epsilon": rule.numbers["epsilon"],
        "weight_decay": decay,
        "adam_mode": 0,  # decay before the step, as PyTorch has it
        "correct_bias": 1,
    }
