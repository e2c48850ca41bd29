"""Prune one file by way of PyTorch: onnx2torch, torch-pruning, torch.onnx.export.

    python prune_with_torch_pruning.py FILE OUT TARGET INPUTS

TARGET is percent of the parameters that may remain; torch-pruning takes a share of channels, of
which several are tried, each on a fresh conversion. Magnitude importance, uniform ratio, layers
that make an output of the model left whole, as torch-pruning's own examples do. INPUTS is an .npz
with one example. Progress and result are lines of JSON.
"""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from ratios import search
from torchvision_names import declare

_LIBRARY = declare()  # the declarations last as long as this does

import onnx2torch  # noqa: E402  (needs the declarations)
import torch_pruning  # noqa: E402

_ATTEMPTS = 4  # ratios


def main() -> None:
    """Prune the file that the command line names."""
    warnings.filterwarnings("ignore")
    file, out, target = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) / 100
    given = dict(np.load(sys.argv[4]))
    model = onnx.load(file)
    example = tuple(torch.from_numpy(given[f"in/{name}"]) for name in inputs(model))
    stage("convert")
    start = time.perf_counter()
    converted = onnx2torch.convert(model).eval()
    before = count(converted)
    stage("run the conversion")
    with torch.no_grad():
        converted(*example)
    state = {"best": 2.0}

    def attempt(ratio: float) -> float:
        pruned = copy.deepcopy(converted)
        stage("prune")
        shrink(pruned, example, ratio)
        stage("run the pruned module")
        with torch.no_grad():
            pruned(*example)
        left = count(pruned) / before
        if abs(left - target) < abs(state["best"] - target):
            stage("export")
            torch.onnx.export(pruned, example, str(out), dynamo=False, opset_version=17)
            state["best"] = left
            print(json.dumps({"ratio": ratio, "seconds": time.perf_counter() - start}), flush=True)
        return left

    search(attempt, target, _ATTEMPTS)
    stage("done")


def inputs(model: onnx.ModelProto) -> list[str]:
    """Names of the inputs that are no initializers."""
    held = {tensor.name for tensor in model.graph.initializer}
    return [value.name for value in model.graph.input if value.name not in held]


def stage(name: str) -> None:
    """Say what begins, for a run that ends in it."""
    print(json.dumps({"stage": name}), flush=True)


def count(module: torch.nn.Module) -> int:
    """Elements of parameters and float buffers."""
    held = [*module.parameters(), *module.buffers()]
    return sum(t.numel() for t in held if t.is_floating_point() and t.ndim)


def shrink(module: torch.nn.Module, example: tuple[torch.Tensor, ...], ratio: float) -> None:
    """Remove `ratio` of the channels of every layer but the last ones."""
    pruner = torch_pruning.pruner.BasePruner(
        module,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=last_layers(module),
    )
    pruner.step()


def last_layers(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The weighted layers from which an output is reached without passing another one."""
    graph: Any = module.graph  # onnx2torch gives a GraphModule
    modules = dict(module.named_modules())
    found: list[torch.nn.Module] = []
    stack = [node for node in graph.nodes if node.op == "output"]
    seen = set(stack)
    while stack:
        for node in stack.pop().all_input_nodes:
            if node in seen:
                continue
            seen.add(node)
            layer = modules.get(node.target) if node.op == "call_module" else None
            if isinstance(layer, torch.nn.Linear | torch.nn.modules.conv._ConvNd):
                found.append(layer)
            else:
                stack.append(node)
    return found


if __name__ == "__main__":
    main()
