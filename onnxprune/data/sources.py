"""Sources of examples: files, embedded data sets and arrays, read into one shape.

Entry: `read`. It knows nothing of models: arrays come out as they lie in the source, checked for
what would spoil any training (lengths that differ, NaN, text), and neither converted nor scaled.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from onnxprune.base import Array
from onnxprune.errors import DataError

__all__ = ["EMBEDDED", "Part", "Raw", "Source", "read"]

EMBEDDED: Mapping[str, float] = {"digits": 16.0}
"""The data sets that come with onnxprune, each with its largest uint8 value."""

_SPLITS = {"train": "train", "val": "validation", "valid": "validation"} | {
    "validation": "validation",
    "test": "test",
}
_ALIASES = ("label", "labels", "target", "targets")  # of y, where nothing is called y
_BASES = ("x", "X", "y", "Y", "image", "images", "data", *_ALIASES)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Part:
    """Examples that belong together.

    Attributes:
        x: per array name, (N, ...) numbers; "" for the array that was simply called x.
        y: (N, ...) labels or values, None when the source has none.
    """

    x: Mapping[str, Array]
    y: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.x.values())))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Raw:
    """What a source holds, as it lies there.

    Attributes:
        train, validation, test: the parts; None where the source has none.
        name: what messages call the source.
        unit: the uint8 value that stands for 1.0.
    """

    train: Part
    validation: Part | None = None
    test: Part | None = None
    name: str = "data"
    unit: float = 255.0


_Inputs: TypeAlias = ArrayLike | Mapping[str, ArrayLike]
Source: TypeAlias = (
    str | os.PathLike[str] | Raw | tuple[_Inputs, ArrayLike | None] | Mapping[str, ArrayLike]
)


def read(source: Source, *, validation: Source | None = None) -> Raw:
    """Read a source of examples.

    Args:
        source: the name of an embedded data set ("digits"), the path of an .npz archive, a tuple
            (x, y) where x is an array or a dict of arrays by input name, or a dict of arrays named
            as in an archive. Names are x and y, or x_train, y_train, x_val, y_val, x_test, y_test
            (train_x, X and labels do as well); any other name is that of a model input.
        validation: a second source; its validation part is taken, else its test part, else its
            training part, and nothing else of it. Test data that are the same examples are left
            out: models chosen by them are not tested on them.

    Raises:
        DataError: missing, truncated or not .npz; no x; pickled objects; x and y of different
            lengths; no examples; text, NaN or Inf in x or y; validation examples that are the
            training examples.
    """
    raw = source if isinstance(source, Raw) else _read(source)
    if validation is None:
        return raw
    other = validation if isinstance(validation, Raw) else _read(validation, part="validation")
    part = other.validation or other.test or other.train
    if _is_same(part, raw.train):
        raise DataError(
            f"{raw.name}: validation data holds the training examples again, on which every model "
            "looks good; give others, or none: a part of the training data is put aside then",
            source=raw.name,
        )
    test = None if _is_same(part, raw.test) else raw.test
    return replace(raw, validation=part, test=test)


def _is_same(one: Part, other: Part | None) -> bool:
    """Whether both hold the same examples, in the same order."""
    if other is None or one.x.keys() != other.x.keys():
        return False
    return all(np.array_equal(array, other.x[name]) for name, array in one.x.items())


def _read(source: Any, part: str = "train") -> Raw:
    """`part` is what must be there: "validation" is content with any one part."""
    if isinstance(source, str) and source in EMBEDDED:
        file = Path(__file__).with_name(f"{source}.npz")
        return _raw(_archive(file), source, part, EMBEDDED[source])
    if isinstance(source, (str, os.PathLike)):
        return _raw(_archive(Path(source)), os.fspath(source), part)
    if isinstance(source, Mapping):
        return _raw({str(name): np.asarray(value) for name, value in source.items()}, "data", part)
    if isinstance(source, tuple) and len(source) == 2:
        return Raw(train=_pair(source[0], source[1]))
    raise DataError(
        f"data: expected a path, one of {', '.join(EMBEDDED)}, a tuple (x, y) or a dict of arrays, "
        f"got {type(source).__name__}",
        source=source,
    )


def _pair(x: Any, y: Any) -> Part:
    arrays = x if isinstance(x, Mapping) else {"": x}
    inputs = {str(name): np.asarray(array) for name, array in arrays.items()}
    return _part(inputs, None if y is None else np.asarray(y), "data")


def _archive(file: Path) -> dict[str, Array]:
    """All arrays of an .npz file; the whole file is read, nothing is ever unpickled."""
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "no such file"
        raise DataError(
            f"{file}: {what}; give an .npz archive with x and y, or the name of an embedded data "
            f"set ({', '.join(EMBEDDED)})",
            path=file,
        )
    try:
        with file.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise DataError(f"{file}: one bare array; save x and y with np.savez", path=file)
            return {name: _member(file, loaded, name) for name in loaded.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{file}: not an .npz archive, or truncated; write it again with np.savez", path=file
        ) from error


def _member(file: Path, archive: Any, name: str) -> Array:
    try:
        array = archive[name]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise DataError(
            f"{file}: array {name!r} holds pickled Python objects, which are never loaded; "
            "save it with a numeric dtype",
            path=file,
            array=name,
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{file}: {name!r} is not an array; save it with np.savez", path=file)
    return array


def _role(name: str) -> tuple[str, str]:
    """The part that an array belongs to and its name without it: x_val -> (validation, x)."""
    base, _, split = name.rpartition("_")
    if base and split in _SPLITS:
        return _SPLITS[split], base
    split, _, base = name.partition("_")
    if split in _SPLITS and base in _BASES:
        return _SPLITS[split], base
    return "train", name


def _raw(arrays: Mapping[str, Array], name: str, required: str, unit: float = 255.0) -> Raw:
    """Sort the arrays of a source into parts."""
    sorted_: dict[str, dict[str, Array]] = {}
    for key, array in arrays.items():
        split, base = _role(key)
        sorted_.setdefault(split, {})[base] = array
    parts = {}
    for split, group in sorted_.items():
        where = name if split == "train" else f"{name} ({split})"
        x, y = _inputs_and_target(group)
        if x:
            parts[split] = _part(x, y, where)
    train = parts.get("train")
    if train is None and required == "validation":
        train = parts.get("validation") or parts.get("test")
    if train is None:
        raise DataError(
            f"{name}: expected arrays x and y (or x_train and y_train), "
            f"got {', '.join(arrays) or 'none'}; rename them",
            arrays=tuple(arrays),
        )
    return Raw(
        train=train,
        validation=parts.get("validation"),
        test=parts.get("test"),
        name=name,
        unit=unit,
    )


def _inputs_and_target(group: Mapping[str, Array]) -> tuple[dict[str, Array], Array | None]:
    named = [name for name in ("y", "Y") if name in group]
    aliases = [name for name in _ALIASES if name in group]
    target = next(iter(named or aliases), None)
    inputs = {
        "" if name in ("x", "X") else name: array for name, array in group.items() if name != target
    }
    return inputs, None if target is None else group[target]


def _part(x: Mapping[str, Array], y: Array | None, where: str) -> Part:
    """Check the arrays of one part against each other and for impossible values."""
    named = {name or "x": array for name, array in x.items()}
    if not named:
        raise DataError(f"{where}: no input array; give x, or arrays named like the model's inputs")
    for name, array in [*named.items(), *([("y", y)] if y is not None else [])]:
        _check_array(array, name, where)
    first, reference = next(iter(named.items()))
    for name, array in [*named.items(), *([("y", y)] if y is not None else [])]:
        if len(array) != len(reference):
            raise DataError(
                f"{where}: {first} has {len(reference)} examples but {name} has {len(array)}; "
                "the first axis counts the examples of both",
                array=name,
                expected=len(reference),
                got=len(array),
            )
    return Part(x=dict(x), y=y)


def _check_array(array: Array, name: str, where: str) -> None:
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{where}: {name} must hold numbers, got dtype {array.dtype}; "
            "encode it as integers or floats",
            array=name,
            dtype=array.dtype,
        )
    if array.ndim == 0 or array.size == 0:
        raise DataError(
            f"{where}: {name} has no examples (shape {array.shape}); the first axis counts them",
            array=name,
            shape=array.shape,
        )
    # min and max pass NaN on, and need no temporary array as large as the data
    if array.dtype.kind == "f" and not np.isfinite([array.min(), array.max()]).all():
        bad = ~np.isfinite(array)
        position = tuple(int(index) for index in np.unravel_index(int(np.argmax(bad)), array.shape))
        raise DataError(
            f"{where}: {name} holds {int(bad.sum())} values that are NaN or infinite, the first "
            f"at {position}; remove or replace them",
            array=name,
            position=position,
        )
