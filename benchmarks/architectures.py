"""What onnxprune does to every architecture people have, beside its peers, in one run.

    python architectures.py                     # runs what is missing, prints the summary
    python architectures.py --summary           # only the summary, of the rows that are there
    python architectures.py --only 'timm/.*'    # some rows

Every model of the zoo is asked to keep half of its parameters, by onnxprune with what it chooses
by default (magnitude, the same share of every group), by onnxsim's structured pruning, and by
onnx2torch with torch-pruning, each in a process of its own with a time and a memory limit. All
written files are then measured alike, and run in the newest onnxruntime. onnxprune's result is
compared with the model that hands on nothing from the removed units (`difference`), and with the
model given (`changed`): a removal that changes nothing proves nothing.

Models are exported or downloaded once, into --cache. requirements-zoo.txt and
requirements-peers.txt are for the environments whose interpreters --torch-python and
--peers-python name; what is not there is skipped, with the reason in its row. Models of hundreds
of megabytes, all of the topology of a smaller one, are run with --large only.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rows import RESULTS, SHARED, Row, read, run
from zoo import children
from zoo.entries import Entry, Places, UnavailableError
from zoo.exports import exports
from zoo.files import corpus, light, shipped
from zoo.packages import packages
from zoo.summary import summary

TARGET = 50  # percent of the parameters that may remain
PEERS = {"onnxsim": ("onnxsim",), "torch_pruning": ("torch_pruning", "onnx2torch", "torchvision")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """For every tool on every model."""

    seconds: float
    gigabytes: float
    measuring: float


def entries(*, large: bool) -> Iterator[Entry]:
    """The whole zoo."""
    found = [*light(), *shipped(), *packages(), *exports(), *corpus(SHARED / "corpus")]
    yield from (entry for entry in found if large or not entry.large)


def row(entry: Entry, places: Places, peers: str, limits: Limits) -> dict[str, Any]:
    """One model, all tools."""
    found: dict[str, Any] = {"family": entry.family, "source": entry.source}
    try:
        file = entry.file(places)
    except UnavailableError as error:
        return {**found, "skipped": str(error)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outs = {tool: folder / f"{tool}.onnx" for tool in ("onnxprune", *PEERS)}
        inputs = (folder / "inputs.npz", json.dumps(entry.sizes))

        def said(tool: str) -> dict[str, Any]:
            return pruned(tool, (file, outs[tool], TARGET, *inputs), peers, limits)

        results = {"onnxprune": said("onnxprune")}  # makes the inputs
        with ThreadPoolExecutor() as pool:  # of waiting
            results |= zip(PEERS, pool.map(said, PEERS), strict=True)
        written = {tool: out for tool, out in outs.items() if out.exists()}
        before, *after = measured(inputs, [file, *written.values()], peers, limits)
        known = ("nodes", "opset", "parameters", "macs")
        found |= {key: before[key] for key in known if key in before}
        found["runs_before"] = before["runs"]
        for tool, result in results.items():
            found |= {f"{tool}_{key}": value for key, value in result.items()}
        for tool, sizes in zip(written, after, strict=True):
            found |= shares(tool, before, sizes)
    return found


def pruned(tool: str, arguments: tuple[object, ...], peers: str, limits: Limits) -> dict[str, Any]:
    """What one tool says of one model; `problem` is empty when it succeeded."""
    python = children.HERE if tool == "onnxprune" else peers
    if tool in PEERS and not children.available(python, *PEERS[tool]):
        return {"problem": f"not installed: {', '.join(PEERS[tool])}"}
    ended = children.run(
        python,
        f"prune_with_{tool}.py",
        arguments,
        seconds=limits.seconds,
        gigabytes=limits.gigabytes,
    )
    found = ended.found
    stage = found.pop("stage", None)
    problem = ended.problem if stage in (None, "done") else f"{stage}: {ended.problem}"
    return {**found, "problem": problem}


def measured(
    inputs: tuple[object, object], files: list[Path], peers: str, limits: Limits
) -> list[dict[str, Any]]:
    """Sizes of files, in their order; those that could not be measured say why.

    In the environment of the peers where it has a runtime, which is the newest.
    """
    there = children.available(peers, "onnxruntime", "onnx_ir", "scipy")
    ended = children.run(
        peers if there else children.HERE,
        "measure.py",
        [*inputs, *files],
        seconds=limits.measuring,
        gigabytes=limits.gigabytes,
    )
    missing = {"runs": f"not measured: {ended.problem}"}
    return [*ended.lines, *(missing for _ in files[len(ended.lines) :])]


def shares(tool: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Shares removed, and whether the file runs."""
    found = {f"{tool}_runs": after["runs"]}
    for quantity in ("parameters", "macs"):
        if before.get(quantity) and quantity in after:
            found[f"{tool}_{quantity}_removed"] = round(1 - after[quantity] / before[quantity], 4)
    return found


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/onnxprune-benchmarks")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--keras-python", default=sys.executable)
    parser.add_argument("--jax-python", default=sys.executable)
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--only", default="", help="regular expression, searched in the names")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--summary", action="store_true", help="print it, run nothing")
    parser.add_argument("--files", action="store_true", help="make the files, run nothing")
    parser.add_argument("--seconds", type=float, default=120, help="per tool and model")
    parser.add_argument("--gigabytes", type=float, default=12, help="per tool and model")
    return parser.parse_args()


def main() -> None:
    """Run what is missing, print the summary."""
    given = arguments()
    places = Places(
        cache=given.cache,
        torch=given.torch_python,
        keras=given.keras_python,
        jax=given.jax_python,
    )
    limits = Limits(seconds=given.seconds, gigabytes=given.gigabytes, measuring=4 * given.seconds)
    chosen = [e for e in entries(large=given.large) if re.search(given.only, e.name)]
    if given.files:
        make(chosen, places)
        return
    rows = {} if given.summary else _rows(chosen, places, given.peers_python, limits)
    run("architectures", rows)
    print(summary(read(RESULTS / "architectures.csv")))


def _rows(chosen: list[Entry], places: Places, peers: str, limits: Limits) -> dict[str, Row]:
    def one(entry: Entry) -> Row:
        return lambda: row(entry, places, peers, limits)

    return {entry.name: one(entry) for entry in chosen}


def make(chosen: list[Entry], places: Places) -> None:
    """All files, and which cannot be had."""
    for entry in chosen:
        print(entry.name, _made(entry, places), flush=True)


def _made(entry: Entry, places: Places) -> str:
    try:
        return f"{entry.file(places).stat().st_size / 1e6:.1f} MB"
    except UnavailableError as error:
        return f"unavailable: {error}"


if __name__ == "__main__":
    main()
