"""Pruning files without training, through the library's entry."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import array, model

import onnxprune
from onnxprune.errors import ConfigError, MethodError, ModelError, RuntimeUnavailableError
from onnxprune.graph.cost import macs, parameters
from onnxprune.graph.groups import analyze
from onnxprune.methods.allocation import ALLOCATIONS
from onnxprune.methods.importance import WITHOUT_GRADIENTS
from onnxprune.model import load, save
from onnxprune.reports import render
from onnxprune.rewrite.recipe import METADATA
from onnxprune.runtime.session import Device, Runner, lowered_note
from onnxprune.runtime.verify import compare

Prune = Callable[..., Any]

RESIDUAL = """(float[N, 2, 8, 8] image) => (float[N, 4] scores)
<float[8, 2, 3, 3] a, float[8, 8, 3, 3] b, float[8, 8, 3, 3] c, float[8, 4] u>
{ p = Conv<pads = [1, 1, 1, 1]>(image, a) q = Conv<pads = [1, 1, 1, 1]>(p, b) s = Add(q, p)
  r = Conv<pads = [1, 1, 1, 1]>(s, c) t = Add(r, s) g = GlobalAveragePool(t)
  f = Flatten(g) scores = MatMul(f, u) }"""
CONVNET = """(float[N, 2, 8, 8] image) => (float[N, 4] scores)
<float[8, 2, 3, 3] w, float[8] b, float[12, 8, 3, 3] v, float[12] s, float[12] t, float[12] m,
 float[12] var, float[12, 4] u>
{ h = Conv<pads = [1, 1, 1, 1]>(image, w, b) a = Relu(h) k = Conv(a, v)
  n = BatchNormalization(k, s, t, m, var) r = Relu(n) g = GlobalAveragePool(r) f = Flatten(g)
  scores = MatMul(f, u) }"""
IMAGES = np.random.default_rng(0).normal(size=(50, 2, 8, 8)).astype(np.float32)
LABELS = np.arange(50) % 4


@pytest.fixture
def prune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prune:
    """Prunes a model in an empty folder, with one thread."""
    monkeypatch.chdir(tmp_path)

    def run(network: ir.Model | Path, *args: Any, **options: Any) -> Any:
        file = network if isinstance(network, Path) else tmp_path / "net.onnx"
        if isinstance(network, ir.Model):
            save(network, file)
        return onnxprune.prune_file(file, *args, threads=1, **options)

    return run


@pytest.fixture
def lenet() -> Path:
    return Path(str(files("onnxprune_models"))) / "digits_lenet.onnx"


@pytest.mark.parametrize("importance", WITHOUT_GRADIENTS)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_budgets_are_met_and_groups_keep_a_unit(
    prune: Prune, importance: str, allocation: str
) -> None:
    network = model(CONVNET)
    smaller, report = prune(
        network,
        (IMAGES, None),
        target="params=60%",
        importance=importance,
        allocation=allocation,
    )
    assert report.reached
    assert 0.5 < report.achieved <= 0.6
    assert parameters(smaller) == report.after.parameters
    assert all(group.size for group in analyze(smaller).groups)
    assert any("largest difference to the model given" in note for note in report.notes)


def test_macs_can_be_the_target(prune: Prune) -> None:
    smaller, report = prune(model(CONVNET), target="macs=50%")
    assert report.reached
    assert macs(smaller, analyze(smaller)) <= 0.5 * report.before.macs
    assert report.before.units == sum(group.size for group in analyze(model(CONVNET)).groups)
    assert report.after.units == sum(group.size for group in analyze(smaller).groups)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which models take as long as they have parameters, and stretches by width."""

    def by_size(models: Any, *_arguments: Any, **_options: Any) -> list[float]:
        return [parameters(each) / 1000 for each in models]

    def falling(works: Any, **_options: Any) -> list[float]:
        return [float(len(works) - number) for number in range(len(works))]

    monkeypatch.setattr("onnxprune.oneshot.target.latencies", by_size)
    monkeypatch.setattr("onnxprune.oneshot.run.latencies", by_size)
    monkeypatch.setattr("onnxprune.training.timing.taking_turns", falling)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("allocation", ["auto", "uniform"])
