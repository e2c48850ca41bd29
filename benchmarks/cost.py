"""What pruning costs beside training: analysis, one removal part by part, statistics.

    python benchmarks/cost.py            # runs what is missing, prints the tables

Seconds are medians. Statistics are measured as observed against plain steps of one session, taking
turns, so that a busy machine hits both alike.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxprune_models import builders, path
from rows import Row, run, table

import onnxprune
from onnxprune.base import Plan
from onnxprune.graph import cost
from onnxprune.graph.parameters import trained
from onnxprune.methods import METHODS, Course, Limit, Pruner
from onnxprune.model import load, save
from onnxprune.rewrite.prune import prune, take_moments
from onnxprune.rewrite.reference import reference
from onnxprune.runtime.verify import compare
from onnxprune.training.config import RunConfig
from onnxprune.training.problem import Problem, pose
from onnxprune.training.pruning import Stage, apply, inputs_of, moment, removable, sample_size
from onnxprune.training.rounds import Round, begin, opened

REPEATS = 10
PAIRS = 200  # of steps
CHECKS = 30  # per run, as in training/pace.py
OBSERVED = 1 / 16  # of the steps, as in training/pace.py

Setting = tuple[Callable[[], ir.Model], tuple[int, ...], int, int]
SETTINGS: dict[str, Setting] = {
    # model, sizes of an example, examples in the whole run, batch size
    "lenet5": (builders.lenet5, (1, 28, 28), 8 * 54_000, 64),
    "mlp": (lambda: builders.mlp([784, 300, 100, 10]), (784,), 8 * 54_000, 64),
    "digits_resnet": (lambda: load(path("digits_resnet")), (1, 8, 8), 10 * 1_294, 32),
    "digits_vgg": (lambda: load(path("digits_vgg")), (1, 8, 8), 10 * 1_294, 32),
}


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def inspection() -> dict[str, Any]:
    """Seconds of `inspect` on a graph of the size of ResNet-50."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "resnet50.onnx"
        save(builders.resnet50(), file)
        times = [seconds(lambda: onnxprune.inspect(file)) for _ in range(3)]
    return {"seconds": statistics.median(times)}


def started(setting: Setting) -> tuple[Problem, Stage]:
    """A run on random data, before its first step."""
    make, sizes, _, batch_size = setting
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2_304, *sizes)).astype(np.float32)
    y = rng.integers(10, size=len(x))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        save(make(), file)
        config = RunConfig(batch_size=batch_size)
        problem = pose(file, (x, y), validation=None, config=config)
    analysis = removable(problem.model, config)
    names = trained(problem.model, analysis).parameters
    snapshot = begin(problem, problem.model, names)
    return problem, Stage(model=problem.model, analysis=analysis, snapshot=snapshot)


def a_round(problem: Problem, stage: Stage) -> Round:
    """Its sessions, with the statistics that apoptosis asks for."""
    make = METHODS["apoptosis"]
    assert make is not None
    sites = [c.axis for group in stage.analysis.groups for c in group.consumers]
    return opened(
        problem, stage.model, stage.analysis, stage.snapshot, dict.fromkeys(sites), make().requires
    )


