"""Prune one file with onnxsim's magnitude pruning and say what came of it, as one line of JSON.

    python prune_with_onnxsim.py FILE OUT TARGET

As its own pipeline does: simplify, attention heads, then channels; here for several ratios, since
it takes a share of channels where TARGET is percent of the parameters that may remain. Where the
compiled functions leave more, the Python functions of the same name are tried too, since they know
more patterns. The result closest to the target counts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxsim
from ratios import parameters, search

_ATTEMPTS = 6  # ratios, by each implementation


def pruner(*, compiled: bool) -> Callable[[onnx.ModelProto, float], onnx.ModelProto]:
    """Heads and channels, by one of the two implementations."""
    ending = "_cpp" if compiled else ""
    heads = getattr(onnxsim, f"apply_attention_head_pruning{ending}")
    channels = getattr(onnxsim, f"apply_structured_pruning{ending}")
    return lambda model, ratio: channels(heads(model, sparsity=ratio), sparsity=ratio)


def main() -> None:
    """Prune the file that the command line names."""
    file, out, target = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) / 100
    original = onnx.load(file)
    start = time.perf_counter()
    simplified, _ = onnxsim.simplify(original)
    before = parameters(original)
    if not before:
        sys.exit("no parameters at the top level of the graph")
    state = {"best": 2.0}

    def attempt(prune: Callable[[onnx.ModelProto, float], onnx.ModelProto], ratio: float) -> float:
        pruned = prune(simplified, ratio)
        left = parameters(pruned) / before
        if abs(left - target) < abs(state["best"] - target):
            state["best"] = left
            onnx.save(pruned, out)
            print(json.dumps({"ratio": ratio, "seconds": time.perf_counter() - start}), flush=True)
        return left

    search(lambda ratio: attempt(pruner(compiled=True), ratio), target, _ATTEMPTS)
    if state["best"] > target + 0.05:
        search(lambda ratio: attempt(pruner(compiled=False), ratio), target, _ATTEMPTS)


if __name__ == "__main__":
    main()