def test_a_latency_is_measured_again_and_more_goes_while_it_is_too_long(
    prune: Prune, allocation: str
) -> None:
    """The table knows nothing of parameters, the clock counts them: five tries come close."""
    network = model(CONVNET)
    options = {"target": "latency=60%", "allocation": allocation}
    _, report = prune(network, (IMAGES, None), **options)
    assert report.before.latency_ms == report.before.parameters / 1000
    assert report.achieved == pytest.approx(report.after.parameters / report.before.parameters)
    assert report.reached is (report.achieved <= 0.6)
    assert report.achieved < 0.7
    used = "gain" if allocation == "auto" else "uniform"
    assert any(note.endswith(f"allocation {used}") for note in report.notes)


@pytest.mark.usefixtures("clock")
def test_a_latency_in_milliseconds_and_one_out_of_reach(prune: Prune, tmp_path: Path) -> None:
    network = model(CONVNET)
    _, report = prune(network, target="latency=5ms")  # of 6, by the table
    assert report.reached
    assert report.after.latency_ms <= 5 / 6 * report.before.latency_ms
    with pytest.raises(ConfigError, match=r"latency=0.1ms: out of reach; .* when every group"):
        prune(network, target="latency=100us", output=tmp_path / "none.onnx")
    with pytest.raises(ConfigError, match="needs a runtime that holds the whole model"):
        prune(network, target="latency=50%", verify="parts", output=tmp_path / "none.onnx")
    assert not (tmp_path / "none.onnx").exists()


def accuracy_of(report: Any) -> tuple[float, float]:
    return report.before.metrics["accuracy"], report.after.metrics["accuracy"]


@pytest.mark.parametrize("target", [None, "params=10%"])
def test_no_more_goes_than_the_metric_can_bear(
    prune: Prune, lenet: Path, target: str | None
) -> None:
    _, free = prune(lenet, "digits", target="params=10%")
    before, after = accuracy_of(free)
    assert after < before - 0.1
    _, report = prune(lenet, "digits", target=target, max_drop=0.02)
    (note,) = [note for note in report.notes if note.startswith("accuracy ")]
    assert note.endswith("given examples; more would have cost more than --max-drop")
    numbers = [float(word) for word in note.replace(",", "").split() if word[0].isdigit()]
    assert numbers[0] - 0.02 <= numbers[1] <= 1
    assert 0.1 < report.after.parameters / report.before.parameters < 1
    assert accuracy_of(report)[1] > before - 0.06
    assert report.reached is (None if target is None else False)
    assert not any("must stay" in note for note in report.notes)


def test_a_target_within_the_allowed_drop_is_reached(prune: Prune, lenet: Path) -> None:
    _, plain = prune(lenet, "digits", target="params=95%")
    _, report = prune(lenet, "digits", target="params=95%", max_drop=0.1)
    assert report.reached
    assert report.after.parameters == plain.after.parameters
    assert not any("would have cost" in note for note in report.notes)


def test_a_limit_to_the_drop_needs_labels(prune: Prune) -> None:
    with pytest.raises(ConfigError, match=r"--max-drop 0\.1: needs labelled examples"):
        prune(model(CONVNET), (IMAGES, None), max_drop=0.1)
    with pytest.raises(ConfigError, match=r"--max-drop 0\.1: needs labelled examples"):
        prune(model(CONVNET), target="params=50%", max_drop=0.1)
    with pytest.raises(ConfigError, match="--max-drop -1: expected a number"):
        prune(model(CONVNET), (IMAGES, LABELS), max_drop=-1)
    with pytest.raises(ConfigError, match="--max-drop and --lossless exclude each other"):
        prune(model(CONVNET), (IMAGES, LABELS), max_drop=0.1, lossless=True)