def removal(name: str) -> dict[str, Any]:
    """Median seconds of the parts of one removal of about a tenth, as apoptosis decides it.

    decide: probe, candidates, plan. apply: compensating and slicing model and moments. verify:
    making the reference and comparing with it. analyze: the pruned model. sessions: of the next
    round. whole: all that a run spends, which is decide, `training.pruning.apply` and sessions.
    """
    problem, stage = started(SETTINGS[name])
    interval = max(SETTINGS[name][2] // problem.batch_size // CHECKS, 1)
    pruner, stage, state = observed(problem, stage, interval)
    count = cost.parameters(stage.model)
    limit = Limit(kind="params", now=int(0.9 * count), final=int(0.5 * count))
    sample = inputs_of(
        problem.train.batch(
            np.arange(sample_size(interval, problem.batch_size, len(problem.train)))
        )
    )
    feeds = inputs_of(problem.train.batch(np.arange(64)))
    times: dict[str, list[float]] = {}

    def timed(part: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        times.setdefault(part, []).append(time.perf_counter() - start)
        return result

    def decided() -> Plan:
        now = moment(problem, stage, steps=30 * interval, loss=1.0, limit=limit, sample=sample)
        plan = pruner.decide(state, now)[1]
        assert plan is not None
        return plan

    plan = decided()
    after, record = apply(problem, stage, plan, feeds)

    model = stage.current()

    def applied() -> ir.Model:
        pruned = prune(model, stage.analysis, plan)
        take_moments(stage.snapshot.moments, pruned.kept, after.snapshot.parameters)
        return pruned.model

    for _ in range(REPEATS):
        timed("decide", decided)
        pruned = timed("apply", applied)
        timed("verify", lambda p=pruned: compare(reference(model, stage.analysis, plan), p, feeds))
        timed("analyze", lambda p=pruned: removable(p, problem.config))
        timed("decide and apply", lambda: apply(problem, stage, decided(), feeds))
        timed("sessions", lambda: a_round(problem, after)).session.close()
    found = {part: statistics.median(each) for part, each in times.items()}
    whole = found.pop("decide and apply") + found["sessions"]
    sizes = {"units": sum(record.removed.values()), "folds": len(plan.folds)}
    return {**found, "whole": whole, **sizes, "merges": len(plan.merges)}


def observed(problem: Problem, stage: Stage, interval: int) -> tuple[Pruner, Stage, Any]:
    """Apoptosis after one observed step: the method, the stage with its moments, its state."""
    make = METHODS["apoptosis"]
    assert make is not None
    pruner = make()
    round_ = a_round(problem, stage)
    batch = problem.train.batch(np.arange(problem.batch_size))
    with round_.session as session:
        result = session.train_step(batch, learning_rate=1e-3, observe=True)
        snapshot = session.snapshot()
    seen = round_.collector.collect(result.extra)
    state = pruner.observe(pruner.init(stage.analysis, course(interval)), seen)
    return pruner, replace(stage, snapshot=snapshot), state


def course(interval: int) -> Course:
    """Of a run of one epoch with a check every `interval` steps."""
    return Course(steps=CHECKS * interval, epoch=CHECKS * interval, interval=interval)


def observation(name: str) -> dict[str, Any]:
    """What statistics and checks add to a training step, as shares of it."""
    setting = SETTINGS[name]
    problem, stage = started(setting)
    steps = setting[2] // problem.batch_size
    interval = max(steps // CHECKS, 1)
    round_ = a_round(problem, stage)
    batch = problem.train.batch(np.arange(problem.batch_size))
    times: dict[bool, list[float]] = {False: [], True: []}
    with round_.session as session:
        for pair in range(PAIRS + 5):
            for observe in (False, True):
                start = time.perf_counter()
                result = session.train_step(batch, learning_rate=1e-4, observe=observe)
                if observe:
                    round_.collector.collect(result.extra)
                if pair >= 5:  # the first ones allocate
                    times[observe].append(time.perf_counter() - start)
    plain, observed = (statistics.median(times[key]) for key in (False, True))
    extra = statistics.median([o - p for o, p in zip(times[True], times[False], strict=True)])
    count = sample_size(interval, problem.batch_size, len(problem.train))
    sample = inputs_of(problem.train.batch(np.arange(count)))
    make = METHODS["apoptosis"]
    assert make is not None
    pruner = make()
    state = pruner.init(stage.analysis, course(interval))
    axes = [c.axis for group in stage.analysis.groups for c in group.consumers]
    checks, probes = [], []
    for _ in range(REPEATS):
        now = moment(problem, stage, steps=steps, loss=1.0, limit=None, sample=sample)
        probes.append(seconds(lambda n=now: n.probe(axes, pruner.requires)))
        checks.append(seconds(lambda n=now: pruner.decide(state, n)))
    probe, check = statistics.median(probes), statistics.median(checks)
    return {
        "plain_step": plain,
        "observed_step": observed,
        "observed_extra": extra / plain,
        "interval": interval,
        "sample": count,
        "probe": probe,
        "check": check,
        "share_of_statistics": OBSERVED * extra / plain + probe / (interval * plain),
        "share_with_decisions": OBSERVED * extra / plain + check / (interval * plain),
    }


def rows() -> Iterator[tuple[str, Row]]:
    """Every row with its name."""
    yield "inspect/resnet50", inspection
    yield "prune/lenet5", lambda: removal("lenet5")
    for name in SETTINGS:
        yield f"observe/{name}", lambda name=name: observation(name)


def summary(found: list[dict[str, str]]) -> str:
    """One table per question."""
    by_name = {row["row"]: row for row in found}
    parts = ["decide", "apply", "verify", "analyze", "sessions", "whole"]
    lines = [
        [
            name.split("/")[1],
            f"{1000 * float(row['plain_step']):.2f} ms",
            f"{100 * float(row['observed_extra']):+.0f} %",
            row["interval"],
            row["sample"],
            f"{1000 * float(row['probe']):.1f} ms",
            f"{1000 * float(row['check']):.1f} ms",
            f"{100 * float(row['share_of_statistics']):.1f} %",
            f"{100 * float(row['share_with_decisions']):.1f} %",
        ]
        for name, row in by_name.items()
        if name.startswith("observe/")
    ]
    header = ["model", "plain step", "observed step", "interval", "sample", "probe", "check"]
    header += ["statistics, of the training time", "with decisions"]
    return "\n\n".join(
        (
            table(
                ["inspect ResNet-50"],
                [
                    [f"{float(row['seconds']):.2f} s"]
                    for name, row in by_name.items()
                    if name == "inspect/resnet50"
                ],
            ),
            table(
                ["one removal", "units", *parts],
                [
                    ["LeNet-5", row["units"], *(f"{1000 * float(row[p]):.1f} ms" for p in parts)]
                    for name, row in by_name.items()
                    if name == "prune/lenet5"
                ],
            ),
            table(header, lines),
        )
    )


if __name__ == "__main__":
    print(f"{os.cpu_count()} cores")
    print(summary(run("cost", dict(rows()))))
