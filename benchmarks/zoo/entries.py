"""What an entry of the zoo is, and where its file comes from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Entry", "Places", "UnavailableError"]


class UnavailableError(Exception):
    """The file of an entry cannot be had here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where files are kept, and the interpreters of the environments that make them.

    Attributes:
        cache: folder of all files.
        torch, keras, jax: interpreters of environments with these frameworks.
        seconds: that an export may take.
        gigabytes: of memory that an export may take.
    """

    cache: Path
    torch: str = sys.executable
    keras: str = sys.executable
    jax: str = sys.executable
    seconds: float = 180
    gigabytes: float = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model.

    Attributes:
        name: of its row.
        family: what kind of architecture it is.
        source: the library or package it comes from.
        make: writes the file, or raises `UnavailableError`.
        sizes: of inputs that are open in the file and cannot be made up, by name.
        large: hundreds of megabytes, and of the topology of a smaller entry.
    """

    name: str
    family: str
    source: str
    make: Callable[[Path, Places], None]
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    large: bool = False

    @property
    def stem(self) -> str:
        """Of its file's name."""
        return self.name.replace("/", "_").replace(":", "_")

    def file(self, places: Places) -> Path:
        """Its file, made when it is not in the cache.

        Raises:
            UnavailableError: it cannot be made; the reason is kept, so that it is not tried again.
        """
        path = places.cache / f"{self.stem}.onnx"
        excuse = path.with_suffix(".unavailable")
        if excuse.exists():
            raise UnavailableError(excuse.read_text(encoding="utf-8"))
        if not path.exists():
            places.cache.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f"draft-{path.name}")
            try:
                self.make(draft, places)
            except UnavailableError as error:
                excuse.write_text(str(error), encoding="utf-8")
                raise
            draft.rename(path)
        return path