def test_the_same_seed_prunes_the_same(prune: Prune) -> None:
    options = {"target": "params=50%", "importance": "random"}
    first, _ = prune(model(CONVNET), seed=1, **options)
    again, _ = prune(model(CONVNET), seed=1, **options)
    other, _ = prune(model(CONVNET), seed=3, **options)
    assert np.array_equal(array(first, "w"), array(again, "w"))
    differs = array(first, "w").shape != array(other, "w").shape
    assert differs or not np.array_equal(array(first, "w"), array(other, "w"))


def test_round_to_keeps_multiples(prune: Prune) -> None:
    smaller, _ = prune(model(CONVNET), target="params=50%", round_to=4)
    assert {group.size % 4 for group in analyze(smaller).groups} == {0}


def test_only_and_keep_choose_groups(prune: Prune) -> None:
    smaller, _ = prune(model(CONVNET), target="params=70%", only="^v$")
    assert array(smaller, "w").shape[0] == 8
    smaller, _ = prune(model(CONVNET), target="params=70%", keep="^v$")
    assert array(smaller, "v").shape[0] == 12
    with pytest.raises(ConfigError, match="--only nothing: matches none of the 2 groups"):
        prune(model(CONVNET), target="params=70%", only="nothing")


def test_means_of_removed_units_are_taken_over_when_there_is_data(prune: Prune) -> None:
    """A unit that hardly moves around a large constant: without its mean the outputs are off."""
    network = model(CONVNET, b=np.array([50, 0, 0, 0, 0, 0, 0, 0], np.float32))
    data = 0.01 * IMAGES
    options = {"target": "params=90%", "only": "^w$", "importance": "variance"}
    _, better = prune(network, (data, None), **options)
    _, worse = prune(network, (data, None), compensate=False, **options)
    assert better.difference < worse.difference


def test_an_unreachable_target_is_approached_and_named(prune: Prune, tmp_path: Path) -> None:
    smaller, report = prune(model(CONVNET), target="params=1%")
    assert report.reached is False
    assert [group.size for group in analyze(smaller).groups] == []
    (note,) = [note for note in report.notes if "out of reach" in note]
    assert f"at least {report.after.parameters} parameters" in note
    (tmp_path / "net.pruned.onnx").unlink()
    with pytest.raises(MethodError, match=r"target params=1% not reached.*--strict"):
        prune(model(CONVNET), target="params=1%", strict=True)
    assert not (tmp_path / "net.pruned.onnx").exists()


def test_a_model_without_groups_is_written_as_it_is(prune: Prune) -> None:
    network = model("(float[N, 2] x) => (float[N, 2] y) <float[2, 2] w> { y = MatMul(x, w) }")
    smaller, report = prune(network, target="params=50%")
    assert report.reached is False
    assert np.array_equal(array(smaller, "w"), array(network, "w"))


def test_lossless_equals_the_original_on_other_data_too(prune: Prune) -> None:
    w = np.random.default_rng(0).normal(size=(8, 2, 3, 3)).astype(np.float32)
    w[2], w[5] = 0, w[1]
    b = np.zeros(8, np.float32)
    network = model(CONVNET, w=w, b=b, t=np.array([-1e4] + [0.1] * 11, np.float32))
    without, report = prune(network, lossless=True)
    assert report.exact == 2
    assert report.bounded == 0
    assert report.agreement == 1.0
    smaller, report = prune(network, (IMAGES, LABELS), lossless=True)
    assert report.exact == 3
    assert report.before.metrics == pytest.approx(report.after.metrics, abs=1e-6)
    assert "2 dead" not in report.notes[0]
    other = {"image": np.random.default_rng(7).normal(size=(9, 2, 8, 8)).astype(np.float32)}
    for result in (without, smaller):
        found = compare(network, result, other, device=Device(threads=1), tolerance=1e-5)
        assert found.holds


