"""Checkpoints of small files, complete and sealed, without a run around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.checkpoint.manifest import (
    MANIFEST,
    CheckpointManifest,
    FileRecord,
    hash_file,
    seal,
    step_name,
)
from gpt2_ds.config.errors import UserError

FILES = {
    "a.pt": b"alpha" * 100,
    "b.pt": b"beta" * 100,
    "deep/c.pt": b"gamma" * 100,
    "deep/d": b"d",
    "e": b"",
}


def manifest_of(step: int, files: dict[str, FileRecord], **more: Any) -> CheckpointManifest:
    return CheckpointManifest(
        step=step,
        samples_seen=8 * step,
        tokens_seen=256 * step,
        world_size=2,
        zero_stage=3,
        dtype="bf16",
        recipe_fingerprint="r" * 64,
        data_fingerprint="d" * 64,
        versions={"torch": "2"},
        files=files,
        layout="{}",
        probe_loss=1.0,
        skipped_samples=[],
        skipped_updates=0,
        created="",
    ).model_copy(update=more)


def save(run_dir: Path, step: int, files: dict[str, bytes] | None = None, **more: Any) -> Path:
    """A complete checkpoint: `files` by name, `more` in its manifest."""
    files = FILES if files is None else files
    path = run_dir / "checkpoints" / step_name(step)
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    manifest = manifest_of(step, {name: hash_file(path / name) for name in files}, **more)
    (path / MANIFEST).write_text(seal(manifest))
    return path


def refusal(call: Callable[[], object], kind: type[Exception] = UserError) -> str:
    """The message that a call ends with."""
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def flip(path: Path) -> None:
    """One bit in the middle of a file; an empty one gets a byte."""
    content = bytearray(path.read_bytes() or b"x")
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
