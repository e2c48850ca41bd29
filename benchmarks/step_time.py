"""A training step beside PyTorch's: time and peak memory, side by side in one run.

    ONNXPRUNE_TORCH=python-with-torch python benchmarks/step_time.py     # runs what is missing

Forward, backward and a momentum update on one batch: the same network (written in PyTorch, exported
from there), weights and batch. A row starts one worker per variant, lets them do three steps, whose
losses must agree, and then a few steps each in turns. Seconds are medians over these, memory is the
peak of each process. What is slower than the fastest variant of PyTorch says where its time goes.
Only on a machine that does nothing else: waiting threads of one library take the other's cores.

ONNXPRUNE_TORCH is a Python that has torch and onnx, by default this one; torch.compile needs a C++
compiler.
"""

from __future__ import annotations

import collections
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import step_workers
from profiles import kernels, profiled
from rows import Row, run, table

from onnxprune.errors import OnnxPruneError
from onnxprune.graph.parameters import trained
from onnxprune.training.config import RunConfig
from onnxprune.training.problem import pose
from onnxprune.training.pruning import removable
from onnxprune.training.rounds import begin, opened

TORCH = os.environ.get("ONNXPRUNE_TORCH", sys.executable)
HERE = Path(__file__).parent
MODELS = ("mlp", "lenet5", "resnet20", "mobilenet_v2", "bert", "lstm")
BATCHES = (1, 32, 128)
VARIANTS = ("contiguous", "channels_last", "compiled")
CHECKED = 3  # steps whose losses must agree
TOLERANCE = 1e-3  # of a loss
TURNS, SECONDS = 7, 1.0  # per row and variant; a turn is at least one step
PROFILED = 5  # steps


def session(folder: Path) -> tuple[Any, Mapping[str, Any]]:
    """An open training session on the network in `folder`, and its batch."""
    with np.load(folder / "data.npz") as data:
        x, y = data["x"], data["y"]
    config = RunConfig(
        batch_size=len(x),
        optimizer="momentum",
        learning_rate=step_workers.RATE,
        momentum=step_workers.MOMENTUM,
        loss="cross-entropy",
        layout="none",
        validation_fraction=0.0,
        check="off",
    )
    problem = pose(folder / "model.onnx", (x, y), validation=None, config=config)
    analysis = removable(problem.model, config)
    names = trained(problem.model, analysis).parameters
    snapshot = begin(problem, problem.model, names)
    round_ = opened(problem, problem.model, analysis, snapshot, [], frozenset())
    return round_.session, problem.train.batch(np.arange(len(x)))


def stepper(folder: Path) -> step_workers.Step:
    """One training step on the batch in `folder`."""
    opened_session, batch = session(folder)

    def step() -> float:
        found = opened_session.train_step(batch, learning_rate=step_workers.RATE)
        return float(found.loss)

    return step


def profile(folder: Path) -> str:
    """The five operators that take the most of a step, with their shares."""
    times: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as place:
        with profiled(place):
            opened_session, batch = session(folder)
        for _ in range(PROFILED):
            opened_session.train_step(batch, learning_rate=step_workers.RATE)
        opened_session.close()
        for file in Path(place).iterdir():
            for kernel in kernels(file):
                times[kernel.operator] += kernel.microseconds
    whole = max(sum(times.values()), 1)
    return ", ".join(f"{name} {100 * taken / whole:.0f} %" for name, taken in times.most_common(5))


def measured(name: str, size: int) -> dict[str, Any]:
    """Milliseconds, megabytes and losses of every variant."""
    with tempfile.TemporaryDirectory() as place:
        command = [TORCH, str(HERE / "step_twins.py"), "export", name, str(size), place]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            return {"notes": f"not exported: {lines[-1] if lines else done.returncode}"}
        workers = {"onnxprune": [sys.executable, __file__, "work", place]}
        for variant in VARIANTS:
            file = str(HERE / "step_twins.py")
            workers[variant] = [TORCH, file, "work", place, name, variant]
        found, notes = _race({key: step_workers.Worker(cmd) for key, cmd in workers.items()})
        row: dict[str, Any] = {}
        for key, (milliseconds, peak, losses) in found.items():
            row |= {f"{key}_ms": round(milliseconds, 3), f"{key}_mb": round(peak)}
            row[f"{key}_losses"] = " ".join(f"{loss:.5f}" for loss in losses)
        notes += _judge(found)
        if _ratio(found, 0) > 1.0:
            command = [sys.executable, __file__, "profile", place]
            notes.append(
                subprocess.run(command, capture_output=True, text=True, check=False).stdout
            )
        return row | {"notes": "; ".join(note.strip() for note in notes if note.strip())}


