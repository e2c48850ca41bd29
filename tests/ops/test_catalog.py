from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from onnxprune.ops.registry import (
    ABSORBS,
    CONNECTS,
    COUPLES,
    MACS,
    PARAMETERS,
    RESIZES,
    TRACES,
)

DOCS = Path(__file__).resolve().parents[2] / "docs"

pytestmark = pytest.mark.skipif(
    not (DOCS / "make_operators.py").is_file(), reason="the tests lie outside of a checkout"
)


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_operators", DOCS / "make_operators.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_of_operators_is_up_to_date() -> None:
    expected = script().page()
    written = (DOCS / "operators.md").read_text(encoding="utf-8")
    assert written == expected, "run python docs/make_operators.py"


def test_every_operator_with_a_facet_couples() -> None:
    known = {(domain, op_type) for domain, op_type, *_ in COUPLES.rows()}
    for facet in (ABSORBS, CONNECTS, MACS, PARAMETERS, RESIZES, TRACES):
        rows = {(domain, op_type) for domain, op_type, *_ in facet.rows()}
        assert rows - known == set(), facet.name


def test_every_rule_says_what_it_couples() -> None:
    silent = [
        f"{domain}:{op_type}"
        for domain, op_type, _, _, rule in COUPLES.rows()
        if rule.__module__.startswith("onnxprune.") and len(rule.__doc__ or "") < 20
    ]
    assert silent == []