def test_lossless_on_a_shipped_model_agrees_on_every_example(prune: Prune) -> None:
    file = Path(str(files("onnxprune_models"))) / "digits_mlp.onnx"
    _, report = prune(file, "digits", lossless=True)
    assert report.exact > 0
    assert report.agreement == 1.0
    assert report.difference < 1e-5


def test_a_recipe_replays_with_equal_results(prune: Prune, lenet: Path, tmp_path: Path) -> None:
    first, _ = prune(lenet, "digits", target="params=40%", output="a.onnx")
    again, report = prune(lenet, recipe="a.onnx.recipe.json", output="b.onnx")
    assert report.bounded > 0
    for name in first.graph.initializers:
        assert np.array_equal(array(first, name), array(again, name))
    written = json.loads((tmp_path / "b.onnx.recipe.json").read_text())
    assert written["rounds"] == json.loads((tmp_path / "a.onnx.recipe.json").read_text())["rounds"]


def test_a_recipe_fits_another_checkpoint(prune: Prune) -> None:
    first, _ = prune(model(CONVNET, seed=1), target="params=50%", output="a.onnx")
    other = model(CONVNET, seed=2)
    smaller, _ = prune(other, recipe="a.onnx.recipe.json", output="b.onnx")
    assert array(smaller, "w").shape == array(first, "w").shape
    kept = [
        unit
        for unit in range(8)
        if any(
            np.array_equal(array(model(CONVNET, seed=1), "w")[unit], row)
            for row in array(first, "w")
        )
    ]
    assert np.array_equal(array(smaller, "w"), array(other, "w")[kept])


def test_a_recipe_of_several_rounds_replays(prune: Prune) -> None:
    w = np.repeat(np.random.default_rng(0).normal(size=(2, 2, 3, 3)), 4, axis=0).astype(np.float32)
    network = model(CONVNET, w=w, b=np.zeros(8, np.float32))
    first, report = prune(network, lossless=True, output="a.onnx")
    assert report.exact == 6
    again, _ = prune(network, recipe="a.onnx.recipe.json", output="b.onnx")
    for name in first.graph.initializers:
        assert np.array_equal(array(first, name), array(again, name))


def test_a_recipe_for_another_model_names_the_first_mismatch(prune: Prune, lenet: Path) -> None:
    prune(model(CONVNET), target="params=50%", output="a.onnx")
    with pytest.raises(ConfigError, match=r"no initializer w; the recipe is for another"):
        prune(lenet, recipe="a.onnx.recipe.json", output="b.onnx")


def test_the_recipe_is_in_the_metadata_unless_it_is_not_wanted(
    prune: Prune, tmp_path: Path
) -> None:
    prune(model(CONVNET), target="params=50%", output="a.onnx")
    stored = load(tmp_path / "a.onnx").metadata_props[METADATA]
    assert json.loads(stored) == json.loads((tmp_path / "a.onnx.recipe.json").read_text())
    prune(tmp_path / "a.onnx", target="params=80%", output="b.onnx", metadata=False)
    assert METADATA not in load(tmp_path / "b.onnx").metadata_props