Found = dict[str, tuple[float, float, list[float]]]


def _race(workers: dict[str, step_workers.Worker]) -> tuple[Found, list[str]]:
    """Per variant: milliseconds of a step, peak memory in MB, the first losses."""
    notes, first = [], {}
    for key, worker in list(workers.items()):
        answer = worker.run(CHECKED) if worker.started() else {}
        if answer:
            first[key] = answer
        else:
            notes.append(f"{key} does not run here")
            workers.pop(key).close()
    counts = {
        key: max(int(SECONDS / TURNS / answer["times"][-1]), 1) for key, answer in first.items()
    }
    times: dict[str, list[float]] = {key: [] for key in workers}
    peaks = {}
    for _ in range(TURNS):
        for key, worker in workers.items():
            answer = worker.run(counts[key])
            times[key] += answer["times"]
            peaks[key] = answer["peak"]
            time.sleep(0.05)  # until its threads have stopped spinning
    for worker in workers.values():
        worker.close()
    found = {
        key: (1000 * statistics.median(taken), peaks[key], first[key]["losses"])
        for key, taken in times.items()
    }
    return found, notes


def _judge(found: Found) -> list[str]:
    """Whether all variants computed the same.

    Deep networks spread rounding: PyTorch's two layouts are 2e-3 apart in the second loss
    of a MobileNetV2. So ours may be three times as far from one of its variants as these are apart.
    """
    others = [found[key][2] for key in VARIANTS if key in found]
    if "onnxprune" not in found or not others:
        return []
    apart = max(_distances(found["onnxprune"][2], others[0]))
    spread = max(max(_distances(one, two)) for one in others for two in others)
    allowed = max(TOLERANCE, 3 * spread)
    return [] if apart <= allowed else [f"LOSSES DIFFER by {apart:.1e}, allowed {allowed:.1e}"]


def _distances(ours: list[float], theirs: list[float]) -> list[float]:
    return [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]


def _ratio(found: Found, place: int) -> float:
    """Ours over the best of PyTorch's; 0 where one is missing."""
    others = [float(found[key][place]) for key in VARIANTS if key in found]  # type: ignore[arg-type]
    if "onnxprune" not in found or not others:
        return 0.0
    return float(found["onnxprune"][place]) / min(others)  # type: ignore[arg-type]


def rows() -> Iterator[tuple[str, Row]]:
    """Every row with its name."""
    for name in MODELS:
        for size in BATCHES:
            yield f"{name}/{size}", lambda name=name, size=size: measured(name, size)


def summary(found: list[dict[str, str]]) -> str:
    """One line per network and batch size."""
    header = ["model", "batch", "onnxprune"]
    header += [f"time / {variant}" for variant in VARIANTS]
    header += [f"memory / {variant}" for variant in VARIANTS] + ["notes"]
    lines = []
    for row in found:
        name, _, size = row["row"].partition("/")
        ours = row.get("onnxprune_ms", "")
        line = [name, size, f"{float(ours):.2f} ms" if ours else "-"]
        for unit in ("ms", "mb"):
            for variant in VARIANTS:
                mine, theirs = row.get(f"onnxprune_{unit}"), row.get(f"{variant}_{unit}")
                line.append(f"{float(mine) / float(theirs):.2f}" if mine and theirs else "-")
        lines.append([*line, row.get("notes", "")])
    return table(header, lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        try:
            work = stepper(Path(sys.argv[2]))
        except OnnxPruneError as error:
            sys.exit(str(error))
        step_workers.serve(work)
    elif sys.argv[1:2] == ["profile"]:
        print(profile(Path(sys.argv[2])))
    else:
        print(f"{os.cpu_count()} cores")
        print(summary(run("step_time", dict(rows()))))
