"""What the training tests share: a session opened on a graph, and whole runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from runs import Result, Train
from setups import model_from, prepare_training, shared_model, slope_error, training

import onnxprune
from onnxprune.gradients.lowering import evaluation_copy
from onnxprune.model import load, opset, save
from onnxprune.reports import Event
from onnxprune.runtime.latency import latencies
from onnxprune.training.session import Session
from onnxprune.updates.accumulation import build_accumulation
from onnxprune.updates.graph import build_update
from onnxprune.updates.rules import Rule, momentum
from onnxprune.updates.split import split_update

__all__ = ["model_from", "shared_model", "slope_error", "training"]


def open_training(
    model: ir.Model,
    *,
    rule: Rule | None = None,
    update: Mapping[str, Any] | None = None,
    pass_size: int = 0,
    split: bool = False,
    **how: Any,
) -> Session:
    setup = prepare_training(model, **how)
    shapes = {name: setup.snapshot.parameters[name].shape for name in setup.graph.parameters}
    state = {name: array.shape for name, array in setup.snapshot.state.items()}
    build = split_update if split else build_update
    graph = build(
        rule or momentum(), shapes, state=state, accumulated=pass_size > 0, **(update or {})
    )
    assert graph is not None
    return Session(
        plain=setup.graph,
        update=graph,
        accumulation=build_accumulation(graph, shapes, state) if pass_size else None,
        pass_size=pass_size,
        snapshot=setup.snapshot,
        evaluation=evaluation_copy(model, [setup.objective.output]),
    )


@pytest.fixture
def opened() -> Callable[..., Session]:
    return open_training


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Runs `onnxprune.train`, and checks what holds of every run."""
    count = iter(range(100))
    briefly = functools.partial(latencies, seconds=0.05)
    monkeypatch.setattr("onnxprune.training.delivery.latencies", briefly)

    def work(
        source: Path | ir.Model, data: Any = "digits", *, interrupt: Any = None, **options: Any
    ) -> Result:
        number = next(count)
        if isinstance(source, ir.Model):
            file = tmp_path / f"model{number}.onnx"
            save(source, file)
        else:
            file = source
        before = file.read_bytes()
        events: list[Event] = []

        def listen(event: Event) -> None:
            events.append(event)
            if interrupt is not None and interrupt(events):
                raise KeyboardInterrupt

        output = tmp_path / f"out{number}.onnx"
        arguments = {"threads": 1, "run_directory": str(tmp_path / f"run{number}")} | options
        found, report = onnxprune.train(file, data, output=output, on_event=listen, **arguments)
        assert file.read_bytes() == before
        _check_interface(load(file), output)
        return Result(found, report, output, events)

    return work


def _check_interface(before: ir.Model, output: Path) -> None:
    onnx.checker.check_model(str(output), full_check=True)
    after = load(output)
    assert opset(after) == opset(before)
    assert after.ir_version == before.ir_version

    def described(values: Any) -> list[tuple[Any, ...]]:
        return [(v.name, v.dtype, str(v.shape)) for v in values if not v.is_initializer()]

    assert described(after.graph.inputs) == described(before.graph.inputs)
    assert [v.name for v in after.graph.outputs] == [v.name for v in before.graph.outputs]
