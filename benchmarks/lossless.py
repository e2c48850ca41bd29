"""What can go from trained networks without changing any answer.

    python benchmarks/lossless.py                # runs what is missing, prints the table

Ten digit classifiers with eight hidden layers of 32 units, trained without any pruning, then
`onnxprune prune --lossless --data`, where the data are the training examples only. onnxsim
publishes for such networks (docs/stable-relu-prune.md) that 22.5 % of their units are never
positive, that 33.3 % of the parameters go with them, and that the top class of all examples stays,
at an accuracy of 87.15 %. How they were trained is not published, and decides how many units are
never positive, so there are two kinds here:

he        weights drawn as for rectifiers (He et al. 2015), biases of zero; learning rate 1e-3.
uniform   weights and biases between -1 and 1 over the root of the inputs, the usual default of
          frameworks; learning rate 3e-3. Most like the published ones in both numbers.

Agreement and the largest difference are measured on the test examples, which the removal has not
seen. Beside it: random units until as few parameters are left, and apoptosis during training
without a target, both with what they do to the accuracy; latencies side by side.

Less than ten minutes on two cores; no data but the embedded digits. ONNXPRUNE_EPOCHS sets another
number of epochs, to try it out; such rows go to a file of their own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxprune_models import builders
from rows import Row, run, table
from trainings import THREADS, by_model, column, spread

import onnxprune
from onnxprune.base import Array
from onnxprune.data import EMBEDDED, read
from onnxprune.gradients.lowering import evaluation_copy
from onnxprune.graph import cost
from onnxprune.model import constant, constants, save, set_constant
from onnxprune.runtime.latency import latencies
from onnxprune.runtime.session import Runner

SEEDS = tuple(range(10))
EPOCHS = int(os.environ.get("ONNXPRUNE_EPOCHS", "60"))
NAME = "lossless" if EPOCHS == 60 else f"lossless_{EPOCHS}_epochs"
SIZES = [64, *[32] * 8, 10]
BATCH = 200
RATES = {"he": 1e-3, "uniform": 3e-3}


def digits() -> tuple[Array, Array, Array, Array]:
    """Training and test examples, scaled to [0, 1]."""
    raw = read("digits")
    assert raw.test is not None
    assert raw.train.y is not None
    assert raw.test.y is not None
    x, x_test = (
        part.x[""].reshape(len(part), -1).astype(np.float32) / np.float32(EMBEDDED["digits"])
        for part in (raw.train, raw.test)
    )
    return x, raw.train.y, x_test, raw.test.y


def network(start: str, seed: int) -> ir.Model:
    """The network, its weights drawn as `start` says."""
    model = builders.mlp(SIZES, seed=seed)
    if start == "uniform":
        rng, inputs = np.random.default_rng(seed), 0
        for value in constants(model).values():
            given = constant(value)
            assert given is not None
            shape = given.shape
            inputs = shape[1] if len(shape) == 2 else inputs  # a bias comes behind its weights
            drawn = rng.uniform(-1, 1, shape) / np.sqrt(inputs)
            set_constant(value, drawn.astype(given.dtype))
    return model


def compared(start: str, seed: int) -> dict[str, Any]:
    """One network: what goes without loss, at random, and during training."""
    x, y, x_test, y_test = digits()
    given = network(start, seed)
    common = {
        "learning_rate": RATES[start],
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "schedule": "constant",
        "seed": seed,
        "threads": THREADS,
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save(given, folder / "given.onnx")
        models = {}
        for method in ("none", "apoptosis"):
            models[method], _ = onnxprune.train(
                folder / "given.onnx",
                (x, y),
                method=method,
                output=folder / f"{method}.onnx",
                run_directory=str(folder / method),
                **common,
            )
        dense = folder / "none.onnx"
        models["lossless"], report = onnxprune.prune_file(
            dense, (x, y), lossless=True, output=folder / "lossless.onnx"
        )
        models["random"], _ = onnxprune.prune_file(
            dense,
            (x, y),
            importance="random",
            target=f"params={report.after.parameters}",
            seed=seed,
            output=folder / "random.onnx",
        )
    found: dict[str, Any] = {
        "lossless_units": report.exact,
        "never_positive": never_positive(models["none"], x),
        "lossless_seconds": report.seconds,
    }
    for name, model in models.items():
        found |= {
            f"{name}_{k}": v for k, v in judged(models["none"], model, x_test, y_test).items()
        }
    return found


def never_positive(model: ir.Model, x: Array) -> int:
    """Units of rectifiers that are zero on all examples."""
    names = [node.outputs[0].name or "" for node in model.graph if node.op_type == "Relu"]
    values = Runner(evaluation_copy(model, names)).run({"x": x})
    return sum(int((values[name].max(axis=0) <= 0).sum()) for name in names)


def judged(dense: ir.Model, model: ir.Model, x: Array, y: Array) -> dict[str, Any]:
    """How `model` stands to the dense one, on test examples."""
    before, after = (Runner(each).run({"x": x})["y"] for each in (dense, model))
    first, second = latencies([dense, model], {"x": x[:32]})
    return {
        "parameters": cost.parameters(model),
        "accuracy": float(np.mean(after.argmax(axis=1) == y)),
        "agreement": float(np.mean(after.argmax(axis=1) == before.argmax(axis=1))),
        "difference": float(np.abs(after - before).max()),
        "speed_up": first / second,
    }


def rows() -> Iterator[tuple[str, Row]]:
    """Every row with its name."""
    for start in RATES:
        for seed in SEEDS:
            yield f"{start}/{seed}", lambda start=start, seed=seed: compared(start, seed)


def summary(found: list[dict[str, str]]) -> str:
    """One line per way of removal."""
    header = ["weights", "", "parameters", "gone, %", "test accuracy, %", "same top class, %"]
    header += ["largest difference", "latency dense / this"]
    lines, notes = [], []
    for start, seeds in by_model(found).items():
        dense = column(seeds, "none_parameters")
        for name in ("none", "lossless", "random", "apoptosis"):
            left = column(seeds, f"{name}_parameters")
            gone = [1 - a / b for a, b in zip(left, dense, strict=True)]
            lines.append(
                [
                    start,
                    name,
                    spread(left, digits=0),
                    spread(gone, 100, digits=1),
                    spread(column(seeds, f"{name}_accuracy"), 100),
                    spread(column(seeds, f"{name}_agreement"), 100),
                    f"{max(column(seeds, f'{name}_difference')):.1e}",
                    spread(column(seeds, f"{name}_speed_up")),
                ]
            )
        units = " and ".join(
            f"{spread(column(seeds, key), 100 / sum(SIZES[1:-1]), digits=1)} % {what}"
            for key, what in {
                "lossless_units": "removed",
                "never_positive": "never positive",
            }.items()
        )
        notes.append(f"{start}: of the units, {units}")
    return "\n\n".join([table(header, lines), *notes])


if __name__ == "__main__":
    print(summary(run(NAME, dict(rows()))))
