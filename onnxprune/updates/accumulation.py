"""Steps of several batches: the graph that gathers the gradients of all but the last.

Between two optimizer steps nothing moves but running statistics and these sums; the update graph
adds the last batch's part itself (`updates.graph.build_update`, accumulated=True).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.emit import Emitter
from onnxprune.updates.around import CONTINUED, SHARE, gathered
from onnxprune.updates.graph import UpdateGraph
from onnxprune.updates.in_place import OPSET, Writer, check_aliasing
from onnxprune.updates.ranks import match_ranks
from onnxprune.updates.split import SplitUpdate

__all__ = ["Accumulation", "build_accumulation"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Accumulation:
    """A graph that adds one batch's gradients to the sums.

    Attributes:
        model: inputs: `SHARE` (), the batch's share of the step's examples; `CONTINUED` () bool,
            false for the first batch of a step, which begins the sums anew; and those below.
        gradients, sums: input name per parameter.
        carried: as in `UpdateGraph`: running statistics move with every batch.
        overwrites: per output, the input whose buffer it is bound to.
    """

    model: ir.Model
    gradients: Mapping[str, str]
    sums: Mapping[str, str]
    carried: Mapping[str, tuple[str, str]]
    overwrites: Mapping[str, str]


def build_accumulation(
    update: UpdateGraph | SplitUpdate,
    shapes: Mapping[str, Sequence[int]],
    state: Mapping[str, Sequence[int]],
    dtype: ir.DataType = ir.DataType.FLOAT,
) -> Accumulation:
    """The graph that goes before `update`: sum = `gathered`(sum, g).

    Args:
        update: built with accumulated=True.
        shapes: shape per parameter.
        state: shape of every value that forward passes update.
        dtype: of all parameters.

    Raises:
        InvariantError: the graph would read a value after it is overwritten.
    """
    e = Emitter("accumulate", opset=OPSET, dtype=dtype)
    writer = Writer(dtype)
    share = writer.input(SHARE, (), dtype)
    continued = writer.input(CONTINUED, (), ir.DataType.BOOL)
    for name, shape in shapes.items():
        gradient = writer.input(update.gradients[name], shape)
        old = writer.input(update.sums[name], shape)
        writer.overwrite(old, gathered(e, old, gradient, share, continued))
    carried = {name: writer.carry(e, name, shape) for name, shape in state.items()}
    model = writer.model(e)
    match_ranks(model, opset=OPSET)
    check_aliasing(model, writer.overwrites)
    return Accumulation(
        model=model,
        gradients=update.gradients,
        sums=update.sums,
        carried=carried,
        overwrites=writer.overwrites,
    )
