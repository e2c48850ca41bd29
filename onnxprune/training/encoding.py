"""Frozen data as JSON and arrays, and back: how a checkpoint writes what a run remembers.

Any nesting of dataclasses, named tuples, enums, mappings, tuples, lists, sets, numpy arrays and
plain values. So the state of a pruning method may be whatever data it likes, and needs no code to
be saved. Unlike pickle, reading runs nothing but constructors of data classes that are loaded
already.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from onnxprune.base import Array
from onnxprune.errors import DataError, MethodError

__all__ = ["decode", "encode"]

Json: TypeAlias = Any
Refer: TypeAlias = Callable[[Any], Json | None]
Resolve: TypeAlias = Callable[[Json], Any]


def encode(value: Any, refer: Refer = lambda _value: None) -> tuple[Json, list[Array]]:
    """What stands for `value`: a JSON document, and the arrays it mentions by number.

    Args:
        value: plain data.
        refer: what stands for an object that is kept elsewhere; None for all others.

    Raises:
        MethodError: it holds something that is no plain data.
    """
    arrays: list[Array] = []
    return _encoded(value, refer, arrays), arrays


def _encoded(value: Any, refer: Refer, arrays: list[Array]) -> Json:
    reference = refer(value)
    if reference is not None:
        return {"reference": reference}
    if isinstance(value, enum.Enum):
        return {"enum": _name(type(value)), "member": value.name}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return _array(value, arrays)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    return _collection(value, lambda entry: _encoded(entry, refer, arrays))


def _collection(value: Any, inner: Callable[[Any], Json]) -> Json:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        entries = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
        return {"data": _name(type(value)), "fields": {k: inner(v) for k, v in entries.items()}}
    if isinstance(value, Mapping):
        return {"map": [[inner(key), inner(entry)] for key, entry in value.items()]}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"named": _name(type(value)), "items": [inner(entry) for entry in value]}
    if isinstance(value, tuple):
        return [inner(entry) for entry in value]
    if isinstance(value, list):
        return {"list": [inner(entry) for entry in value]}
    if isinstance(value, set | frozenset):
        return {type(value).__name__: sorted((inner(entry) for entry in value), key=repr)}
    raise MethodError(
        f"{type(value).__name__} is no plain data and cannot be written to a checkpoint; keep "
        "numbers, arrays, tuples, mappings and dataclasses of these in the state of a method",
        type=type(value),
    )


def _array(value: Any, arrays: list[Array]) -> Json:
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise MethodError("an array of Python objects cannot be written to a checkpoint")
    found: dict[str, Json] = {"array": len(arrays)}
    if array.dtype.isbuiltin != 1:  # bfloat16 and its like, which .npz files do not know
        found["dtype"] = array.dtype.name
        array = array.view(f"u{array.dtype.itemsize}")
    arrays.append(array)
    return found | ({"scalar": True} if isinstance(value, np.generic) else {})


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def decode(
    document: Json, arrays: list[Array], resolve: Resolve = lambda reference: reference
) -> Any:
    """The inverse of `encode`.

    Args:
        document: the JSON.
        arrays: that it mentions.
        resolve: the object that a reference stands for.

    Raises:
        DataError: it mentions a class that this program does not have.
    """

    def inner(entry: Json) -> Any:
        return decode(entry, arrays, resolve)

    if isinstance(document, list):
        return tuple(inner(entry) for entry in document)
    if not isinstance(document, dict):
        return document
    (kind, body), *_ = document.items()
    known: Mapping[str, Callable[[], Any]] = {
        "reference": lambda: resolve(body),
        "enum": lambda: _class(body)[document["member"]],  # type: ignore[index]
        "float": lambda: float(body),
        "array": lambda: _restored(document, arrays[body]),
        "data": lambda: _class(body)(**{k: inner(v) for k, v in document["fields"].items()}),
        "named": lambda: _class(body)(*(inner(entry) for entry in document["items"])),
        "map": lambda: {inner(key): inner(entry) for key, entry in body},
        "list": lambda: [inner(entry) for entry in body],
        "set": lambda: {inner(entry) for entry in body},
        "frozenset": lambda: frozenset(inner(entry) for entry in body),
    }
    if kind not in known:
        raise DataError(f"{kind!r}: no kind of data; the checkpoint is of a newer version")
    return known[kind]()


def _restored(document: Mapping[str, Json], array: Array) -> Any:
    if "dtype" in document:
        array = array.view(np.dtype(document["dtype"]))
    return array[()] if document.get("scalar") else array


def _class(name: str) -> type:
    """The data class of that name, in a module that is loaded."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not _is_data(found):
        raise DataError(f"{name}: no data class of this program; import its module first")
    return found


def _is_data(kind: type) -> bool:
    named = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return dataclasses.is_dataclass(kind) or issubclass(kind, enum.Enum) or named
