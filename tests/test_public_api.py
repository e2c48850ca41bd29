"""The names that `import onnxprune` promises."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import onnxprune

PUBLIC = [
    "Analysis",
    "Axis",
    "Fold",
    "Group",
    "Inspection",
    "Loss",
    "METHODS",
    "Merge",
    "OnnxPruneError",
    "Plan",
    "PruneConfig",
    "Report",
    "RunConfig",
    "__version__",
    "analyze",
    "inspect",
    "load",
    "prune",
    "prune_file",
    "reference",
    "save",
    "train",
]


def test_the_list_of_public_names_is_known() -> None:
    assert sorted(onnxprune.__all__) == PUBLIC


@pytest.mark.parametrize("name", onnxprune.__all__)
def test_every_public_name_can_be_imported_and_is_documented(name: str) -> None:
    found = getattr(onnxprune, name)
    if callable(found):
        assert found.__doc__
        home = importlib.import_module(found.__module__)
        assert getattr(home, found.__name__) is found


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'onnxprune' has no attribute 'nothing'"):
        _ = onnxprune.nothing


def test_importing_the_package_imports_no_runtime() -> None:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import onnxprune; onnxprune.RunConfig; "
        "print(sorted({'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
