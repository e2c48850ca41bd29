"""Apoptosis against the same training without pruning: digits, MNIST, Higgs.

    python benchmarks/foundation.py            # runs what is missing, prints the tables

Each row trains one model twice in one process, without and with pruning, with the same data, seed,
epochs and learning rate, and measures the wall-clock of the two trainings; which comes first takes
turns over the three seeds. The latencies are those of the model before and after the run with
pruning, measured side by side.

The data of two models is read from the folder $ONNXPRUNE_DATA, by default `shared` beside the
checkout; rows without their data are left out:

- data/mnist.npz: MNIST (LeCun et al.) as x_train (60000, 28, 28) uint8, y_train, x_test, y_test
- data/higgs_18k.npz: a sample of UCI HIGGS (Baldi et al.), 28 features, with the same four names
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune_models import builders, path
from rows import SHARED, Row, run, table
from trainings import THREADS, by_model, column, metric, ratio, spread

import onnxprune
from onnxprune.model import save

SEEDS = (0, 1, 2)
SHIPPED = ("mlp", "lenet", "resnet", "densenet", "vgg", "keras", "jax")


def both(model: Path, data: str, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Train `model` without and with pruning; what came of it, side by side."""
    untargeted = {key: value for key, value in options.items() if key != "target"}
    given = {"none": untargeted, "apoptosis": options}
    order = list(given) if seed % 2 == 0 else list(given)[::-1]
    with tempfile.TemporaryDirectory() as folder:
        reports = {
            method: onnxprune.train(
                model,
                data,
                method=method,
                seed=seed,
                threads=THREADS,
                output=Path(folder) / "out.onnx",
                run_directory=str(Path(folder) / method),
                **given[method],
            )[1]
            for method in order
        }
    dense, pruned = reports["none"], reports["apoptosis"]
    return {
        "first": order[0],
        "start_metric": metric(pruned.before),
        "dense_metric": metric(dense.after),
        "pruned_metric": metric(pruned.after),
        "dense_parameters": pruned.before.parameters,
        "pruned_parameters": pruned.after.parameters,
        "dense_macs": pruned.before.macs,
        "pruned_macs": pruned.after.macs,
        "dense_latency_ms": pruned.before.latency_ms,
        "pruned_latency_ms": pruned.after.latency_ms,
        "dense_training_seconds": dense.training_seconds,
        "pruned_training_seconds": pruned.training_seconds,
        "dense_seconds": dense.seconds,
        "pruned_seconds": pruned.seconds,
        "exact": pruned.exact,
        "bounded": pruned.bounded,
        "steps": pruned.steps,
    }


def rows() -> Iterator[tuple[str, Row]]:
    """Every row with its name."""
    for name in SHIPPED:
        model = path(f"digits_{name}")
        for seed in SEEDS:
            options: dict[str, Any] = {}  # the README's main command, as it is
            yield f"digits_{name}/{seed}", _row(model, "digits", seed, options)
    folder = Path(tempfile.gettempdir()) / "onnxprune-benchmark"
    folder.mkdir(exist_ok=True)
    for seed in SEEDS:
        if (SHARED / "data/mnist.npz").exists():
            model = folder / f"lenet5_{seed}.onnx"
            save(builders.lenet5(seed), model)
            options = {"epochs": 8, "batch_size": 64, "target": "params=9%"}
            yield f"mnist_lenet5/{seed}", _row(model, SHARED / "data/mnist.npz", seed, options)
        if (SHARED / "data/higgs_18k.npz").exists():
            model = folder / f"higgs_{seed}.onnx"
            save(builders.mlp([28, 300, 300, 300, 1], seed=seed), model)
            options = {
                "epochs": 30,
                "batch_size": 64,
                "target": "params=20%",
                "loss": "binary-cross-entropy",
            }
            yield f"higgs_mlp/{seed}", _row(model, SHARED / "data/higgs_18k.npz", seed, options)


def _row(model: Path, data: str | Path, seed: int, options: Mapping[str, Any]) -> Row:
    return lambda: both(model, os.fspath(data), seed, options)


def summary(found: list[dict[str, str]]) -> str:
    """One line per model, over its seeds."""
    header = ["model", "dense, %", "pruned, %", "parameters", "left", "gone", "times fewer"]
    header += ["training time dense / pruned", "latency dense / pruned"]
    return table(header, [_line(name, seeds) for name, seeds in by_model(found).items()])


def _line(name: str, seeds: Sequence[Mapping[str, str]]) -> list[str]:
    sizes = [column(seeds, f"{variant}_parameters") for variant in ("dense", "pruned")]
    before, after = map(statistics.mean, sizes)
    return [
        name,
        spread(column(seeds, "dense_metric"), 100),
        spread(column(seeds, "pruned_metric"), 100),
        f"{before:,.0f}",
        f"{after:,.0f}",
        f"-{100 * (1 - after / before):.1f} %",
        f"{statistics.mean(a / b for a, b in zip(*sizes, strict=True)):.1f}",
        f"{ratio(seeds, 'dense_training_seconds', 'pruned_training_seconds'):.2f}",
        f"{ratio(seeds, 'dense_latency_ms', 'pruned_latency_ms'):.2f}",
    ]


if __name__ == "__main__":
    print(summary(run("foundation", dict(rows()))))
