from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from onnxprune.reports import (
    FrozenRow,
    GroupRow,
    Inspection,
    Report,
    Size,
    human,
    human_bytes,
    render,
)
from onnxprune.reports.quantities import change, points

REPORT = Report(
    model="lenet.onnx",
    output="small.onnx",
    before=Size(
        parameters=61_706,
        macs=416_520,
        bytes=250_123,
        latency_ms=0.5,
        metrics={"accuracy": 0.975, "mse": 0.25},
    ),
    after=Size(
        parameters=17_226,
        macs=100_000,
        bytes=71_000,
        latency_ms=0.2,
        metrics={"accuracy": 0.972, "mse": 0.5},
    ),
    exact=3,
    bounded=4,
    steps=900,
    seconds=12.34,
    target="params=30%",
    achieved=0.279,
    reached=True,
    notes=("the runtime is older than the model",),
    run_directory="runs/lenet-1",
)

INSPECTION = Inspection(
    groups=(
        GroupRow(name="conv1.weight", units=6, parameters=156, axes=("a[0]", "b[1]")),
        GroupRow(
            name="fc.weight", units=84, parameters=9000, axes=("c[0]",), exact=False, reason="mean"
        ),
    ),
    frozen=(
        FrozenRow(axis="logits[1]", size=10, reason="graph output"),
        FrozenRow(axis="h[2]", size=None, reason="operator without a rule", node="h", detail="Foo"),
        FrozenRow(axis="h[3]", size=1, reason="size 1"),
    ),
    parameters=10_000,
    macs=40_000,
    removable_parameters=9_000,
    removable_macs=None,
    trained=("conv1.weight",),
    untrained=(("bn.mean", "running statistics"),),
)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (17_226, "17.2 k"),
        (999_499, "999 k"),
        (999_500, "1 M"),
        (1_500_000, "1.5 M"),
        (123_456, "123 k"),
        (7e9, "7 G"),
        (None, "-"),
        (math.nan, "-"),
    ],
)
def test_counts_have_three_digits(number: float | None, text: str) -> None:
    assert human(number) == text


def test_sizes_and_changes() -> None:
    assert human_bytes(71_000) == "71 kB"
    assert human_bytes(5) == "5 B"
    assert (change(100, 25), change(3, 3), change(0, 3), change(2, 3)) == (
        "-75 %",
        "0 %",
        "",
        "+50 %",
    )
    assert (points(0.5, 0.5), points(0.5, 0.625), points(None, 1)) == (
        "0 points",
        "+12.5 points",
        "",
    )


def test_a_report_compares_before_and_after() -> None:
    lines = [line.split() for line in render(REPORT).splitlines()]
    assert ["parameters", "61.7", "k", "17.2", "k", "-72.1", "%"] in lines
    assert ["MACs", "417", "k", "100", "k", "-76", "%"] in lines
    assert ["file", "size", "250", "kB", "71", "kB", "-71.6", "%"] in lines
    assert ["accuracy", "97.50", "%", "97.20", "%", "-0.3", "points"] in lines
    assert ["MSE", "0.25", "0.5", "+100", "%"] in lines
    assert ["latency", "0.5", "ms", "0.2", "ms", "-60", "%"] in lines


def test_connections_are_shown_where_single_ones_went() -> None:
    assert "connections" not in render(REPORT)
    masked = replace(REPORT, after=replace(REPORT.after, masked=10_000))
    lines = [line.split() for line in render(masked).splitlines()]
    assert ["connections", "61.7", "k", "7.2", "k", "-88.3", "%"] in lines


def test_units_are_shown_where_they_were_counted() -> None:
    assert "\nunits" not in render(REPORT)
    before, after = replace(REPORT.before, units=192), replace(REPORT.after, units=72)
    lines = [
        line.split() for line in render(replace(REPORT, before=before, after=after)).splitlines()
    ]
    assert ["units", "192", "72", "-62.5", "%"] in lines


def test_a_report_says_what_was_done() -> None:
    text = render(REPORT)
    assert "7 units removed, 3 of them exactly; 900 steps in 12.3 s" in text
    assert "target params=30% reached; 27.9 % remain" in text
    assert "older than the model" in text
    assert "written to small.onnx" in text
    assert "not reached" in render(replace(REPORT, reached=False))
    assert "target" not in render(replace(REPORT, target=None))


def test_unknown_sizes_have_no_row() -> None:
    bare = Report(model="m", output=None, before=Size(parameters=2), after=Size(parameters=1))
    text = render(bare)
    assert "parameters" in text
    assert not any(word in text for word in ("MACs", "file size", "latency", "written"))


def test_plain_text_is_aligned_and_has_no_control_characters() -> None:
    text = render(REPORT)
    assert "\x1b" not in text
    assert text.isascii()
    table = text.split("\n\n")[0].splitlines()[1:]
    assert len({len(line) for line in table}) == 1
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_the_terminal_shows_the_same_cells() -> None:
    text = render(REPORT, terminal=True, width=80)
    for cell in ("parameters", "61.7 k", "17.2 k", "-72.1 %", "-0.3 points"):
        assert cell in text


def test_names_with_brackets_are_shown_as_they_are() -> None:
    odd = replace(INSPECTION, groups=(GroupRow(name="[red]w", units=1, parameters=1, axes=()),))
    assert "[red]w" in render(odd, terminal=True)
    assert "[red]w" in render(odd)


def test_an_inspection_lists_groups_reasons_and_the_most_that_can_go() -> None:
    text = render(INSPECTION)
    assert "exact if dead" in text
    assert "operator without a rule: Foo" in text
    assert "graph output" in text
    assert "size 1" not in text
    assert "2 groups, 90 units" in text
    assert "9 k of 10 k parameters (90.0 %), - MACs" in text
    assert "bn.mean: running statistics" in text


def test_many_frozen_axes_are_counted() -> None:
    rows = tuple(FrozenRow(axis=f"v[{n}]", size=2, reason="dynamic size") for n in range(50))
    text = render(replace(INSPECTION, frozen=rows, groups=()))
    assert "and 30 more axes: 30 dynamic size" in text
    assert "nothing can be removed" in text


def test_both_become_json() -> None:
    report = json.loads(REPORT.to_json())
    assert report["before"]["metrics"] == {"accuracy": 0.975, "mse": 0.25}
    assert report["notes"] == ["the runtime is older than the model"]
    broken = replace(REPORT, after=Size(parameters=1, metrics={"auc": math.nan}))
    assert json.loads(broken.to_json())["after"]["metrics"] == {"auc": None}
    inspection = json.loads(INSPECTION.to_json())
    assert inspection["groups"][0]["axes"] == ["a[0]", "b[1]"]
    assert inspection["untrained"] == [["bn.mean", "running statistics"]]
