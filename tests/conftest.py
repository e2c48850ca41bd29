"""What all tests share: which onnxprune they see, and when a missing runtime is a failure."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
IN_CI = os.environ.get("CI", "").lower() in ("1", "true")

# `python -m pytest` puts the checkout first on the path, where the folder onnxprune/ would hide
# what was installed, and with it every mistake in the packaging. Without an installation the
# checkout stays importable, except in CI, where that must fail.
_elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
_path, sys.path[:] = sys.path[:], _elsewhere
if importlib.util.find_spec("onnxprune") is None and not IN_CI:
    sys.path[:] = _path

settings.register_profile(
    "default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("default"), max_examples=150, derandomize=True)
settings.load_profile("ci" if IN_CI else "default")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a shell's background job
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which subprocesses do not inherit


def pytest_report_header() -> str:
    spec = importlib.util.find_spec("onnxprune")
    return f"onnxprune: {spec.origin if spec is not None else 'not installed'}"


def _can_train() -> bool:
    try:
        importlib.metadata.version("onnxruntime-training-cpu")
    except importlib.metadata.PackageNotFoundError:
        try:
            importlib.metadata.version("onnxruntime-training")
        except importlib.metadata.PackageNotFoundError:
            return False
    return True


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("ort") is not None and not _can_train():
        pytest.skip("onnxruntime-training is not installed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that needs the runtime must run: its skip is a failure.

    Only files that are no part of the project, in the folder `shared` beside the checkout (more
    models of real exporters), may be absent.
    """
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    excused = str(SHARED) in str(report.longrepr)
    if IN_CI and skipped and not excused and item.get_closest_marker("ort") is not None:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"
    return report
