"""CONTRIBUTING.md: its map is the tree, and each file and name that it gives is there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.test_imports import FLOORS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
BEFORE, MAP, TEXT = PAGE.split("```")

QUOTED = re.compile(r"`([^`\n]+)`")
IN_BRACKETS = re.compile(r" \(((?:`\w+`(?:, )?)+)\)")
A_PATH = re.compile(r"[\w.-]*/[\w./-]*|[\w-]+\.(?:py|md|txt)")


def whole(path: str) -> Path:
    """A path of the page: of the repository, or of gpt2_ds/."""
    return ROOT / path if (ROOT / path).exists() else ROOT / "gpt2_ds" / path


def missing_paths(page: str) -> list[str]:
    """Paths between backticks where there is nothing."""
    words = [word.split()[0] for word in QUOTED.findall(page)]
    paths = [word for word in words if A_PATH.fullmatch(word)]
    commands = {path.name for path in (ROOT / "launch").iterdir()}
    return [
        path for path in paths if not whole(path).exists() and path not in commands | {"losses/"}
    ]


def missing_names(page: str) -> list[str]:
    """Names in brackets after a path that are not in that file."""
    missing = []
    for found in QUOTED.finditer(page):
        path, names = whole(found[1]), IN_BRACKETS.match(page, found.end())
        if names and path.is_file():
            text = path.read_text()
            missing += [
                f"{found[1]}: {name}"
                for name in QUOTED.findall(names[1])
                if not re.search(rf"\b{name}\b", text)
            ]
    return missing


def floors_of(text: str) -> tuple[tuple[str, ...], ...]:
    """The rooms that the map shows, by floor, from the top."""
    floors: list[list[str]] = []
    for number, room in re.findall(r"^  ([1-9]| )  (\w+)/ ", text, re.M):
        if number == " ":
            floors[-1].append(room)
        else:
            assert int(number) == len(FLOORS) - len(floors)
            floors.append([room])
    return tuple(map(tuple, floors))


def test_every_path_is_there() -> None:
    assert len(QUOTED.findall(TEXT)) > 100
    assert missing_paths(BEFORE + TEXT) == []


def test_every_name_is_in_its_file() -> None:
    assert len(IN_BRACKETS.findall(TEXT)) > 20
    assert missing_names(TEXT) == []


def test_what_is_not_there_is_found() -> None:
    assert missing_paths("`train/loop.py`, `train/lop.py`, `tests/none/`") == [
        "train/lop.py",
        "tests/none/",
    ]
    page = "`train/loop.py` (`take_step`, `take_stop`) and `config/errors.py` (`warn`)"
    assert missing_names(page) == ["train/loop.py: take_stop"]


def test_the_map_has_the_rooms_on_their_floors() -> None:
    assert floors_of(MAP) == FLOORS


def test_the_map_has_every_folder() -> None:
    folders = {path.parent for path in (ROOT / "gpt2_ds").glob("*/*/__init__.py")}
    assert [folder.name for folder in sorted(folders) if f"{folder.name}/: " not in MAP] == []
