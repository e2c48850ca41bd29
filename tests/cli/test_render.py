from __future__ import annotations

import io
import sys
from dataclasses import replace

import click
import pytest
from click.testing import CliRunner
from onnxprune_cli import _render
from onnxprune_cli.main import main

from onnxprune.errors import ConfigError, DataError, ModelError
from onnxprune.reports import Evaluated, Event, Finished, Progress, Pruned, Started

EVENTS: tuple[Event, ...] = (
    Started(model="[m].onnx", parameters=61_706, macs=400, groups=2, units=90, config={}),
    Progress(step=1, steps=10, epoch=0, loss=2.5, parameters=61_706),
    Evaluated(step=5, epoch=1, split="validation", metrics={"accuracy": 0.5}, parameters=61_706),
    Pruned(
        step=5,
        removed={"w": 2, "v": 1},
        exact=1,
        bounded=2,
        error=1e-7,
        tolerance=1e-5,
        rolled_back=("u",),
        parameters=17_226,
        macs=300,
        seconds=0.1,
    ),
    Finished(report={}),
)

SAID = (
    "[m].onnx: 61.7 k parameters, 400 MACs, 90 units in 2 groups",
    "epoch 1  step 5  validation  accuracy 0.5000  parameters 61.7 k",
    "step 5  removed 3 units (1 exactly) from 2 groups  parameters 17.2 k  "
    "checked: 1.0e-07 <= 1.0e-05",
    "step 5  put back after the check: u",
)


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def test_plain_progress_is_one_line_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    with _render.progress(show=True) as on_event:
        assert on_event is not None
        for event in EVENTS:
            on_event(event)
    out, err = capsys.readouterr()
    assert out == ""
    assert tuple(err.splitlines()) == SAID


def test_connections_are_named_where_single_ones_went() -> None:
    removal = next(event for event in EVENTS if isinstance(event, Pruned))
    (line, _) = _render.lines(replace(removal, masked=10_000))
    assert line.endswith("<= 1.0e-05  connections 7.2 k")


def test_a_terminal_gets_a_bar_beside_the_same_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "stderr", screen)
    with _render.progress(show=True) as on_event:
        assert on_event is not None
        for event in EVENTS:
            on_event(event)
    text = screen.getvalue()
    for line in SAID:
        assert line in text
    assert "training" in text


def test_no_progress_unless_wanted() -> None:
    with _render.progress(show=False) as on_event:
        assert on_event is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("d\nbroken"), 2),
        (ConfigError("c"), 2),
        (ModelError("m"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_expected_errors_become_a_line_and_an_exit_code(error: BaseException, code: int) -> None:
    @click.command("fail")
    def fail() -> None:
        raise error

    main.add_command(fail)
    try:
        result = CliRunner().invoke(main, ["fail"])
    finally:
        del main.commands["fail"]
    assert result.exit_code == code
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")


def test_bugs_are_not_hidden() -> None:
    @click.command("fail")
    def fail() -> None:
        raise RuntimeError("a bug")

    main.add_command(fail)
    try:
        result = CliRunner().invoke(main, ["fail"])
    finally:
        del main.commands["fail"]
    assert isinstance(result.exception, RuntimeError)
