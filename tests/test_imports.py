"""Imports point down, the light parts stay light, and modules stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "gpt2_ds").rglob("*.py"))
LAUNCH = sorted((ROOT / "launch").glob("*.py"))

FLOORS = (
    ("train",),
    ("health", "preflight"),
    ("checkpoint",),
    ("evaluation", "record"),
    ("data", "parallel"),
    ("files", "hosts", "plan"),
    ("model",),
    ("config",),
)
"""The rooms from the top floor down. A room imports itself and the floors below it."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
CONFIG_MAY_IMPORT = {*sys.stdlib_module_names, "yaml", "pydantic", "pydantic_core", "gpt2_ds"}
WITHOUT_TORCH = ("config", "files", "hosts", "plan")
NO_NOUNS = {"utils", "util", "common", "core", "base", "helpers", "helper", "misc"}
LONGEST = 400


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that a file imports anywhere: in functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def forbidden(room: str, tree: ast.AST) -> list[str]:
    """What a file of `room` imports and may not."""
    found = []
    for name in imports(tree):
        first, *rest = name.split(".")
        if first == "gpt2_ds" and rest and rest[0] in FLOOR_OF:
            if rest[0] != room and FLOOR_OF[rest[0]] <= FLOOR_OF[room]:
                found.append(name)
        elif (
            first == "launch"
            or (first == "deepspeed" and room != "parallel")
            or (first == "torch" and room in WITHOUT_TORCH)
            or (room == "config" and first not in CONFIG_MAY_IMPORT)
        ):
            found.append(name)
    return found


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def arrows() -> dict[str, set[str]]:
    """Every module of the package, and those of the package that it imports."""
    names = {module_name(path): path for path in MODULES}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        wanted = set(imports(ast.parse(path.read_text())))
        inside = {one if one in names else one.rpartition(".")[0] for one in wanted}
        found[name] = (inside & names.keys()) - {name}
    return found


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Modules that import one another; empty: there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_imports_point_down() -> None:
    wrong = {}
    for path in MODULES:
        room = path.relative_to(ROOT / "gpt2_ds").parts[0]
        if room in FLOOR_OF and (found := forbidden(room, ast.parse(path.read_text()))):
            wrong[relative(path)] = found
    assert wrong == {}, "move the code to a lower room, or what uses it to a higher one"


@pytest.mark.parametrize(
    "room, source",
    [
        ("config", "import torch"),
        ("config", "def f():\n    import torch.nn"),
        ("config", "from gpt2_ds.model import GPT2Config"),
        ("config", "from gpt2_ds import model"),
        ("files", "import torch"),
        ("hosts", "from torch import distributed"),
        ("hosts", "from gpt2_ds.files.durable_file import sync"),  # the same floor
        ("model", "from gpt2_ds.data.format.dataset import Dataset"),
        ("model", "if TYPE_CHECKING:\n    import deepspeed"),
        ("plan", "import gpt2_ds.data.format.dataset"),
        ("data", "from gpt2_ds.evaluation import loss"),
        ("data", "from gpt2_ds.parallel import engine"),
        ("checkpoint", "from gpt2_ds.health.watchdog import Watchdog"),
        ("preflight", "from gpt2_ds.health import health"),
        ("train", "from deepspeed.runtime import engine"),
        ("train", "from launch import train"),
    ],
)
def test_an_arrow_that_points_up_is_found(room: str, source: str) -> None:
    assert len(forbidden(room, ast.parse(source))) == 1


def test_no_modules_import_one_another() -> None:
    assert circle(arrows()) == []


def test_a_circle_is_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


def test_every_room_has_its_floor() -> None:
    rooms = {path.parent.name for path in (ROOT / "gpt2_ds").glob("*/__init__.py")}
    assert rooms == set(FLOOR_OF)


def test_tests_mirror_the_rooms() -> None:
    mirrored = {path.parent.relative_to(ROOT / "gpt2_ds") for path in MODULES}
    tests = {path.parent.relative_to(ROOT / "tests") for path in ROOT.glob("tests/**/__init__.py")}
    assert tests - mirrored - {Path("launch"), Path("faults")} == set()


def test_commands_leave_deepspeed_to_its_room() -> None:
    wrong = [
        relative(path)
        for path in LAUNCH
        if {one.split(".")[0] for one in imports(ast.parse(path.read_text()))}
        & {"deepspeed", "launch"}
    ]
    assert wrong == []


def test_no_module_is_named_after_nothing() -> None:
    folders = [path.parent for path in MODULES]
    assert {path.stem for path in [*MODULES, *LAUNCH, *folders]} & NO_NOUNS == set()


def test_no_module_is_long() -> None:
    long = {
        relative(path): lines
        for path in MODULES
        if (lines := len(path.read_text().splitlines())) > LONGEST
    }
    assert long == {}, "split it by idea"


def test_commands_are_short() -> None:
    long = {
        relative(path): lines
        for path in LAUNCH
        if (lines := len(path.read_text().splitlines())) > 60
    }
    assert long == {}


def loaded_after(names: list[str]) -> set[str]:
    """Top-level modules in a fresh process that imported these."""
    code = "import sys\n" + "".join(f"import {name}\n" for name in names)
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_light_parts_load_no_torch() -> None:
    def modules_of(*rooms: str) -> list[str]:
        return [module_name(p) for p in MODULES if p.relative_to(ROOT).parts[1] in rooms]

    config = modules_of("config")
    assert not loaded_after(config) & {"torch", "deepspeed", "numpy", "tiktoken", "transformers"}
    light = [*modules_of(*WITHOUT_TORCH), "gpt2_ds.preflight.inputs"]
    light += ["gpt2_ds.record.metrics_file", "gpt2_ds.checkpoint.retention"]
    assert not loaded_after(light) & {"torch", "deepspeed", "transformers"}
