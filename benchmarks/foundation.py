"""Apoptosis against the same training without pruning: digits, MNIST, Higgs.

    python benchmarks/foundation.py            # runs what is missing, prints the tables

Each row trains one model twice in one process, without and with pruning, with the same data, seed,
epochs and learning rate, and measures the wall-clock of the two trainings. Three seeds. MNIST and
Higgs are read from the folder `shared` beside the checkout; rows without their data are left out.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxprune_models import builders, path

import onnxprune
from benchmarks.rows import SHARED, Row, run, table
from onnxprune.model import save

SEEDS = (0, 1, 2)
SHIPPED = ("mlp", "lenet", "resnet", "densenet", "vgg", "keras", "jax")


def both(model: Path, data: str, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Train `model` without and with pruning; what came of it, side by side."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in ("none", "apoptosis"):
            _, report = onnxprune.train(
                model,
                data,
                method=method,
                seed=seed,
                output=Path(folder) / "out.onnx",
                run_directory=str(Path(folder) / method),
                **{key: value for key, value in options.items() if _applies(method, key)},
            )
            metrics = report.after.metrics
            key = "dense" if method == "none" else "pruned"
            found |= {
                f"{key}_metric": metrics.get("auc", metrics["accuracy"]),
                f"{key}_parameters": report.after.parameters,
                f"{key}_macs": report.after.macs,
                f"{key}_latency_ms": report.after.latency_ms,
                f"{key}_training_seconds": report.training_seconds,
                f"{key}_seconds": report.seconds,
            }
            found["start_metric"] = report.before.metrics.get(
                "auc", report.before.metrics["accuracy"]
            )
            found |= {"exact": report.exact, "bounded": report.bounded, "steps": report.steps}
    return found


def _applies(method: str, key: str) -> bool:
    return method != "none" or key != "target"


def rows() -> Iterator[tuple[str, Row]]:
    """Every row with its name."""
    for name in SHIPPED:
        model = path(f"digits_{name}")
        for seed in SEEDS:
            yield f"digits_{name}/{seed}", _row(model, "digits", seed, {"target": "params=40%"})
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


def spread(values: list[float], scale: float = 1.0, digits: int = 2) -> str:
    """Mean and standard deviation."""
    mean, deviation = statistics.mean(values), statistics.pstdev(values)
    return f"{scale * mean:.{digits}f} ± {scale * deviation:.{digits}f}"


def summary(found: list[dict[str, str]]) -> str:
    """One line per model, over its seeds."""
    by_model: dict[str, list[dict[str, str]]] = {}
    for row in found:
        by_model.setdefault(row["row"].split("/")[0], []).append(row)
    lines = []
    for name, seeds in by_model.items():
        column = {
            key: [float(row[key]) for row in seeds] for key in seeds[0] if _is_number(seeds, key)
        }
        ratio = [
            d / p
            for d, p in zip(column["dense_parameters"], column["pruned_parameters"], strict=True)
        ]
        speed = [
            d / p
            for d, p in zip(
                column["dense_training_seconds"], column["pruned_training_seconds"], strict=True
            )
        ]
        latency = [
            d / p
            for d, p in zip(column["dense_latency_ms"], column["pruned_latency_ms"], strict=True)
        ]
        lines.append(
            [
                name,
                spread(column["dense_metric"], 100),
                spread(column["pruned_metric"], 100),
                f"{column['dense_parameters'][0]:.0f}",
                f"{statistics.mean(ratio):.1f} times fewer",
                f"{statistics.median(speed):.2f}",
                f"{statistics.median(latency):.2f}",
            ]
        )
    header = [
        "model",
        "dense, %",
        "pruned, %",
        "parameters",
        "left",
        "training time dense / pruned",
        "latency dense / pruned",
    ]
    return table(header, lines)


def _is_number(rows: list[dict[str, str]], key: str) -> bool:
    try:
        [float(row[key]) for row in rows]
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    print(summary(run("foundation", dict(rows()))))
