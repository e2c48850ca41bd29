from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from checks import agreeing, changed
from graphs import array, feeds, model, node_types

from onnxprune.base import Array, Axis, Fold, Merge, Plan
from onnxprune.errors import PlanError
from onnxprune.graph.groups import Analysis, analyze
from onnxprune.model import external_files, load, save
from onnxprune.rewrite.prune import prune, take_moments
from onnxprune.runtime.session import Runner
from onnxprune.runtime.verify import compare

TEXT = """(float[N, 3] x) => (float[N, 2] y)
<float[3, 4] w, float[4] b, float[4, 2] v, float[2] c> {
    g = Gemm(x, w, b)
    h = Relu(g)
    y = Gemm(h, v, c)
}"""
CONVS = """(float[N, 3, 5, 5] x) => (float[N, 2, 5, 5] y)
<float[4, 3, 1, 1] w, float[2, 4, %s] v> {
    h = Conv(x, w)
    y = Conv<%s>(h, v)
}"""


def keeping(analysis: Analysis, *units: int, group: str = "w") -> dict[str, np.ndarray]:
    return {group: np.isin(np.arange(analysis.group(group).size), units)}


def folded(analysis: Analysis, unit: int, number: float, group: str = "w") -> Fold:
    axes = {consumer.axis for consumer in analysis.group(group).consumers}
    member = analysis.group(group).member
    values = {axis: np.full(member(axis).index.shape[1], number) for axis in axes}
    return Fold(group=group, unit=unit, values=values)


def test_a_removal_slices_every_parameter_of_the_unit() -> None:
    network = model(TEXT)
    analysis = analyze(network)
    smaller = prune(network, analysis, Plan(keep=keeping(analysis, 0, 2))).model
    np.testing.assert_array_equal(array(smaller, "w"), array(network, "w")[:, [0, 2]])
    np.testing.assert_array_equal(array(smaller, "b"), array(network, "b")[[0, 2]])
    np.testing.assert_array_equal(array(smaller, "v"), array(network, "v")[[0, 2]])
    np.testing.assert_array_equal(array(smaller, "c"), array(network, "c"))


def test_the_model_given_stays_as_it_is() -> None:
    network = model(TEXT)
    before = ir.to_proto(network).SerializeToString()
    analysis = analyze(network)
    prune(network, analysis, Plan(keep=keeping(analysis, 1), folds=(folded(analysis, 0, 2.0),)))
    assert ir.to_proto(network).SerializeToString() == before


@pytest.mark.parametrize("keep", [{}, {"w": np.ones(4, np.bool_)}], ids=["nothing", "all kept"])
def test_an_empty_plan_gives_the_same_model_back(keep: dict[str, np.ndarray]) -> None:
    network = model(TEXT)
    result = prune(network, analyze(network), Plan(keep=keep))
    assert result.model is network
    assert result.kept == {}


def test_everything_beside_the_weights_stays() -> None:
    network = model(TEXT, opset=15, ir_version=9)
    network.metadata_props["note"] = "hello"
    network.producer_name = "somebody"
    network.graph.node(1).name, network.graph.node(1).doc_string = "relu", "why"
    network.graph.node(1).metadata_props["line"] = "3"
    analysis = analyze(network)
    smaller = prune(network, analysis, Plan(keep=keeping(analysis, 0, 2))).model
    before, after = ir.to_proto(network), ir.to_proto(smaller)
    for part in ("input", "output", "node", "name"):
        assert getattr(before.graph, part) == getattr(after.graph, part)
    for part in ("ir_version", "opset_import", "metadata_props", "producer_name"):
        assert getattr(before, part) == getattr(after, part)
    assert after.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    names = [tensor.name for tensor in before.graph.initializer]
    assert [tensor.name for tensor in after.graph.initializer] == names


def test_stale_sizes_of_intermediate_values_are_dropped() -> None:
    network = model(TEXT)
    network.graph.node(0).outputs[0].shape = ir.Shape(["N", 4])
    network.graph.node(0).outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    assert "g" in {info.name for info in ir.to_proto(network).graph.value_info}
    analysis = analyze(network)
    smaller = prune(network, analysis, Plan(keep=keeping(analysis, 0, 2))).model
    described = {info.name for info in ir.to_proto(smaller).graph.value_info}
    assert described <= set(smaller.graph.initializers)


