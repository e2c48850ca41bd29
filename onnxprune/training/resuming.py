"""What a run was about, so that another process can go on with it.

`describe` is what a run writes into its folder when it begins; `reopened` reads it back, with what
the caller wants otherwise, and `check_same` refuses another model, other data or losses: a run that
went on with them would be neither the old one nor a new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.base import Array
from onnxprune.data import Source, Split
from onnxprune.errors import ConfigError, DataError, InvalidModelError
from onnxprune.model import external_files
from onnxprune.reports import RunDirectory
from onnxprune.training.cadence import Cadence, parse_cadence
from onnxprune.training.config import RunConfig, option_name
from onnxprune.training.problem import Problem

__all__ = ["Request", "check_same", "describe", "reopened"]

_FREE = frozenset({"epochs", "patience", "threads", "keep_checkpoints", "check"})
_RUNTIMES = ("onnxruntime-training-cpu", "onnxruntime-training", "numpy")
_IN_MEMORY = "(arrays)"
_SAMPLES = 256  # blocks of a file, rows of an array, that a fingerprint reads
_BLOCK = 1 << 18  # bytes


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Request:
    """What a run works on.

    Attributes:
        model: path of the file given.
        data, validation: sources.
        output: where the result goes; None for the default.
        config: how.
        directory: of the run to go on with; None for a new one.
        notes: what the user should know about going on.
    """

    model: str | os.PathLike[str]
    data: Source
    validation: Source | None
    output: str | os.PathLike[str] | None
    config: RunConfig
    directory: RunDirectory | None = None
    notes: tuple[str, ...] = ()

    @property
    def reads(self) -> list[str | os.PathLike[str]]:
        """Files that must survive, beside the model."""
        sources = (self.data, self.validation)
        named = [source for source in sources if isinstance(source, str | os.PathLike)]
        return [*named, *self.config.files]


def describe(request: Request, problem: Problem, output: Path) -> dict[str, Any]:
    """What must be the same when the run goes on, as JSON can hold it."""
    return {
        "model": os.path.abspath(request.model),
        "model_fingerprint": _file_fingerprint(Path(request.model)),
        "data": _place(request.data),
        "validation": _place(request.validation),
        "data_fingerprint": _data_fingerprint(problem),
        "losses": _loss_fingerprints(request.config),
        "output": os.path.abspath(output),
        "versions": _versions(),
        "cores": os.cpu_count(),
    }


def reopened(
    path: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None,
    data: Source | None,
    validation: Source | None,
    output: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
) -> Request:
    """The request of the run in folder `path`, with what the caller gives anew.

    Args:
        path: the run's folder.
        model: None for that of the run.
        data: None for that of the run; needed where the run got arrays.
        validation: likewise.
        output: None for that of the run.
        options: fields of `RunConfig` the caller names.

    Raises:
        ConfigError: no run there, it keeps no checkpoints, or an option contradicts it.
        DataError: the run was given arrays, and the caller gives none.
    """
    directory = RunDirectory(Path(path))
    stored, origin = directory.read_config()
    config = _merged(stored, options)
    if parse_cadence(config.checkpoint_every) == Cadence():
        raise ConfigError(
            f"--resume {directory.path}: the run keeps no checkpoints (--checkpoint-every never); "
            "start a new one",
            path=directory.path,
        )
    given = {"data": data, "validation": validation}
    for name, source in given.items():
        if source is None and origin[name] == _IN_MEMORY:
            raise DataError(
                f"--resume {directory.path}: the run was given arrays as {name}; give them again",
                path=directory.path,
            )
    return Request(
        model=origin["model"] if model is None else model,
        data=origin["data"] if data is None else data,
        validation=origin["validation"] if validation is None else validation,
        output=origin["output"] if output is None else output,
        config=config,
        directory=directory,
        notes=_changes(stored, config, origin),
    )


def check_same(request: Request, problem: Problem) -> None:
    """Make sure that model, data and losses are those the run began with.

    Raises:
        ConfigError: they are not.
    """
    assert request.directory is not None
    _, origin = request.directory.read_config()
    if origin["model_fingerprint"] != _file_fingerprint(Path(request.model)):
        raise ConfigError(
            f"--resume {request.directory.path}: {os.fspath(request.model)} is not the model the "
            f"run began with ({origin['model']}); give that one, or start a new run",
            model=request.model,
        )
    if origin["data_fingerprint"] != _data_fingerprint(problem):
        raise ConfigError(
            f"--resume {request.directory.path}: other data than the run began with "
            f"({origin['data']}); give the same, or start a new run",
            data=origin["data"],
        )
    losses = _loss_fingerprints(request.config)
    if origin.get("losses", losses) != losses:
        raise ConfigError(
            f"--resume {request.directory.path}: a loss has changed since the run began "
            f"({', '.join(request.config.files)}); bring it back, or start a new run",
            files=request.config.files,
        )


def _merged(stored: Mapping[str, Any], options: Mapping[str, Any]) -> RunConfig:
    """The run's configuration, with the options given anew that may differ.

    Raises:
        ConfigError: one differs that may not.
    """
    old = RunConfig.from_dict(stored)
    new = RunConfig.from_dict({**stored, **options})
    before, after = old.to_dict(), new.to_dict()
    for name in options:
        if before[name] != after[name] and name not in _FREE:
            raise ConfigError(
                f"{option_name(name)} {after[name]}: the run was started with {before[name]}; "
                "leave it out to go on, or start a new run",
                option=name,
                expected=before[name],
                got=after[name],
            )
    if new.epochs < old.epochs:
        raise ConfigError(
            f"--epochs {new.epochs}: the run was started with {old.epochs}, which can only be "
            "raised",
            option="epochs",
        )
    return new


def _changes(
    stored: Mapping[str, Any], config: RunConfig, origin: Mapping[str, Any]
) -> tuple[str, ...]:
    """In what the run that goes on differs from one that was never interrupted."""
    facts = {
        "--threads": (stored["threads"], config.threads),
        "cores": (origin["cores"], os.cpu_count()) if config.threads is None else (0, 0),
        **{name: (origin["versions"].get(name), now) for name, now in _versions().items()},
    }
    found = [
        f"resumed with {name} {now} instead of {before}: numbers may differ in the last bits"
        for name, (before, now) in facts.items()
        if before != now
    ]
    if config.epochs != stored["epochs"]:
        found.append(
            f"resumed with {config.epochs} epochs instead of {stored['epochs']}: learning rate and "
            "target follow the longer schedule from there on"
        )
    return tuple(found)


def _place(source: Source | None) -> str | None:
    """Where another process finds a source."""
    if source is None:
        return None
    if not isinstance(source, str | os.PathLike):
        return _IN_MEMORY
    return os.path.abspath(source) if os.path.exists(source) else os.fspath(source)


def _versions() -> dict[str, str]:
    found = {}
    for name in _RUNTIMES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _file_fingerprint(path: Path) -> str:
    """Of a model and its data files: their sizes, and all bytes or, of large files, many samples.

    Raises:
        InvalidModelError: no such file.
    """
    digest = hashlib.sha256()
    if not path.is_file():
        raise InvalidModelError(f"{path}: no such file; give the model of the run", path=path)
    for file in (path, *sorted(external_files(path))):
        size = file.stat().st_size
        digest.update(f"{size}\n".encode())
        with file.open("rb") as stream:
            for start in _starts(size, _BLOCK):
                stream.seek(start)
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


def _starts(size: int, block: int) -> list[int]:
    """Where to read `block` at a time: everywhere, or evenly spread, the last block included."""
    if size <= _SAMPLES * block:
        return list(range(0, size, block))
    return [int(start) for start in np.linspace(0, size - block, _SAMPLES)]


def _loss_fingerprints(config: RunConfig) -> list[str]:
    return [_file_fingerprint(Path(file)) for file in config.files]


def _data_fingerprint(problem: Problem) -> str:
    """Of the examples: how many, their shapes and types, and evenly spread samples."""
    digest = hashlib.sha256()
    for split in (problem.train, problem.validation, problem.test):
        for name, array in [] if split is None else _arrays(split):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            rows = [array[row : row + 1] for row in _starts(len(array), 1)]
            digest.update(b"".join(np.ascontiguousarray(row).tobytes() for row in rows))
    return digest.hexdigest()


def _arrays(split: Split) -> list[tuple[str, Array]]:
    named = {**split.sources, "(target)": split.target, "(rows)": split.rows}
    named |= {f"(target) {name}": array for name, array in split.others.items()}
    return [(name, array) for name, array in named.items() if array is not None]
