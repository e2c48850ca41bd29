"""ONNX Runtime sessions: what is installed, where it runs, and running a model on arrays.

`Runner` runs a model on arrays; `buffers.Bound` runs one on device buffers. Nothing here
trains. Beside `gradients/engine.py` only this module imports onnxruntime, and it does so
when the runtime is first needed, not when the module is imported.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.errors import (
    ConfigError,
    DataError,
    ModelError,
    RuntimeUnavailableError,
)
from onnxprune.model import opset, serialize
from onnxprune.older import claiming, spelled_out
from onnxprune.runtime.single import is_single, to_single

__all__ = [
    "Device",
    "Runner",
    "call",
    "check_runtime",
    "engine_failures",
    "first_line",
    "is_newer",
    "lowered_note",
    "onnxruntime",
    "optimized",
]

_DISTRIBUTIONS = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-training",
    "onnxruntime-training-cpu",
)
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FAILURES = (
    "EPFail",
    "EngineError",
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "ModelLoaded",
    "NoModel",
    "NoSuchFile",
    "NotImplemented",
    "RuntimeException",
)
# The C++ file, line and signature before a failed check, and the status code before the rest.
_WHERE = re.compile(r"^.*was (?:false|true)\. (?=\S)|^\[ONNXRuntimeError\] : \d+ : ")
_SILENT = 4  # log severity: fatal errors only
# Pad_Fusion merges a Pad with zeros into a MaxPool, which pads with -inf: wrong results, up to
# 1.31.1. MatMul_BatchNormalization_Fusion makes invalid graphs in 1.19.2.
_WRONG_OPTIMIZERS = ["Pad_Fusion", "MatMul_BatchNormalization_Fusion"]
_LAST_OPSET = 21  # of onnxruntime-training 1.19.2
_LAST_IR = 10
_DTYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint64)": np.uint64,
    "tensor(uint32)": np.uint32,
    "tensor(uint16)": np.uint16,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def check_runtime(*, training: bool) -> None:
    """Make sure that a usable onnxruntime is installed, before work starts that needs one.

    Args:
        training: whether it must also be able to build gradients.

    Raises:
        RuntimeUnavailableError: it is missing, cannot train, or was overwritten by another
            distribution that installs into the same folder.
    """
    found = _clash(_installed())
    if found:
        raise RuntimeUnavailableError(
            f"{' and '.join(found)} overwrite each other in one folder: uninstall all of them, "
            'then pip install "onnxprune[cpu]"',
            distributions=found,
        )
    try:
        from onnxruntime.capi import _pybind_state as engine
    except ImportError as error:
        raise RuntimeUnavailableError(
            f'onnxruntime cannot be imported ({first_line(error)}): pip install "onnxprune[cpu]"'
        ) from error
    if training and not hasattr(engine, "GradientGraphBuilder"):
        raise RuntimeUnavailableError(
            "the installed onnxruntime cannot train (no GradientGraphBuilder): "
            'pip uninstall onnxruntime, then pip install "onnxprune[cpu]"'
        )


@functools.cache
def _installed() -> list[str]:
    found = []
    for name in _DISTRIBUTIONS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def _clash(installed: Iterable[str]) -> tuple[str, ...]:
    """The runtimes among `installed` when they are more than one, else ()."""
    found = tuple(name for name in installed if name in _DISTRIBUTIONS)
    return found if len(found) > 1 else ()


def first_line(error: BaseException) -> str:
    """What a C++ failure says, without its stack and the runtime's own prefix."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _WHERE.sub("", lines[0]) if lines else type(error).__name__