@pytest.mark.ort
def test_a_fold_moves_the_constant_into_the_bias() -> None:
    network = model(TEXT)
    analysis = analyze(network)
    plan = Plan(keep=keeping(analysis, 0, 1, 3), folds=(folded(analysis, 2, 0.5),))
    smaller = agreeing(network, analysis, plan, tolerance=1e-5)
    expected = array(network, "c") + 0.5 * array(network, "v")[2]
    np.testing.assert_allclose(array(smaller, "c"), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.ort
def test_a_unit_that_is_constant_is_folded_exactly() -> None:
    b = np.array([0.1, 3.0, -0.2, 0.4], np.float32)
    w = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    w[:, 1] = 0
    network = model(TEXT, w=w, b=b)
    analysis = analyze(network)
    plan = Plan(keep=keeping(analysis, 0, 2, 3), folds=(folded(analysis, 1, 3.0),))
    smaller = prune(network, analysis, plan).model
    assert compare(network, smaller, feeds(network), tolerance=1e-6).holds


@pytest.mark.ort
def test_a_merge_adds_the_duplicate_to_its_survivor() -> None:
    network = model(TEXT)
    analysis = analyze(network)
    merge = Merge(group="w", victim=2, survivor=0, scale=-0.5, offset=2.0)
    plan = Plan(keep=keeping(analysis, 0, 1, 3), merges=(merge,))
    smaller = agreeing(network, analysis, plan, tolerance=1e-5)
    v = array(network, "v")
    np.testing.assert_allclose(array(smaller, "v")[0], v[0] - 0.5 * v[2], rtol=1e-6, atol=1e-7)


BIASES = {
    "none": ("y = Gemm(h, v)", {}),
    "vector": ("y = Gemm<alpha = 0.5, beta = 2.0>(h, v, c)", {"c": np.ones(2)}),
    "row": ("y = Gemm<alpha = 0.5, beta = 2.0>(h, v, c)", {"c": np.ones((1, 2))}),
    "scalar": ("y = Gemm(h, v, c)", {"c": np.float32(0.5)}),
    "one": ("y = Gemm(h, v, c)", {"c": np.ones(1)}),
    "beta 0": ("y = Gemm<beta = 0.0>(h, v, c)", {"c": np.ones(2)}),
    "alone": ("y = MatMul(h, v)", {}),
    "add": ("p = MatMul(h, v) y = Add(p, c)", {"c": np.ones(2)}),
    "add in front": ("p = MatMul(h, v) y = Add(c, p)", {"c": np.ones((1, 2))}),
    "add of a scalar": ("p = MatMul(h, v) y = Add(p, c)", {"c": np.float32(0.5)}),
    "read twice": ("p = MatMul(h, v) q = Add(p, c) y = Mul(p, q)", {"c": np.ones(2)}),
}


@pytest.mark.ort
@pytest.mark.parametrize("form", BIASES)
def test_a_constant_finds_its_way_into_every_form_of_bias(form: str) -> None:
    body, constants = BIASES[form]
    text = f"""(float[N, 3] x) => (float[N, 2] y) <float[3, 4] w, float[4, 2] v> {{
        h = MatMul(x, w)
        {body}
    }}"""
    values = {name: np.asarray(value, np.float32) for name, value in constants.items()}
    network = model(text, **values)
    for number in range(2):
        analysis = analyze(network)
        keep = keeping(analysis, *range(analysis.group("w").size - 1))
        fold = folded(analysis, analysis.group("w").size - 1, 1.5 + number)
        network = agreeing(network, analysis, Plan(keep=keep, folds=(fold,)), tolerance=1e-5)
    assert network.graph.outputs[0].name == "y"


@pytest.mark.ort
def test_a_bias_that_two_nodes_share_changes_for_one_only() -> None:
    network = model("""(float[N, 3] x) => (float[N, 2] y)
    <float[3, 4] w, float[4, 2] v, float[3, 2] u, float[2] c> {
        h = MatMul(x, w)
        p = Gemm(h, v, c)
        q = Gemm(x, u, c)
        y = Mul(p, q)
    }""")
    analysis = analyze(network)
    plan = Plan(keep=keeping(analysis, 0, 1), folds=(folded(analysis, 2, 1.0),))
    smaller = agreeing(network, analysis, plan, tolerance=1e-5)
    np.testing.assert_array_equal(array(smaller, "c"), array(network, "c"))


@pytest.mark.ort
def test_a_weight_that_two_nodes_share_is_merged_in_both() -> None:
    network = model("""(float[N, 3] x) => (float[N, 2] y)
    <float[3, 4] w, float[3, 4] u, float[4, 2] v> {
        g = MatMul(x, w)
        h = MatMul(x, u)
        p = MatMul(g, v)
        q = MatMul(h, v)
        y = Add(p, q)
    }""")
    analysis = analyze(network)
    merge = Merge(group="w", victim=3, survivor=1, scale=0.7)
    plan = Plan(keep=keeping(analysis, 0, 1), folds=(folded(analysis, 2, 1.0),), merges=(merge,))
    agreeing(network, analysis, plan, tolerance=1e-5)


@pytest.mark.ort
def test_a_fold_into_an_unpadded_conv_makes_a_bias() -> None:
    network = model(CONVS % ("3, 3", "strides = [1, 1]"))
    network.graph.outputs[0].shape = ir.Shape(["N", 2, 3, 3])
    analysis = analyze(network)
    plan = Plan(keep=keeping(analysis, 0, 1, 3), folds=(folded(analysis, 2, 0.5),))
    smaller = agreeing(network, analysis, plan, tolerance=1e-5)
    assert len(smaller.graph.node(1).inputs) == 3


@pytest.mark.ort
def test_a_fold_into_a_padded_conv_fills_the_padding_too() -> None:
    text = (CONVS % ("3, 3", "pads = [1, 1, 1, 1]")).replace("(x, w)", "(x, w, b)")
    w = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    w[2] = 0  # the unit is 0.5 everywhere, but 0 stands beside it in the padding
    network = model(text, w=w, b=np.array([0, 0, 0.5, 0], np.float32))
    analysis = analyze(network)
    plan = Plan(keep=keeping(analysis, 0, 1, 3), folds=(folded(analysis, 2, 0.5),))
    smaller = agreeing(network, analysis, plan, tolerance=1e-5)
    expected, found = (Runner(m).run(feeds(network))["y"] for m in (network, smaller))
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-4, atol=1e-5)
    assert np.abs(found - expected).max() > 0.01


