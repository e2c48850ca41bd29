"""A ResNet-20 on CIFAR-10: as it is, fine-tuned, and pruned to half its MACs without labels.

    python benchmarks/distillation.py          # runs what is missing, prints the tables

The model's own accuracy; its accuracy after one epoch of fine-tuning with and without frozen
BatchNormalization; and how it recovers while half of its multiply-accumulates go, taught by the
model as it was (no labels) and taught by the labels, side by side with the same data, seed and
schedule. Recovery sees a fifth of the training images, and is judged on the labels of
all test images.

Read from the folder $ONNXPRUNE_DATA, by default `shared` beside the checkout; without them there is
nothing to run:

- data/cifar10.npz: CIFAR-10 (Krizhevsky 2009) as x_train (50000, 32, 32, 3) uint8, y_train, x_test,
  y_test
- models/resnet20_bn.onnx: a ResNet-20 (He et al. 2016) trained on it, BatchNormalization unfolded
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rows import SHARED, Row, run, table

import onnxprune
from onnxprune.base import Array
from onnxprune.reports import Evaluated

MODEL = SHARED / "models/resnet20_bn.onnx"
DATA = SHARED / "data/cifar10.npz"
SCALING = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FINE = {"optimizer": "momentum", "learning_rate": 1e-3, "batch_size": 128, "epochs": 1}
EPOCHS = 8
RECOVERY = {
    "optimizer": "momentum",
    "learning_rate": 1e-2,
    "batch_size": 128,
    "epochs": EPOCHS,
    "target": "macs=50%",
    "prune_interval": 20,
}
LOSSES = {
    "distill": {"loss": "distill:temperature=4"},
    "cross-entropy": {"loss": "cross-entropy"},
}
_PART = 10_000  # training images of a recovery


def arrays() -> dict[str, Array]:
    """The data set by name."""
    with np.load(DATA) as stored:
        return {name: stored[name] for name in stored.files}


def trained(data: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """One run judged on the test images: accuracy before, after every epoch, and what it took."""
    known = arrays()
    curve: list[float] = []

    def listen(event: Any) -> None:
        if isinstance(event, Evaluated):
            curve.append(event.metrics["accuracy"])

    with tempfile.TemporaryDirectory() as folder:
        _, report = onnxprune.train(
            MODEL,
            data,
            validation=(known["x_test"], known["y_test"]),
            output=Path(folder) / "out.onnx",
            run_directory=str(Path(folder) / "run"),
            on_event=listen,
            checkpoint_every="never",
            **SCALING,
            **options,
        )
    return {
        "before": report.before.metrics["accuracy"],
        **{f"epoch_{number}": value for number, value in enumerate(curve, start=1)},
        "dense_macs": report.before.macs,
        "macs": report.after.macs,
        "parameters": report.after.parameters,
        "steps": report.steps,
        "seconds": report.training_seconds,
    }


def fine_tuned(batch_norm: str) -> dict[str, Any]:
    """One epoch over all training images at a small learning rate, nothing removed."""
    known = arrays()
    options = {**FINE, "method": "none", "batch_norm": batch_norm}
    return trained((known["x_train"], known["y_train"]), options)


def recovered(loss: str) -> dict[str, Any]:
    """Half of the MACs removed, trained on a fifth of the images; labels only where they count."""
    known = arrays()
    chosen = np.sort(np.random.default_rng(0).permutation(len(known["x_train"]))[:_PART])
    labels = None if loss == "distill" else known["y_train"][chosen]
    return trained((known["x_train"][chosen], labels), {**RECOVERY, **LOSSES[loss]})


def rows() -> Iterator[tuple[str, Row]]:
    """Every row with its name."""
    if MODEL.exists() and DATA.exists():
        for mode in ("train", "frozen"):
            yield f"fine-tuned/{mode}", lambda mode=mode: fine_tuned(mode)
        for loss in LOSSES:
            yield f"recovered/{loss}", lambda loss=loss: recovered(loss)


def tables(found: list[dict[str, str]]) -> str:
    """Fine-tuning, then accuracy against epochs."""
    by_name = {row["row"]: row for row in found}
    fine = [
        [
            name.split("/")[1],
            percent(row["before"]),
            percent(row["epoch_1"]),
            f"{float(row['seconds']):.0f}",
        ]
        for name, row in by_name.items()
        if name.startswith("fine-tuned")
    ]
    curves = [
        [
            name.split("/")[1],
            f"{float(row['macs']) / float(row['dense_macs']):.2f}",
            percent(row["before"]),
            *(percent(row[f"epoch_{number}"]) for number in range(1, EPOCHS + 1)),
        ]
        for name, row in by_name.items()
        if name.startswith("recovered")
    ]
    header = ["BatchNormalization", "given, %", "after one epoch, %", "seconds"]
    epochs = [f"epoch {number}" for number in range(1, EPOCHS + 1)]
    return "\n\n".join(
        (table(header, fine), table(["taught by", "MACs left", "given, %", *epochs], curves))
    )


def percent(value: str) -> str:
    """A share as a percentage."""
    return f"{100 * float(value):.2f}"


if __name__ == "__main__":
    print(tables(run("distillation", dict(rows()))))