def engine_failures() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its exceptions share no base class below Exception."""
    from onnxruntime.capi import _pybind_state as engine

    own = [getattr(engine, name) for name in _FAILURES if hasattr(engine, name)]
    return (RuntimeError, ValueError, *own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where and how sessions run.

    Attributes:
        provider: "cpu" or "cuda".
        index: which of several equal devices.
        threads: threads inside an operator; None lets the runtime choose.
        spinning: whether idle threads spin. Faster on a quiet machine, slower on a busy one.
    """

    provider: str = "cpu"
    index: int = 0
    threads: int | None = None
    spinning: bool = True

    def __post_init__(self) -> None:
        if self.provider not in _PROVIDERS:
            raise ConfigError(
                f"device {self.provider!r}: unknown; choose one of {', '.join(_PROVIDERS)}",
                provider=self.provider,
            )
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads: expected 1 or more, got {self.threads}")

    def providers(self) -> list[Any]:
        """Execution providers in order of preference, as onnxruntime wants them.

        Raises:
            ConfigError: the installed runtime has no such provider.
        """
        ort = onnxruntime()
        wanted = _PROVIDERS[self.provider]
        available = ort.get_available_providers()
        if wanted not in available:
            names = [name for name, provider in _PROVIDERS.items() if provider in available]
            raise ConfigError(
                f"device {self.provider!r}: the installed onnxruntime has no {wanted}; "
                f"available: {', '.join(names)}",
                provider=self.provider,
            )
        cpu = _PROVIDERS["cpu"]
        return [cpu] if wanted == cpu else [(wanted, {"device_id": self.index}), cpu]

    def options(self, *, optimize: bool) -> Any:
        """SessionOptions of a session on this device."""
        ort = onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = self.threads or 0
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "1" if self.spinning else "0"
        )
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return options


def onnxruntime() -> Any:
    """The runtime's Python module, made silent."""
    check_runtime(training=False)
    import onnxruntime as ort

    ort.set_default_logger_severity(_SILENT)
    return ort


