from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onnxprune.errors import ConfigError
from onnxprune.training.config import OPTIMIZERS, RunConfig
from onnxprune.training.guards import output_path
from onnxprune.training.target import Target, parse_target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("params=30%", Target(kind="params", fraction=0.3)),
        ("macs=12.5%", Target(kind="macs", fraction=0.125)),
        ("params=100k", Target(kind="params", absolute=100_000)),
        (" macs = 1.5M ", Target(kind="macs", absolute=1_500_000)),
        ("params=7", Target(kind="params", absolute=7)),
        ("latency=50%", Target(kind="latency", fraction=0.5)),
        ("latency=2ms", Target(kind="latency", absolute=2_000_000)),
        ("latency = 350 us", Target(kind="latency", absolute=350_000)),
        ("latency=.5s", Target(kind="latency", absolute=500_000_000)),
    ],
)
def test_targets_are_read_and_written(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert parse_target(str(target)) == target


@pytest.mark.parametrize(
    "text", ["", "30%", "flops=3%", "params=-1", "params=1e5", "params=5x", "latency=5", "macs=5ms"]
)
def test_other_targets_are_explained(text: str) -> None:
    with pytest.raises(ConfigError, match="expected what should remain, such as params=30%"):
        parse_target(text)


def test_targets_know_their_limit() -> None:
    assert parse_target("params=30%").limit(1000) == 300
    assert parse_target("params=30%").limit(1) == 1
    assert parse_target("macs=50").limit(1000) == 50
    assert parse_target("macs=5k").limit(1000) == 1000


@pytest.mark.parametrize(
    "facts",
    [
        {"kind": "params"},
        {"kind": "params", "fraction": 0.5, "absolute": 3},
        {"kind": "bytes", "fraction": 0.5},
        {"kind": "params", "fraction": 1.5},
        {"kind": "params", "absolute": 0},
    ],
)
def test_impossible_targets(facts: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^target "):
        Target(**facts)


def test_the_defaults_are_valid_and_survive_json() -> None:
    config = RunConfig(mean=(0.5,), input_shapes={"x": (1, 2)}, target="params=30%")
    stored = json.loads(json.dumps(config.to_dict()))
    assert stored["learning_rate"] == OPTIMIZERS["adam"]
    assert RunConfig.from_dict(stored).to_dict() == config.to_dict()
    assert config.goal == Target(kind="params", fraction=0.3)
    assert RunConfig().goal is None


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_has_a_rate(optimizer: str) -> None:
    assert RunConfig(optimizer=optimizer).rate > 0
    assert RunConfig(optimizer=optimizer, learning_rate=0.5).rate == 0.5


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"optimizer": "lion"}, "--optimizer lion: expected one of adam"),
        ({"method": "magic"}, "--method magic: expected one of"),
        ({"batch_size": 0}, "--batch-size 0: expected an integer, at least 1"),
        ({"epochs": 1.5}, "--epochs 1.5: expected an integer"),
        ({"clip": 0.0}, "--clip 0.0: expected a number, more than 0"),
        ({"weight_decay": float("inf")}, "--weight-decay inf"),
        ({"seed": -1}, "--seed -1"),
        ({"patience": 0}, "--patience 0"),
        ({"freeze": "["}, r"--freeze \[: not a regular expression"),
        ({"input_shapes": {"x": ()}}, "--input-shape x"),
        ({"target": "params=200%"}, "less than 100%"),
        ({"method": "taylor"}, "--method taylor: removes what matters least, and has to be told"),
        ({"method": "none", "target": "params=50%"}, "--method none removes nothing"),
        ({"method": "meprop", "target": "macs=50%"}, "--method meprop removes nothing"),
        ({"momentum": 0.5}, "--momentum: does nothing without --optimizer momentum"),
        ({"decay_vectors": True}, "--decay-vectors: does nothing without --weight-decay"),
        ({"target_schedule": "linear"}, "--target-schedule: does nothing without --target"),
    ],
)
def test_impossible_values_name_the_option(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RunConfig(**fields)


def test_unknown_fields_are_named() -> None:
    with pytest.raises(ConfigError, match="unknown option learning_rte; expected some of method"):
        RunConfig.from_dict({"learning_rte": 1})


def test_the_default_output_is_in_the_current_folder(folder: Path) -> None:
    assert output_path("/models/lenet.onnx") == Path("lenet.pruned.onnx")
    assert output_path("/models/lenet.onnx", "b.onnx") == Path("b.onnx")


def test_another_file_may_be_replaced(folder: Path) -> None:
    (folder / "m.onnx").write_text("in")
    (folder / "old.onnx").write_text("out")
    assert output_path("m.onnx", "old.onnx") == Path("old.onnx")
    with pytest.raises(ConfigError, match=r"would overwrite m\.onnx, which is read"):
        output_path("m.onnx", "m.onnx")
