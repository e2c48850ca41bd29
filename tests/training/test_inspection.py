"""What `inspect` says of a model: groups, ceilings, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import model
from onnxprune_models import builders, path

import onnxprune
from onnxprune.base import Plan
from onnxprune.errors import ConfigError, InvalidModelError
from onnxprune.graph import cost
from onnxprune.graph.groups import analyze
from onnxprune.model import load, save
from onnxprune.reports import Inspection
from onnxprune.rewrite.prune import prune
from onnxprune.training.config import RunConfig
from onnxprune.training.problem import pose
from onnxprune.training.pruning import removable

Inspect = Callable[..., Inspection]
SHIPPED = ("mlp", "lenet", "resnet", "densenet", "vgg", "keras", "jax")


@pytest.fixture
def inspected(tmp_path: Path) -> Inspect:
    def work(network: ir.Model, **options: Any) -> Inspection:
        save(network, tmp_path / "model.onnx")
        return onnxprune.inspect(tmp_path / "model.onnx", **options)

    return work


@pytest.mark.parametrize("name", SHIPPED)
def test_totals_are_those_of_the_file_and_groups_add_up(name: str) -> None:
    network = load(path(f"digits_{name}"))
    found = onnxprune.inspect(path(f"digits_{name}"))
    analysis = analyze(network)
    assert found.parameters == cost.parameters(network)
    assert found.macs == cost.macs(network, analysis)
    assert {row.name: row.units for row in found.groups} == {
        group.name: group.size for group in analysis.groups
    }
    assert found.groups
    assert all(0 < row.parameters <= found.parameters for row in found.groups)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_ceiling_is_what_pruning_to_single_units_leaves(name: str) -> None:
    network = load(path(f"digits_{name}"))
    found = onnxprune.inspect(path(f"digits_{name}"))
    analysis = analyze(network)
    keep = {group.name: np.arange(group.size) == 0 for group in analysis.groups}
    least = prune(network, analysis, Plan(keep=keep)).model
    assert found.parameters - found.removable_parameters == cost.parameters(least)
    assert found.macs is not None
    assert found.removable_macs is not None
    assert found.macs - found.removable_macs == cost.macs(least, analyze(least))


def test_parameters_of_a_group_go_with_its_units(inspected: Inspect) -> None:
    found = inspected(builders.mlp([4, 6, 5, 3]))
    assert [(row.units, row.parameters) for row in found.groups] == [
        (6, 6 * (4 + 1 + 5)),
        (5, 5 * (6 + 1 + 3)),
    ]
    assert all(row.exact for row in found.groups)
    assert found.parameters == 4 * 6 + 6 + 6 * 5 + 5 + 5 * 3 + 3
    assert found.macs == 4 * 6 + 6 * 5 + 5 * 3


def test_axes_that_stay_say_why(inspected: Inspect) -> None:
    found = inspected(
        model(
            """(float[N, 4] x) => (float[N, 3] y) <float[4, 6] w, float[6, 3] v> {
            h = MatMul(x, w)  s = Softmax(h)  y = MatMul(s, v) }"""
        )
    )
    reasons = {row.axis: row.reason for row in found.frozen}
    assert reasons["w[0]"] == "graph input"
    assert reasons["v[1]"] == "graph output"
    assert {row.axis: row.size for row in found.frozen}["v[1]"] == 3


def test_operators_without_a_rule_are_named(inspected: Inspect) -> None:
    network = model(
        """(float[N, 4] x) => (float[N, 3] y) <float[4, 6] w, float[6, 3] v> {
        h = MatMul(x, w)  d = Det2(h)  y = MatMul(d, v) }"""
    )
    nodes = {node.op_type: node for node in network.graph}
    nodes["Det2"].domain = "example"
    network.graph.opset_imports["example"] = 1
    nodes["Det2"].outputs[0].shape = ir.Shape([None, 6])
    nodes["Det2"].outputs[0].dtype = ir.DataType.FLOAT
    found = inspected(network)
    row = next(row for row in found.frozen if row.axis == "w[1]")
    assert (row.reason, row.node) == ("operator without a rule", "d")
    assert "Det2" in row.detail
    assert found.groups == ()


def test_parameters_in_front_of_an_operator_without_a_gradient_are_listed(
    inspected: Inspect,
) -> None:
    network = model(
        """(float[N, 4] x) => (float[N, 2] y)
        <float[4, 3] a, float[3, 2] b, bool[3] kept = {1, 1, 1}> {
        h = MatMul(x, a)  c = Compress<axis=1>(h, kept)  y = MatMul(c, b) }"""
    )
    result = inspected(network)
    assert result.trained == ("b",)
    assert ("a", "no gradient through Compress (c)") in result.untrained


@pytest.mark.ort
def test_how_a_batch_of_one_size_is_trained_is_said(inspected: Inspect) -> None:
    text = "(float[2, 4] x) => (float[2, 3] y) <float[4, 3] w> {{ {} y = MatMul(s, w) }}"
    alone = inspected(model(text.format("s = Relu(x)")), threads=1)
    assert alone.notes == (
        "takes batches of 2 only; a copy that takes any gives the same results, and is what is "
        "trained",
    )
    mixed = inspected(model(text.format("m = ReduceMean<axes = [0]>(x)  s = Sub(x, m)")))
    assert mixed.notes == (
        "takes batches of 2 only, and no copy that takes others was found: trained in such batches",
    )
    with pytest.raises(ConfigError, match="device 'tpu': unknown"):
        inspected(model(text.format("s = Relu(x)")), provider="tpu")


def test_parameters_that_no_output_depends_on_are_listed(inspected: Inspect) -> None:
    network = model(
        """(float[N, 4] x) => (float[N, 2] y, int64[N] label)
        <float[4, 2] a, float[4, 3] b> {
        y = MatMul(x, a)  h = MatMul(x, b)  label = ArgMax<axis=1, keepdims=0>(h) }"""
    )
    result = inspected(network)
    assert result.trained == ("a",)
    assert result.untrained == (("b", "the loss does not depend on it"),)


def test_what_is_trained_follows_the_patterns(inspected: Inspect) -> None:
    network = builders.mlp([4, 6, 3])
    found = inspected(network)
    assert set(found.trained) == set(network.graph.initializers)
    assert found.untrained == ()
    name = next(iter(network.graph.initializers))
    frozen = inspected(network, freeze=f"^{name}$")
    assert set(found.trained) - set(frozen.trained) == {name}
    assert frozen.untrained == ((name, "frozen on request"),)


def test_an_input_shape_opens_what_was_unknown(inspected: Inspect) -> None:
    network = model(
        """(float[N, 1, H, W] x) => (float[N, 3] y)
        <float[4, 1, 3, 3] w, float[144, 3] v> {
        c = Conv(x, w)  f = Flatten(c)  y = MatMul(f, v) }"""
    )
    assert inspected(network, input_shapes={"x": (1, 1, 8, 8)}).groups[0].units == 4


@pytest.mark.parametrize("name", SHIPPED)
def test_json_holds_all_of_it(name: str) -> None:
    found = onnxprune.inspect(path(f"digits_{name}"))
    again = json.loads(found.to_json())
    assert again == found.to_dict()
    assert again["removable_parameters"] == found.removable_parameters
    assert [row["name"] for row in again["groups"]] == [row.name for row in found.groups]
    assert [row["reason"] for row in again["frozen"]] == [row.reason for row in found.frozen]


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="no such file"):
        onnxprune.inspect(tmp_path / "nothing.onnx")
    with pytest.raises(ConfigError, match="--input-shape z: no such input"):
        onnxprune.inspect(path("digits_mlp"), input_shapes={"z": (1, 64)})
    with pytest.raises(ConfigError, match="not a regular expression"):
        onnxprune.inspect(path("digits_mlp"), freeze="(")


@pytest.mark.parametrize("shapes", [{}, {"x": (1, 3)}])
def test_groups_are_those_that_training_finds(
    inspected: Inspect, tmp_path: Path, shapes: dict[str, Any]
) -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[4, 4] v, float[4, 2] u> {
        h = MatMul(x, w)  i = Mul(h, ones)  a = Relu(i)  g = MatMul(a, v)  k = Mul(g, ones)
        y = MatMul(k, u) }""",
        ones=np.ones(4, np.float32),
    )
    found = inspected(network, input_shapes=shapes)
    config = RunConfig(input_shapes=shapes)
    data = (np.zeros((8, 3), np.float32), np.arange(8) % 2)
    problem = pose(tmp_path / "model.onnx", data, validation=None, config=config)
    groups = removable(problem.model, config).groups
    assert [(row.name, row.units) for row in found.groups] == [(g.name, g.size) for g in groups]
    assert len(found.groups) == 2
