from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.data import read
from onnxprune.errors import DataError

X = np.arange(24, dtype=np.float32).reshape(6, 4)
Y = np.arange(6) % 2


def saved(folder: Path, **arrays: Any) -> Path:
    file = folder / "data.npz"
    np.savez(file, **arrays)
    return file


def test_the_embedded_digits_have_their_own_unit() -> None:
    raw = read("digits")
    assert raw.train.x[""].shape == (1437, 8, 8)
    assert raw.test is not None
    assert len(raw.test) == 360
    assert raw.validation is None
    assert raw.unit == raw.train.x[""].max() == 16


@pytest.mark.parametrize(
    ("x", "y"),
    [("x", "y"), ("X", "Y"), ("x_train", "y_train"), ("train_x", "train_y"), ("x", "labels")],
)
def test_usual_names_of_x_and_y_are_understood(tmp_path: Path, x: str, y: str) -> None:
    raw = read(saved(tmp_path, **{x: X, y: Y}))
    np.testing.assert_array_equal(raw.train.x[""], X)
    assert raw.train.y is not None
    np.testing.assert_array_equal(raw.train.y, Y)


def test_parts_are_told_apart_by_suffix(tmp_path: Path) -> None:
    parts = {"x_train": X, "y_train": Y, "x_val": X[:2], "y_val": Y[:2], "x_test": X[:1]}
    raw = read(saved(tmp_path, **parts))
    assert raw.validation is not None
    assert raw.test is not None
    assert (len(raw.train), len(raw.validation), len(raw.test)) == (6, 2, 1)
    assert raw.test.y is None


def test_other_names_are_those_of_model_inputs(tmp_path: Path) -> None:
    raw = read(saved(tmp_path, ids=X, mask=X, ids_test=X, mask_test=X, y=Y))
    assert sorted(raw.train.x) == ["ids", "mask"]
    assert raw.test is not None
    assert sorted(raw.test.x) == ["ids", "mask"]


def test_an_input_called_labels_is_no_target_beside_y(tmp_path: Path) -> None:
    raw = read(saved(tmp_path, x=X, labels=X, y=Y))
    assert set(raw.train.x) == {"", "labels"}


def test_python_sources() -> None:
    for source in ((X, Y), ({"": X}, Y), {"x": X, "y": Y}):
        raw = read(source)  # type: ignore[arg-type]
        assert len(raw.train) == 6
        assert read(raw) is raw
    assert read((X.tolist(), None)).train.y is None


def test_a_validation_source_replaces_the_validation_part(tmp_path: Path) -> None:
    raw = read((X, Y), validation=saved(tmp_path, x=X[:3], y=Y[:3]))
    assert raw.validation is not None
    assert len(raw.validation) == 3
    assert read((X, Y), validation=saved(tmp_path, x_val=X[:2], y_val=Y[:2])).validation is not None


def test_of_a_validation_source_with_parts_the_one_held_out_is_taken(tmp_path: Path) -> None:
    parts = {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2]}
    tested = read((X, Y), validation=saved(tmp_path, **parts)).validation
    assert tested is not None
    assert len(tested) == 2
    validated = read((X, Y), validation=saved(tmp_path, **parts, x_val=X[:1], y_val=Y[:1]))
    assert validated.validation is not None
    assert len(validated.validation) == 1


def test_models_are_not_tested_on_what_they_were_chosen_by() -> None:
    assert len(read("digits").test or ()) == 360
    chosen = read("digits", validation="digits")
    assert len(chosen.validation or ()) == 360
    assert chosen.test is None


def test_validation_data_are_not_the_training_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds the training examples again"):
        read((X, Y), validation=saved(tmp_path, x=X, y=Y))


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file; give an \.npz archive.*digits"):
        read(tmp_path / "absent.npz")
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named_as_such(tmp_path: Path, share: float) -> None:
    file = saved(tmp_path, x=X, y=Y)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"data\.npz: not an \.npz archive, or truncated"):
        read(file)


def test_a_damaged_member_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    np.savez_compressed(file, x=X, y=Y)
    content = bytearray(file.read_bytes())
    content[100:110] = bytes(10)
    file.write_bytes(content)
    with pytest.raises(DataError, match="truncated"):
        read(file)


def test_text_and_bare_arrays_are_no_archives(tmp_path: Path) -> None:
    text = tmp_path / "data.csv"
    text.write_text("1,2\n3,4\n")
    with pytest.raises(DataError, match=r"not an \.npz archive"):
        read(text)
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(DataError, match=r"one bare array; save x and y with np\.savez"):
        read(tmp_path / "x.npy")


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    file = saved(tmp_path, x=X, y=np.array([{"a": 1}] * 6, dtype=object))
    with pytest.raises(DataError, match="'y' holds pickled Python objects") as caught:
        read(file)
    assert caught.value.array == "y"


def test_missing_keys_list_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected arrays x and y.*got y, x_test"):
        read(saved(tmp_path, y=Y, x_test=X))
    with pytest.raises(DataError, match="got none"):
        read(saved(tmp_path))


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="x has 6 examples but y has 5") as caught:
        read((X, Y[:5]))
    assert (caught.value.expected, caught.value.got) == (6, 5)
    with pytest.raises(DataError, match="a has 6 examples but b has 2"):
        read(({"a": X, "b": X[:2]}, Y))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_spoil_training_are_found(bad: float) -> None:
    x = X.copy()
    x[2, 3] = bad
    with pytest.raises(DataError, match=r"x holds 1 values that are NaN or infinite.*\(2, 3\)"):
        read((x, Y))
    with pytest.raises(DataError, match="y holds 1 values"):
        read((X, np.array([0, 1, 2, 3, 4, bad])))


def test_text_scalars_and_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="y must hold numbers, got dtype <U3"):
        read((X, np.array(["cat"] * 6)))
    with pytest.raises(DataError, match="no examples"):
        read((X[:0], Y[:0]))
    with pytest.raises(DataError, match="no examples"):
        read((np.float32(1), None))
    with pytest.raises(DataError, match="expected a path, one of digits, a tuple"):
        read(3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no input array"):
        read(({}, Y))
