"""Random plans on the corpus of exported files, where it lies beside the project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checks import DEVICE
from graphs import feeds
from strategies import random_plan

from onnxprune.base import Array
from onnxprune.graph.groups import analyze
from onnxprune.model import load
from onnxprune.rewrite.inline import inline
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.session import Runner
from onnxprune.runtime.verify import compare

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
FILES = {
    f"{file.parent.name}/{file.stem}": file
    for folder in ("corpus", "models")
    for file in sorted((SHARED / folder).rglob("*.onnx"))
}
TOLERANCE = {"ort_tools/mlp3d_fp16w": 2e-3}  # computes in float16; 1e-4 for all others


def corpus(names: list[str]) -> pytest.MarkDecorator:
    """The files as parameters; one skipped parameter where there is no corpus."""
    absent = pytest.param("", marks=pytest.mark.skip(f"no {SHARED.name} folder"))
    found = [pytest.param(name, marks=pytest.mark.ort) for name in names]
    return pytest.mark.parametrize("name", found or [absent])


def given(file: Path, network: object) -> dict[str, Array]:
    recorded = file.with_suffix(".in.npz")
    if recorded.exists():
        return dict(np.load(recorded))
    return feeds(network)  # type: ignore[arg-type]


@corpus(list(FILES))
def test_random_plans_agree_with_the_reference(name: str) -> None:
    file = FILES[name]
    network = inline(load(file))
    analysis = analyze(network)
    data = given(file, network)
    Runner(network, DEVICE, optimize=False).run(data)
    changed = []
    for seed in range(3 if analysis.groups else 0):
        plan = random_plan(network, analysis, seed)
        if plan.removed():
            expected = reference(network, analysis, plan)
            smaller = prune(network, analysis, plan).model
            found = compare(
                expected, smaller, data, device=DEVICE, tolerance=TOLERANCE.get(name, 1e-4)
            )
            assert found.holds, f"seed {seed}: differs by {found.relative:.2e}"
            original = compare(network, expected, data, device=DEVICE, tolerance=1e-3)
            changed.append(not original.holds)
    assert any(changed) or not changed


@corpus(["ort_tools/mlp3d_fp16w"] if "ort_tools/mlp3d_fp16w" in FILES else [])
def test_nodes_in_a_wrong_order_are_sorted(name: str) -> None:
    network = load(FILES[name])
    made: set[str | None] = set()
    for node in network.graph:
        read = [value for value in node.inputs if value is not None and value.producer()]
        assert made >= {value.name for value in read}
        made |= {value.name for value in node.outputs}
