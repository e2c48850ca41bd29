"""Raw arrays laid out for the inputs of a model.

Entry: `fit`. It decides, once, how every array becomes an input (which axes, which dtype, which
scale) and says so in `Data.notes`. It converts nothing: that happens per batch, in `Split.batch`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Floats
from onnxprune.data.layout import LAYOUTS, Arrangement, arrangements
from onnxprune.data.sources import Part, Raw
from onnxprune.data.split import Conversion, Data, InputSpec, Split
from onnxprune.errors import ConfigError, DataError
from onnxprune.model import model_input, shape_of

__all__ = ["fit", "input_specs"]


def input_specs(
    model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[InputSpec, ...]:
    """What the inputs of `model` expect; `input_shapes` overrides sizes by input name.

    Raises:
        ConfigError: `input_shapes` names no input, or an input declares no shape at all.
        DataError: an input is no tensor of numbers.
    """
    values = {value.name or "": value for value in model_input(model)}
    for name in input_shapes or {}:
        if name not in values:
            raise ConfigError(
                f"--input-shape {name}: the model has no such input; it has {', '.join(values)}",
                name=name,
            )
    return tuple(_input_spec(name, value, input_shapes or {}) for name, value in values.items())


def _input_spec(name: str, value: ir.Value, input_shapes: Mapping[str, Sequence[int]]) -> InputSpec:
    shape = shape_of(value)
    if shape is None and name not in input_shapes:
        raise ConfigError(
            f"input {name}: the model declares no shape for it; give --input-shape {name}:SIZES",
            name=name,
        )
    dtype = None if value.dtype in (None, ir.DataType.STRING) else value.dtype
    if dtype is None:
        raise DataError(f"input {name}: only tensors of numbers can be fed", name=name)
    declared = tuple(shape or ())
    given = input_shapes.get(name)
    if given is not None:
        # The batch axis stays open where the model leaves it open: the shape is for the analysis.
        declared = (*(declared[:1] or (None,)), *given[1:])
    return InputSpec(name=name, dtype=np.dtype(dtype.numpy()), shape=declared)


def fit(
    raw: Raw,
    inputs: Sequence[InputSpec],
    *,
    scale: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: str = "auto",
    input_names: Mapping[str, str] | None = None,
    targets: Collection[str] = (),
) -> Data:
    """Lay raw data out for the inputs of a model.

    Without `scale`, uint8 data for a float input is divided by `raw.unit` (255; 16 for the
    embedded digits), and everything else stays as it is.

    Args:
        raw: from `read`.
        inputs: what the model expects.
        scale: factor for all float inputs, instead of the default.
        mean: subtracted after scaling, one number or one per channel.
        std: divided by after that, one number or one per channel.
        layout: how the data lies, one of `LAYOUTS`; "none" keeps the order of the values.
        input_names: which array of the data is for which input, where their names differ.
        targets: names of arrays that are targets beside y, if the data has them.

    Raises:
        DataError: an input has no array, sizes do not fit or fit in several ways, or values do
            not fit the dtype.
        ConfigError: `scale`, `mean`, `std` or `layout` is impossible.
    """
    _check_options(inputs, scale, mean, std, layout)
    names = frozenset(targets) - {spec.name for spec in inputs}
    raw, others = _without(raw, names)
    keys = _assign(raw, inputs, input_names or {})
    conversions = {}
    notes = []
    for spec in inputs:
        array = raw.train.x[keys[spec.name]]
        factor = _factor(spec, array, raw.unit, scale)
        arrangement = _arrange(spec, array, layout)
        conversions[spec.name] = _conversion(spec, arrangement, factor, mean, std, layout)
        notes += _note(spec, array, arrangement, factor)
    unused = [name or "x" for name in raw.train.x if name not in keys.values()]
    if unused:
        notes.append(f"{raw.name}: {', '.join(unused)} not used by any input of the model")
    train, validation, test = (
        None if part is None else replace(_split(raw, part, inputs, keys, conversions), others=more)
        for part, more in zip((raw.train, raw.validation, raw.test), others, strict=True)
    )
    assert train is not None
    return Data(train=train, validation=validation, test=test, notes=tuple(notes))


def _without(raw: Raw, names: Collection[str]) -> tuple[Raw, list[dict[str, Array]]]:
    """`raw` without the arrays called `names`, and these, per part."""
    parts: list[Part | None] = []
    taken: list[dict[str, Array]] = []
    for part in (raw.train, raw.validation, raw.test):
        arrays = {} if part is None else part.x
        taken.append({name: array for name, array in arrays.items() if name in names})
        left = {name: array for name, array in arrays.items() if name not in names}
        parts.append(None if part is None else replace(part, x=left))
    assert parts[0] is not None
    return replace(raw, train=parts[0], validation=parts[1], test=parts[2]), taken


def _check_options(
    inputs: Sequence[InputSpec],
    scale: float | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    layout: str,
) -> None:
    if layout not in LAYOUTS:
        raise ConfigError(f"--layout {layout}: expected one of {', '.join(LAYOUTS)}")
    numbers = [*([] if scale is None else [scale]), *(mean or []), *(std or [])]
    if not all(math.isfinite(number) for number in numbers) or scale == 0 or 0 in (std or []):
        raise ConfigError("--scale, --mean and --std must be finite, --scale and --std not zero")
    if numbers and not any(_is_float(spec.dtype) for spec in inputs):
        raise ConfigError("--scale, --mean and --std need a float input; this model has none")


def _is_float(dtype: np.dtype[Any]) -> bool:
    return "float" in dtype.name  # bfloat16 and the 8-bit floats are no np.floating


def _assign(
    raw: Raw, inputs: Sequence[InputSpec], input_names: Mapping[str, str]
) -> dict[str, str]:
    """For every input, the name of its array."""
    names = {spec.name for spec in inputs}
    renamed = {input_names.get(key or "x", key): key for key in raw.train.x}
    keys = {name: renamed[name] for name in names & set(renamed)}
    if "x" in names and "" in renamed:
        keys.setdefault("x", "")
    missing = [spec.name for spec in inputs if spec.name not in keys]
    left = [key for key in raw.train.x if key not in keys.values()]
    if "" in left:
        left = [""]  # an array simply called x is meant, whatever else there is
    if len(missing) == 1 and len(left) == 1 and (left == [""] or len(inputs) == 1):
        return {**keys, missing[0]: left[0]}
    if missing:
        raise DataError(
            f"{raw.name}: no array for input {', '.join(missing)}; expected arrays named "
            f"{', '.join(spec.name for spec in inputs)}, "
            f"got {', '.join(name or 'x' for name in raw.train.x)}",
            missing=tuple(missing),
        )
    return keys


def _factor(spec: InputSpec, array: Array, unit: float, scale: float | None) -> float:
    if not _is_float(spec.dtype):
        return 1.0
    if scale is not None:
        return scale
    return 1.0 / unit if array.dtype == np.uint8 else 1.0


def _arrange(spec: InputSpec, array: Array, layout: str) -> Arrangement:
    ways = arrangements(array.shape[1:], spec.shape[1:], layout) if spec.shape else ()
    if len(ways) == 1:
        return ways[0]
    got = f"{array.dtype} {array.shape}"
    if ways:
        raise DataError(
            f"input {spec.name}: expected {spec}, got {got}, which fits in {len(ways)} ways; say "
            "how the data lies: --layout nchw, nhwc, or none to keep the order of the values",
            input=spec.name,
            expected=spec.shape,
            got=array.shape,
        )
    raise DataError(
        f"input {spec.name}: expected {spec}, got {got}, which does not fit; "
        f"reshape the data, or choose another --layout than {layout}",
        input=spec.name,
        expected=spec.shape,
        got=array.shape,
    )


def _conversion(
    spec: InputSpec,
    arrangement: Arrangement,
    factor: float,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    layout: str,
) -> Conversion:
    if not _is_float(spec.dtype):
        return Conversion(arrangement=arrangement, dtype=spec.dtype)
    return Conversion(
        arrangement=arrangement,
        dtype=spec.dtype,
        scale=factor,
        mean=_per_channel("--mean", mean, spec, arrangement, layout),
        std=_per_channel("--std", std, spec, arrangement, layout),
    )


def _per_channel(
    option: str,
    numbers: Sequence[float] | None,
    spec: InputSpec,
    arrangement: Arrangement,
    layout: str,
) -> Floats | None:
    """`numbers` shaped to broadcast along the channel axis of one example."""
    if numbers is None:
        return None
    values: Floats = np.asarray(numbers, dtype=np.float64)
    if len(values) == 1:
        return values.reshape(())
    sizes = arrangement.shape
    was_turned = arrangement.order is not None
    last_first = layout == "nhwc" and not was_turned
    for axis in (len(sizes) - 1, 0) if last_first else (0, len(sizes) - 1):
        if sizes and sizes[axis] == len(values):
            shape = [1] * len(sizes)
            shape[axis] = len(values)
            return values.reshape(shape)
    raise DataError(
        f"input {spec.name}: {option} has {len(values)} numbers, expected 1 or one per channel of "
        f"{spec}; give as many as there are channels",
        input=spec.name,
        got=len(values),
    )


def _note(spec: InputSpec, array: Array, arrangement: Arrangement, factor: float) -> list[str]:
    done = [arrangement.describe()]
    if factor != 1.0:
        done.append(f"multiplied by {factor:.6g}")
    done = [step for step in done if step]
    if not done:
        return []
    return [f"input {spec.name}: {array.dtype} {array.shape[1:]} {', '.join(done)}"]


def _split(
    raw: Raw,
    part: Part,
    inputs: Sequence[InputSpec],
    keys: Mapping[str, str],
    conversions: Mapping[str, Conversion],
) -> Split:
    sources = {}
    for spec in inputs:
        array = part.x.get(keys[spec.name])
        trained = raw.train.x[keys[spec.name]]
        if array is None or (array.shape[1:], array.dtype) != (trained.shape[1:], trained.dtype):
            got = "nothing" if array is None else f"{array.dtype} {array.shape}"
            raise DataError(
                f"{raw.name}: input {spec.name}: validation and test data must look like the "
                f"training data, {trained.dtype} {trained.shape}, got {got}",
                input=spec.name,
            )
        _check_values(raw.name, spec, array, conversions[spec.name].scale)
        sources[spec.name] = array
    return Split(sources=sources, target=part.y, conversions=conversions)


def _check_values(name: str, spec: InputSpec, array: Array, scale: float) -> None:
    """Refuse values that the dtype of the input cannot hold."""
    low, high = float(array.min()), float(array.max())
    if spec.dtype.kind == "b":
        fits = {low, high} <= {0.0, 1.0}
    elif spec.dtype.kind in "iu":
        limits = np.iinfo(spec.dtype)
        integral = array.dtype.kind != "f" or not np.any(array != np.trunc(array))
        fits = limits.min <= low and high <= limits.max and integral
    elif spec.dtype.kind == "f":
        fits = max(-low, high) * abs(scale) <= float(np.finfo(spec.dtype).max)
    else:
        fits = True
    if not fits:
        raise DataError(
            f"{name}: input {spec.name} is {spec.dtype}, which cannot hold the {array.dtype} "
            f"values {low:g}..{high:g} of the data; convert the data, or give --scale",
            input=spec.name,
            low=low,
            high=high,
        )
