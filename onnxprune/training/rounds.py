"""From a model to a session and back: the derived graphs of one round.

A round is the training between two structural changes. Its graphs are built from the user's graph
when it begins and thrown away when it ends; only the snapshot goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Index, Observable, Snapshot
from onnxprune.errors import ConfigError, ModelError
from onnxprune.gradients.gradient import GradientGraph, differentiate
from onnxprune.gradients.lowering import TrainingCopy, evaluation_copy, lower
from onnxprune.gradients.trial import attempt
from onnxprune.gradients.update_kernels import has_kernel
from onnxprune.graph.groups import Analysis
from onnxprune.instrument.statistics import Collector, attach
from onnxprune.methods.compose import Influence, TopK
from onnxprune.model import constant, constants, set_constant
from onnxprune.runtime.single import OTHERS, is_single, narrowed, widened
from onnxprune.runtime.verify import is_random
from onnxprune.training.config import RunConfig
from onnxprune.training.evaluation import judged_values
from onnxprune.training.influence import (
    preactivations,
    scalars,
    transforms,
    with_products,
    with_top_k,
)
from onnxprune.training.loss_nodes import attach as attach_loss
from onnxprune.training.losses import Objective
from onnxprune.training.problem import Problem
from onnxprune.training.session import Session
from onnxprune.updates import rules
from onnxprune.updates.accumulation import Accumulation, build_accumulation
from onnxprune.updates.around import AVERAGE
from onnxprune.updates.graph import UpdateGraph, build_update
from onnxprune.updates.split import SplitUpdate, split_update

__all__ = ["Round", "as_stored", "averaged", "begin", "needed", "opened", "own_array", "written"]

_log = logging.getLogger(__name__)


class Round:
    """A session, and what reads its statistics.

    Attributes:
        untrained: per parameter that gets no gradient, why.
        draws: whether any of its graphs draws random numbers.
        notes: what a report should say of how it trains.
    """

    def __init__(
        self,
        session: Session,
        collector: Collector,
        untrained: Mapping[str, str],
        *,
        draws: bool,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.session = session
        self.collector = collector
        self.untrained = untrained
        self.draws = draws
        self.notes = notes


def opened(
    problem: Problem,
    model: ir.Model,
    analysis: Analysis,
    snapshot: Snapshot,
    sites: Iterable[Axis],
    observables: frozenset[Observable],
    influence: Influence | None = None,
    origins: Mapping[Axis, Index] | None = None,
) -> Round:
    """Derive all graphs of a round from `model` and open a session on them.

    Args:
        problem: loss, configuration, device.
        model: the user's graph as pruned so far.
        analysis: of this graph.
        snapshot: parameters, moments and running statistics to begin with.
        sites: axes whose statistics observing steps collect.
        observables: which statistics.
        influence: what the method does to training; nothing by default.
        origins: which indices of the original model the values that a teacher is asked for have
            left (`Stage.origins`).

    Raises:
        TrainingError: the engine has no gradient for an operator, or does not survive the graph.
    """
    free = problem.unfixed(model)
    copy = training_copy(problem, free, snapshot.step, origins)
    names = [name for name in snapshot.parameters if name in copy.model.graph.initializers]
    copies, collector = [copy], Collector(outputs={})
    ranks = {name: len(sizes) for name, sizes in analysis.shapes.items()}
    sites, influence = tuple(sites), influence or Influence()
    if observables:
        instrumented, collector = attach(copy.model, sites, observables, ranks)
        copies.append(TrainingCopy(model=instrumented, state=copy.state))
    if problem.config.check == "on":
        batch = problem.train.batch(np.arange(min(problem.batch_size, len(problem.train))))
        attempt(copies, names, problem.taught(batch), device=problem.device)
    provider = problem.device.provider
    layers = preactivations(model, analysis)
    choices = layers.choices(influence)
    plain = _differentiated(copy, names, provider, choices)
    notes = layers.whole(influence, plain)
    observed = None
    if observables:
        graph = plain
        if _holds(plain, collector):  # then what is derived once more would be the same
            with_statistics, _ = attach(plain.model, collector.outputs, observables, ranks)
            graph = replace(plain, model=with_statistics)
        else:
            graph = _differentiated(copies[-1], names, provider, choices)
        graph, products = with_products(graph, sites, observables, ranks)
        counted = Observable.HITS in observables
        observed, hits = with_top_k(graph, layers, influence, counted=counted)
        collector = collector.joined(products).joined(hits)
        observed = _lean(observed, collector.names)
    plain, _ = with_top_k(plain, layers, influence, counted=False)
    plain = _lean(plain, ())
    update = update_graph(problem.config, plain, snapshot, influence)
    evaluation = evaluation_copy(free, judged_values(problem.objectives))
    session = Session(
        plain=plain,
        update=update,
        snapshot=snapshot,
        observed=observed,
        evaluation=evaluation,
        accumulation=_accumulation(update, snapshot) if update.sums else None,
        pass_size=problem.batch_size,
        device=problem.device,
    )
    drawing = any(map(is_random, (plain.model, *update.models, evaluation)))
    return Round(session, collector, plain.reasons, draws=drawing, notes=notes)


def training_copy(
    problem: Problem, model: ir.Model, step: int, origins: Mapping[Axis, Index] | None = None
) -> TrainingCopy:
    """The lowered graph with its loss; node seeds follow from the run's seed and the step."""
    objectives = _present(problem.objectives, model)
    mode = "train" if problem.config.batch_norm == "train" else "frozen"
    seed = int(np.random.SeedSequence([problem.config.seed, step]).generate_state(1)[0])
    values = list(dict.fromkeys(name for objective in objectives for name in objective.values))
    lowered = lower(model, values, batch_norm=mode, seed=seed)  # type: ignore[arg-type]
    return attach_loss(lowered, objectives, origins)


