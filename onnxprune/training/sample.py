"""What a method looks at when it decides: a part of the training data, run through the model.

In evaluation mode and batch by batch, so that memory does not grow with the sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Floats, Observable, Observations
from onnxprune.gradients.lowering import evaluation_copy
from onnxprune.graph.groups import Analysis
from onnxprune.instrument.measures import Measurement, attach_measurement
from onnxprune.instrument.statistics import attach
from onnxprune.runtime.session import Runner
from onnxprune.training.problem import Problem
from onnxprune.windows import merge_windows

__all__ = ["Sample"]

_CHUNK = 256  # examples per forward pass


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sample:
    """Some training inputs, and the model they run through.

    Attributes:
        problem: what is trained, and where.
        analysis: of the model.
        model: with the numbers to use.
        inputs: without targets.
    """

    problem: Problem
    analysis: Analysis
    model: ir.Model
    inputs: Mapping[str, Array]

    def probe(self, axes: Iterable[Axis], observables: Iterable[Observable]) -> Observations:
        """Statistics of the given axes (`methods.compose.Moment`)."""
        ranks = {name: len(sizes) for name, sizes in self.analysis.shapes.items()}
        instrumented, collector = attach(self._forward(), axes, observables, ranks)
        seen: Observations = {}
        if collector.names:
            for found in self._results(instrumented, collector.names, _CHUNK):
                seen = merge_windows(seen, collector.collect(found))
        return seen

    def measure(self, write: Measurement, *, examples: int = _CHUNK) -> Mapping[str, Floats]:
        """What the nodes of a method compute, summed (`methods.compose.Measure`)."""
        measured, outputs = attach_measurement(self._forward(), write)
        sums: dict[str, Floats] = {}
        if outputs:
            for found in self._results(measured, list(outputs.values()), min(examples, _CHUNK)):
                for key, name in outputs.items():
                    sums[key] = sums.get(key, 0.0) + found[name].astype(np.float64)
        return sums

    def _forward(self) -> ir.Model:
        model = self.problem.unfixed(self.model)
        return evaluation_copy(model, [self.problem.objective.prediction])

    def _results(
        self, graph: ir.Model, names: Sequence[str], most: int
    ) -> Iterator[dict[str, Array]]:
        """What `graph` gives for batch after batch of at most `most` examples."""
        runner = Runner(graph, device=self.problem.device)
        size = self.problem.batch_size if self.problem.static_batch else most
        for start in range(0, len(next(iter(self.inputs.values()))), size):
            part = {name: array[start : start + size] for name, array in self.inputs.items()}
            yield runner.run(part, names)
