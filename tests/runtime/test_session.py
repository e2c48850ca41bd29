"""Runners, buffers and what happens when something does not fit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import array, feeds
from graphs import model as small

from onnxprune.errors import ConfigError, DataError, InvariantError, ModelError
from onnxprune.runtime import session as runtime
from onnxprune.runtime.buffers import Bound, Store
from onnxprune.runtime.session import Device, Runner, check_runtime

AFFINE = """<ir_version: 8, opset_import: ["":17]>
g (float[N,3] x, float[3,2] w) => (float[N,2] y, float[3,2] v)
{ y = MatMul(x, w)
  v = Add(w, w) }"""


def affine():
    return ir.from_onnx_text(AFFINE)


def ones(*shape):
    return np.ones(shape, dtype=np.float32)


@pytest.mark.ort
def test_the_installed_runtime_can_train():
    check_runtime(training=True)


def test_two_runtimes_in_one_folder_are_found():
    assert runtime._clash(["numpy", "onnxruntime", "onnxruntime-training-cpu"]) == (
        "onnxruntime",
        "onnxruntime-training-cpu",
    )
    assert runtime._clash(["onnxruntime-gpu", "onnx"]) == ()


@pytest.mark.ort
def test_a_runner_runs_and_selects_outputs():
    runner = Runner(affine())
    assert (runner.inputs, runner.outputs) == (("x", "w"), ("y", "v"))
    assert set(runner.run({"x": ones(4, 3), "w": ones(3, 2)})) == {"y", "v"}
    only = runner.run({"x": ones(4, 3), "w": ones(3, 2)}, ["v"])
    np.testing.assert_array_equal(only["v"], 2 * ones(3, 2))


@pytest.mark.ort
@pytest.mark.parametrize(
    ("feeds", "match"),
    [
        ({"x": np.ones((4, 3)), "w": ones(3, 2)}, "'x': expected float32, got float64"),
        ({"x": ones(4, 3, 1), "w": ones(3, 2)}, r"'x': expected shape \(N, 3\), got \(4, 3, 1\)"),
        ({"x": ones(4, 5), "w": ones(3, 2)}, r"'x': expected shape \(N, 3\), got \(4, 5\)"),
        ({"x": ones(4, 3)}, "'w': no array given; got x"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(feeds, match):
    # The runtime itself reads float64 memory as float32 when it is bound.
    with pytest.raises(DataError, match=match):
        Runner(affine()).run(feeds)


@pytest.mark.ort
def test_non_contiguous_arrays_are_read_right():
    x = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(4, 3))
    w = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    np.testing.assert_allclose(Runner(affine()).run({"x": x, "w": w})["y"], x @ w, rtol=1e-6)


@pytest.mark.ort
def test_a_refused_model_says_why_in_one_line():
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["":17, "own":1]>
    g (float[2] x) => (float[2] y) { y = own.mystery(x) }""")
    with pytest.raises(ModelError, match=r"refuses the model.*mystery") as caught:
        Runner(model)
    assert "\n" not in str(caught.value)