def _present(objectives: Sequence[Objective], model: ir.Model) -> list[Objective]:
    """Without values inside the model that a removal has written in another form."""
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    found = []
    for objective in objectives:
        if objective.kind != "distill-hidden" or objective.prediction in values:
            found.append(objective)
        else:
            _log.warning("%s: no longer in the model, not distilled", objective.prediction)
    return found


def _differentiated(
    copy: TrainingCopy, names: Sequence[str], provider: str, top_k: Mapping[str, TopK]
) -> GradientGraph:
    return differentiate(
        copy.model,
        loss=copy.model.graph.outputs[0].name or "",
        parameters=names,
        state=copy.state,
        provider=provider,
        top_k=top_k,
    )


def _holds(graph: GradientGraph, collector: Collector) -> bool:
    """Whether the graph computes all values that are observed, and in single precision."""
    main = graph.model.graph
    made = {value.name for node in main for value in node.outputs}
    made.update(value.name for value in main.inputs)
    return is_single(graph.model) and all(axis.value in made for axis in collector.outputs)


def _lean(graph: GradientGraph, statistics: Iterable[str]) -> GradientGraph:
    """Without the outputs that nobody reads: predictions, which would be copied at every step."""
    wanted = {graph.loss, *graph.state.values(), *statistics}
    wanted |= {graph.gradients[name] for name in graph.parameters}
    model = graph.model.clone()
    kept = [
        value
        for value in model.graph.outputs
        if value.name in wanted or (value.name or "").startswith(f"{graph.loss}/")
    ]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)
    return replace(graph, model=model)