class Runner:
    """One runtime session over one model; without optimizations where the runtime's fail on it.

    Args:
        model: left as it is.
        device: where it runs.
        optimize: whether the runtime may rewrite the graph. False keeps the nodes and their
            order as given, for references and for graphs whose outputs overwrite their inputs.

    Attributes:
        inputs, outputs: names, in graph order.
        session: the onnxruntime.InferenceSession itself.
        lowered: whether this runtime is older than the model, so that a copy with opset 21 and
            IR 10 in its header runs instead, new operators written out in older ones.
        single: whether the runtime has no kernels for the model's float types, so that a copy in
            float32 runs instead.

    Raises:
        ModelError: the runtime refuses the model.
    """

    def __init__(
        self, model: ir.Model, device: Device | None = None, *, optimize: bool = True
    ) -> None:
        self.device = device or Device()
        self.session, self.lowered, self.single = _first_that_opens(
            model, self.device, optimize=optimize
        )
        self._expected = {value.name: value for value in self.session.get_inputs()}
        self.inputs = tuple(self._expected)
        self.outputs = tuple(value.name for value in self.session.get_outputs())

    @property
    def plain(self) -> bool:
        """Whether the runtime's optimizations are off: not asked for, or they fail."""
        off = onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
        return bool(self.session.get_session_options().graph_optimization_level == off)

    def run(
        self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """The named outputs (all by default) for the arrays in `feeds`.

        Raises:
            DataError: an array is missing, or has another dtype or shape than the input.
            ModelError: the runtime failed while running.
        """
        names = list(self.outputs if outputs is None else outputs)
        arrays = {name: self.checked(name, feeds) for name in self.inputs}
        values = call(lambda: self.session.run(names, arrays), "cannot run the model")
        return dict(zip(names, values, strict=True))

    def checked(self, name: str, feeds: Mapping[str, Array]) -> Array:
        """`feeds[name]`, C-contiguous; the runtime itself would read a wrong dtype as garbage."""
        if name not in feeds:
            raise DataError(
                f"input {name!r}: no array given; got {', '.join(sorted(feeds)) or 'none'}",
                input=name,
            )
        expected = self._expected[name]
        array = np.asarray(feeds[name], order="C")
        dtype = _DTYPES.get(expected.type)
        if dtype is not None and array.dtype != dtype:
            if array.dtype.name == "bfloat16" and dtype is np.float32:
                # exact; the runtime takes none from numpy
                return self.checked(name, {name: array.astype(np.float32)})
            raise DataError(
                f"input {name!r}: expected {np.dtype(dtype)}, got {array.dtype}; convert the data",
                input=name,
            )
        sizes = expected.shape  # [] also when the rank is unknown
        wrong = [a != b for a, b in zip(array.shape, sizes, strict=False) if isinstance(b, int)]
        if sizes and (array.ndim != len(sizes) or any(wrong)):
            raise DataError(
                f"input {name!r}: expected shape ({', '.join(map(str, sizes))}), got {array.shape}",
                input=name,
                shape=array.shape,
            )
        return array


def _first_that_opens(model: ir.Model, device: Device, *, optimize: bool) -> tuple[Any, bool, bool]:
    """`_first_form`; without the runtime's optimizations where they are what fails."""
    try:
        return _first_form(model, device, optimize=optimize)
    except ModelError:
        if optimize:
            with contextlib.suppress(ModelError):
                return _first_form(model, device, optimize=False)
        raise


def _first_form(model: ir.Model, device: Device, *, optimize: bool) -> tuple[Any, bool, bool]:
    """A session of the model, or of the first copy that the runtime takes.

    Returns:
        The session, whether its header is older, and whether it is a copy in float32.
    """
    newer = is_newer(model)
    older = claiming(model, _LAST_OPSET, _LAST_IR) if newer else None
    forms = [(model, False, False), *([] if older is None else [(older, True, False)])]
    if not is_single(model):
        single = (older or model).clone()
        to_single(single)
        forms.append((single, newer, True))
    if any(value.dtype is ir.DataType.BFLOAT16 for value in _ends(model)):
        forms = forms[-1:]  # numpy has no bfloat16, so nothing could go in or come out
    (first, lowered, in_single), *others = forms
    try:
        return _open(first, device, optimize=optimize), lowered, in_single
    except ModelError:
        for form, lowered, in_single in others:
            with contextlib.suppress(ModelError):
                return _open(form, device, optimize=optimize), lowered, in_single
        plain = spelled_out(model, _LAST_OPSET) if newer else None
        if plain is None:
            raise
        plain = claiming(plain, _LAST_OPSET, _LAST_IR)
        return _open(plain, device, optimize=optimize), True, False


def _ends(model: ir.Model) -> tuple[ir.Value, ...]:
    return (*model.graph.inputs, *model.graph.outputs)


def _open(model: ir.Model, device: Device, *, optimize: bool) -> Any:
    ort = onnxruntime()
    providers = device.providers()
    options = device.options(optimize=optimize)
    with serialize(model) as source:
        session = call(
            lambda: ort.InferenceSession(
                source,
                options,
                providers=providers,
                disabled_optimizers=_WRONG_OPTIMIZERS if optimize else None,
            ),
            "the runtime refuses the model",
        )
    if _PROVIDERS[device.provider] not in session.get_providers():
        raise ConfigError(
            f"device {device.provider!r}: the runtime fell back to {session.get_providers()}; "
            "install the libraries it needs (CUDA 11.8 and cuDNN 8) or choose cpu",
            provider=device.provider,
        )
    return session


def optimized(model: ir.Model, file: Path) -> None:
    """Write `model` to `file` as a session on the CPU would run it.

    Raises:
        ModelError: the runtime refuses it.
    """
    ort = onnxruntime()
    options = Device().options(optimize=True)
    options.optimized_model_filepath = os.fspath(file)
    with serialize(model) as source:
        call(
            lambda: ort.InferenceSession(source, options, providers=[_PROVIDERS["cpu"]]),
            "the runtime refuses the model",
        )


def call(work: Callable[[], Any], what: str) -> Any:
    """The result of `work`; a C++ failure becomes a ModelError that starts with `what`."""
    try:
        return work()
    except engine_failures() as error:
        raise ModelError(f"{what}: {first_line(error)}") from error


def is_newer(model: ir.Model) -> bool:
    """Whether `model` is newer than what onnxruntime-training reads."""
    return opset(model) > _LAST_OPSET or model.ir_version > _LAST_IR


def lowered_note(model: ir.Model) -> str:
    """What to tell the user where a copy of `model` was lowered to be run."""
    version = onnxruntime().__version__
    return (
        f"onnxruntime {version} is older than the model (opset {opset(model)}, IR "
        f"{model.ir_version}): a copy lowered to opset {_LAST_OPSET} was run in its place"
    )
