"""Imports point one way, the light parts stay light, and modules stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "gpt2_ds").rglob("*.py"))
LAUNCH = sorted((ROOT / "launch").glob("*.py"))

MAY_IMPORT = {
    "config": {"config"},
    "model": {"config", "model"},
    "data": {"config", "model", "data"},
    "plan": {"config", "model", "plan"},
    "parallel": {"config", "model", "parallel"},
    "evaluation": {"config", "model", "data", "evaluation"},
    "train": {"config", "model", "data", "plan", "parallel", "evaluation", "train"},
}
CONFIG_MAY_IMPORT = {*sys.stdlib_module_names, "yaml", "pydantic", "pydantic_core", "gpt2_ds"}
NO_NOUNS = {"utils", "util", "common", "core", "base", "helpers", "helper", "misc"}
LONGEST = 300
LONGER: dict[str, str] = {}


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that a file imports anywhere: in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def backward(package: str, tree: ast.AST) -> list[str]:
    """Imports of `package` that it may not have."""
    found = []
    for name in imports(tree):
        first, *rest = name.split(".")
        if first == "gpt2_ds" and rest and rest[0] in MAY_IMPORT:
            if rest[0] not in MAY_IMPORT[package]:
                found.append(name)
        elif (
            first == "launch"
            or (first == "deepspeed" and package != "parallel")
            or (package == "config" and first not in CONFIG_MAY_IMPORT)
        ):
            found.append(name)
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT / "gpt2_ds").parts[0]
    if package != "__init__.py":
        assert backward(package, ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "package, source",
    [
        ("config", "import torch"),
        ("config", "def f():\n    import torch.nn"),
        ("config", "from gpt2_ds.model import GPT2Config"),
        ("config", "from gpt2_ds import model"),
        ("model", "from gpt2_ds.data.format.dataset import Dataset"),
        ("model", "if TYPE_CHECKING:\n    import deepspeed"),
        ("plan", "import gpt2_ds.data.format.dataset"),
        ("data", "from gpt2_ds.evaluation import loss"),
        ("evaluation", "from gpt2_ds.parallel import engine"),
        ("train", "from deepspeed.runtime import engine"),
        ("train", "from launch import train"),
    ],
)
def test_an_arrow_that_points_back_is_found(package: str, source: str) -> None:
    assert len(backward(package, ast.parse(source))) == 1


def test_every_package_has_its_place() -> None:
    packages = {path.parent.name for path in (ROOT / "gpt2_ds").glob("*/__init__.py")}
    assert packages <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", LAUNCH, ids=relative)
def test_commands_leave_deepspeed_to_its_package(path: Path) -> None:
    names = {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}
    assert not names & {"deepspeed", "launch"}


def test_no_module_is_named_after_nothing() -> None:
    folders = [path.parent for path in MODULES]
    assert {path.stem for path in [*MODULES, *LAUNCH, *folders]} & NO_NOUNS == set()


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_module_is_long(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST or relative(path) in LONGER, f"{lines} lines ask to be two modules"


def test_modules_that_may_be_long_are() -> None:
    for name in LONGER:
        assert len((ROOT / name).read_text().splitlines()) > LONGEST, f"{name}: off the list"


@pytest.mark.parametrize("path", LAUNCH, ids=relative)
def test_commands_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


def loaded_after(names: list[str]) -> set[str]:
    """Top-level modules in a fresh process that imported these."""
    code = "import sys\n" + "".join(f"import {name}\n" for name in names)
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_light_parts_load_no_torch() -> None:
    config = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if path.parent.name == "config"
    ]
    assert not loaded_after(config) & {"torch", "deepspeed", "numpy", "tiktoken", "transformers"}
    inputs = loaded_after([*config, "gpt2_ds.preflight.inputs"])
    assert not inputs & {"torch", "deepspeed", "transformers"}
