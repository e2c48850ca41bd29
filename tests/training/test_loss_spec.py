"""Terms of a loss as text and as data."""

from __future__ import annotations

import json

import pytest

from onnxprune.errors import ConfigError
from onnxprune.training.config import RunConfig
from onnxprune.training.loss_spec import Loss, parse_loss


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("auto", Loss()),
        ("bce", Loss(kind="binary-cross-entropy")),
        ("0.5*distill", Loss(kind="distill", weight=0.5)),
        (
            "1e-3 * out:0=huber:delta=0.1",
            Loss(kind="huber", weight=1e-3, output="out:0", delta=0.1),
        ),
        ("a=b=l1", Loss(kind="l1", output="a=b")),
        (
            "cross-entropy:weights=1,2.5,smoothing=0.1,ignore=255",
            Loss(kind="cross-entropy", weights=(1.0, 2.5), smoothing=0.1, ignore=255),
        ),
        ("cross-entropy:weights=balanced", Loss(kind="cross-entropy", weights="balanced")),
        (r"0.1*relu\d+=distill-hidden", Loss(kind="distill-hidden", weight=0.1, output=r"relu\d+")),
        ("y=runs/my loss.onnx", Loss(kind="runs/my loss.onnx", output="y")),
    ],
)
def test_text_and_data_say_the_same(text, expected):
    assert parse_loss(text) == expected
    assert parse_loss(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hinge", r"expected \[WEIGHT\*\]\[OUTPUT=\]KIND"),
        ("-1*mse", "expected"),
        ("0*mse", "weight 0.0: expected positive"),
        ("mse:delta=1.5", "has no option delta; it takes none"),
        ("huber:delta=0", "delta 0.0: expected positive"),
        ("huber:size=2", "unknown option 'size'"),
        ("cross-entropy:smoothing=1", r"smoothing 1.0: expected a number in \[0, 1\)"),
        ("cross-entropy:smoothing=a", "smoothing a: expected numbers"),
        ("cross-entropy:ignore=x", "ignore x: expected an integer"),
        ("cross-entropy:0.1", "'0.1': expected OPTION=VALUE"),
        ("distill-hidden", "which values"),
    ],
)
def test_what_cannot_be_read_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig(loss=text)


def test_a_configuration_takes_text_data_and_several():
    terms = (Loss(kind="cross-entropy"), Loss(kind="distill", weight=0.5))
    config = RunConfig(loss=["cross-entropy", terms[1]])
    assert config.losses == terms
    kept = json.loads(json.dumps(config.to_dict()))
    assert kept["loss"] == ["cross-entropy", "0.5*distill"]
    assert RunConfig.from_dict(kept).losses == terms
    with pytest.raises(ConfigError, match="at least one term"):
        RunConfig(loss=[])
