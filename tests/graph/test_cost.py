from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import model
from hypothesis import given
from onnxprune_models import builders
from strategies import networks, random_plan

from onnxprune.graph import cost
from onnxprune.graph.groups import analyze
from onnxprune.graph.order import kept_indices
from onnxprune.graph.shapes import with_input_shapes
from onnxprune.rewrite.prune import prune


@pytest.mark.parametrize(
    ("network", "parameters", "macs"),
    [
        (builders.lenet5(), 431_080, 2_293_000),
        (builders.mlp((784, 300, 100, 10)), 266_610, 266_200),
        (builders.mlp((784, 300, 100, 10), form="matmul"), 266_610, 266_200),
        (builders.resnet(20), 274_042, 40_813_184),
        (builders.resnet(20, shortcut="pad"), 271_098, 40_551_040),
        (builders.vgg(), 552_362, 38_896_896),
        (builders.vgg(((8, 8), (12,)), hidden=None, image=8), 1_926, 64_632),
        (builders.densenet(), 78_550, 30_432_132),
    ],
    ids=["lenet5", "gemm", "matmul", "resnet", "resnet-pad", "vgg", "vgg-mean", "densenet"],
)
def test_costs_of_known_networks(network: ir.Model, parameters: int, macs: int) -> None:
    assert cost.parameters(network) == parameters
    assert cost.macs(network, analyze(network)) == macs


@given(networks())
def test_the_cost_of_what_is_left_is_the_cost_of_the_pruned_model(network: ir.Model) -> None:
    analysis = analyze(network)
    plan = random_plan(network, analysis, 0, exchange=False)
    kept = kept_indices(analysis.groups, plan.keep, analysis.shapes)
    left = cost.sizes_after(analysis.shapes, kept)
    smaller = prune(network, analysis, plan).model
    assert cost.parameters(network, left) == cost.parameters(smaller)
    assert cost.macs(network, analysis, left) == cost.macs(smaller, analyze(smaller))


@given(networks())
def test_remaining_counts_as_the_whole_model_is_counted(network: ir.Model) -> None:
    analysis = analyze(network)
    for kind in ("params", "macs"):
        remaining = cost.Remaining(network, analysis, kind)
        for seed in range(2):
            plan = random_plan(network, analysis, seed, exchange=False)
            kept = kept_indices(analysis.groups, plan.keep, analysis.shapes)
            left = cost.sizes_after(analysis.shapes, kept)
            assert remaining(plan.keep) == (
                cost.parameters(network, left)
                if kind == "params"
                else cost.macs(network, analysis, left)
            )


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(
    ("network", "sizes"),
    [
        (builders.lenet5(), (1, 28, 28)),
        (builders.mlp((784, 300, 100, 10)), (784,)),
        (builders.mlp((784, 300, 100, 10), form="matmul"), (784,)),
    ],
    ids=["conv", "gemm", "matmul"],
)
def test_macs_are_of_one_example_whatever_the_batch(
    network: ir.Model, sizes: tuple[int, ...], batch: int
) -> None:
    fixed = with_input_shapes(network, {"x": (batch, *sizes)})
    assert cost.macs(fixed, analyze(fixed)) == cost.macs(network, analyze(network))


def test_a_first_size_that_no_output_shares_is_no_batch() -> None:
    network = model(
        "(float[4, 3] x) => (float[2, 5] y) <float[2, 4] a, float[3, 5] w> "
        "{ h = MatMul(a, x) y = MatMul(h, w) }"
    )
    assert cost.macs(network, analyze(network)) == 2 * 4 * 3 + 2 * 3 * 5


def test_the_cost_of_a_unit_is_all_that_goes_with_it() -> None:
    network = model("""(float[N, 3] x) => (float[N, 2] y)
    <float[3, 4] w, float[4] b, float[4, 2] v, float[2] c> {
        h = Gemm(x, w, b)
        y = Gemm(h, v, c)
    }""")
    assert cost.unit_parameters(network, analyze(network)) == {"w": 3 + 1 + 2}


def test_kept_indices_join_groups_that_share_an_axis() -> None:
    network = model("""(float[N, 3] x) => (float[N, 2] y)
    <float[3, 2] w, float[3, 3] u, float[5, 2] v> {
        a = MatMul(x, w)
        b = MatMul(x, u)
        h = Concat<axis = 1>(a, b)
        y = MatMul(h, v)
    }""")
    analysis = analyze(network)
    keep = {"w": np.array([False, True]), "u": np.array([True, True, False])}
    kept = kept_indices(analysis.groups, keep, analysis.shapes)
    by_name = {str(axis): indices.tolist() for axis, indices in kept.items()}
    assert by_name["h[1]"] == by_name["v[0]"] == [1, 2, 3]
    assert by_name["a[1]"] == [1]


def test_the_ceiling_leaves_one_unit_per_group() -> None:
    network = builders.mlp((4, 8, 8, 3))
    parameters, macs = cost.ceiling(network, analyze(network))
    assert parameters == 4 + 1 + 1 + 1 + 3 + 3
    assert macs == 4 + 1 + 3


def test_scalars_and_integers_are_no_parameters() -> None:
    network = model(
        """(float[N, 4] x) => (float[N, 4] y) <float[4, 4] w> {
            h = MatMul(x, w)
            s = Mul(h, half)
            y = Reshape(s, t)
        }""",
        half=np.float32(0.5),
        t=[-1, 4],
    )
    assert cost.parameters(network) == 16
