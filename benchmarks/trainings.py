"""One training run as fields of a row, and several of them side by side.

What benchmarks of methods share: every variant of a row trains the same model on the same data with
the same seed and the same options, one after the other in one process; which comes first changes
with the seed. Model and amount are judged on validation data alone: test data is looked at once, by
the report of the finished run.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import onnxprune
from onnxprune.base import Array
from onnxprune.graph.groups import analyze
from onnxprune.model import save
from onnxprune.reports import Evaluated, Event, Pruned, Size

Data = Mapping[str, Array]

THREADS = int(os.environ.get("ONNXPRUNE_THREADS", "0")) or os.cpu_count() or 1
"""Of a training: $ONNXPRUNE_THREADS, by default one per core."""


def parts(file: Path, *, validation: int, most: int | None = None) -> Data:
    """The arrays of an archive, the first `validation` training examples put aside.

    Args:
        file: with x_train, y_train, x_test and y_test.
        validation: how many.
        most: training examples that are used at most.
    """
    with np.load(file) as archive:
        known = {name: archive[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    found = {"x_test": known["x_test"], "y_test": known["y_test"]}
    for name in ("x", "y"):
        found[f"{name}_val"] = known[f"{name}_train"][:validation]
        stop = None if most is None else validation + most
        found[f"{name}_train"] = known[f"{name}_train"][validation:stop]
    return found


def trained(model: ir.Model, data: Data, **options: Any) -> dict[str, Any]:
    """Train `model`; what came of it, metrics on test data."""
    seen: list[tuple[float, float]] = []
    removals: list[Pruned] = []

    def listen(event: Event) -> None:
        if isinstance(event, Evaluated):
            name = "auc" if "auc" in event.metrics else "accuracy"
            seen.append((time.perf_counter() - started, event.metrics[name]))
        elif isinstance(event, Pruned):
            removals.append(event)

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        save(model, file)
        started = time.perf_counter()
        small, report = onnxprune.train(
            file,
            data,
            output=Path(folder) / "out.onnx",
            run_directory=str(Path(folder) / "run"),
            checkpoint_every="never",
            on_event=listen,
            **options,
        )
    return {
        "metric": metric(report.after),
        "best_validation": max(value for _, value in seen),
        "parameters": report.after.parameters,
        "given_parameters": report.before.parameters,
        "connections": report.after.parameters - report.after.masked,
        "units": report.after.units,
        "given_units": report.before.units,
        "macs": report.after.macs,
        "given_macs": report.before.macs,
        "latency_ms": report.after.latency_ms,
        "given_latency_ms": report.before.latency_ms,
        "training_seconds": report.training_seconds,
        "seconds": report.seconds,
        "steps": report.steps,
        "removals": " ".join(f"{event.step}:{event.parameters}" for event in removals),
        "widths": " ".join(str(group.size) for group in analyze(small).groups),
        "seconds_of_epochs": " ".join(f"{seconds:.2f}" for seconds, _ in seen),
        "validation_of_epochs": " ".join(f"{value:.5f}" for _, value in seen),
    }


def metric(size: Size) -> float:
    """Area under the curve where there is one, else the accuracy."""
    return size.metrics["auc"] if "auc" in size.metrics else size.metrics["accuracy"]


Variant = Callable[[Mapping[str, Any]], dict[str, Any]]


def side_by_side(variants: Mapping[str, Variant], seed: int) -> dict[str, Any]:
    """Fields of all variants, each with its name before it.

    Args:
        variants: each from the fields of those before it to its own. The first two change places
            from seed to seed, and must not need each other; later ones may need them.
        seed: of the row.
    """
    order = list(variants)
    if seed % 2:
        order[:2] = order[:2][::-1]
    found: dict[str, Any] = {"first": order[0]}
    for name in order:
        fields = variants[name](found)
        found |= {f"{name}_{field}": value for field, value in fields.items()}
    return found


def by_model(rows: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    """The rows of each model; a row is called model/seed."""
    found: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        found.setdefault(row["row"].rpartition("/")[0], []).append(row)
    return found


def column(rows: Sequence[Mapping[str, str]], key: str) -> list[float]:
    """The numbers of one field."""
    return [float(row[key]) for row in rows]


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Mean and standard deviation."""
    mean, deviation = statistics.mean(values), statistics.pstdev(values)
    return f"{scale * mean:.{digits}f} ± {scale * deviation:.{digits}f}"


def ratio(rows: Sequence[Mapping[str, str]], above: str, below: str) -> float:
    """Median over rows of one field over another."""
    pairs = zip(column(rows, above), column(rows, below), strict=True)
    return statistics.median(a / b for a, b in pairs)
