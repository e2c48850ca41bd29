"""A trained ResNet-56 on CIFAR-10 with 2.1 and 2.5 times fewer MACs, beside Torch-Pruning.

    python benchmarks/resnet56.py           # runs what is missing, prints the table

Both tools get the same file, and fine-tune equally: the same augmented images (flipped half of the
time, shifted by up to 4 pixels) in batches of 128 with the same momentum, weight decay and learning
rate, which falls along half a cosine. All passes are drawn beforehand and shuffled into one epoch.
Torch-Pruning removes first and then fine-tunes (resnet56_peer.py), ours removes meanwhile. The
first 1,000 training images are put aside for validation; test images are looked at once, at the
end, and decide nothing.

A row is one training, called variant/times:

    dense                 nothing is removed
    ours                  labels only
    ours+teacher          taught by the given model as well
    random                as ours, but units go at random
    torch-pruning         DepGraph: GroupNormPruner over all layers, without sparse learning
    torch-pruning-local   the same share in every layer
    try-...               what `ours` could have been, only where ONNXPRUNE_ROWS asks for it

Torch-Pruning runs in the Python that $ONNXPRUNE_TORCH names (with torch and torch-pruning), on its
GPU where there is one; there are no such rows without. Read are data/cifar10.npz and
models/resnet56_bn.onnx in $ONNXPRUNE_DATA (see distillation.py). The augmented images (150 MB per
pass) are kept in $ONNXPRUNE_CACHE, by default the folder for temporary files.

ONNXPRUNE_THREADS sets the threads of a training, all cores by default; ONNXPRUNE_EPOCHS the passes,
8 by default. To try it out, ONNXPRUNE_IMAGES takes so many images only, and ONNXPRUNE_MODEL another
file, such as resnet20_bn. Rows of other passes, images or models go to a file of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rows import SHARED, Row, run, table
from trainings import THREADS, Data, parts, trained

from onnxprune.base import Array
from onnxprune.model import constants, load, tensor_of
from onnxprune.runtime.session import Runner

EPOCHS = int(os.environ.get("ONNXPRUNE_EPOCHS", "8"))
IMAGES = int(os.environ.get("ONNXPRUNE_IMAGES", "0")) or None
NETWORK = os.environ.get("ONNXPRUNE_MODEL", "resnet56_bn")
PEER = os.environ.get("ONNXPRUNE_TORCH", "")
CACHE = Path(os.environ.get("ONNXPRUNE_CACHE") or tempfile.gettempdir())
MODEL, FILE = SHARED / f"models/{NETWORK}.onnx", SHARED / "data/cifar10.npz"

VALIDATION = 1_000
CHECKED = 1_000  # test images on which both runtimes must agree about the given model
MARGIN = 4  # pixels an image is shifted by at most
SEED = 0
TIMES = (2.1, 2.5)
SCALING = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FINE = {
    "seed": SEED,
    "batch_size": 128,
    "learning_rate": 1e-2,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "threads": THREADS,
}
"""What both tools are told."""

Options = Mapping[str, Any]
TEACHER = {"loss": ("cross-entropy", "distill:temperature=4")}


def gradual(criterion: str, allocation: str, **others: Any) -> dict[str, Any]:
    """Options of a method that removes the least important units on schedule."""
    return {"method": criterion, "method_options": {"allocation": allocation}, **others}


OURS = gradual("taylor", "global")
VARIANTS: Mapping[str, Options] = {
    "ours": OURS,
    "ours+teacher": OURS | TEACHER,
    "random": OURS | {"method": "random"},
}
CANDIDATES: Mapping[str, Options] = {
    f"try-{criterion}-{allocation}": gradual(criterion, allocation)
    for criterion in ("taylor", "magnitude", "fpgm")
    for allocation in ("global", "isomorphic", "uniform", "gain")
} | {
    "try-slimming-global": gradual("slimming", "global"),
    "try-once": OURS | {"target_schedule": "one-shot"},
    "try-often": OURS | {"prune_interval": 40},
}
PEERS: Mapping[str, Options] = {
    "torch-pruning": {"global": True},
    "torch-pruning-local": {"global": False},
}
PUBLISHED: Mapping[str, Mapping[float, str]] = {
    "DepGraph, published": {2.1: "93.46", 2.5: "93.36"},
    "DepGraph with sparse learning, published": {2.1: "93.77", 2.5: "93.64"},
}
"""Fang et al. 2023, "DepGraph" (arXiv 2301.12900): another trained network, 100 epochs, and only
about as many MACs."""


def name() -> str:
    """Of the csv."""
    found = NETWORK.removesuffix("_bn")
    found += "" if EPOCHS == 8 else f"_{EPOCHS}_epochs"
    return found if IMAGES is None else f"{found}_{IMAGES}_images"


def known() -> dict[str, Array]:
    """The data set, before augmentation."""
    found = dict(parts(FILE, validation=VALIDATION, most=IMAGES))
    return found | {key: found[key][:IMAGES] for key in ("x_test", "y_test")}


def augmented(x: Array, rng: np.random.Generator) -> Array:
    """One pass: every image flipped or not, and shifted; black beyond its border.

    Args:
        x: (N, 32, 32, 3) uint8.
        rng: draws.
    """
    count, size = x.shape[:2]
    wide = np.pad(x, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(wide, (size, size), axis=(1, 2))
    top, left = rng.integers(2 * MARGIN + 1, size=(2, count))
    found = np.moveaxis(windows[np.arange(count), top, left], 1, -1)  # (N, 32, 32, 3)
    flips = rng.random(count) < 0.5
    found[flips] = found[flips, :, ::-1]
    return found


def passes(data: Data) -> dict[str, Path]:
    """Files of all augmented images (E N, 32, 32, 3) and their labels, made where missing."""
    stem = f"onnxprune-cifar10-{EPOCHS}x{len(data['x_train'])}-{SEED}"
    files = {key: CACHE / f"{stem}-{key}.npy" for key in ("x_train", "y_train")}
    if not all(file.exists() for file in files.values()):
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            _write_passes(data, Path(folder))
            for key, file in files.items():
                os.replace(Path(folder) / f"{key}.npy", file)
    return files


def _write_passes(data: Data, folder: Path) -> None:
    x, y = data["x_train"], data["y_train"]
    shape = (EPOCHS * len(x), *x.shape[1:])
    images = np.lib.format.open_memmap(folder / "x_train.npy", "w+", x.dtype, shape)
    for number in range(EPOCHS):
        drawn = augmented(x, np.random.default_rng([SEED, number]))
        images[number * len(x) : (number + 1) * len(x)] = drawn
    images.flush()
    np.save(folder / "y_train.npy", np.tile(y, EPOCHS))


def ours(options: Options, times: float) -> dict[str, Any]:
    """One training by onnxprune."""
    data = known()
    files = passes(data)
    drawn = {key: np.load(file, mmap_mode="r") for key, file in files.items()}
    target = {} if times == 1 else {"target": f"macs={100 / times:.3f}%"}
    found = trained(
        load(MODEL),
        data | drawn,
        epochs=1,
        optimizer="momentum",
        schedule="cosine",
        decay_vectors=True,
        round_to=1,
        **SCALING,
        **FINE,
        **target,
        **options,
    )
    return {**found, **_circumstances(), "device": "cpu"}


def peer(options: Options, times: float) -> dict[str, Any]:
    """One training by Torch-Pruning, in a process of its own."""
    data = known()
    files = {key: str(file) for key, file in passes(data).items()}
    model = load(MODEL)
    arrays = {key: tensor_of(value).numpy() for key, value in constants(model).items()}
    kept = {key: data[key] for key in ("x_val", "y_val", "x_test", "y_test")}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "arrays.npz", **arrays, **kept)
        settings = {
            **FINE,
            **SCALING,
            **options,
            **files,
            "times": times,
            "arrays": f"{folder}/arrays.npz",
            "checked": min(CHECKED, len(data["x_test"])),
            "correct": correct(data["x_test"][:CHECKED], data["y_test"][:CHECKED]),
        }
        file = Path(folder) / "settings.json"
        file.write_text(json.dumps(settings), encoding="utf-8")
        done = subprocess.run(
            [PEER, str(Path(__file__).with_name("resnet56_peer.py")), str(file)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )
    return {**json.loads(done.stdout.splitlines()[-1]), **_circumstances()}


def correct(x: Array, y: Array) -> int:
    """How many images the given model tells right, by onnxruntime."""
    scaled = (x / 255 - np.array(SCALING["mean"])) / np.array(SCALING["std"])
    runner = Runner(load(MODEL))
    feeds = {runner.inputs[0]: np.ascontiguousarray(np.moveaxis(scaled, -1, 1), np.float32)}
    (logits,) = runner.run(feeds).values()
    return int((logits.argmax(1) == y).sum())


def _circumstances() -> dict[str, Any]:
    return {"threads": THREADS, "passes": EPOCHS, "epochs_of": IMAGES or "all"}


def rows() -> Iterator[tuple[str, Row]]:
    """Every row with its name; none without model and data."""
    if not (MODEL.exists() and FILE.exists()):
        return
    yield "dense", lambda: ours({"method": "none"}, 1)
    chosen = VARIANTS | (CANDIDATES if os.environ.get("ONNXPRUNE_ROWS") else {})
    for times in TIMES:
        for key, options in chosen.items():
            yield f"{key}/{times}", lambda options=options, times=times: ours(options, times)
        for key, options in PEERS.items() if PEER else ():
            yield f"{key}/{times}", lambda options=options, times=times: peer(options, times)


def summary(found: list[dict[str, str]]) -> str:
    """One line per training, then what is published."""
    header = ["variant", "test accuracy, %", "validation, %", "MACs, times fewer"]
    header += ["parameters, times fewer", "training, s", "threads", "device"]
    lines = [
        [
            row["row"],
            f"{100 * float(row['metric']):.2f}",
            f"{100 * float(row['best_validation']):.2f}",
            f"{float(row['given_macs']) / float(row['macs']):.2f}",
            f"{float(row['given_parameters']) / float(row['parameters']):.2f}",
            f"{float(row['training_seconds']):.0f}",
            row["threads"],
            row["device"],
        ]
        for row in found
    ]
    published = [[key, *values.values()] for key, values in PUBLISHED.items()]
    head = ["", *(f"{times} times fewer MACs, %" for times in TIMES)]
    return f"{table(header, lines)}\n\n{table(head, published)}"


if __name__ == "__main__":
    print(summary(run(name(), dict(rows()))))
