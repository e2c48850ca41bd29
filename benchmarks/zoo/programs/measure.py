"""Measure files alike, whoever wrote them: size, cost, and whether they load and run.

    python measure.py INPUTS SIZES FILE [FILE ...]

The first file is the model that was given, all others are compared with it: they must have its
inputs, and outputs of its sizes. Prints one line of JSON per file. INPUTS is an .npz of one
example; SIZES is not read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from onnxprune.graph import cost
from onnxprune.graph.groups import analyze
from onnxprune.model import load


def main() -> None:
    """Measure the files that the command line names."""
    feeds, files = Path(sys.argv[1]), [Path(name) for name in sys.argv[3:]]
    given = {name.removeprefix("in/"): array for name, array in np.load(feeds).items()}
    expected: list[tuple[int, ...]] | None = None
    for file in files:
        found: dict[str, Any] = {"file": file.name, "megabytes": file.stat().st_size / 1e6}
        sizes, found["runs"] = ran(file, given)
        if expected is None:
            expected = sizes
        elif sizes is not None and sizes != expected:
            found["runs"] = "outputs of other sizes"
        try:
            found |= counted(file)
        except Exception as error:  # of one tool, which must not hide the sizes of the next
            found["uncounted"] = " ".join(str(error).split())[:200]
        print(json.dumps(found), flush=True)


def counted(file: Path) -> dict[str, Any]:
    """Parameters, cost and the like."""
    model = load(file)
    return {
        "parameters": cost.parameters(model),
        "macs": cost.macs(model, analyze(model)),
        "nodes": sum(1 for _ in model.graph),
        "opset": model.opset_imports.get(""),
    }


def ran(file: Path, given: Mapping[str, Any]) -> tuple[list[tuple[int, ...]] | None, str]:
    """The sizes of the outputs, and "yes" or what went wrong."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        arrays = (
            [given[name] for name in names] if set(names) <= given.keys() else [*given.values()]
        )
        outputs = session.run(None, dict(zip(names, arrays, strict=True)))
    except Exception as error:  # whatever a runtime says about a file is a result here
        return None, " ".join(str(error).split())[:200]
    return [np.shape(output) for output in outputs], "yes"


if __name__ == "__main__":
    main()
