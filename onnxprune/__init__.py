"""onnxprune makes ONNX models smaller and faster while they train.

    import onnxprune

    found = onnxprune.inspect("model.onnx")
    model, report = onnxprune.train("model.onnx", "data.npz", target="params=30%")
    model, report = onnxprune.prune_file("model.onnx", target="params=70%")  # without training

The command line is `onnxprune`; both do the same.
"""

from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Analysis": "onnxprune.graph.groups",
    "Axis": "onnxprune.base",
    "Fold": "onnxprune.base",
    "Group": "onnxprune.base",
    "Inspection": "onnxprune.reports",
    "Loss": "onnxprune.training.loss_spec",
    "METHODS": "onnxprune.methods",
    "Merge": "onnxprune.base",
    "OnnxPruneError": "onnxprune.errors",
    "Plan": "onnxprune.base",
    "PruneConfig": "onnxprune.oneshot.config",
    "Report": "onnxprune.reports",
    "RunConfig": "onnxprune.training.config",
    "analyze": "onnxprune.graph.groups",
    "inspect": "onnxprune.training.inspection",
    "load": "onnxprune.model",
    "prune": "onnxprune.rewrite.prune",
    "prune_file": "onnxprune.oneshot.run",
    "reference": "onnxprune.rewrite.reference",
    "save": "onnxprune.model",
    "train": "onnxprune.training.run",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that `onnxprune --help` starts at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