@pytest.mark.ort
def test_where_an_optimization_fails_a_model_runs_without(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, opened = [], runtime._open

    def failing(model: ir.Model, device: Device, *, optimize: bool) -> object:
        tried.append(optimize)
        if optimize:
            raise ModelError("the runtime refuses the model: RemoveNode")
        return opened(model, device, optimize=False)

    monkeypatch.setattr(runtime, "_open", failing)
    runner = Runner(affine())
    y = runner.run({"x": ones(4, 3), "w": ones(3, 2)})["y"]
    np.testing.assert_array_equal(y, 3 * ones(4, 2))
    assert runner.plain
    assert tried == [True, False]
    assert Runner(affine(), optimize=False).plain
    assert tried[2:] == [False]


@pytest.mark.ort
def test_where_optimizations_are_not_at_fault_their_failure_is_what_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(_model: ir.Model, _device: Device, *, optimize: bool) -> object:
        raise ModelError(f"optimize={optimize}")

    assert not Runner(affine()).plain
    monkeypatch.setattr(runtime, "_open", failing)
    with pytest.raises(ModelError, match="optimize=True"):
        Runner(affine())


@pytest.mark.ort
def test_a_newer_model_runs_with_an_older_header():
    model = affine()
    model.graph.opset_imports[""], model.ir_version = 23, 11
    runner = Runner(model)
    assert runner.lowered
    assert runner.run({"x": ones(1, 3), "w": ones(3, 2)})["y"].shape == (1, 2)
    assert (model.graph.opset_imports[""], model.ir_version) == (23, 11)
    assert not Runner(affine()).lowered


NEW = """(float[N, S, 12] q, float[N, S, 6] k, float[N, S, 6] v) => (float[N, S, 12] y)
<float[12] s> {
    a = Attention<q_num_heads = 4, kv_num_heads = 2>(q, k, v)
    r = RMSNormalization(a, s)
    y = Swish(r)
}"""


@pytest.mark.ort
def test_operators_newer_than_the_runtime_are_written_out():
    """Against the definition in numpy; newer runtimes have the operators themselves."""
    model = small(NEW, opset=24, ir_version=11)
    given = feeds(model)
    q, k, v = (given[name].reshape(5, 5, -1, 3).transpose(0, 2, 1, 3) for name in "qkv")
    k, v = k.repeat(2, axis=1), v.repeat(2, axis=1)
    scores = np.exp(q @ k.swapaxes(2, 3) / np.sqrt(3))
    a = (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(5, 5, 12)
    r = a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-5) * array(model, "s")
    expected = r / (1 + np.exp(-r))
    np.testing.assert_allclose(Runner(model).run(given)["y"], expected, rtol=1e-4, atol=1e-5)
    assert {node.op_type for node in model.graph} == {"Attention", "RMSNormalization", "Swish"}


@pytest.mark.ort
def test_the_runtime_keeps_quiet(capfd):
    Runner(affine())
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_unknown_devices_name_the_known_ones():
    with pytest.raises(ConfigError, match="cpu, cuda"):
        Device(provider="tpu")
    with pytest.raises(ConfigError, match="threads"):
        Device(threads=0)


@pytest.mark.ort
def test_an_unavailable_device_names_the_available_ones():
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this runtime has CUDA")
    with pytest.raises(ConfigError, match="available: cpu"):
        Runner(affine(), Device(provider="cuda"))


@pytest.mark.ort
@pytest.mark.parametrize("spinning", [True, False])
def test_thread_settings_change_no_result(spinning):
    device = Device(threads=1, spinning=spinning)
    result = Runner(affine(), device).run({"x": ones(2, 3), "w": ones(3, 2)})
    np.testing.assert_array_equal(result["y"], 3 * ones(2, 2))


@pytest.mark.ort
def test_a_store_copies_in_and_out():
    store, array = Store(), np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    store.put("a", array)
    array[:] = -1
    expected = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(store.get("a"), expected)
    store.get("a")[:] = 7
    np.testing.assert_array_equal(store.get("a"), expected)
    assert "a" in store
    assert "b" not in store


@pytest.mark.ort
def test_a_buffer_keeps_its_shape_and_dtype():
    store = Store()
    store.put("a", ones(2, 3))
    store.put("a", 5 * ones(2, 3))
    assert store.get("a")[0, 0] == 5
    with pytest.raises(InvariantError, match="'a'"):
        store.put("a", ones(3, 2))
    with pytest.raises(InvariantError, match="float64"):
        store.put("a", np.ones((2, 3)))


@pytest.mark.ort
def test_bound_runs_overwrite_their_buffers_and_read_them_again():
    store = Store()
    store.put("w", ones(3, 2))
    bound = Bound(Runner(affine(), optimize=False), store, inputs={"w": "w"}, outputs={"v": "w"})
    for turn in (1, 2, 3):
        result = bound.run({"x": ones(2, 3)})
        assert set(result) == {"y"}
        np.testing.assert_array_equal(store.get("w"), 2**turn * ones(3, 2))


@pytest.mark.ort
def test_bound_runs_accept_any_batch_and_give_back_arrays_of_their_own():
    store = Store()
    store.put("w", ones(3, 2))
    bound = Bound(Runner(affine()), store, inputs={"w": "w"}, outputs={})
    first = bound.run({"x": ones(4, 3)})["y"]
    second = bound.run({"x": 2 * ones(2, 3)})["y"]
    np.testing.assert_array_equal(first, 3 * ones(4, 2))
    np.testing.assert_array_equal(second, 6 * ones(2, 2))
    with pytest.raises(DataError, match="float64"):
        bound.run({"x": np.ones((2, 3))})
