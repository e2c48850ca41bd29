from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from graphs import array, model

from onnxprune.base import Fold, Merge, Plan
from onnxprune.errors import ConfigError
from onnxprune.graph.groups import analyze
from onnxprune.rewrite.prune import prune
from onnxprune.rewrite.recipe import Recipe, Round, record, replay

TEXT = """(float[N, 2] x) => (float[N, 3] y) <float[2, 6] w, float[6] b, float[6, 3] v>
{ h = MatMul(x, w) hb = Add(h, b) a = Relu(hb) y = MatMul(a, v) }"""
KEEP = np.array([True, False, True, True, False, True])


def made(network: ir.Model, plan: Plan) -> Round:
    kept = prune(network, analyze(network), plan).kept
    return record(network, kept, plan, unnamed=frozenset())


def written(done: Round) -> Recipe:
    text = Recipe(model="m.onnx", rounds=(done,)).to_json(indent=1)
    return Recipe.from_json(text, source="r.json")


def test_a_recipe_lists_kept_indices_as_ranges() -> None:
    content = json.loads(Recipe(model="m", rounds=(made(model(TEXT), plan()),)).to_json())
    entry = content["rounds"][0]["initializers"]
    assert entry["w"] == {"shape": [2, 6], "kept": {"1": "0,2-3,5"}}
    assert entry["v"] == {"shape": [6, 3], "kept": {"0": "0,2-3,5"}}
    assert entry.keys() == {"w", "b", "v"}


def plan() -> Plan:
    return Plan(keep={"w": KEEP})


def test_replaying_keeps_the_same_units_of_another_checkpoint() -> None:
    first, second = model(TEXT, seed=1), model(TEXT, seed=2)
    recipe = written(made(first, plan()))
    analysis = analyze(second)
    again = replay(second, analysis, recipe.rounds[0], source="r")
    assert again.keep["w"].tolist() == KEEP.tolist()
    smaller = prune(second, analysis, again).model
    assert np.array_equal(array(smaller, "w"), array(second, "w")[:, KEEP])


def test_folds_and_merges_are_repeated() -> None:
    network = model(TEXT)
    axis = analyze(network).group("w").consumers[0].axis
    exchange = Plan(
        keep={"w": KEEP},
        folds=(Fold(group="w", unit=1, values={axis: np.array([0.1 + 0.2])}),),
        merges=(Merge(group="w", victim=4, survivor=0, scale=1 / 3, offset=0.7),),
    )
    recipe = written(made(network, exchange))
    analysis = analyze(network)
    again = replay(network, analysis, recipe.rounds[0], source="r")
    first = prune(network, analysis, exchange).model
    second = prune(network, analysis, again).model
    for name in first.graph.initializers:
        assert np.array_equal(array(first, name), array(second, name))


def test_the_first_mismatch_is_named() -> None:
    done = made(model(TEXT), plan())
    other = model(TEXT.replace(" w", " u").replace("w)", "u)"))
    with pytest.raises(ConfigError, match="no initializer w; the recipe is for another"):
        replay(other, analyze(other), done, source="r")
    wider = model(TEXT.replace("6", "7"))
    with pytest.raises(ConfigError, match=r"w has shape \(2, 7\), the recipe expects \(2, 6\)"):
        replay(wider, analyze(wider), done, source="r")


def test_indices_that_cannot_go_alone_are_refused() -> None:
    network = model(TEXT)
    done = made(network, plan())
    text = Recipe(model="m", rounds=(done,)).to_json().replace("0,2-3,5", "0,2-3", 1)
    broken = Recipe.from_json(text, source="r").rounds[0]
    with pytest.raises(ConfigError, match="cannot keep just these indices"):
        replay(network, analyze(network), broken, source="r")
    residual = model(
        """(float[N, 2] x) => (float[N, 6] y) <float[2, 6] w, float[6] b>
        { h = MatMul(x, w) y = Add(h, b) }"""
    )
    ends = Round(shapes={"w": (2, 6)}, kept={a: i for a, i in done.kept.items() if a.value == "w"})
    with pytest.raises(ConfigError, match="w cannot keep just these indices of axis 1"):
        replay(residual, analyze(residual), ends, source="r")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "onnxprune.recipe/1"}', "3"])
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--recipe r.json: not a recipe; give"):
        Recipe.from_json(text, source="r.json")


def test_another_format_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"format x/2, expected onnxprune\.recipe/1"):
        Recipe.from_json('{"format": "x/2"}', source="r")


def test_weights_of_constant_nodes_are_recorded_with_their_sizes() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[4, 2] v>
        { h = MatMul(x, w) s = Constant <value = float[4] {1.0, 2.0, 3.0, 4.0}> ()
          m = Mul(h, s) y = MatMul(m, v) }"""
    )
    analysis = analyze(network)
    (group,) = analysis.groups
    plan = Plan(keep={group.name: np.array([True, False, True, False])})
    done = record(network, prune(network, analysis, plan).kept, plan, unnamed=frozenset())
    assert done.shapes == {"w": (3, 4), "s": (4,), "v": (4, 2)}
    assert replay(network, analysis, done, source="it").keep.keys() == plan.keep.keys()
