"""What holds of the project as a whole: layers, packages, files of the distribution, sizes."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from onnxprune_cli.main import main

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"onnxprune": "onnxprune", "cli": "onnxprune_cli", "models": "onnxprune_models"}
DATA = (".npz", ".onnx", ".md")

pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="the tests lie outside of a checkout"
)


def project() -> dict[str, Any]:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib is new in Python 3.11")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def files() -> list[Path]:
    """Files of the packages, relative to the root."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(path.relative_to(ROOT) for path in found if "__pycache__" not in path.parts)


def installed_name(file: Path) -> str:
    """Where a file of the checkout goes in the distribution."""
    return Path(FOLDERS[file.parts[0]], *file.parts[1:]).as_posix()


def shipped() -> set[str]:
    """What the distribution must hold: the modules and data of every package, not models/make."""
    wanted = [file for file in files() if "make" not in file.parts]
    return {
        installed_name(file)
        for file in wanted
        if file.suffix in (".py", *DATA) or file.name == "py.typed"
    }


def test_imports_go_downwards_only(tmp_path: Path) -> None:
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports_command as run; run()"
    result = subprocess.run(
        [sys.executable, "-c", code, "--config", str(ROOT / "pyproject.toml"), "--no-cache"],
        cwd=tmp_path,  # Python puts the current folder on the path
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_package_is_listed() -> None:
    listed = set(project()["tool"]["setuptools"]["packages"])
    modules = [Path(name) for name in shipped() if name.endswith(".py")]
    assert {".".join(module.parent.parts) for module in modules} == listed


def test_no_module_is_longer_than_420_lines() -> None:
    sizes = {
        str(file): len((ROOT / file).read_text(encoding="utf-8").splitlines())
        for file in files()
        if file.suffix == ".py"
    }
    assert {name: size for name, size in sizes.items() if size > 420} == {}


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, its docstring aside."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    said, first = ast.get_docstring(function), function.body[0]
    return lines if said is None else lines - (first.end_lineno or 0) + first.lineno - 1


def test_no_function_is_longer_than_60_lines() -> None:
    sizes = {
        f"{file}: {node.name}": length(node)
        for file in files()
        if file.suffix == ".py" and file.parts[0] in ("onnxprune", "cli")
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(sizes) > 500
    assert {name: size for name, size in sizes.items() if size > 60} == {}


def with_examples() -> list[str]:
    """Modules with examples in docstrings."""
    return [
        ".".join(Path(installed_name(file)).with_suffix("").parts)
        for file in files()
        if file.suffix == ".py" and ">>> " in (ROOT / file).read_text(encoding="utf-8")
    ]


@pytest.mark.ort
@pytest.mark.parametrize("name", with_examples())
def test_examples_in_docstrings_are_true(name: str) -> None:
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert (failed, attempted > 0) == (0, True)


@pytest.mark.ort
def test_the_main_job_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"onnxprune (train) (models/\S+\.onnx) (--data digits)\n", readme)
    assert command is not None
    job, name, options = command.groups()
    model = ROOT / name
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [job, str(model), *options.split()])
    assert result.exit_code == 0, result.output
    (written,) = tmp_path.glob("*.onnx")
    assert written.stat().st_size < model.stat().st_size


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(file)
        for file in files()
        if file.suffix == ".py"
        and len(ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or "") < 10
    ]
    assert silent == []


def test_the_installed_distribution_is_complete() -> None:
    try:
        distribution = importlib.metadata.distribution("onnxprune")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("onnxprune is not installed")
    recorded = {str(file) for file in distribution.files or ()}
    if "onnxprune/base.py" not in recorded:
        pytest.skip("an editable installation records no modules")
    assert shipped() - recorded == set()


def _can_build() -> bool:
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        return False
    return int(version.split(".")[0]) >= 77


@pytest.mark.skipif(not _can_build(), reason="needs setuptools >= 77 in this environment")
def test_the_wheel_holds_every_module_and_data_file(tmp_path: Path) -> None:
    # Built from a copy: setuptools leaves build/ and *.egg-info where it works.
    source = tmp_path / "source"
    names = [*(str(file) for file in files()), "pyproject.toml", "README.md", "LICENSE"]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    code = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(command, cwd=source, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert shipped() - packed == set()
    assert {name.split("/")[0] for name in packed} - set(FOLDERS.values()) == {
        re.sub(r"-py3-none-any\.whl$", ".dist-info", wheel.name)
    }
    assert any(name.endswith("licenses/LICENSE") for name in packed)


ENGINE_MODULES = re.compile(
    r"gradients/(gradient|passes|blocked|top_k|update_kernels|engine|hidden|plain_recurrent|control|elementwise)\.py"
)
VENDOR_RULES = re.compile(r"onnxprune/ops/|gradients/(fused|\w*attention)\.py")


def test_only_the_gradient_engine_knows_the_runtimes_own_operators() -> None:
    # The others that may name them are rules for operators that users' files contain.
    marks = ("com.microsoft", "GradientGraphBuilder(", "org.pytorch")
    knowing = [
        file.as_posix()
        for file in files()
        if file.suffix == ".py"
        and not VENDOR_RULES.search(file.as_posix())
        and "make" not in file.parts
        and any(mark in (ROOT / file).read_text(encoding="utf-8") for mark in marks)
    ]
    assert [name for name in knowing if not ENGINE_MODULES.search(name)] == []
