"""Run events and the folder that keeps them.

Entries: the event classes, `RunDirectory` and `read_records`. An event is one JSON line with its
type; a reader that does not know a type, or finds other fields than it knows, gets a dict, so that
old and new versions read each other's runs. Records hold durations but no dates: the same run
twice writes the same file, but for the durations.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

from onnxprune.errors import ConfigError, DataError
from onnxprune.storage import sync, try_lock, write_text

__all__ = [
    "Evaluated",
    "Event",
    "Finished",
    "Progress",
    "Pruned",
    "Resumed",
    "RunDirectory",
    "Started",
    "plain",
    "read_records",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """Training begins.

    Attributes:
        model: the path that was given.
        parameters, macs: of the model, macs per example.
        groups, units: what could be removed.
        config: the resolved configuration.
    """

    model: str
    parameters: int
    macs: int
    groups: int
    units: int
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """Training goes on from a checkpoint; told to listeners, never in the records.

    Attributes:
        step, steps: optimizer steps done and planned.
        run_directory: of the run.
    """

    step: int
    steps: int
    run_directory: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Some steps are done.

    Attributes:
        step, steps: optimizer steps done and planned.
        epoch: passes over the data that are complete.
        loss: of the last steps, smoothed.
        parameters: that the model has left.
        parts: the terms of the loss by name, as `loss`, where there are several.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    parameters: int
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The model was evaluated on `split` ("train", "validation" or "test")."""

    step: int
    epoch: int
    split: str
    metrics: Mapping[str, float]
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """Units were removed.

    Attributes:
        step: optimizer steps done before.
        removed: units per group name.
        exact, bounded: how many of them changed nothing, and how many something.
        error, tolerance: largest absolute difference from the reference, and what is allowed.
        change, bound: how much the method expects the consumers' pre-activations to change, all
            removals together, and at most by any one of them; relative, NaN when it does not say.
        rolled_back: groups that failed verification and were put back.
        verified: "whole"; "parts" where models ran stretch by stretch; "off" where they did not.
        parameters, macs: what is left.
        masked: numbers among these parameters that are zero for good, single connections that went.
        seconds: that it took.
    """

    step: int
    removed: Mapping[str, int]
    exact: int
    bounded: int
    error: float
    tolerance: float
    change: float = math.nan
    bound: float = math.nan
    rolled_back: tuple[str, ...] = ()
    verified: str = "whole"
    parameters: int
    macs: int
    masked: int = 0
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The run is over; `report` is `Report.to_dict()`."""

    report: Mapping[str, Any]


Event: TypeAlias = Started | Resumed | Progress | Evaluated | Pruned | Finished

_TYPES: Mapping[str, type[Any]] = {
    "started": Started,
    "progress": Progress,
    "evaluated": Evaluated,
    "pruned": Pruned,
    "finished": Finished,
}
_ORIGIN, _CLAIM = "run.json", ".lock"
_NAMES = {kind: name for name, kind in _TYPES.items()}


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: no NaN or Inf (null), no numpy scalars, no tuples."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _line(event: Event) -> str:
    entries = {entry.name: plain(getattr(event, entry.name)) for entry in fields(event)}
    return json.dumps({"type": _NAMES[type(event)], **entries}, allow_nan=False)


def _event(record: dict[str, Any]) -> Event | dict[str, Any]:
    kind = _TYPES.get(str(record.get("type")))
    names = [] if kind is None else [entry.name for entry in fields(kind)]
    if kind is None or set(names) != record.keys() - {"type"}:
        return record
    verbatim = ("config", "report")  # here null means that there is none
    values = {name: record[name] if name in verbatim else _restored(record[name]) for name in names}
    event: Event = kind(**values)
    return event


def _restored(value: Any) -> Any:
    """Undo `plain` as far as the fields of events need it: null was NaN, a list was a tuple."""
    if value is None:
        return math.nan
    if isinstance(value, dict):
        return {key: math.nan if entry is None else entry for key, entry in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _is_leftover(path: Path) -> bool:
    """Whether a folder without run.json may hold this and yet be free."""
    return path.name in ("config.json", _CLAIM) or path.name.startswith(".onnxprune-")


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The folder of one run: config.json, run.json, records.jsonl, checkpoints.

    Use as: `run = RunDirectory.create("runs", "lenet")`, then `run.append(event)`.
    """

    path: Path

    @classmethod
    def create(cls, parent: str | os.PathLike[str], stem: str) -> RunDirectory:
        """Make the folder <parent>/<stem>-<n> with the first n from 1 on that is free.

        Raises:
            ConfigError: it cannot be made.
        """
        candidates = (Path(parent) / f"{stem}-{number}" for number in itertools.count(1))
        return next(run for run in map(cls._made, candidates) if run is not None)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunDirectory:
        """Make the folder `path`, or take it when it is empty, or a run died before it began there.

        Raises:
            ConfigError: it holds something already, or cannot be made.
        """
        folder = Path(path)
        made = cls._made(folder)
        if made is not None:
            return made
        if folder.is_dir() and all(_is_leftover(path) for path in folder.iterdir()):
            return cls(folder)
        if cls(folder).holds_run:
            raise ConfigError(
                f"--run-dir {folder}: holds a run; continue it with --resume {folder}, or choose "
                "another",
                path=folder,
            )
        raise ConfigError(f"--run-dir {folder}: not empty; choose another", path=folder)

    @classmethod
    def _made(cls, folder: Path) -> RunDirectory | None:
        """The new folder; None when there is something of that name."""
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except OSError as error:
            if isinstance(error, FileExistsError) and folder.exists():
                return None
            raise ConfigError(
                f"--run-dir {folder}: cannot be made ({error.strerror}); choose another",
                path=folder,
            ) from error
        return cls(folder)

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the claim dies with the process.

        Raises:
            ConfigError: another one does.
        """
        if not self.path.is_dir():
            yield  # whoever reads it says what is wrong
            return
        with (self.path / _CLAIM).open("wb") as file:
            if not try_lock(file):
                raise ConfigError(
                    f"{self.path}: another process trains there; wait for it or end it",
                    path=self.path,
                )
            yield

    @property
    def records(self) -> Path:
        """The file the events go to."""
        return self.path / "records.jsonl"

    @property
    def holds_run(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / _ORIGIN).is_file()

    @property
    def length(self) -> int:
        """Bytes of the records so far."""
        return self.records.stat().st_size if self.records.exists() else 0

    def truncate(self, length: int) -> None:
        """Forget the records beyond the first `length` bytes."""
        if self.length > length:
            os.truncate(self.records, length)

    def write_config(self, config: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
        """Keep the resolved configuration as config.json, and what it was applied to as run.json.

        The second one comes last: with it the folder holds a run.
        """
        for name, values in (("config.json", config), (_ORIGIN, origin)):
            text = json.dumps(plain(values), indent=2, allow_nan=False)
            write_text(self.path / name, text + "\n")
            sync(self.path / name)
        sync(self.path)

    def read_config(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `write_config` wrote.

        Raises:
            ConfigError: there is no run in this folder, or its files are damaged.
        """
        try:
            config, origin = (
                json.loads((self.path / name).read_text(encoding="utf-8"))
                for name in ("config.json", _ORIGIN)
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--resume {self.path}: holds no run ({_ORIGIN} or config.json cannot be read); "
                "give the folder of a run, as in runs/<model>-1",
                path=self.path,
            ) from error
        return config, origin

    def append(self, event: Event) -> None:
        """Add one event; it is in the file when this returns, or no part of it is."""
        before = self.length
        try:
            with self.records.open("a", encoding="utf-8", newline="\n") as file:
                file.write(_line(event) + "\n")
        except OSError:
            with contextlib.suppress(OSError):
                self.truncate(before)
            raise


def read_records(path: str | os.PathLike[str]) -> tuple[Event | dict[str, Any], ...]:
    """The events of a run, given its folder or its records.jsonl.

    A last line that a crash cut short is left out.

    Raises:
        DataError: no such file, or a line that is no record.
    """
    file = Path(path) / "records.jsonl" if Path(path).is_dir() else Path(path)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read; give the folder of a run", path=file) from error
    events = []
    # the text after the last line end is empty, or a line that was never finished
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}: line {number} is not a record", line=number) from error
        if not isinstance(record, dict):
            raise DataError(f"{file}: line {number} is not a record", line=number)
        events.append(_event(record))
    return tuple(events)
