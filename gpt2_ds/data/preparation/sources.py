"""The inputs behind the words on the command line: files, folders, globs, pipes, datasets."""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2_ds.config.errors import UserError, user_error
from gpt2_ds.data.preparation.byte_streams import COMPRESSED_SUFFIXES
from gpt2_ds.data.preparation.hub import HubDataset, commit_of
from gpt2_ds.data.preparation.request import Request

PYTHON_STDLIB = "python-stdlib"
STANDARD_INPUT = "-"
HUB_PREFIX = "hf:"
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson", ".json")
UNREADABLE_SUFFIXES = (".xz", ".bz2", ".zip", ".tar", ".tgz", ".7z", ".arrow")
# Not documents of the standard library proper; Debian installs the tests elsewhere, so that
# without them the corpus is nearly the same everywhere.
STDLIB_EXCLUDED = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
)


@dataclass(frozen=True)
class Input:
    """What one word on the command line stands for.

    Args:
        name: as it was typed.
        files: in the order in which they are read; none of standard input or of the hub.
        n_bytes: of all files; 0 where it is not known before reading.
        lenient: skip bad files even where they are errors in other inputs: they are not the user's.
        hub: for a dataset, what to read of it.
    """

    name: str
    files: tuple[Path, ...] = ()
    n_bytes: int = 0
    lenient: bool = False
    hub: HubDataset | None = None

    @property
    def is_one_stream(self) -> bool:
        """Whether it is read as a whole, and its size is not known before; not file by file."""
        return self.hub is not None or self.name == STANDARD_INPUT


def find_inputs(request: Request, commits: Mapping[str, str]) -> tuple[list[Input], list[Input]]:
    """What is behind each name.

    A name is a file, a folder (all files in it, recursed and sorted, without those whose name
    begins with a dot), a pattern of files (`*`, `?`, `**`), `-` for standard input,
    `hf:OWNER/NAME` for a dataset of the hub, `hf:` and a folder for a local one, or
    `python-stdlib`.

    Args:
        request: names them, and what to read of a dataset.
        commits: name -> the commit that was found for it before.

    Returns:
        The inputs, and those for validation.

    Raises:
        UserError: there is no such file, no file in a folder, no such dataset, a kind of file
            that is not read, something is named twice, or there is a flag for datasets without
            one.
    """
    taken: dict[object, str] = {}
    train, validation = (
        [_find_once(str(name), request, commits, taken) for name in names]
        for names in (request.inputs, request.validation)
    )
    for flag, value in (("--config", request.config), ("--revision", request.revision)):
        if value is not None and not any(source.hub for source in [*train, *validation]):
            raise user_error(
                flag, f"{value}, and no input is a dataset", "Leave it out, or name hf:OWNER/NAME."
            )
    return train, validation


def holds_rows(file: Path) -> bool:
    """Whether a file is JSON lines, by its name without .gz or .zst."""
    return _unpacked_suffix(file) in JSON_LINES_SUFFIXES


def _unpacked_suffix(file: Path) -> str:
    packed = file.suffix.lower() in COMPRESSED_SUFFIXES
    return (file.with_suffix("") if packed else file).suffix.lower()


def _find_once(
    name: str, request: Request, commits: Mapping[str, str], taken: dict[object, str]
) -> Input:
    """What is behind a name; `taken` says which name each part of the inputs before belongs to."""
    found = _find(name, request, commits)
    parts: list[object] = [file.resolve() for file in found.files]
    for part in parts or [found.name]:
        if part in taken:
            raise user_error(
                f"input {name}",
                f"{part} is part of the input {taken[part]} already",
                "Name each once.",
            )
        taken[part] = name
    return found


def _find(name: str, request: Request, commits: Mapping[str, str]) -> Input:
    if name == PYTHON_STDLIB:
        return _python_stdlib()
    if name == STANDARD_INPUT:
        return Input(name)
    if name.startswith(HUB_PREFIX):
        return _hub_dataset(name, request, commits)
    path = Path(name)
    if path.is_dir():
        files = _files_in(path)
        what = "a folder without files"
    elif path.is_file():
        files, what = [path], ""
    else:
        # Path.glob wants a relative pattern, and leaves files with a dot in.
        named = map(Path, glob.glob(name, recursive=True))  # noqa: PTH207
        files = sorted(path for path in named if path.is_file())
        what = "no such file or folder"
    if not files:
        raise user_error(
            f"input {name}",
            what,
            "Name text files, JSON lines or parquet (or a folder or pattern of them), "
            f"{HUB_PREFIX}OWNER/NAME, - or {PYTHON_STDLIB}.",
        )
    for file in files:
        if (suffix := _unpacked_suffix(file)) in UNREADABLE_SUFFIXES:
            raise user_error(
                str(file),
                f"{suffix} is not read",
                "Unpack it to text files, JSON lines or parquet first.",
            )
    return Input(name, tuple(files), _total_bytes(files))


def _files_in(path: Path) -> list[Path]:
    files = []
    for folder, folders, here in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (Path(folder) / name).is_symlink():
                raise user_error(
                    str(Path(folder) / name),
                    "a link to a folder, which is not followed",
                    "Name the folder it leads to as an input, and delete the link.",
                )
        files += [Path(folder) / name for name in here if not name.startswith(".")]
    return sorted(files)


def _hub_dataset(name: str, request: Request, commits: Mapping[str, str]) -> Input:
    path = name.removeprefix(HUB_PREFIX)
    if Path(path).is_dir():
        if request.revision is not None:
            raise user_error(
                "--revision",
                f"{request.revision}, and {path} is a folder, which has none",
                "Leave it out.",
            )
        files = _files_in(Path(path))
        local = HubDataset(path, request.config, request.split, None)
        return Input(name, tuple(files), _total_bytes(files), hub=local)
    commit = commits.get(name) or commit_of(path, request.revision)
    return Input(name, hub=HubDataset(path, request.config, request.split, commit))


def _python_stdlib() -> Input:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not path.is_symlink()  # Debian has links to other files of it, and out of it
        and not STDLIB_EXCLUDED & set(path.relative_to(root).parts[:-1])
    )
    if not files:
        raise user_error(
            f"input {PYTHON_STDLIB}",
            f"no .py files in {root}",
            "Use a Python with its sources, or name a text file.",
        )
    return Input(PYTHON_STDLIB, tuple(files), _total_bytes(files), lenient=True)


def _total_bytes(files: Sequence[Path]) -> int:
    try:
        return sum(file.stat().st_size for file in files)
    except OSError as error:
        raise unreadable(error.filename, error) from error


def unreadable(path: Path | str, error: OSError) -> UserError:
    """What to say of a file that cannot be opened or read."""
    return user_error(
        str(path),
        f"cannot be read ({error.strerror})",
        "Make it readable, or leave it out.",
    )