@pytest.mark.ort
def test_a_fold_behind_a_flatten_differs_by_position() -> None:
    network = model("""(float[N, 2, 2, 2] x) => (float[N, 2] y)
    <float[3, 2, 1, 1] w, float[12, 2] v> {
        h = Conv(x, w)
        f = Flatten(h)
        y = Gemm(f, v)
    }""")
    analysis = analyze(network)
    (consumer,) = analysis.group("w").consumers
    fold = Fold(group="w", unit=1, values={consumer.axis: np.array([1.0, 2.0, 3.0, 4.0])})
    merge = Merge(group="w", victim=2, survivor=0, scale=2.0, offset=-1.0)
    plan = Plan(keep=keeping(analysis, 0), folds=(fold,), merges=(merge,))
    agreeing(network, analysis, plan, tolerance=1e-5)


def test_what_cannot_take_over_a_constant_says_so() -> None:
    network = model("""(float[N, 4, 3, 3] x) => (float[N, 2, 3, 3] y)
    <float[4, 4, 1, 1] w, float[4, 2, 1, 1] v> {
        h = Conv(x, w)
        y = ConvTranspose(h, v)
    }""")
    analysis = analyze(network)
    plan = Plan(keep=keeping(analysis, 0, 1), folds=(folded(analysis, 2, 1.0),))
    with pytest.raises(PlanError, match="y: ConvTranspose cannot take over constants") as caught:
        prune(network, analysis, plan)
    assert caught.value.consumer.node == "y"


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"z": np.ones(4, np.bool_)}, "no group z; inspect lists the groups"),
        ({"w": np.ones(3, np.bool_)}, r"expected a mask of \(4,\) bool, got \(3,\) bool"),
        ({"w": np.ones(4, np.int64)}, r"expected a mask of \(4,\) bool, got \(4,\) int64"),
        ({"w": np.zeros(4, np.bool_)}, "the last unit would go; keep one"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(keep: dict[str, Array], message: str) -> None:
    network = model(TEXT)
    with pytest.raises(PlanError, match=message):
        prune(network, analyze(network), Plan(keep=keep))


def test_a_plan_that_contradicts_itself_is_refused() -> None:
    network = model(TEXT)
    analysis = analyze(network)
    keep = keeping(analysis, 0, 1)
    with pytest.raises(PlanError, match="unit 0 of w is folded or merged but kept"):
        prune(network, analysis, Plan(keep=keep, folds=(folded(analysis, 0, 1.0),)))
    merge = Merge(group="w", victim=2, survivor=3)
    with pytest.raises(PlanError, match="unit 3 of w is a survivor but goes"):
        prune(network, analysis, Plan(keep=keep, merges=(merge,)))
    with pytest.raises(PlanError, match="unit 2 of w is folded or merged but kept"):
        prune(network, analysis, Plan(keep={}, merges=(merge,)))


@pytest.mark.ort
def test_initializers_that_are_listed_as_inputs_stay_so() -> None:
    network = model(TEXT, ir_version=3, opset=9)
    for value in network.graph.initializers.values():
        network.graph.inputs.append(value)
    analysis = analyze(network)
    plan = Plan(keep=keeping(analysis, 0, 3))
    smaller = agreeing(network, analysis, plan, tolerance=1e-5)
    inputs = {value.name: value for value in smaller.graph.inputs}
    assert list(inputs) == ["x", "w", "b", "v", "c"]
    assert inputs["w"].shape == ir.Shape([3, 2])


@pytest.mark.ort
def test_a_new_initializer_is_listed_too_where_ir_3_wants_it() -> None:
    network = model(TEXT.replace("y = Gemm(h, v, c)", "y = MatMul(h, v)"), ir_version=3, opset=9)
    for value in network.graph.initializers.values():
        network.graph.inputs.append(value)
    analysis = analyze(network)
    plan = Plan(keep=keeping(analysis, 0, 3), folds=(folded(analysis, 1, 1.0),))
    smaller = agreeing(network, analysis, plan, tolerance=1e-5)
    assert {value.name for value in smaller.graph.inputs} >= set(smaller.graph.initializers)


@pytest.mark.ort
def test_weights_in_constant_nodes_are_sliced() -> None:
    network = ir.from_onnx_text("""<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 2] x) => (float[N, 2] y) {
        w = Constant<value = float[2, 3] {1, 2, 3, 4, 5, 6}>()
        b = Constant<value_floats = [0.1, 0.2, 0.3]>()
        v = Constant<value = float[3, 2] {1, -2, 3, -4, 5, -6}>()
        h = MatMul(x, w)
        a = Add(h, b)
        y = MatMul(a, v)
    }""")
    analysis = analyze(network)
    assert [group.name for group in analysis.groups] == ["w"]
    plan = Plan(keep=keeping(analysis, 0, 2), folds=(folded(analysis, 1, 1.0),))
    smaller = agreeing(network, analysis, plan, tolerance=1e-5)
    assert node_types(smaller)[:3] == ["Constant"] * 3
    assert changed(network, smaller)


@pytest.mark.ort
def test_a_model_with_external_data_is_pruned_and_written_as_one_file(tmp_path: Path) -> None:
    file = tmp_path / "big.onnx"
    ir.save(model(TEXT), file, external_data="big.data", size_threshold_bytes=0)
    network = load(file)
    assert external_files(file)
    analysis = analyze(network)
    plan = Plan(keep=keeping(analysis, 0, 3))
    smaller = agreeing(network, analysis, plan, tolerance=1e-5)
    save(smaller, tmp_path / "small.onnx")
    again = load(tmp_path / "small.onnx")
    assert not external_files(tmp_path / "small.onnx")
    assert not (tmp_path / "small.onnx.data").exists()
    assert compare(smaller, again, feeds(network), tolerance=0.0).holds


@pytest.mark.ort
def test_a_computed_reshape_follows() -> None:
    network = model(
        """(float[N, 3, 4, 4] x) => (float[N, 2] y) <float[5, 3, 1, 1] w, float[80, 2] v> {
            h = Conv(x, w)
            s = Shape(h)
            n = Gather(s, zero)
            t = Concat<axis = 0>(n, rest)
            f = Reshape(h, t)
            y = MatMul(f, v)
        }""",
        zero=[0],
        rest=[80],
    )
    for number in (4, 3, 2):
        analysis = analyze(network)
        plan = Plan(keep=keeping(analysis, *range(number)))
        network = agreeing(network, analysis, plan, tolerance=1e-5)
    assert node_types(network).count("Where") == 2  # one pins the Shape, one mends the target


def test_moments_are_sliced_like_their_parameters() -> None:
    network = model(TEXT)
    analysis = analyze(network)
    plan = Plan(keep=keeping(analysis, 0, 2), folds=(folded(analysis, 1, 1.0),))
    result = prune(network, analysis, plan)
    shapes = {"w": (3, 4), "b": (4,), "v": (4, 2)}
    m = {name: np.arange(np.prod(shape)).reshape(shape) for name, shape in shapes.items()}
    after = {name: array(result.model, name) for name in ("w", "b", "v", "c")}
    moments = take_moments({"m": m}, result.kept, after)["m"]
    np.testing.assert_array_equal(moments["w"], m["w"][:, [0, 2]])
    np.testing.assert_array_equal(moments["v"], m["v"][[0, 2]])
    np.testing.assert_array_equal(moments["c"], np.zeros(2, np.float32))
    assert {name: value.shape for name, value in moments.items()} == {
        name: value.shape for name, value in after.items()
    }


def test_kept_indices_are_in_the_old_numbering() -> None:
    network = model(TEXT)
    analysis = analyze(network)
    result = prune(network, analysis, Plan(keep=keeping(analysis, 1, 3)))
    assert result.kept[Axis("w", 1)].tolist() == [1, 3]
    assert result.kept[Axis("v", 0)].tolist() == [1, 3]


def test_groups_of_one_parameter_keep_their_names_when_units_go() -> None:
    network = model(
        """(float[N, 3] x) => (float[N, 2] y, float[N, 2] z)
        <float[3, 6] w, float[3, 2] v, float[6, 2] u> {
            h = MatMul(x, w)
            a = Gather<axis = 1>(h, even)
            y = MatMul(a, v)
            z = MatMul(h, u)
        }""",
        even=[0, 2, 4],
    )
    before = analyze(network)
    taken = next(group for group in before.groups if group.member(Axis("h", 1)).index[0] == 0)
    smaller = prune(network, before, Plan(keep=keeping(before, 1, 2, group=taken.name))).model
    after = analyze(smaller)
    assert [group.name for group in after.groups] == [group.name for group in before.groups]
    assert after.group(taken.name).size == 2  # though the other group now has the first unit


def test_what_is_left_of_weights_in_a_file_is_analyzed_unread(tmp_path: Path) -> None:
    network = model(
        """(float[N, 100] x) => (float[N, 60] y) <float[100, 200] w, float[200, 60] v>
        { h = MatMul(x, w) a = Relu(h) y = MatMul(a, v) }"""
    )
    save(network, tmp_path / "a.onnx", external=True)
    apart = load(tmp_path / "a.onnx")
    keep = {"w": np.arange(200) % 2 == 0}
    smaller = prune(apart, analyze(apart), Plan(keep=keep)).model
    (tmp_path / "a.onnx.data").unlink()
    assert [group.size for group in analyze(smaller).groups] == [100]
    with pytest.raises(FileNotFoundError):
        array(smaller, "w")
