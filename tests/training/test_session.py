"""Sessions: steps in place, determinism, refusals, and real files."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from setups import batch, normalized

from onnxprune import model as files
from onnxprune.errors import ConfigError, DataError, NonFiniteLossError, TrainingError
from onnxprune.runtime.session import Runner
from onnxprune.training.losses import TARGET
from onnxprune.updates.around import AVERAGE, GRADIENT_NORM
from onnxprune.updates.rules import adamw, momentum, sgd

pytestmark = pytest.mark.ort

NET = normalized("Relu", softmax=True)


def equal(left, right):
    return left.keys() == right.keys() and all(
        np.array_equal(left[name], right[name]) for name in left
    )


def test_training_lowers_the_loss(model_from, opened):
    with opened(model_from(NET), rule=adamw()) as session:
        losses = [session.train_step(batch(16), learning_rate=0.02).loss for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_step_is_the_rule_applied_to_the_gradients(model_from, opened):
    with opened(model_from(NET), rule=sgd()) as session:
        before = session.snapshot()
        session.train_step(batch(8), learning_rate=0.1)
        after, gradients = session.snapshot(), session.gradients()
    for name, gradient in gradients.items():
        expected = before.parameters[name] - np.float32(0.1) * gradient
        np.testing.assert_allclose(after.parameters[name], expected, rtol=1e-6, atol=1e-7)


def test_running_statistics_move_towards_those_of_the_batch(model_from, opened):
    model, feeds = model_from(NET), batch(8)
    with opened(model, rule=sgd()) as session:
        before = session.snapshot().state
        session.train_step(feeds, learning_rate=0.0)
        after = session.snapshot().state
    w = model.graph.initializers["p_w"].const_value.numpy()
    x = np.pad(feeds["x"], ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    c = np.einsum("nchwij,ocij->nohw", windows, w)
    for name, now in (("p_stat_mean", c.mean((0, 2, 3))), ("p_stat_var", c.var((0, 2, 3)))):
        expected = 0.9 * before[name] + 0.1 * now
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, atol=1e-5)


def test_frozen_statistics_do_not_move(model_from, opened):
    with opened(model_from(NET), batch_norm="frozen") as session:
        session.train_step(batch(8), learning_rate=0.1)
        assert session.snapshot().state == {}


@pytest.mark.parametrize("rule", [sgd(), momentum(), adamw()])
def test_equal_runs_give_equal_bytes(rule, model_from, opened):
    snapshots = []
    for _ in range(2):
        with opened(model_from(NET), rule=rule) as session:
            for seed in range(4):
                session.train_step(batch(8, seed=seed), learning_rate=0.05)
            snapshots.append(session.snapshot())
    first, second = snapshots
    assert equal(first.parameters, second.parameters)
    assert equal(first.state, second.state)
    assert all(equal(first.moments[slot], second.moments[slot]) for slot in first.moments)


def test_a_session_resumed_from_a_snapshot_continues_as_if_undisturbed(model_from, opened):
    model = model_from(NET)
    with opened(model, rule=adamw()) as session:
        for seed in range(3):
            session.train_step(batch(8, seed=seed), learning_rate=0.05)
        middle = session.snapshot()
        session.train_step(batch(8, seed=3), learning_rate=0.05)
        end = session.snapshot()
        plain, update = session._graph, session._update_graph
    with type(session)(plain=plain, update=update, snapshot=middle) as resumed:
        resumed.train_step(batch(8, seed=3), learning_rate=0.05)
        again = resumed.snapshot()
    assert again.step == end.step == 4
    assert equal(again.parameters, end.parameters)
    assert equal(again.state, end.state)


def test_a_snapshot_is_a_copy(model_from, opened):
    with opened(model_from(NET)) as session:
        before = session.snapshot()
        kept = {name: array.copy() for name, array in before.parameters.items()}
        session.train_step(batch(8), learning_rate=0.1)
        assert equal(before.parameters, kept)
        assert not equal(session.snapshot().parameters, kept)


def test_the_first_snapshot_is_not_written(model_from, opened):
    model = model_from(NET)
    weight = model.graph.initializers["p_w"].const_value.numpy().copy()
    with opened(model) as session:
        session.train_step(batch(8), learning_rate=0.1)
    np.testing.assert_array_equal(model.graph.initializers["p_w"].const_value.numpy(), weight)


def test_a_non_finite_loss_leaves_everything_as_it_was(model_from, opened):
    with opened(model_from(NET), rule=adamw()) as session:
        last = session.train_step(batch(8), learning_rate=0.05).loss
        before = session.snapshot()
        bad = batch(8)
        bad["x"][3, 0, 0, 0] = np.nan
        with pytest.raises(NonFiniteLossError, match="step 2") as caught:
            session.train_step(bad, learning_rate=0.05)
        after = session.snapshot()
        session.train_step(batch(8), learning_rate=0.05)
    assert caught.value.step == 2
    assert caught.value.last_finite == last
    assert after.step == before.step == 1
    assert equal(after.parameters, before.parameters)
    assert equal(after.state, before.state)
    assert all(equal(after.moments[slot], before.moments[slot]) for slot in before.moments)


def test_a_last_smaller_batch_fits(model_from, opened):
    with opened(model_from(NET)) as session:
        for size in (8, 8, 3, 8, 1):
            result = session.train_step(batch(size), learning_rate=0.01)
            assert result.extra["l"].shape == (size, 4)


def test_evaluation_reads_the_trained_parameters(model_from, opened):
    feeds = batch(5)
    with opened(model_from(NET)) as session:
        before = session.evaluate({"x": feeds["x"]})["y"]
        session.train_step(feeds, learning_rate=0.5)
        after = session.evaluate({"x": feeds["x"]})["y"]
        snapshot = session.snapshot()
    assert not np.allclose(before, after, atol=1e-4)
    model = model_from(NET)
    for name, array in {**snapshot.parameters, **snapshot.state}.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    from onnxprune.runtime.session import Runner

    np.testing.assert_allclose(Runner(model).run({"x": feeds["x"]})["y"], after, rtol=1e-6)


def test_clipping_reports_the_norm(model_from, opened):
    with opened(model_from(NET), rule=sgd(), update={"clip_norm": 1e-3}) as session:
        before = session.snapshot().parameters
        result = session.train_step(batch(8), learning_rate=1.0)
        after, gradients = session.snapshot().parameters, session.gradients()
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients.values()))
    moved = np.sqrt(sum(np.sum((after[n] - before[n]).astype(np.float64) ** 2) for n in gradients))
    assert float(result.extra[GRADIENT_NORM]) == pytest.approx(norm, rel=1e-5)
    assert moved == pytest.approx(1e-3, rel=2e-2)


def test_wrong_batches_are_refused_by_name(model_from, opened):
    with opened(model_from(NET)) as session:
        with pytest.raises(DataError, match="'x': expected float32, got float64"):
            session.train_step({**batch(2), "x": np.zeros((2, 3, 6, 6))}, learning_rate=0.1)
        with pytest.raises(DataError, match="'x': no array given"):
            session.train_step({TARGET: batch(2)[TARGET]}, learning_rate=0.1)
        wrong = np.zeros((2, 3, 5, 6), dtype=np.float32)
        with pytest.raises(DataError, match="expected shape"):
            session.train_step({**batch(2), "x": wrong}, learning_rate=0.1)
        with pytest.raises(ConfigError, match="statistics"):
            session.train_step(batch(2), learning_rate=0.1, observe=True)


def test_graphs_that_disagree_are_refused(model_from, opened, training):
    from onnxprune.training.session import Session
    from onnxprune.updates.graph import build_update

    setup = training(model_from(NET))
    with pytest.raises(TrainingError, match="same graph"):
        Session(
            plain=setup.graph,
            update=build_update(sgd(), {"p_w": (8, 3, 3, 3)}),
            snapshot=setup.snapshot,
        )


def test_dropout_follows_its_seed(model_from, opened):
    text = NET.replace("f = Flatten(g)", "f0 = Flatten(g)\n  f = Dropout(f0, stat_half)").replace(
        "(float[N,4] y)\n{", "(float[N,4] y)\n<float stat_half = {0.5}>\n{"
    )

    def losses(**how):
        with opened(model_from(text), rule=sgd(), **how) as session:
            return [session.train_step(batch(8), learning_rate=0.0).loss for _ in range(3)]

    first = losses(seed=1)
    assert first == losses(seed=1)
    assert first != losses(seed=2)
    assert len(set(first)) == 3
    assert len(set(losses(dropout=False))) == 1


def test_closing_twice_is_harmless(model_from, opened):
    session = opened(model_from(NET))
    session.close()
    session.close()


def test_an_opset_8_file_trains(shared_model, opened):
    model = files.load(shared_model("mnist_cntk.onnx"))
    rng = np.random.default_rng(0)
    feeds = {
        "Input3": rng.normal(size=(1, 1, 28, 28)).astype(np.float32),
        TARGET: np.array([7]),
    }
    names = (
        "Parameter5",
        "Parameter6",
        "Parameter87",
        "Parameter88",
        "Parameter193",
        "Parameter194",
    )
    with opened(model, parameters=names) as session:
        losses = [session.train_step(feeds, learning_rate=1e-3).loss for _ in range(3)]
        assert session.evaluate({"Input3": feeds["Input3"]})["Plus214_Output_0"].shape == (1, 10)
    assert losses[2] < losses[0]


@pytest.mark.parametrize("mode", ["train", "frozen"])
def test_a_resnet_trains_in_both_modes(mode, shared_model, opened):
    model = files.load(shared_model("resnet20_bn.onnx"))
    names = tuple(name for name in model.graph.initializers if name.endswith((".weight", ".bias")))
    rng = np.random.default_rng(0)
    feeds = {
        "input": rng.normal(size=(8, 3, 32, 32)).astype(np.float32),
        TARGET: rng.integers(0, 10, 8),
    }
    with opened(model, parameters=names, batch_norm=mode) as session:
        losses = [session.train_step(feeds, learning_rate=1e-3).loss for _ in range(4)]
        state = session.snapshot().state
    assert losses[3] < losses[0]
    assert len(state) == (38 if mode == "train" else 0)


@pytest.mark.parametrize(("pass_size", "count"), [(8, 16), (8, 13), (4, 16), (16, 16)])
def test_accumulated_passes_equal_one_batch(pass_size, count, model_from, opened):
    snapshots = []
    for size in (0, pass_size):
        with opened(model_from(NET), rule=adamw(), batch_norm="frozen", pass_size=size) as session:
            results = [  # the last batch of an epoch may be as small as one pass
                session.train_step(batch(examples, seed=seed), learning_rate=0.01)
                for seed, examples in enumerate((count, 3, count))
            ]
            snapshots.append((session.snapshot(), results[-1].loss))
    (whole, loss), (parts, other) = snapshots
    assert other == pytest.approx(loss, rel=1e-5)
    assert parts.step == 3
    for name, array in whole.parameters.items():
        np.testing.assert_allclose(parts.parameters[name], array, rtol=1e-4, atol=1e-5)


def test_running_statistics_move_with_every_pass(model_from, opened):
    with opened(model_from(NET), rule=sgd(), pass_size=4) as session:
        session.train_step(batch(12), learning_rate=0.0)
        together = session.snapshot().state
    with opened(model_from(NET), rule=sgd()) as session:
        for start in (0, 4, 8):
            part = {name: array[start : start + 4] for name, array in batch(12).items()}
            session.train_step(part, learning_rate=0.0)
        assert equal(together, session.snapshot().state)


def test_what_is_evaluated_is_the_average(model_from, opened):
    feeds = batch(8)
    x = {"x": feeds["x"]}
    with opened(model_from(NET), rule=sgd(), update={"average": 0.9}) as session:
        first = session.evaluate(x)["y"]
        session.train_step(feeds, learning_rate=0.5)
        snapshot, found = session.snapshot(), session.evaluate(x)["y"]
    averages = snapshot.moments[AVERAGE]
    decay = 2 / 11  # (1 + t) / (10 + t), as long as that is below 0.9
    start = model_from(NET).graph.initializers
    for name, now in {**snapshot.parameters, **snapshot.state}.items():
        before = start[name].const_value.numpy()
        expected = decay * before + (1 - decay) * now
        np.testing.assert_allclose(averages[name], expected, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(first, found)
    model = model_from(NET)
    for name, array in averages.items():
        files.set_constant(model.graph.initializers[name], array)
    np.testing.assert_allclose(Runner(model).run(x)["y"], found, rtol=1e-5, atol=1e-6)
