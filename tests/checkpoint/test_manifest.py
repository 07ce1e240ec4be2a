"""Complete, damaged, chosen, resumable: what is said of a checkpoint without reading a tensor."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from gpt2_ds.checkpoint.manifest import (
    MANIFEST,
    CheckpointManifest,
    FileRecord,
    complete_checkpoints,
    damaged_files,
    hash_file,
    parse_manifest,
    read_manifest,
    seal,
    step_folders,
    step_name,
)
from gpt2_ds.config.errors import RunError
from gpt2_ds.files.heartbeat import Heartbeat
from tests.checkpoint.saved_files import FILES, flip, manifest_of, save


def full_manifest() -> CheckpointManifest:
    more = {
        "layout": "2 ranks, \u00e9",
        "probe_loss": 0.1 + 0.2,
        "skipped_samples": [(3, 5), (8, 9)],
        "skipped_updates": 2,
        "created": "2024-05-06T07:08:09+00:00",
    }
    return manifest_of(7, {"a": FileRecord(bytes=1, sha256="0" * 64)}).model_copy(update=more)


def test_what_is_sealed_reads_again() -> None:
    manifest = full_manifest()
    read = parse_manifest(seal(manifest).encode())
    assert read is not None
    assert read.model_copy(update={"sha256": ""}) == manifest
    assert seal(read) == seal(manifest)
    said = json.loads(seal(manifest))["sha256"]
    unsealed = seal(manifest).replace(said, "")
    assert said == hashlib.sha256(unsealed.encode()).hexdigest()


def test_any_flipped_bit_of_a_manifest_is_found() -> None:
    raw = seal(full_manifest()).encode()
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        assert parse_manifest(bytes(flipped)) is None, (bit, flipped)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_cut_manifest_is_found(cut: int) -> None:
    assert parse_manifest(seal(full_manifest()).encode()[:cut]) is None


@pytest.mark.parametrize("seal_of", [{"sha256": ""}, {}, {"sha256": None}])
def test_a_manifest_without_a_seal_is_damaged(tmp_path: Path, seal_of: dict[str, object]) -> None:
    """Otherwise whoever blanks the seal may change what it protects."""
    path = save(tmp_path, 1)
    flip(path / "a.pt")
    said = json.loads((path / MANIFEST).read_text())
    said["files"]["a.pt"] = hash_file(path / "a.pt").model_dump()
    del said["sha256"]
    (path / MANIFEST).write_text(json.dumps(said | seal_of, indent=2) + "\n")
    assert read_manifest(path) is None
    assert step_folders(tmp_path) == [(path, None)]


def steps(run_dir: Path) -> list[int]:
    return [manifest.step for _, manifest in complete_checkpoints(run_dir)]


def test_the_hash_is_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * (1 << 15)  # more than one chunk
    (tmp_path / "x").write_bytes(content)
    assert hash_file(tmp_path / "x") == FileRecord(
        bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )


def test_complete_ones_newest_first(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, step)
    assert steps(tmp_path) == [100, 20, 9]
    assert complete_checkpoints(tmp_path)[0][0] == tmp_path / "checkpoints/step_00000100"


def test_what_is_not_complete_is_passed_over(tmp_path: Path) -> None:
    assert steps(tmp_path) == []  # nor is there a folder
    save(tmp_path, 1)
    checkpoints = tmp_path / "checkpoints"
    save(tmp_path, 2).rename(checkpoints / "step_00000002.tmp")
    (save(tmp_path, 3) / MANIFEST).unlink()
    (save(tmp_path, 4) / MANIFEST).write_text('{"step": 4')
    (save(tmp_path, 5) / MANIFEST).write_text("{}")
    (save(tmp_path, 6) / MANIFEST).write_bytes(b"\xff\xfe")
    whole = json.loads((save(tmp_path, 7) / MANIFEST).read_text())
    (checkpoints / step_name(7) / MANIFEST).write_text(json.dumps(whole | {"more": 1}))
    save(tmp_path, 8).rename(checkpoints / step_name(80))
    (checkpoints / step_name(9)).write_text("a file")
    for other in ("step_", "step_1", "step_000000001", "step_0000000x", "step_00000010.damaged"):
        save(tmp_path, 10).rename(checkpoints / other)
    assert steps(tmp_path) == [1]
    assert [
        (path.name, manifest and manifest.step) for path, manifest in step_folders(tmp_path)
    ] == [(step_name(80), None)] + [
        (step_name(step), None if step > 1 else 1) for step in (9, 7, 6, 5, 4, 3, 1)
    ]


def test_a_step_of_nine_digits_is_newer(tmp_path: Path) -> None:
    save(tmp_path, 10**8)
    save(tmp_path, 99_999_999)
    assert steps(tmp_path) == [10**8, 99_999_999]


def test_a_link_is_no_checkpoint(tmp_path: Path) -> None:
    elsewhere = save(tmp_path / "elsewhere", 2)
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints" / step_name(2)
    folder.symlink_to(elsewhere)
    assert step_folders(tmp_path)[0] == (folder, None)
    assert steps(tmp_path) == [1]
    folder.unlink()
    save(tmp_path, 2)
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).symlink_to(elsewhere / MANIFEST)
    assert step_folders(tmp_path)[0] == (folder, None)
    (folder / MANIFEST).unlink()
    os.mkfifo(folder / MANIFEST)  # whose reader would wait for ever
    assert step_folders(tmp_path)[0] == (folder, None)


def test_files_that_the_manifest_does_not_name_are_no_error(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    (path / "notes").write_text("mine")
    assert damaged_files(path, complete_checkpoints(tmp_path)[0][1]) == []


DAMAGE = {
    "a flipped bit": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a loop of links": lambda path: (path.unlink(), path.symlink_to(path)),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["a.pt", "deep/c.pt"])
def test_damage_is_found(tmp_path: Path, kind: str, name: str) -> None:
    path = save(tmp_path, 1)
    (_, manifest) = complete_checkpoints(tmp_path)[0]
    assert damaged_files(path, manifest) == []
    DAMAGE[kind](path / name)
    assert damaged_files(path, manifest) == [name]


@pytest.mark.parametrize("how", ["up", "absolute", "link", "folder link"])
def test_a_file_outside_the_folder_is_damage_whatever_it_holds(tmp_path: Path, how: str) -> None:
    path = save(tmp_path, 1)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_bytes(b"the very content")
    if how == "up":
        name = "../../outside/x"
    elif how == "absolute":
        name = str(outside / "x")
    elif how == "link":
        name = "x"
        (path / name).symlink_to(outside / "x")
    else:
        name = "folder/x"
        (path / "folder").symlink_to(outside)
    assert (path / name).read_bytes() == b"the very content"
    manifest = manifest_of(1, {"a.pt": hash_file(path / "a.pt"), name: hash_file(outside / "x")})
    assert damaged_files(path, manifest) == [name]


@pytest.mark.parametrize("name", ["deep/../a.pt", "", ".", "a\0b", "x" * 300])
def test_a_strange_name_is_damage(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, 1)
    assert damaged_files(path, manifest_of(1, {name: hash_file(path / "a.pt")})) == [name]


@pytest.mark.parametrize("number", [5, 13, 110, 116])  # EIO, EACCES, ETIMEDOUT, ESTALE
def test_what_cannot_be_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A disk that fails, or that is not there now: it may be right the next time."""
    path = save(tmp_path, 1)
    manifest = complete_checkpoints(tmp_path)[0][1]
    whole_open = Path.open

    def broken(self: Path, *words: object, **more: object) -> object:
        if self.name in broken_names:
            raise OSError(number, "not now")
        return whole_open(self, *words, **more)  # type: ignore[call-overload]

    broken_names = {"b.pt"}
    monkeypatch.setattr(Path, "open", broken)
    with pytest.raises(RunError) as refused:
        damaged_files(path, manifest)
    assert str(refused.value) == (
        f"{path}/b.pt: cannot be read: not now. That is not damage, and nothing was changed. Check "
        "this disk and who may read it, then give the same command again."
    )
    broken_names.add(MANIFEST)
    for read in (lambda: read_manifest(path), lambda: step_folders(tmp_path)):
        with pytest.raises(RunError, match=f"^{path}/manifest.json: cannot be read: not now"):
            read()


def test_a_folder_that_cannot_be_read_does_not_look_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def refused(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(RunError, match=f"^{tmp_path}/checkpoints: cannot be read: Permission"):
        step_folders(tmp_path)


def test_hashing_says_how_far_it_is(tmp_path: Path) -> None:
    path, parts = save(tmp_path, 1, {"a": bytes(3_500_000), "b": b"x"}), []
    heartbeat = Heartbeat(lambda doing, alone: parts.append(1)).of_main_thread("")
    damaged_files(path, manifest_of(1, {}), heartbeat=heartbeat)
    assert parts == []
    damaged_files(path, complete_checkpoints(tmp_path)[0][1], heartbeat=heartbeat)
    assert len(parts) == 5  # of a MiB each; of the small one, one


@pytest.mark.parametrize("parts", range(1, 8))
def test_parts_share_the_files(tmp_path: Path, parts: int) -> None:
    path = save(tmp_path, 1)
    (_, manifest) = complete_checkpoints(tmp_path)[0]
    for name in FILES:
        flip(path / name)
    found = [damaged_files(path, manifest, part=part, parts=parts) for part in range(parts)]
    assert sorted(name for part in found for name in part) == sorted(FILES)
    assert max(map(len, found)) - min(map(len, found)) <= 1