def test_a_recipe_appears_whole_or_not_at_all(
    prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune(model(CONVNET), target="params=50%", output="a.onnx")
    before = (tmp_path / "a.onnx.recipe.json").read_text()
    write = Path.write_text

    def interrupted(self: Path, text: str, **options: Any) -> int:
        write(self, text[:100], **options)
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(ModelError, match=r"recipe\.json: cannot be written"):
        prune(model(CONVNET), target="params=70%", output="a.onnx")
    assert (tmp_path / "a.onnx.recipe.json").read_text() == before


def test_the_written_file_passes_the_full_checker(prune: Prune, tmp_path: Path) -> None:
    prune(model(CONVNET), target="params=50%", output="a.onnx")
    onnx.checker.check_model(str(tmp_path / "a.onnx"), full_check=True)


def test_without_a_runtime_weights_suffice_and_the_report_says_so(
    prune: Prune, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxruntime.capi", None)
    _, report = prune(model(CONVNET), target="params=50%")
    assert report.reached
    assert report.difference is None
    assert any(note.startswith("not verified: ") for note in report.notes)
    with pytest.raises(RuntimeUnavailableError):
        prune(model(CONVNET), target="params=50%", importance="apoz")
    with pytest.raises(RuntimeUnavailableError, match="--lossless must run the model"):
        prune(model(CONVNET), lossless=True)


def test_a_model_that_does_not_run_on_made_up_inputs_asks_for_data(prune: Prune) -> None:
    network = model(
        """(float[N, T] x) => (float[N, 3] y) <float[7, 5] w, float[5, 3] v, int64[2] shape>
        { r = Reshape(x, shape) h = MatMul(r, w) a = Relu(h) y = MatMul(a, v) }""",
        shape=np.array([-1, 7]),
    )
    with pytest.raises(ModelError, match=r"made-up inputs: .*; give --data, or --input-shape"):
        prune(network, target="params=50%", input_shapes={"x": (2, 3)})


def test_made_up_inputs_are_a_single_one_where_the_graph_settles_the_batch(prune: Prune) -> None:
    network = model(
        """(float[N, 6] x) => (float[1, 3] y) <float[6, 8] w, float[8, 3] v, int64[2] shape>
        { r = Reshape(x, shape) h = MatMul(r, w) a = Relu(h) y = MatMul(a, v) }""",
        shape=np.array([1, 6]),
    )
    _, report = prune(network, target="params=50%")
    assert report.reached
    assert any("on 1 made-up inputs" in note for note in report.notes)


def test_labels_that_do_not_fit_cost_the_metrics_only(prune: Prune) -> None:
    _, report = prune(model(CONVNET), (IMAGES, LABELS + 10), target="params=50%")
    assert report.before.metrics == {}
    assert any(note.startswith("no metrics: y: labels lie in 10..13") for note in report.notes)


def test_models_with_a_static_batch_see_every_example(prune: Prune) -> None:
    network = model(CONVNET.replace("float[N,", "float[16,"))
    _, report = prune(network, (IMAGES, LABELS), target="params=50%")
    assert any("on 50 examples" in note for note in report.notes)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "nothing to do: give --target params=50%"),
        ({"target": "params=50%", "lossless": True}, "--target and --lossless exclude each other"),
        ({"recipe": "r", "keep": "w"}, "leave out --keep and --only"),
        ({"target": "params=50%", "importance": "magic"}, "--importance magic: expected one of"),
        ({"target": "params=50%", "allocation": "magic"}, "--allocation magic: expected one of"),
        ({"target": "params=50%", "round_to": 0}, "--round-to 0"),
        ({"target": "params=50%", "seed": -1}, "--seed -1"),
        ({"target": "params=50%", "only": "("}, r"--only \(: not a regular expression"),
        ({"target": "half"}, "--target half"),
        ({"target": "params=50%", "input_shapes": {"x": (0,)}}, "sizes of at least 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        onnxprune.PruneConfig(**options)


@pytest.mark.ort
def test_a_model_newer_than_the_runtime_keeps_its_opset_and_the_report_says_so(
    prune: Prune,
) -> None:
    network = model(
        """(float[N, 4] x) => (float[N, 2] y) <float[4, 8] w, float[8] s, float[8, 2] v> {
            h = MatMul(x, w) r = RMSNormalization(h, s) a = Swish(r) y = MatMul(a, v) }""",
        opset=24,
        ir_version=11,
    )
    smaller, report = prune(network, target="params=60%")
    assert report.reached
    assert (smaller.graph.opset_imports[""], smaller.ir_version) == (24, 11)
    assert [node.op_type for node in smaller.graph] == [node.op_type for node in network.graph]
    if Runner(network).lowered:  # what a newer runtime need not do
        said = [note for note in report.notes if "is older than the model" in note]
        assert said == [lowered_note(network)]
        assert "is older than the model" in " ".join(render(report).split())


def test_an_inspection_says_that_a_lowered_copy_is_trained(tmp_path: Path) -> None:
    network = model("(float[N, 4] x) => (float[N, 2] y) <float[4, 2] w> { y = MatMul(x, w) }")
    save(network, tmp_path / "old.onnx")
    network.graph.opset_imports[""] = 25
    save(network, tmp_path / "new.onnx")
    assert onnxprune.inspect(tmp_path / "old.onnx").notes == ()
    found = onnxprune.inspect(tmp_path / "new.onnx")
    assert len(found.notes) == 1
    assert "opset 25" in found.notes[0]
    assert found.notes[0] in render(found)


@pytest.mark.parametrize("verify", ["parts", "off"])
def test_another_verification_removes_the_same_and_says_so(
    prune: Prune, lenet: Path, verify: str
) -> None:
    whole, before = prune(lenet, target="params=50%")
    events: list[Any] = []
    small, report = prune(lenet, target="params=50%", verify=verify, on_event=events.append)
    assert [event.verified for event in events] == [verify]
    assert report.after.parameters == before.after.parameters
    assert report.after.latency_ms is None
    assert (report.difference is None) == (verify == "off")
    said = "not verified" if verify == "off" else "verified in parts"
    assert any(note.startswith(said) for note in report.notes)
    for name, value in whole.graph.initializers.items():
        assert array_equal(value, small.graph.initializers[name])


def array_equal(first: ir.Value, second: ir.Value) -> bool:
    """Whether two initializers hold the same numbers."""
    assert first.const_value is not None
    assert second.const_value is not None
    return np.array_equal(first.const_value.numpy(), second.const_value.numpy())


@pytest.mark.parametrize("verify", ["parts", "off"])
def test_lossless_removal_is_always_verified(prune: Prune, lenet: Path, verify: str) -> None:
    with pytest.raises(ConfigError, match=f"leave out --verify {verify}"):
        prune(lenet, lossless=True, verify=verify)


def test_a_model_with_external_data_is_pruned_like_one_without(
    prune: Prune, lenet: Path, tmp_path: Path
) -> None:
    whole, _ = prune(lenet, target="params=50%")
    save(load(lenet), tmp_path / "apart.onnx", external=True)
    small, _ = prune(tmp_path / "apart.onnx", target="params=50%", verify="parts")
    for name, value in whole.graph.initializers.items():
        assert array_equal(value, small.graph.initializers[name])


@pytest.mark.ort
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_halves_are_scored_and_verified(prune: Prune, dtype: ir.DataType) -> None:
    """By magnitude: units 0, 1 and 2 are the smallest. Inputs and outputs are halves, too."""
    network = model(
        """(float[N, 4] x) => (float[N, 2] y) <float[4, 8] w, float[8, 2] v> {
            h = MatMul(x, w) a = Relu(h) y = MatMul(a, v) }"""
    )
    rng = np.random.default_rng(0)
    w = rng.normal(size=(4, 8)) * np.linspace(0.1, 1.5, 8)
    for name, numbers in (("w", w), ("v", rng.normal(size=(8, 2)))):
        value = network.graph.initializers[name]
        value.const_value = ir.Tensor(numbers.astype(dtype.numpy()), name=name)
        value.dtype = dtype
    for value in (*network.graph.inputs, *network.graph.outputs):
        value.dtype = dtype
    smaller, report = prune(network, target="params=63%", allocation="uniform")
    assert report.reached
    assert array(smaller, "w").shape == (4, 5)
    assert array(smaller, "w").dtype == dtype.numpy()
    norms = np.linalg.norm(w, axis=0)
    kept = array(smaller, "w").astype(np.float64)
    expected = w[:, np.sort(np.argsort(norms)[3:])]
    np.testing.assert_allclose(kept, expected, rtol=1e-2, atol=1e-3)
    assert not any("not verified" in note or "failed" in note for note in report.notes)


@pytest.mark.ort
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_integer_weights_are_scored_through_scale_and_zero_point(
    prune: Prune, dtype: type[np.generic]
) -> None:
    """All numbers of a column are its zero point but for a step that grows with the unit."""
    zero = 128 if dtype is np.uint8 else 0
    w = np.full((4, 8), zero) + np.arange(8)[::-1] * np.array([[1], [-1], [1], [-1]])
    network = model(
        """(float[N, 4] x) => (float[N, 2] y) <float[8, 2] v> {
            q, s, z = DynamicQuantizeLinear(x)
            p = MatMulInteger(q, w, z, w_zero)
            f = Cast<to = 1>(p) g = Mul(f, s) h = Mul(g, w_scale) a = Relu(h) y = MatMul(a, v) }""",
        w=w.astype(dtype),
        w_zero=dtype(zero),
        w_scale=np.full(8, 0.1, np.float32),
    )
    smaller, report = prune(network, target="params=63%")
    assert report.reached
    left = array(smaller, "w").astype(np.int64) - zero
    assert left[0].tolist() == [7, 6, 5, 4, 3]


@pytest.mark.ort
def test_decoupled_shortcuts_are_written_as_index_operators(prune: Prune, tmp_path: Path) -> None:
    options = {"target": "params=50%", "output": tmp_path / "small.onnx"}
    graph, report = prune(model(RESIDUAL), residual="decouple-always", **options)
    assert report.reached
    assert "2 shortcuts decoupled" in report.notes
    assert not [name for name in graph.graph.initializers if name.endswith("identity")]
    widths = {name: array(graph, name).shape[0] for name in ("a", "b", "c")}
    recipe = tmp_path / "small.onnx.recipe.json"
    assert "identity" not in recipe.read_text()
    again, _ = prune(
        model(RESIDUAL, seed=1),
        recipe=str(recipe),
        residual="decouple-always",
        output=tmp_path / "again.onnx",
    )
    assert {name: array(again, name).shape[0] for name in ("a", "b", "c")} == widths


@pytest.mark.ort
def test_the_faster_form_is_kept_and_named(prune: Prune) -> None:
    _, report = prune(model(RESIDUAL), target="params=50%", residual="decouple")
    (note,) = [note for note in report.notes if "ms decoupled against" in note]
    assert note.startswith(("shortcuts are decoupled", "shortcuts stay coupled"))
    _, report = prune(model(CONVNET), target="params=50%", residual="decouple")
    assert "shortcuts stay coupled: the model has no shortcuts" in report.notes


@pytest.mark.parametrize("importance", WITHOUT_GRADIENTS)
def test_dimensions_of_heads_that_must_stay_are_scored(prune: Prune, importance: str) -> None:
    """Scores are put out per head, so that each head loses dimensions of its own."""
    network = model(
        """(float[N, 6, 5] x) => (float[N, 2, 6, 6] y)
        <float[5, 8] q, float[5, 8] k, float[8] b> {
            p = MatMul(x, q)
            r = Add(p, b)
            a = Reshape(r, heads)
            c = Transpose<perm = [0, 2, 1, 3]>(a)
            s = MatMul(x, k)
            d = Reshape(s, heads)
            e = Transpose<perm = [0, 2, 3, 1]>(d)
            y = MatMul(c, e)
        }""",
        heads=[0, 0, 2, 4],
    )
    (balance,) = analyze(network).balances
    assert balance.sizes.tolist() == [4, 4]
    data = np.random.default_rng(0).normal(size=(40, 6, 5)).astype(np.float32)
    if importance in ("scale", "utility"):  # no scale; no weights behind the units
        with pytest.raises(MethodError, match="says nothing about any"):
            prune(network, (data, None), target="params=60%", importance=importance)
        return
    smaller, report = prune(network, (data, None), target="params=60%", importance=importance)
    assert report.reached
    assert array(smaller, "q").shape == (5, 4)
    lossless, report = prune(network, (data, None), lossless=True)
    assert report.exact == report.bounded == 0
    assert array(lossless, "q").shape == (5, 8)
