"""The training session: the one mutable object of a run.

It owns all parameters, moments and running statistics from one structural change to the next. They
are copied when it opens and when a snapshot is taken, and nowhere else: a step moves a batch in and
a few small outputs out.

Gradients and update are two runs. One run of both would save 7 us of 66 with momentum and of 58
with gradient descent (64-128-64-10, batch 32, one thread), and with AdamW be slower than two with
the kernel, which takes lists. But nothing would keep the update of a weight behind the last
gradient that reads it, and a step whose loss is no number would be done before anybody sees that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Snapshot
from onnxprune.errors import ConfigError, NonFiniteLossError, TrainingError
from onnxprune.gradients.gradient import GradientGraph
from onnxprune.gradients.lowering import expose
from onnxprune.gradients.update_kernels import GRADIENTS, PARAMETERS, kernel
from onnxprune.runtime.buffers import Bound, Chain, Listed, Runs, Store
from onnxprune.runtime.session import Device, Runner
from onnxprune.updates.accumulation import Accumulation
from onnxprune.updates.around import AVERAGE, CONTINUED, LEARNING_RATE, SHARE, STEP
from onnxprune.updates.graph import UpdateGraph
from onnxprune.updates.split import Piece, SplitUpdate

__all__ = ["Session", "StepResult"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StepResult:
    """What one step gives back.

    Attributes:
        loss: of the batch, before the update.
        parts: its terms by output name, before their weights, where there are several.
        extra: the step graph's other outputs (predictions, statistics), the update graph's too;
            those of its last pass where a step makes several.
    """

    loss: float
    parts: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Array] = field(default_factory=dict)


class Session:
    """Training from one structural change to the next.

    Args:
        plain: the step graph.
        update: the update graph, for the parameters and the state of `plain`; or what stands
            around a kernel, which is then found.
        snapshot: where to begin; moments it lacks begin at zero, averages at what is averaged.
        observed: the step graph with statistics, for steps that observe; None when there is none.
        evaluation: a forward graph for `evaluate` (`lowering.evaluation_copy`); None when there
            is none. It reads the averages where the update graph keeps some.
        accumulation: what gathers the gradients of a batch that takes several passes; None when
            every batch takes one.
        pass_size: examples per pass, with `accumulation`.
        device: where all graphs run.

    Raises:
        TrainingError: the graphs disagree, or the snapshot lacks a parameter.
        ModelError: the runtime refuses a graph.
    """

    def __init__(
        self,
        *,
        plain: GradientGraph,
        update: UpdateGraph | SplitUpdate,
        snapshot: Snapshot,
        observed: GradientGraph | None = None,
        evaluation: ir.Model | None = None,
        accumulation: Accumulation | None = None,
        pass_size: int = 0,
        device: Device | None = None,
    ) -> None:
        _check_agreement(plain, update, observed)
        self.device = device or Device()
        self._start = snapshot
        self._step = snapshot.step
        self._last_finite: float | None = None
        self._graph, self._update_graph = plain, update
        self._pass_size = pass_size if accumulation is not None else 0
        self._store = Store(self.device)
        self._fill(snapshot)
        self._bound: dict[str, Runs] = {
            "plain": self._bind_step(plain),
            "update": self._bind_update(update),
        }
        if accumulation is not None:
            self._bound["accumulation"] = self._bind_accumulation(accumulation)
        if observed is not None:
            self._bound["observed"] = self._bind_step(observed)
        if evaluation is not None:
            self._bound["evaluation"] = self._bind_evaluation(evaluation)

    # --- opening -------------------------------------------------------------------------------

    def _fill(self, snapshot: Snapshot) -> None:
        for name in self._graph.parameters:
            array = _found(snapshot.parameters, name, "parameter")
            self._store.put(_parameter(name), array)
            self._store.put(_gradient(name), np.zeros_like(array))
            if self._update_graph.sums:
                self._store.put(_sum(name), np.zeros_like(array))
        for name in self._graph.state:
            array = _found(snapshot.state, name, "state")
            self._store.put(_state(name), array)
            self._store.put(_next(name), array)
        for slot, names in self._update_graph.moments.items():
            for name in names:
                self._store.put(_moment(slot, name), _first_moment(snapshot, slot, name))

    def _bind_step(self, graph: GradientGraph) -> Bound:
        outputs = {graph.gradients[name]: _gradient(name) for name in graph.parameters}
        outputs |= {output: _next(name) for name, output in graph.state.items()}
        return Bound(
            Runner(graph.model, self.device),
            self._store,
            inputs=self._inputs(graph),
            outputs=outputs,
        )

    @staticmethod
    def _inputs(graph: GradientGraph) -> dict[str, str]:
        inputs = {name: _parameter(name) for name in graph.parameters}
        return inputs | {name: _state(name) for name in graph.state}

    def _bind_update(self, update: UpdateGraph | SplitUpdate) -> Runs:
        buffers = {name: _parameter(name) for name in update.parameters}
        for slot, names in update.moments.items():
            buffers |= {value: _moment(slot, name) for name, value in names.items()}
        buffers |= {value: _gradient(name) for name, value in update.gradients.items()}
        buffers |= {value: _sum(name) for name, value in update.sums.items()}
        if isinstance(update, UpdateGraph):
            return self._bind_elementwise(update, buffers)
        links: list[Runs] = [self._bind_kernel(update)]
        if update.before is not None:
            links.insert(0, self._bind_elementwise(update.before, buffers))
        if update.after is not None:
            links.append(self._bind_elementwise(update.after, buffers))
        return Chain(links)

    def _bind_kernel(self, update: SplitUpdate) -> Listed:
        found = kernel(update)
        places = {PARAMETERS: _parameter, GRADIENTS: _gradient}
        lists = {
            key: [places[what](n) if what in places else _moment(what, n) for n in names]
            for key, (what, names) in found.lists.items()
        }
        return Listed(self._small_runner(found.model), self._store, lists)

    def _bind_accumulation(self, graph: Accumulation) -> Bound:
        buffers = {value: _sum(name) for name, value in graph.sums.items()}
        buffers |= {value: _gradient(name) for name, value in graph.gradients.items()}
        return self._bind_elementwise(graph, buffers)

    def _bind_elementwise(
        self, graph: UpdateGraph | Piece | Accumulation, buffers: Mapping[str, str]
    ) -> Bound:
        """A graph bound to those of the buffers that it reads, and to those it overwrites."""
        outputs = {target: buffers[source] for target, source in graph.overwrites.items()}
        known = dict(buffers)
        for name, (source, target) in graph.carried.items():
            known[source] = _next(name)
            outputs[target] = _state(name)
        runner = self._small_runner(graph.model)
        inputs = {name: known[name] for name in runner.inputs if name in known}
        return Bound(runner, self._store, inputs=inputs, outputs=outputs)

    def _small_runner(self, model: ir.Model) -> Runner:
        """For work that gains little from more threads, as it does the same to every element.

        A second pool of spinning threads would take the cores from the step graph (LeNet-5: 12.5
        against 7.9 ms a step).
        """
        return Runner(model, replace(self.device, threads=1), optimize=False)

    def _bind_evaluation(self, model: ir.Model) -> Bound:
        known = self._inputs(self._graph)
        averages = self._update_graph.moments.get(AVERAGE, {})
        known |= {name: _moment(AVERAGE, name) for name in averages}
        here = [name for name in known if name in model.graph.initializers]
        copy = model.clone()
        expose(copy, here)
        inputs = {name: known[name] for name in here}
        return Bound(Runner(copy, self.device), self._store, inputs=inputs, outputs={})

    # --- working -------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer steps done since training began, earlier sessions included."""
        return self._step

    def train_step(
        self,
        feeds: Mapping[str, Array],
        *,
        learning_rate: float,
        scalars: Mapping[str, float] | None = None,
        observe: bool = False,
    ) -> StepResult:
        """Do one optimizer step.

        Args:
            feeds: the batch: an array per input of the model, and the target.
            learning_rate: of this step.
            scalars: what else the update graph wants to know of this step.
            observe: whether to run the graph with statistics, whose outputs are in `extra`.

        Raises:
            ConfigError: `observe` without a graph with statistics.
            DataError: an array is missing, or has another dtype or shape than the input.
            NonFiniteLossError: before the update, so that parameters, moments and running
                statistics are still those of the step before; where a step makes several passes,
                running statistics may have moved with those before.
        """
        if observe and "observed" not in self._bound:
            raise ConfigError("observe: the session was opened without a graph with statistics")
        parts = self._parts(feeds)
        total, results = 0.0, {}
        terms: dict[str, float] = {}
        for number, (share, part) in enumerate(parts, start=1):
            last = number == len(parts)
            results = self._bound["observed" if observe and last else "plain"].run(part)
            total += share * self._checked(float(results.pop(self._graph.loss)))
            for name in [name for name in results if name.startswith(f"{self._graph.loss}/")]:
                terms[name] = terms.get(name, 0.0) + share * float(results.pop(name))
            if not last:
                gathering = {SHARE: self._scalar(share), CONTINUED: np.array(number > 1)}
                self._bound["accumulation"].run(gathering)
        given = scalars or {}
        numbers = {
            LEARNING_RATE: self._scalar(learning_rate),
            STEP: np.array(self._step - self._start.since + 1, dtype=np.int64),
            SHARE: self._scalar(parts[-1][0]),
            CONTINUED: np.array(len(parts) > 1),
            **{name: self._scalar(given[name]) for name in self._update_graph.scalars},
        }
        results |= self._bound["update"].run(numbers)
        self._step += 1
        self._last_finite = total
        return StepResult(loss=total, parts=terms, extra=results)

    def _parts(self, feeds: Mapping[str, Array]) -> list[tuple[float, Mapping[str, Array]]]:
        """What goes through the step graph at a time, each with its share of the examples."""
        if not self._pass_size:
            return [(1.0, feeds)]
        count, size = len(next(iter(feeds.values()))), self._pass_size
        return [
            (min(size, count - start) / count, _slice(feeds, start, size))
            for start in range(0, count, size)
        ]

    def _checked(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"step {self._step + 1}: the loss is {loss}, last finite loss "
                f"{self._last_finite}; lower the learning rate or clip gradients",
                step=self._step + 1,
                loss=loss,
                last_finite=self._last_finite,
            )
        return loss

    def _scalar(self, number: float) -> Array:
        return np.array(number, dtype=self._dtype())

    def _dtype(self) -> np.dtype[np.generic]:
        first = self._graph.parameters[0]
        return np.dtype(self._start.parameters[first].dtype)

    def gradients(self) -> dict[str, Array]:
        """Copies of the gradients of the last pass, by parameter; as a kernel read them, if any."""
        return {name: self._store.get(_gradient(name)) for name in self._graph.parameters}

    def evaluate(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of the evaluation graph with the parameters and statistics as they are now.

        Raises:
            ConfigError: the session was opened without an evaluation graph.
            DataError: an array is missing, or has another dtype or shape than the input.
        """
        if "evaluation" not in self._bound:
            raise ConfigError("evaluate: the session was opened without an evaluation graph")
        return self._bound["evaluation"].run(feeds)

    def snapshot(self) -> Snapshot:
        """Copies of everything that training changes; untrained parameters as they came."""
        get = self._store.get
        trained = self._graph.parameters
        moments: dict[str, Mapping[str, Array]] = {
            slot: {name: get(_moment(slot, name)) for name in names}
            for slot, names in self._update_graph.moments.items()
        }
        return Snapshot(
            step=self._step,
            parameters={**self._start.parameters, **{n: get(_parameter(n)) for n in trained}},
            moments={**self._start.moments, **moments},
            masks=self._start.masks,
            since=self._start.since,
            state={**self._start.state, **{n: get(_state(n)) for n in self._graph.state}},
        )

    def close(self) -> None:
        """Free the sessions and the buffers; the session cannot be used again."""
        self._bound.clear()
        self._store.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _parameter(name: str) -> str:
    return f"parameter/{name}"


def _gradient(name: str) -> str:
    return f"gradient/{name}"


def _sum(name: str) -> str:
    return f"sum/{name}"


def _slice(feeds: Mapping[str, Array], start: int, size: int) -> dict[str, Array]:
    return {name: array[start : start + size] for name, array in feeds.items()}


def _first_moment(snapshot: Snapshot, slot: str, name: str) -> Array:
    known = snapshot.moments.get(slot, {}).get(name)
    if known is not None:
        return known
    start = {**snapshot.parameters, **snapshot.state}[name]
    return start if slot == AVERAGE else np.zeros_like(start)


def _moment(slot: str, name: str) -> str:
    return f"moment/{slot}/{name}"


def _state(name: str) -> str:
    return f"state/{name}"


def _next(name: str) -> str:
    return f"next/{name}"


def _found(arrays: Mapping[str, Array], name: str, what: str) -> Array:
    if name not in arrays:
        raise TrainingError(f"snapshot: lacks the {what} {name!r} that the step graph trains")
    return arrays[name]


def _check_agreement(
    plain: GradientGraph, update: UpdateGraph | SplitUpdate, observed: GradientGraph | None
) -> None:
    if set(plain.parameters) != set(update.parameters) or set(plain.state) != set(update.carried):
        raise TrainingError(
            f"the step graph trains {len(plain.parameters)} parameters and {len(plain.state)} "
            f"states, the update graph moves {len(update.parameters)} and {len(update.carried)}; "
            "build both from the same graph"
        )
    if observed is not None and (
        observed.loss != plain.loss
        or set(observed.parameters) != set(plain.parameters)
        or set(observed.state) != set(plain.state)
    ):
        raise TrainingError(
            "the step graph with statistics differs from the plain one in loss, parameters or "
            "state; build both from the same graph"
        )
