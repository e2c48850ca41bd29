from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import array, feeds, node_types
from onnxprune_models import builders

from onnxprune.errors import ConfigError
from onnxprune.graph.cost import macs, parameters
from onnxprune.graph.groups import analyze
from onnxprune.model import load, save
from onnxprune.runtime.session import Runner

SMALL: dict[str, Callable[[int], ir.Model]] = {
    "mlp": lambda seed: builders.mlp((6, 8, 3), seed=seed),
    "matmul": lambda seed: builders.mlp((6, 8, 3), seed=seed, form="matmul", output="softmax"),
    "lenet5": builders.lenet5,
    "vgg": lambda seed: builders.vgg(seed=seed),
    "resnet": lambda seed: builders.resnet(20, seed=seed),
    "resnet-pad": lambda seed: builders.resnet(20, shortcut="pad", seed=seed),
    "resnet-folded": lambda seed: builders.resnet(56, batch_norm=False, seed=seed),
    "densenet": lambda seed: builders.densenet(seed=seed),
}


def weights(network: ir.Model) -> dict[str, np.ndarray]:
    return {name: array(network, name) for name in network.graph.initializers}


@pytest.mark.parametrize("name", SMALL)
def test_the_file_passes_the_full_checker_and_comes_back(name: str, tmp_path: Path) -> None:
    network = SMALL[name](0)
    save(network, tmp_path / "model.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)
    again = load(tmp_path / "model.onnx")
    assert (again.ir_version, again.graph.opset_imports[""]) == (8, 17)
    assert node_types(again) == node_types(network)


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_decides_all_weights(name: str) -> None:
    first, same, other = weights(SMALL[name](0)), weights(SMALL[name](0)), weights(SMALL[name](1))
    for key, value in first.items():
        np.testing.assert_array_equal(value, same[key], strict=True)
        assert value.dtype == np.int64 or not np.array_equal(value, other[key])


@pytest.mark.ort
@pytest.mark.parametrize("name", SMALL)
def test_the_output_depends_on_the_input(name: str) -> None:
    network = SMALL[name](0)
    for batch in (2, 4):
        y = Runner(network).run(feeds(network, batch=batch))["y"]
        assert y.shape[0] == batch
        assert np.isfinite(y).all()
        assert np.abs(y).max() < 100
        assert (y.std(axis=0) > 1e-3).any()


def test_statistics_and_biases_are_not_the_defaults() -> None:
    network = builders.resnet(8, image=8)
    for part, default in (("scale", 1), ("shift", 0), ("mean", 0), ("var", 1)):
        assert (array(network, f"stem.bn.{part}") != default).all()
    assert (array(builders.mlp((3, 4, 2)), "fc1.bias") != 0).all()


def test_resnet50_has_its_size() -> None:
    network = builders.resnet50()
    assert parameters(network) == 25_610_152
    assert macs(network, analyze(network)) == 4_089_184_256
    assert node_types(network).count("Conv") == 53


def test_options_choose_the_operators() -> None:
    assert node_types(builders.mlp((3, 4, 2), "tanh")) == ["Gemm", "Tanh", "Gemm"]
    form = builders.mlp((3, 4, 2), "none", form="matmul", output="sigmoid")
    assert node_types(form) == ["MatMul", "Add", "Identity", "MatMul", "Add", "Sigmoid"]
    assert "BatchNormalization" not in node_types(builders.resnet(8, batch_norm=False))
    assert "Pad" in node_types(builders.resnet(8, shortcut="pad"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: builders.mlp((3,)), r"expected at least two sizes, got \[3\]"),
        (lambda: builders.mlp((3, 2), "cube"), "activation 'cube' is none of relu, leaky_relu"),
        (lambda: builders.mlp((3, 2), form="conv"), "form 'conv' is none of gemm, matmul"),
        (lambda: builders.mlp((3, 2), output="x"), "output 'x' is none of None, softmax, sigmoid"),
        (lambda: builders.resnet(21), "depth 21 is not 6 n . 2"),
        (lambda: builders.resnet(20, shortcut="c"), "shortcut 'c' is none of projection, pad"),
    ],
)
def test_impossible_options_are_refused(make: Callable[[], ir.Model], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_builders_need_no_runtime(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, onnxprune_models.builders; sys.exit('onnxruntime' in sys.modules)"
    # In an empty folder: Python puts the current one on the path.
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert done.returncode == 0
