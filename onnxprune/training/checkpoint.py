"""A run between two steps, as a folder: written so that it is there as a whole or not at all.

    step-000001230/
        model-1230.onnx  the model as it is then, a plain ONNX file (weights beside it when large)
        model-1000.onnx  further stages, evaluated before, that the run may return
        arrays.npz       moments, statistics, whatever else is an array
        state.json       everything else: `training.encoding`
        manifest.json    sizes and checksums of the others; written last

Nothing here decides when; that is `training.keeper`.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.base import Array, Axis, Index, Snapshot
from onnxprune.errors import DataError, ModelError
from onnxprune.graph.timing import Timing
from onnxprune.model import constant, constants, in_memory, load, save
from onnxprune.storage import sync
from onnxprune.training.config import RunConfig
from onnxprune.training.encoding import decode, encode
from onnxprune.training.pruning import Stage, removable
from onnxprune.training.tally import Tally

__all__ = ["Checkpoint", "Writer", "read_checkpoint"]

_MANIFEST, _STATE, _ARRAYS = "manifest.json", "state.json", "arrays.npz"
_FORMAT = 1
_CHUNK = 1 << 22  # bytes read at a time for a checksum


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Checkpoint:
    """All that a run needs to go on as if nothing had happened.

    Attributes:
        stage: the model, its groups, its numbers.
        state: the pruning method's; plain data (`training.encoding`).
        tally: losses, counts, evaluated stages.
        interval: steps between the method's decisions.
        seconds: of training so far.
        records: bytes of records.jsonl that belong to it.
        timing: the table that a target in milliseconds is counted by.
    """

    stage: Stage
    state: Any
    tally: Tally
    interval: int
    seconds: float
    records: int
    timing: Timing | None = None

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.stage.snapshot.step


class Writer:
    """Writes checkpoints of one run; a stage that the last one held already is linked, not copied.

    Args:
        first: the stage the run began with; kept by the model's own file.
    """

    def __init__(self, first: Stage) -> None:
        self._first = first
        self._written: dict[tuple[int, int], tuple[ir.Model, Path]] = {}
        self._kept = self._written

    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        """Make `folder`, which must not exist, with everything in it on the disk.

        Raises:
            OSError: the disk is full, or will not be written.
            MethodError: the state of the method is no plain data.
        """
        draft = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            files = self._write_all(draft, checkpoint)
            document = {"format": _FORMAT, "step": checkpoint.step, "files": files}
            _write_json(draft / _MANIFEST, document)
            for path in (*draft.iterdir(), draft):
                sync(path)
            os.replace(draft, folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync(folder.parent)
        self._written = {k: (model, folder / file.name) for k, (model, file) in self._kept.items()}

    def _write_all(self, draft: Path, checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
        stages: dict[tuple[int, int], dict[str, Any]] = {}
        kept: dict[tuple[int, int], tuple[ir.Model, Path]] = {}

        def refer(value: object) -> Any:
            if not isinstance(value, Stage):
                return None
            if value.snapshot.step == 0 and value.model is self._first.model:
                return {"stage": "first"}
            key = (id(value.model), value.snapshot.step)
            if key not in stages:
                file = draft / f"model-{value.snapshot.step}.onnx"
                facts = _lean(value), dict(value.origins), dict(value.analysis.names)
                stages[key] = {"file": file.name, "facts": facts}
                kept[key] = (value.model, file)
                self._write_model(key, value, file)
            return {"stage": list(stages).index(key)}

        document, arrays = encode(checkpoint, refer)
        for stage in stages.values():
            found, more = encode(stage["facts"])
            stage["facts"], stage["arrays"] = found, [len(arrays), len(more)]
            arrays += more
        _write_json(draft / _STATE, {"checkpoint": document, "stages": list(stages.values())})
        with (draft / _ARRAYS).open("wb") as file:
            named: dict[str, Any] = {f"a{n}": array for n, array in enumerate(arrays)}
            np.savez(file, **named)
        self._kept = kept
        return {path.name: _checksum(path) for path in sorted(draft.iterdir())}

    def _write_model(self, key: tuple[int, int], stage: Stage, file: Path) -> None:
        """Link what the last checkpoint has; write it where that is not possible."""
        if key in self._written:
            try:
                for part in _parts(self._written[key][1]):
                    os.link(part, file.parent / part.name)
            except OSError:  # no links there
                for part in _parts(file):
                    part.unlink()
            else:
                return
        try:
            save(stage.current(), file)
        except ModelError as error:
            raise (error.__cause__ if isinstance(error.__cause__, OSError) else error) from error


def _parts(file: Path) -> list[Path]:
    """A model file and the data files beside it."""
    return [path for path in file.parent.iterdir() if path.name.startswith(file.name)]


def _lean(stage: Stage) -> Snapshot:
    """The snapshot without what the model file holds: None stands for it."""
    values = constants(stage.model)

    def without(arrays: Mapping[str, Array]) -> Mapping[str, Any]:
        return {
            name: None if _is_held(values[name], array) else array for name, array in arrays.items()
        }

    snapshot = stage.snapshot
    return replace(snapshot, parameters=without(snapshot.parameters), state=without(snapshot.state))


def _is_held(value: ir.Value, array: Array) -> bool:
    """Whether the model file keeps `array` bit for bit once it is written there."""
    return value.dtype is not None and value.dtype.numpy() == array.dtype


def read_checkpoint(folder: Path, first: Stage, config: RunConfig) -> Checkpoint:
    """The checkpoint in `folder`.

    Args:
        folder: as `Writer.write` made it.
        first: the stage that the run began with.
        config: of the run.

    Raises:
        DataError: something is missing or damaged.
    """
    stages: list[Stage] = []

    def resolve(reference: Mapping[str, Any]) -> Stage:
        number = reference["stage"]
        return first if number == "first" else stages[number]

    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT:
            raise DataError(f"{folder}: checkpoint format {manifest['format']}, expected {_FORMAT}")
        for name, expected in manifest["files"].items():
            if list(_checksum(folder / name)) != expected:
                raise DataError(f"{folder / name}: damaged; size or checksum differ", path=folder)
        document = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        with np.load(folder / _ARRAYS, allow_pickle=False) as stored:
            arrays = [stored[f"a{number}"] for number in range(len(stored.files))]
        stages += [_stage(folder, entry, arrays, config, first) for entry in document["stages"]]
        found: Checkpoint = decode(document["checkpoint"], arrays, resolve)
    except (OSError, ValueError, LookupError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{folder}: not a whole checkpoint ({error})", path=folder) from error
    return found


def _stage(
    folder: Path, entry: Mapping[str, Any], arrays: list[Array], config: RunConfig, first: Stage
) -> Stage:
    model = in_memory(load(folder / entry["file"]))
    start, count = entry["arrays"]
    decoded: tuple[Snapshot, Mapping[Axis, Index], Mapping[str, frozenset[Axis]]]
    decoded = decode(entry["facts"], arrays[start : start + count])
    snapshot, origins, names = decoded
    values = constants(model)

    def filled(known: Mapping[str, Array | None]) -> dict[str, Array]:
        held = {name: constant(values[name]) for name in known}
        return {n: np.array(held[n] if array is None else array) for n, array in known.items()}

    analysis = removable(model, config, before=replace(first.analysis, names=names))
    snapshot = replace(
        snapshot, parameters=filled(snapshot.parameters), state=filled(snapshot.state)
    )
    return Stage(model=model, analysis=analysis, snapshot=snapshot, origins=origins)


def _write_json(file: Path, document: Any) -> None:
    file.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")


def _checksum(file: Path) -> tuple[int, int]:
    """Size and CRC-32."""
    size = total = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            size, total = size + len(chunk), zlib.crc32(chunk, total)
    return size, total
