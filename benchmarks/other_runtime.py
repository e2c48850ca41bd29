"""Do the written files compute the same in the newest plain onnxruntime, in another environment?

    python benchmarks/other_runtime.py

Makes a virtual environment with nothing but the newest onnxruntime and numpy in it, trains and
prunes every shipped model here, runs the written file there, and compares with what the pruned
model computes in this environment: the largest difference over the largest magnitude of the output,
for float outputs; all others must be equal.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnxprune_models import path
from rows import Row, run, table

import onnxprune
from onnxprune.data import fit, input_specs, read
from onnxprune.model import load
from onnxprune.runtime.session import Runner

NAMES = ("mlp", "lenet", "resnet", "densenet", "vgg", "keras", "jax")
THERE = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
given = dict(np.load(sys.argv[2]))
names = [v.name for v in session.get_inputs()]
outputs = session.run(None, {name: given["in/" + name] for name in names})
worst = 0.0
for value, found in zip(session.get_outputs(), outputs):
    expected = given["out/" + value.name]
    if expected.dtype.kind == "f":
        worst = max(worst, float(np.abs(found - expected).max() / np.abs(expected).max()))
    else:
        assert (np.asarray(found) == expected).all()
print(json.dumps({"runtime": onnxruntime.__version__, "difference": worst}))
"""


@functools.cache
def environment() -> Path:
    """The Python of an environment with the newest plain onnxruntime."""
    folder = Path(tempfile.gettempdir()) / "onnxprune-plain-runtime"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-qU", "onnxruntime", "numpy"], check=True)
    return python


def compare(name: str) -> Mapping[str, Any]:
    """Prune one model here and run it there."""
    with tempfile.TemporaryDirectory() as folder:
        small, arrays = Path(folder) / "small.onnx", Path(folder) / "arrays.npz"
        model, report = onnxprune.train(
            path(f"digits_{name}"),
            "digits",
            target="params=50%",
            epochs=3,
            output=small,
            run_directory=str(Path(folder) / "run"),
        )
        inputs = fit(read("digits"), input_specs(load(small))).test
        assert inputs is not None
        feeds = inputs.inputs
        outputs = Runner(model).run(feeds)
        np.savez(
            arrays,
            **{f"in/{key}": array for key, array in feeds.items()},
            **{f"out/{key}": array for key, array in outputs.items()},
        )
        done = subprocess.run(
            [environment(), "-c", THERE, small, arrays], check=True, capture_output=True, text=True
        )
    found = json.loads(done.stdout)
    return {**found, "before": report.before.parameters, "after": report.after.parameters}


def _row(name: str) -> Row:
    return lambda: compare(name)


if __name__ == "__main__":
    found = run("other_runtime", {f"digits_{name}": _row(name) for name in NAMES})
    columns = ("row", "before", "after", "runtime", "difference")
    print(table(columns, [[row[column] for column in columns] for row in found]))
