"""Prune one file with onnxprune and say what came of it, as one line of JSON.

    python prune_with_onnxprune.py FILE OUT TARGET INPUTS SIZES

The removal is what `onnxprune prune FILE --target params=TARGET% -o OUT` does, with what it
chooses by default. SIZES is JSON, of inputs whose open sizes are not free; one example goes to the
.npz INPUTS, for other programs. Beside the command: seconds of analysis and slicing alone, and a
second comparison of the pruned graph with the reference (the model with what the removed units hand
on replaced at their consumers), on other inputs than the command's own.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import onnxprune
from onnxprune.data.synthetic import synthetic
from onnxprune.graph import cost
from onnxprune.graph.groups import Analysis
from onnxprune.model import constants, load
from onnxprune.oneshot.config import PruneConfig
from onnxprune.oneshot.examples import gather
from onnxprune.oneshot.removal import candidates
from onnxprune.reports import Event, Pruned
from onnxprune.rewrite.inline import inline
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.recipe import Recipe, replay
from onnxprune.rewrite.reference import reference
from onnxprune.rewrite.untie import untie
from onnxprune.runtime.verify import compare, tolerance_of


def main() -> None:
    """Prune the file that the command line names."""
    file, out, target = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    sizes = json.loads(sys.argv[5])
    config = PruneConfig(target=f"params={target:g}%", input_shapes=sizes)
    loaded = load(file)
    feeds = synthetic(loaded, np.random.default_rng(2), examples=1, input_shapes=sizes)
    np.savez(sys.argv[4], **{f"in/{name}": array for name, array in feeds.items()})
    start = time.perf_counter()
    model = untie(inline(loaded))
    analysis = candidates(model, config)
    found: dict[str, Any] = {"analysis_seconds": time.perf_counter() - start}
    found |= described(model, analysis)
    print(json.dumps(found), flush=True)  # what is known, should the rest take too long
    events: list[Event] = []
    start = time.perf_counter()
    _, report = onnxprune.prune_file(
        file, output=out, target=config.target, input_shapes=sizes, on_event=events.append
    )
    found["seconds"] = time.perf_counter() - start
    found["reached"] = report.reached
    rolled_back = [
        name for event in events if isinstance(event, Pruned) for name in event.rolled_back
    ]
    found["rolled_back"] = len(rolled_back)
    found["rolled_back_groups"] = " ".join(rolled_back[:5])
    print(json.dumps(found | checked(model, analysis, out, sizes)), flush=True)


def described(model: ir.Model, analysis: Analysis) -> dict[str, Any]:
    """What can be removed, and why the rest cannot."""
    units = [group.size for group in analysis.groups]
    reasons = Counter(fact.reason.value for fact in analysis.frozen)
    total = cost.parameters(model)
    return {
        "groups": len(units),
        "units_median": statistics.median(units) if units else 0,
        "units_max": max(units, default=0),
        "frozen": sum(reasons.values()),
        "frozen_reasons": "; ".join(f"{count} {text}" for text, count in reasons.most_common()),
        "removable": 1 - cost.ceiling(model, analysis)[0] / total if total else 0.0,
        "initializers": len(constants(model)),
    }


def checked(
    model: ir.Model, analysis: Analysis, out: Path, sizes: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """Slice once more, by the recipe, and compare with the reference and with the model before."""
    recipe = Recipe.from_json(
        Path(f"{out}.recipe.json").read_text(encoding="utf-8"), source=str(out)
    )
    if not recipe.rounds:
        return {"removed_units": 0}
    plan = replay(model, analysis, recipe.rounds[0], source=str(out))
    start = time.perf_counter()
    pruned = prune(model, analysis, plan).model
    seconds = time.perf_counter() - start
    feeds = gather(model, None, PruneConfig(lossless=True, seed=1, input_shapes=sizes)).first
    agreement = compare(reference(model, analysis, plan), pruned, feeds)
    return {
        "slicing_seconds": seconds,
        "removed_units": plan.removed(),
        "difference": agreement.relative,
        "holds": agreement.relative <= tolerance_of(model),
        "changed": compare(model, pruned, feeds).relative,
    }


if __name__ == "__main__":
    main()
