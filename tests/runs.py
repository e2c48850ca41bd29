"""Whole training runs: what tests start them with, and what a run left."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.data import EMBEDDED, read
from onnxprune.graph.groups import analyze
from onnxprune.model import load
from onnxprune.reports import (
    Event,
    Report,
)
from onnxprune.runtime.session import Device, Runner

DEVICE = Device(threads=1)


@dataclass(frozen=True)
class Result:
    """What a run left."""

    model: ir.Model
    report: Report
    output: Path
    events: list[Event] = field(default_factory=list)

    @property
    def file(self) -> ir.Model:
        return load(self.output)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


Train = Callable[..., Result]
SHRINK: Mapping[str, Any] = {
    "target": "params=50%",
    "epochs": 4,
    "learning_rate": 0.01,
    "prune_interval": 4,
}


def digits(count: int = 400) -> tuple[Array, Array]:
    part = read("digits").train
    assert part.y is not None
    return part.x[""][:count].astype(np.float32) / EMBEDDED["digits"], part.y[:count]


def sizes(found: ir.Model) -> dict[str, int]:
    return {group.name: group.size for group in analyze(found).groups}


def accuracy(found: ir.Model, output: str, x: Array, y: Array) -> float:
    (name,) = Runner(found, DEVICE).inputs
    scores = Runner(found, DEVICE).run({name: x}, [output])[output]
    return float(np.mean(scores.argmax(axis=1) == y))


DENSE = """(float[N, 6] x) => (float[N, 3] y) <float[6, 16] w, float[16] b, float[16, 3] v> {
    h = Gemm(x, w, b)  a = Relu(h)  y = MatMul(a, v) }"""


def examples(count: int = 200, features: int = 6) -> tuple[Array, Array]:
    x = np.random.default_rng(3).normal(size=(count, features)).astype(np.float32)
    return x, x[:, :3].argmax(axis=1)


def halved(result: Result) -> None:
    assert result.report.reached
    assert result.report.after.parameters <= 0.5 * result.report.before.parameters


def command(*arguments: str) -> tuple[list[str], dict[str, str]]:
    """The command line in a process of its own, with the packages that this one sees."""
    code = "from onnxprune_cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    return [sys.executable, "-c", code, *arguments], environment
