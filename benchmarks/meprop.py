"""meProp on MNIST: how much faster the backward pass of the linear layers gets, and what it costs.

    python benchmarks/meprop.py                  # runs what is missing, prints the tables

784-500-500-10 with a Dropout of 0.1 behind its hidden layers, batches of 50, k = 30 of 500
gradients, one choice for the whole batch (unified): the published setting, in which accuracy went
from 97.94 to 98.04 % (lancopku/meProp, PyTorch). The publication's speed-ups (5.9 times on this
task, with another implementation) are of the backward pass of the linear parts alone, so that is
measured, for batches of 500 as well:

backward   kernel time of one step by the runtime's own profile, less that of the same graph's
           forward half: all that back propagation does, the choice of gradients included.
linear     of that, what layers with weights need: products of matrices and sums of bias gradients,
           which stay dense; in the sparse step with all that chooses, gathers and scatters.
products   of that, only the products: what is left is mostly writing gradients of full size, which
           the optimizer reads, and reading them to choose.

The last layer is dense in both, as published. Dense and sparse steps are profiled in turns on one
batch. Accuracy comes from whole trainings (Adam, 20 epochs, constant rate; the first 5,000 training
images for validation, the best epoch on these is kept) with their wall-clock. Nothing is removed,
so there is no smaller model and no random removal to compare with. MNIST is read from
$ONNXPRUNE_DATA/data/mnist.npz (see foundation.py).

ONNXPRUNE_EPOCHS sets another number of epochs, to try it out; such rows go to a file of their own.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxprune_models import builders
from profiles import kernels, profiled
from rows import SHARED, Row, run, table
from trainings import THREADS, Data, by_model, column, parts, ratio, side_by_side, spread, trained

from onnxprune.base import Array
from onnxprune.gradients.gradient import GradientGraph, differentiate
from onnxprune.graph.parameters import trained as trained_parameters
from onnxprune.methods import make
from onnxprune.model import save
from onnxprune.runtime.session import Runner
from onnxprune.training.config import RunConfig
from onnxprune.training.influence import preactivations, with_top_k
from onnxprune.training.problem import pose
from onnxprune.training.pruning import removable
from onnxprune.training.rounds import begin, training_copy

SEEDS = (0, 1, 2)
EPOCHS = int(os.environ.get("ONNXPRUNE_EPOCHS", "20"))
NAME = "meprop" if EPOCHS == 20 else f"meprop_{EPOCHS}_epochs"
FILE = SHARED / "data/mnist.npz"
SIZES, K, DROPOUT = [784, 500, 500, 10], 30, 0.1
BATCH, LARGE = 50, 500
TURNS, STEPS = 11, 20
PRODUCTS = {"Gemm", "MatMul", "FusedMatMul", "FusedGemm", "TransposeMatMul"}
SUMS = {"ReduceSum"}  # of bias gradients, and of magnitudes to choose by
CHOICE = {  # what the sparse step does to choose, gather and scatter, and the dense one does not
    *("TopK", "Gather", "ScatterElements", "ScatterND", "ConstantOfShape", "Abs", "Shape"),
    *("Expand", "Slice", "Concat", "Unsqueeze"),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """A step graph with everything it reads, and its forward half."""

    graph: ir.Model
    forward: ir.Model
    feeds: Mapping[str, Array]


def network(seed: int) -> ir.Model:
    """The network, with Dropout."""
    model = builders.mlp(SIZES, seed=seed)
    ratio_value = ir.Value(name="ratio", const_value=ir.tensor(np.float32(DROPOUT), name="ratio"))
    model.graph.register_initializer(ratio_value)
    for number, node in enumerate([n for n in model.graph if n.op_type == "Relu"]):
        dropped = ir.node("Dropout", [node.outputs[0], ratio_value])
        dropped.outputs[0].name = f"dropped_{number}"
        node.outputs[0].replace_all_uses_with(dropped.outputs[0])
        dropped.replace_input_with(0, node.outputs[0])
        model.graph.insert_after(node, dropped)
    return model


def steps(data: Data, seed: int, size: int) -> dict[str, Step]:
    """The dense step and the sparse one, with the same numbers, for batches of `size`."""
    found = {}
    for name, method in (("dense", "none"), ("sparse", "meprop")):
        config = RunConfig(batch_size=size, loss="cross-entropy", check="off", seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            save(network(seed), file)
            problem = pose(file, data, validation=None, config=config)
        analysis = removable(problem.model, config)
        snapshot = begin(
            problem, problem.model, trained_parameters(problem.model, analysis).parameters
        )
        copy = training_copy(problem, problem.model, 0)
        names = [n for n in snapshot.parameters if n in copy.model.graph.initializers]
        loss = copy.model.graph.outputs[0].name or ""
        graph: GradientGraph = differentiate(
            copy.model, loss=loss, parameters=names, state=copy.state
        )
        pruner = make(method, {"k": K, "unified": True} if method == "meprop" else None)
        if pruner is not None:
            influence = pruner.influence(problem.model, analysis)
            layers = preactivations(problem.model, analysis)
            graph, _ = with_top_k(graph, layers, influence, counted=False)
        batch = problem.taught(problem.train.batch(np.arange(size)))
        feeds = {**snapshot.parameters, **snapshot.state, **batch}
        found[name] = Step(graph=graph.model, forward=copy.model, feeds=feeds)
    return found


class Profiled:
    """A session that says how long its kernels take."""

    def __init__(self, model: ir.Model, feeds: Mapping[str, Array], folder: str) -> None:
        with profiled(folder):
            self.runner = Runner(model)
        self.feeds = {name: feeds[name] for name in self.runner.inputs}

    def run(self) -> None:
        """One step."""
        self.runner.run(self.feeds)

    def times(self, runs: int) -> dict[str, float]:
        """Median milliseconds of one run per kind of operator, of `runs` in all; ends profiling."""
        by_node: dict[tuple[str, str], list[float]] = {}
        for node, operator, taken in kernels(Path(self.runner.session.end_profiling())):
            by_node.setdefault((node, operator), []).append(taken / 1000)
        found: dict[str, float] = {}
        for (_, kind), taken in by_node.items():
            each = len(taken) / runs  # nodes may share a name
            found[kind] = found.get(kind, 0.0) + statistics.median(taken) * each
        return found


def profiles(data: Data, seed: int, size: int) -> dict[str, Any]:
    """Milliseconds of the backward pass, dense and sparse."""
    made = steps(data, seed, size)
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            f"{name}_{part}": Profiled(graph, step.feeds, folder)
            for name, step in made.items()
            for part, graph in (("step", step.graph), ("forward", step.forward))
        }
        for _ in range(TURNS):
            for session in sessions.values():
                for _ in range(STEPS):
                    session.run()
        times = {name: session.times(TURNS * STEPS) for name, session in sessions.items()}
    found: dict[str, Any] = {}
    for name in made:
        step, forward = times[f"{name}_step"], times[f"{name}_forward"]
        linear = PRODUCTS | SUMS | (CHOICE if name == "sparse" else set())
        for part, kinds in {"products": PRODUCTS, "linear": linear}.items():
            found[f"{name}_{part}_ms"] = sum(
                taken * (1 if half is step else -1)
                for half in (step, forward)
                for kind, taken in half.items()
                if kind in kinds
            )
        found[f"{name}_backward_ms"] = sum(step.values()) - sum(forward.values())
        found[f"{name}_kernels"] = " ".join(
            f"{kind}:{taken:.3f}" for kind, taken in sorted(step.items(), key=lambda e: -e[1])
        )
    return found


def compared(data: Data, seed: int) -> dict[str, Any]:
    """One seed: whole trainings."""
    model = network(seed)
    common = {
        "seed": seed,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "threads": THREADS,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "schedule": "constant",
        "loss": "cross-entropy",
    }

    def dense(_found: Mapping[str, Any]) -> dict[str, Any]:
        return trained(model, data, method="none", **common)

    def sparse(_found: Mapping[str, Any]) -> dict[str, Any]:
        return trained(model, data, method="meprop", method_options={"k": K}, **common)

    return side_by_side({"dense": dense, "sparse": sparse}, seed)


def rows() -> Iterator[tuple[str, Row]]:
    """Every row with its name; none without the data."""
    if FILE.exists():
        data = parts(FILE, validation=5_000)
        for seed in SEEDS:
            for size in (BATCH, LARGE):
                yield (
                    f"profile_{size}/{seed}",
                    lambda seed=seed, size=size: profiles(data, seed, size),
                )
        for seed in SEEDS:
            yield f"training/{seed}", lambda seed=seed: compared(data, seed)


def summary(found: list[dict[str, str]]) -> str:
    """The times of a step, then the trainings."""
    seeds = by_model(found)
    if not seeds:
        return f"no rows ({FILE})"
    return "\n\n".join(
        work(seeds[kind])
        for kind, work in {
            f"profile_{BATCH}": _profiled,
            f"profile_{LARGE}": _profiled,
            "training": _trainings,
        }.items()
        if kind in seeds
    )


def _profiled(seeds: Sequence[Mapping[str, str]]) -> str:
    size = seeds[0]["row"].partition("/")[0].removeprefix("profile_")
    header = [f"batches of {size}", "dense, ms", "sparse, ms", "dense / sparse"]
    lines = []
    for part in ("backward", "linear", "products"):
        times = [column(seeds, f"{name}_{part}_ms") for name in ("dense", "sparse")]
        quotient = ratio(seeds, f"dense_{part}_ms", f"sparse_{part}_ms")
        lines.append([part, *(spread(each, digits=3) for each in times), f"{quotient:.2f}"])
    return table(header, lines)


def _trainings(seeds: Sequence[Mapping[str, str]]) -> str:
    header = ["variant", "test accuracy, %", "training, s", "dense / this"]
    lines = [
        [
            name,
            spread(column(seeds, f"{name}_metric"), 100),
            spread(column(seeds, f"{name}_training_seconds"), digits=1),
            f"{ratio(seeds, 'dense_training_seconds', f'{name}_training_seconds'):.2f}",
        ]
        for name in ("dense", "sparse")
    ]
    return table(header, lines)


if __name__ == "__main__":
    print(summary(run(NAME, dict(rows()))))