def update_graph(
    config: RunConfig, graph: GradientGraph, snapshot: Snapshot, influence: Influence
) -> UpdateGraph | SplitUpdate:
    """The optimizer step for what `graph` trains, around a kernel where there is one."""
    known: dict[str, Callable[[], rules.Rule]] = {
        "sgd": rules.sgd,
        "momentum": lambda: rules.momentum(mu=config.momentum),
        "adam": rules.adam,
        "adamw": rules.adamw,
    }
    gradients, parameters = transforms(
        influence, snapshot.masks, seed=config.seed, step=snapshot.step
    )
    rule = known[config.optimizer]()
    shapes = {name: snapshot.parameters[name].shape for name in graph.parameters}
    options: dict[str, Any] = {
        "state": {name: snapshot.state[name].shape for name in graph.state},
        "accumulated": config.accumulate > 1,
        "clip_value": config.clip_value,
        "clip_norm": config.clip,
        "weight_decay": config.weight_decay,
        "decay_vectors": config.decay_vectors,
        "average": config.ema,
        "scalars": scalars(influence),
        "gradient_transforms": gradients,
        "parameter_transforms": parameters,
    }
    split = None
    if has_kernel(rule, config.provider):
        split = split_update(rule, shapes, **options)
    return split or build_update(rule, shapes, **options)


def _accumulation(update: UpdateGraph | SplitUpdate, snapshot: Snapshot) -> Accumulation:
    """What gathers gradients between the steps of `update`."""
    shapes = {name: snapshot.parameters[name].shape for name in update.parameters}
    return build_accumulation(
        update, shapes, {name: snapshot.state[name].shape for name in update.carried}
    )


def begin(problem: Problem, model: ir.Model, parameters: Sequence[str]) -> Snapshot:
    """The snapshot a run starts from: the file's own numbers.

    Raises:
        ConfigError: nothing in the model is trained.
        ModelError: what would be trained is of a type without room for small steps, such as
            float8.
    """
    values = constants(model)
    copy = training_copy(problem, problem.unfixed(model), 0)
    trained = [name for name in parameters if name in copy.model.graph.initializers]
    if not trained:
        raise ConfigError(
            f"nothing to train: no parameter leads to {problem.objective.output}; see "
            "`onnxprune inspect`, or choose another --output-name or --train-params"
        )
    others = {name: values[name].dtype for name in trained if not _trains(values[name])}
    if others:
        name, dtype = next(iter(others.items()))
        raise ModelError(
            f"{name}: {dtype} parameters cannot be trained; export the model as float32 or "
            f"float16, or leave them out with --freeze",
            parameters=tuple(others),
        )
    return Snapshot(
        step=0,
        parameters={name: own_array(values[name]) for name in trained},
        state={name: own_array(values[name]) for name in copy.state},
    )


def _trains(value: ir.Value) -> bool:
    return value.dtype is ir.DataType.FLOAT or value.dtype in OTHERS


def own_array(value: ir.Value) -> Array:
    """A copy of the array behind a constant, in float32 where it is of another float type."""
    array = constant(value)
    assert array is not None
    return widened(array) if value.dtype in OTHERS else np.array(array)


def averaged(snapshot: Snapshot) -> Snapshot:
    """`snapshot` with the moving averages in the place of what they average, where there are."""
    averages = snapshot.moments.get(AVERAGE, {})
    return replace(
        snapshot,
        parameters={n: averages.get(n, array) for n, array in snapshot.parameters.items()},
        state={n: averages.get(n, array) for n, array in snapshot.state.items()},
    )


def needed(snapshot: Snapshot) -> Snapshot:
    """What `averaged` and `written` read of `snapshot`: no moments but the averages."""
    averages = {slot: each for slot, each in snapshot.moments.items() if slot == AVERAGE}
    return replace(snapshot, moments=averages)


def written(model: ir.Model, snapshot: Snapshot) -> ir.Model:
    """A copy of `model` that holds the numbers of `snapshot`, each in the type of the file."""
    copy = model.clone()
    values = constants(copy)
    for name, array in {**snapshot.parameters, **snapshot.state}.items():
        set_constant(values[name], as_stored(values[name], array))
    return copy


def as_stored(value: ir.Value, array: Array) -> Array:
    """`array` in the type that the file has for `value`."""
    dtype = value.dtype
    return narrowed(array, dtype) if dtype is not None and dtype in OTHERS else array
