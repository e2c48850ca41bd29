"""The first build and the first step of a graph, tried in a child process.

The gradient engine is C++ that can abort, crash, loop or eat all memory for graphs it was not made
for, and would take the user's program with it. `attempt` lets a child do first what the run is
about to do; what kills the child becomes an error. It is a process started anew, not a fork or a
spawn of the main module, so that it works from notebooks and from scripts without a main guard. It
costs about a second; a kind of graph that passed is not tried again in the same process. Where no
child can be started, nothing is tried, and a warning says so.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array
from onnxprune.errors import ModelError, OnnxPruneError, TrainingError
from onnxprune.gradients.gradient import differentiate
from onnxprune.gradients.lowering import TrainingCopy
from onnxprune.model import load, node_key, save
from onnxprune.runtime.session import Device, Runner

__all__ = ["LIMIT", "attempt", "main"]

LIMIT = 600.0
"""Seconds after which the first step counts as one that never ends."""

_REFUSED = 3  # the child's exit code when the engine raised instead of crashing
_BISECTED = 20.0  # seconds; a crash that takes longer to come is not traced to an operator
_STARTING = "starting"
_BUILD, _OPEN, _STEP = "building the gradient", "opening the session", "the first step"
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from onnxprune.gradients.trial import main; main(sys.argv[2])"
)

_log = logging.getLogger(__name__)

Kind: TypeAlias = frozenset[object]
_passed: set[Kind] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crash:
    """How a child ended.

    Attributes:
        stage: what it was doing.
        cause: a signal's name, an exit code, or the time limit.
        seconds: that it took.
        said: last line of its error output.
    """

    stage: str
    cause: str
    seconds: float
    said: str


def attempt(
    copies: Sequence[TrainingCopy],
    parameters: Sequence[str],
    feeds: Mapping[str, Array],
    *,
    device: Device,
    limit: float = LIMIT,
) -> None:
    """Differentiate and run `copies` in a child process, unless graphs of their kind passed before.

    An orderly refusal of the engine is no concern of this function: the caller meets it again.

    Args:
        copies: training copies whose first output is the loss; left as they are.
        parameters: names of what is trained.
        feeds: one batch, target included.
        device: where the run computes.
        limit: seconds for all of it.

    Raises:
        TrainingError: the child crashed or ran out of time. Facts: `stage`, `cause`, `operators`
            (empty where they could not be found), `said` (the child's last line).
    """
    kind: Kind = frozenset().union(*(_kind(copy.model.graph) for copy in copies))
    frozen = getattr(sys, "frozen", False)  # there the executable is the program, not Python
    if kind in _passed or frozen or not sys.executable:
        return
    try:
        _tried(copies, parameters, feeds, device, limit)
    except (OSError, ModelError) as error:  # no room for files, or no right to start processes
        _log.warning("the first step is not tried in a child process: %s", error)
        return
    _passed.add(kind)


def _tried(
    copies: Sequence[TrainingCopy],
    parameters: Sequence[str],
    feeds: Mapping[str, Array],
    device: Device,
    limit: float,
) -> None:
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        folder = Path(name)
        for place, copy in enumerate(copies):
            save(copy.model, folder / f"{place}.onnx")
        np.savez(folder / "feeds.npz", *feeds.values())
        states = [dict(copy.state) for copy in copies]
        request: dict[str, Any] = {"states": states, "device": asdict(device)}
        request |= {"feeds": list(feeds), "parameters": list(parameters)}
        crash = _run(folder, request, limit)
        if crash is None:
            return
        operators: tuple[str, ...] = ()
        if crash.seconds < _BISECTED:
            graph = copies[0].model.graph
            first = {**request, "states": states[:1]}
            operators = _suspects(graph, _ordered(graph, parameters), folder, first)
    raise _error(crash, operators)


def _kind(graph: ir.Graph) -> Kind:
    """What decides whether the engine copes: operators, attributes, ranks, which sizes are open."""
    return frozenset(
        (
            node.domain,
            node.op_type,
            tuple(sorted(node.attributes)),
            tuple(_openness(value) for value in node.inputs),
        )
        for node in graph.all_nodes()
    )


def _openness(value: ir.Value | None) -> tuple[object, ...]:
    if value is None:
        return ()
    if value.shape is None:
        return (value.dtype, None)
    return (value.dtype, *(isinstance(size, int) for size in value.shape))


def _run(folder: Path, request: Mapping[str, Any], limit: float) -> _Crash | None:
    """One child; None when it went through, or was refused in an orderly way."""
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    stage = folder / "stage"
    stage.write_text(_STARTING, encoding="utf-8")
    # Isolated from the current folder and the environment, with the paths of this process.
    command = [sys.executable, "-I", "-c", _START, json.dumps(_paths()), str(folder)]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        cause, said = f"no end after {limit:.0f} s", ""
    else:
        if done.returncode in (0, _REFUSED):
            return None
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        cause, said = _cause(done.returncode), lines[-1] if lines else ""
        if done.returncode == 1 and stage.read_text(encoding="utf-8") == _STARTING:
            raise OSError(f"Python cannot start one: {said}")  # says nothing about the model
    return _Crash(
        stage=stage.read_text(encoding="utf-8"),
        cause=cause,
        seconds=time.perf_counter() - started,
        said=said,
    )


def _paths() -> list[str]:
    return [str(Path(entry or ".").resolve()) for entry in sys.path]


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code:#x}" if code > 255 else f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


# --- which operator ------------------------------------------------------------------------------


def _positions(graph: ir.Graph) -> dict[ir.Node, int]:
    return {node: place for place, node in enumerate(graph)}


def _first_use(graph: ir.Graph, name: str, places: Mapping[ir.Node, int]) -> int:
    uses = (places.get(use.node, -1) for use in graph.initializers[name].uses())
    return min(uses, default=-1)


def _ordered(graph: ir.Graph, parameters: Sequence[str]) -> list[str]:
    """Parameters from the loss backwards."""
    places = _positions(graph)
    return sorted(parameters, key=lambda name: -_first_use(graph, name, places))


def _suspects(
    graph: ir.Graph, names: Sequence[str], folder: Path, request: Mapping[str, Any]
) -> tuple[str, ...]:
    """Operators of the stretch with whose gradient the crash begins; empty when that is unclear.

    With the parameters ordered from the loss backwards, it bisects how many of them can be trained.
    Where not even the last one can be, the engine fails for another reason than a gradient.
    """

    def crashes(count: int) -> bool:
        smaller = {**request, "parameters": list(names[:count])}
        return _run(folder, smaller, 2 * _BISECTED) is not None

    low, high = 1, len(names)
    if high < 2 or crashes(low) or not crashes(high):
        return ()
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if crashes(middle) else (middle, high)
    places = _positions(graph)
    start = _first_use(graph, names[high - 1], places)
    end = _first_use(graph, names[low - 1], places)
    stretch = [node for node, place in places.items() if start <= place <= end]
    return tuple(f"{node.op_type} ({node_key(node)})" for node in stretch)


def _error(crash: _Crash, operators: Sequence[str]) -> TrainingError:
    shown = ", ".join(operators[:6]) + (", ..." if len(operators) > 6 else "")
    where = f"; it begins with the gradient of one of: {shown}" if operators else ""
    said = f" ({crash.said})" if crash.said else ""
    return TrainingError(
        f"the training engine does not survive this model: {crash.stage} ended with "
        f"{crash.cause}{said}{where}. That was tried in a child process, so nothing is lost: "
        "freeze what leads through the operator at fault with --freeze, replace it in the model, "
        "or try a smaller --batch-size",
        stage=crash.stage,
        cause=crash.cause,
        operators=tuple(operators),
        said=crash.said,
    )


# --- in the child --------------------------------------------------------------------------------


def main(name: str) -> None:
    """Do what the files in the folder `name` ask for; the child's side of `attempt`."""
    folder = Path(name)
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    device = Device(**request["device"])
    with np.load(folder / "feeds.npz") as arrays:
        feeds = dict(zip(request["feeds"], arrays.values(), strict=True))
    try:
        for place, state in enumerate(request["states"]):
            model = load(folder / f"{place}.onnx", check=False)
            _step(model, state, request["parameters"], feeds, device, folder / "stage")
    except OnnxPruneError:
        sys.exit(_REFUSED)


def _step(
    model: ir.Model,
    state: Mapping[str, str],
    parameters: Sequence[str],
    feeds: Mapping[str, Array],
    device: Device,
    stage: Path,
) -> None:
    values = {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
    stage.write_text(_BUILD, encoding="utf-8")
    loss = model.graph.outputs[0].name or ""
    graph = differentiate(
        model, loss=loss, parameters=parameters, state=state, provider=device.provider
    )
    stage.write_text(_OPEN, encoding="utf-8")
    runner = Runner(graph.model, device)
    stage.write_text(_STEP, encoding="utf-8")
    known = {**values, **feeds}
    runner.run({name: known[name] for name in runner.inputs})
