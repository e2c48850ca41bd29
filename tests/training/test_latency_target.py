"""Targets in milliseconds: what is measured, once, and what a run makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import feeds
from onnxprune_models import builders, path
from runs import DEVICE, Train, sizes

import onnxprune
from onnxprune.errors import ConfigError
from onnxprune.graph import cost
from onnxprune.graph.groups import analyze
from onnxprune.graph.timing import Timing
from onnxprune.model import load
from onnxprune.training import timing
from onnxprune.training.target import parse_target
from onnxprune.training.timing import measured

pytestmark = pytest.mark.ort
HALF = parse_target("latency=50%")


def falling(works: Sequence[Callable[[], Any]], **_options: Any) -> list[float]:
    """Milliseconds that a clock might show: the narrower the model, the fewer."""
    for work in works:
        work()
    return [float(len(works) - number) for number in range(len(works))]


@pytest.fixture(autouse=True)
def clock(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that shows the same in every run; what is delivered takes as long as its weights."""
    monkeypatch.setattr(timing, "taking_turns", falling)

    def by_size(models: Sequence[ir.Model], *_arguments: Any, **_options: Any) -> list[float]:
        return [cost.parameters(each) / 1000 for each in models]

    monkeypatch.setattr("onnxprune.training.delivery.latencies", by_size)


def table(network: ir.Model, **options: Any) -> Timing:
    data = feeds(network, batch=4)
    return measured(network, analyze(network), data, HALF, device=DEVICE, **options)


@pytest.mark.parametrize(
    "network",
    [
        builders.mlp([10, 24, 16, 4]),
        builders.mlp([10, 24, 16, 4], "tanh", form="matmul", output="softmax"),
        builders.resnet(8, image=8),
        builders.densenet((2, 2), growth=4, image=8),
        builders.vgg(((8, 8), (12,)), hidden=16, image=8),
    ],
    ids=["gemm", "matmul", "resnet", "densenet", "vgg"],
)
@pytest.mark.parametrize("round_to", [1, 4])
def test_stretches_cover_the_model_and_masks_cost_what_the_table_says(
    network: ir.Model, round_to: int
) -> None:
    found = table(network, round_to=round_to)
    nodes = [node.outputs[0].name for node in network.graph]
    assert [key for stretch in found.stretches for key in stretch.nodes] == nodes
    analysis = analyze(network)
    remaining = cost.Remaining(network, analysis, "latency", timing=found, round_to=round_to)
    assert remaining({}) == found.start
    narrow = {group.name: np.arange(group.size) < 1 for group in analysis.groups}
    if round_to == 1:
        assert remaining(narrow) == found.least < found.start
    left = [
        remaining({g.name: np.arange(g.size) < share * g.size for g in analysis.groups})
        for share in (0.3, 0.6, 0.9)
    ]
    assert found.least <= left[0] <= left[1] <= left[2] <= found.start


def test_a_model_without_units_has_one_latency() -> None:
    network = builders.mlp([10, 4])
    data = feeds(network, batch=4)
    goal = parse_target("latency=5s")
    found = measured(network, analyze(network), data, goal, device=DEVICE)
    assert found.start == found.least


def test_a_latency_that_no_model_reaches_is_refused_before_anything_happens(
    train: Train, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"latency=1%: out of reach; a batch of 32 takes 6 ms"):
        train(path("digits_jax"), target="latency=1%", epochs=1)
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize("method", ["apoptosis", "demp", "magnitude", "mesimp", "random"])
def test_every_method_goes_as_far_as_the_table_asks(train: Train, method: str) -> None:
    source = path("digits_jax")
    options = {"method_options": {"k": 8}} if method == "mesimp" else {}
    result = train(source, method=method, target="latency=50%", epochs=2, round_to=1, **options)
    before, after = load(source), load(result.output)
    data = {before.graph.inputs[0].name or "": np.zeros((32, 64), np.float32)}
    given = measured(before, analyze(before), data, HALF, device=DEVICE)
    left = cost.Remaining(after, analyze(after), "latency", timing=given)({})
    assert left <= HALF.limit(given.start)
    share = result.report.after.parameters / result.report.before.parameters
    assert result.report.achieved == pytest.approx(share, rel=1e-6)
    assert result.report.reached is (share <= 0.5)


def test_groups_keep_multiples_under_a_latency(train: Train) -> None:
    source = path("digits_vgg")
    result = train(source, method="magnitude", target="latency=60%", epochs=1, round_to=4)
    before = sizes(load(source))
    for name, left in sizes(result.file).items():
        assert left == before[name] or left < 4 or left % 4 == 0


def test_a_run_that_goes_on_does_not_measure_again(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"target": "latency=60%", "method": "magnitude", "epochs": 4}
    whole = train(path("digits_jax"), checkpoint_every="1epoch", **options)

    def stop(events: list[Any]) -> bool:
        return getattr(events[-1], "epoch", 0) == 2 and hasattr(events[-1], "split")

    part = train(path("digits_jax"), checkpoint_every="1epoch", interrupt=stop, **options)
    assert part.report.steps < whole.report.steps

    def refuse(*_arguments: Any, **_options: Any) -> list[float]:
        raise AssertionError

    monkeypatch.setattr(timing, "taking_turns", refuse)
    _, report = onnxprune.train(resume=part.report.run_directory)
    assert report.steps == whole.report.steps
    assert replace(report.after, latency_ms=0, bytes=0) == replace(
        whole.report.after, latency_ms=0, bytes=0
    )
