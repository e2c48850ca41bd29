"""Written files: whole or not at all, with or without a data file, and nobody else's data lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from graphs import array, model

import onnxprune.model
from onnxprune.errors import ModelError
from onnxprune.model import external_files, load, save

TEXT = "(float[N, 30] x) => (float[N, 30] y) <float[30, 30] w> { y = MatMul(x, w) }"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def network(seed: int) -> ir.Model:
    return model(TEXT, seed=seed)


def test_data_goes_beside_the_file_when_told_and_only_then(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    save(network(0), file, external=True)
    assert names(tmp_path) == ["a.onnx", "a.onnx.data"]
    assert external_files(file) == {(tmp_path / "a.onnx.data").resolve()}
    found = load(file)
    save(found, tmp_path / "b.onnx")
    again = load(tmp_path / "b.onnx")
    assert external_files(tmp_path / "b.onnx") == frozenset()
    np.testing.assert_array_equal(array(again, "w"), array(network(0), "w"))


def test_above_the_limit_of_protobuf_data_goes_beside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxprune.model, "PROTOBUF_LIMIT", 3000)
    save(network(0), tmp_path / "a.onnx")
    assert names(tmp_path) == ["a.onnx", "a.onnx.data"]


def test_a_replaced_file_takes_its_data_with_it(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    for seed, data in ((0, "a.onnx.data"), (1, "a.onnx.1.data"), (2, "a.onnx.data")):
        save(network(seed), file, external=True)
        assert names(tmp_path) == sorted(["a.onnx", data])
        np.testing.assert_array_equal(array(load(file), "w"), array(network(seed), "w"))
    save(network(3), file)
    assert names(tmp_path) == ["a.onnx"]


def test_data_that_another_model_reads_stays(tmp_path: Path) -> None:
    save(network(0), tmp_path / "a.onnx", external=True)
    (tmp_path / "other.onnx").write_bytes((tmp_path / "a.onnx").read_bytes())
    save(network(1), tmp_path / "a.onnx", external=True)
    np.testing.assert_array_equal(array(load(tmp_path / "other.onnx"), "w"), array(network(0), "w"))
    np.testing.assert_array_equal(array(load(tmp_path / "a.onnx"), "w"), array(network(1), "w"))


def test_data_that_the_model_itself_still_reads_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    save(network(0), file, external=True)
    found = load(file)
    save(found, file, external=True)
    np.testing.assert_array_equal(array(found, "w"), array(network(0), "w"))
    np.testing.assert_array_equal(array(load(file), "w"), array(network(0), "w"))


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_crash_at_any_step_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    file = tmp_path / "a.onnx"
    save(network(0), file, external=True)
    moves: list[Any] = []
    move = os.replace

    def failing(source: Any, target: Any) -> None:
        outside = ".onnxprune-" not in str(target)
        moves.extend([target] if outside else [])
        if outside and len(moves) == fails_at:
            raise OSError("gone")
        move(source, target)

    monkeypatch.setattr("os.replace", failing)
    with pytest.raises(ModelError, match="cannot be written"):
        save(network(1), file, external=True)
    assert len(moves) == fails_at
    np.testing.assert_array_equal(array(load(file), "w"), array(network(0), "w"))
    assert names(tmp_path) == ["a.onnx", "a.onnx.data"]


def test_external_constants_of_nodes_are_written_too(tmp_path: Path) -> None:
    file = tmp_path / "a.onnx"
    numbers = np.arange(4, dtype=np.float32)
    (tmp_path / "weights").write_bytes(numbers.tobytes())
    tensor = ir.ExternalTensor(
        "weights", 0, 16, ir.DataType.FLOAT, shape=ir.Shape([4]), name="c", base_dir=tmp_path
    )
    found = model(
        "(float[N, 4] x) => (float[N, 4] y) { c = Constant<value_int = 0>() y = Mul(x, c) }"
    )
    node = next(iter(found.graph))
    del node.attributes["value_int"]
    node.attributes["value"] = ir.AttrTensor("value", tensor)
    ir.save(found, file)
    assert external_files(file) == {(tmp_path / "weights").resolve()}
    (tmp_path / "out").mkdir()
    save(load(file), tmp_path / "out" / "b.onnx")
    written = load(tmp_path / "out" / "b.onnx")
    value = next(iter(written.graph)).attributes["value"].as_tensor()
    np.testing.assert_array_equal(value.numpy(), numbers)


def test_what_is_no_model_has_no_external_data(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("a location")
    assert external_files(tmp_path / "a.onnx") == frozenset()
    assert external_files(tmp_path / "absent.onnx") == frozenset()
