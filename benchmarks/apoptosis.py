"""Apoptosis on tables: training that gets faster because the network shrinks while it trains.

    python benchmarks/apoptosis.py               # runs what is missing, prints the table

Networks with three and five hidden layers of 300 units on Higgs (area under the curve) and on cover
types (accuracy), `--target params=20%`, beside dense training and the removal of random units to
the same target, all for as many epochs; "shorter" is for half and "longer" for twice as many: where
dense training learns too much by heart less is enough, where it has not learned enough a small
network needs more. The goals are those of Siegel et al. 2016 for their Higgs run: as good
as without, several times fewer parameters, training 2.44 times as fast.

Training time is the wall-clock from the first step to the last, removals included. "To dense's
quality" compares when the metric on validation data first reached what dense training ends with,
less its usual wobble, the standard deviation over dense's last five epochs; "-" where a seed never
did. What is kept is the best on validation data; test data is only looked at by the finished
report.

The data is read from $ONNXPRUNE_DATA/data: higgs_18k.npz (see foundation.py) and covtype.npz (UCI
Covertype, 54 features, 7 classes) with x_train, y_train, x_test, y_test; rows without their data
are left out. Of the cover types 40,000 examples are used for training, so that all rows together
take less than half an hour on two cores. Features are scaled by the mean and deviation of the
training examples.

ONNXPRUNE_EPOCHS sets another number of epochs, to try it out; such rows go to a file of their own.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnxprune_models import builders
from rows import SHARED, Row, run, table
from trainings import (
    THREADS,
    Data,
    Variant,
    by_model,
    column,
    parts,
    ratio,
    side_by_side,
    spread,
    trained,
)

SEEDS = (0, 1, 2)
DEPTHS = (3, 5)
WIDTH = 300
EPOCHS = int(os.environ.get("ONNXPRUNE_EPOCHS", "20"))
NAME = "apoptosis" if EPOCHS == 20 else f"apoptosis_{EPOCHS}_epochs"
SETTINGS: dict[str, dict[str, Any]] = {
    "higgs_18k": {"outputs": 1, "loss": "binary-cross-entropy", "batch_size": 64},
    "covtype": {"outputs": 7, "loss": "cross-entropy", "batch_size": 128},
}
VALIDATION, MOST = 2_000, 40_000
TARGET = "params=20%"
VARIANTS = {  # method, and share of the epochs
    "dense": ("none", 1),
    "apoptosis": ("apoptosis", 1),
    "random": ("random", 1),
    "shorter": ("apoptosis", 0.5),
    "longer": ("apoptosis", 2),
    "dense, shorter": ("none", 0.5),
}
WOBBLE = 5  # epochs


def scaled(file: Path) -> Data:
    """The data with features of mean 0 and deviation 1 on the training examples."""
    data = dict(parts(file, validation=VALIDATION, most=MOST))
    train = data["x_train"].astype(np.float64)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    deviation[deviation == 0] = 1.0
    for name in ("x_train", "x_val", "x_test"):
        data[name] = ((data[name] - mean) / deviation).astype(np.float32)
    for name in ("y_train", "y_val", "y_test"):
        data[name] = data[name].astype(np.int64)
    first = min(int(data[name].min()) for name in ("y_train", "y_val", "y_test"))
    return data | {name: data[name] - first for name in ("y_train", "y_val", "y_test")}


def compared(data: Data, setting: Mapping[str, Any], depth: int, seed: int) -> dict[str, Any]:
    """One network and seed: all variants."""
    sizes = [data["x_train"].shape[1], *[WIDTH] * depth, setting["outputs"]]
    model = builders.mlp(sizes, seed=seed)
    common = {
        "seed": seed,
        "batch_size": setting["batch_size"],
        "threads": THREADS,
        "loss": setting["loss"],
    }

    def variant(method: str, share: float) -> Variant:
        options = common | {"epochs": max(int(share * EPOCHS), 1)}
        target = None if method == "none" else TARGET
        return lambda _found: trained(model, data, method=method, target=target, **options)

    found = side_by_side({name: variant(*how) for name, how in VARIANTS.items()}, seed)
    wanted = _quality(found)
    return found | {f"{name}_seconds_to_dense": _reached(found, name, wanted) for name in VARIANTS}


def _epochs(found: Mapping[str, Any], name: str) -> tuple[list[float], list[float]]:
    """Seconds and validation metric at the end of every epoch."""
    fields = (found[f"{name}_seconds_of_epochs"], found[f"{name}_validation_of_epochs"])
    seconds, values = ([float(entry) for entry in field.split()] for field in fields)
    return seconds, values


def _quality(found: Mapping[str, Any]) -> float:
    """What dense training ends with, less its wobble."""
    last = _epochs(found, "dense")[1][-WOBBLE:]
    return float(np.mean(last) - np.std(last))


def _reached(found: Mapping[str, Any], name: str, wanted: float) -> float:
    """Seconds until the metric was as good as wanted; nan when it never was."""
    seconds, values = _epochs(found, name)
    return next(
        (s for s, value in zip(seconds, values, strict=True) if value >= wanted), float("nan")
    )


def rows() -> Iterator[tuple[str, Row]]:
    """Every row with its name; those without their data are left out."""
    for name, setting in SETTINGS.items():
        file = SHARED / f"data/{name}.npz"
        if not file.exists():
            continue
        data = scaled(file)
        for depth in DEPTHS:
            for seed in SEEDS:
                yield f"{name}_{depth}x{WIDTH}/{seed}", _row(data, setting, depth, seed)


def _row(data: Data, setting: Mapping[str, Any], depth: int, seed: int) -> Row:
    return lambda: compared(data, setting, depth, seed)


def summary(found: list[dict[str, str]]) -> str:
    """One line per network and variant."""
    header = ["network", "variant", "test metric, %", "parameters", "times fewer"]
    header += ["training time dense / this", "to dense's quality", "latency dense / this"]
    lines = []
    for network, seeds in by_model(found).items():
        lines += [[network, name, *_line(seeds, name)] for name in VARIANTS]
    return table(header, lines)


def _line(seeds: Sequence[Mapping[str, str]], name: str) -> list[str]:
    sooner = ratio(seeds, "dense_seconds_to_dense", f"{name}_seconds_to_dense")
    return [
        spread(column(seeds, f"{name}_metric"), 100),
        spread(column(seeds, f"{name}_parameters"), digits=0),
        f"{ratio(seeds, f'{name}_given_parameters', f'{name}_parameters'):.1f}",
        f"{ratio(seeds, 'dense_training_seconds', f'{name}_training_seconds'):.2f}",
        "-" if math.isnan(sooner) else f"{sooner:.2f}",
        f"{ratio(seeds, f'{name}_given_latency_ms', f'{name}_latency_ms'):.2f}",
    ]


if __name__ == "__main__":
    print(summary(run(NAME, dict(rows()))))
