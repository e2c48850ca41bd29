"""Control flow: If, Loop and Scan, whose bodies are graphs of their own.

An If whose condition cannot change, and functions of the model, are written into the graph before
it is analyzed (`rewrite.inline`). What remains here decides, or repeats, at run time.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.base import Fact, Reason
from onnxprune.ops.registry import View, couples


@couples("If", "Loop", "Scan")
def control(view: View) -> Iterator[Fact]:
    """Freeze what goes in and out; what the bodies read from outside is frozen for every operator.

    Forward:  y = outputs of a body, run once, never or several times
    Couples:  nothing: the bodies' own operators would have to follow
    """
    for value in (*view.node.inputs, *view.node.outputs):
        if value is not None and value.name:
            positions = range(len(view.shape(value)))
            yield from view.fixed(value, *positions, reason=Reason.SUBGRAPH)
