"""Complete, damaged, chosen, resumable: what is said of a checkpoint without reading a tensor."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.train.checkpoint_manifest import (
    MANIFEST,
    CheckpointManifest,
    FileRecord,
    check_resumable,
    choose_checkpoint,
    complete_checkpoints,
    damaged_files,
    hash_file,
    step_name,
)

FILES = {
    "a.pt": b"alpha" * 100,
    "b.pt": b"beta" * 100,
    "deep/c.pt": b"gamma" * 100,
    "deep/d": b"d",
    "e": b"e",
}


def manifest_of(step: int, files: dict[str, FileRecord]) -> CheckpointManifest:
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
    )


def save(run_dir: Path, step: int) -> Path:
    """A complete checkpoint of small files."""
    path = run_dir / "checkpoints" / step_name(step)
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    manifest = manifest_of(step, {name: hash_file(path / name) for name in FILES})
    (path / MANIFEST).write_text(manifest.model_dump_json())
    return path


def steps(run_dir: Path) -> list[int]:
    return [manifest.step for _, manifest in complete_checkpoints(run_dir)]


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


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
    assert steps(tmp_path) == [1]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped bit": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
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


@pytest.mark.parametrize("parts", range(1, 8))
def test_parts_share_the_files(tmp_path: Path, parts: int) -> None:
    path = save(tmp_path, 1)
    (_, manifest) = complete_checkpoints(tmp_path)[0]
    for name in FILES:
        flip(path / name)
    found = [damaged_files(path, manifest, part=part, parts=parts) for part in range(parts)]
    assert sorted(name for part in found for name in part) == sorted(FILES)
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_the_newest_or_the_asked_one_is_chosen(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert choose_checkpoint(tmp_path, None)[1].step == 3
    path, manifest = choose_checkpoint(tmp_path, 2)
    assert (path.name, manifest.step) == (step_name(2), 2)


def test_there_is_none(tmp_path: Path) -> None:
    for step in (None, 3):
        assert refusal(lambda step=step: choose_checkpoint(tmp_path / "no", step)) == (
            f"--run {tmp_path}/no: holds no complete checkpoint. "
            "Train first: deepspeed launch/train.py --recipe recipes/quickstart.yaml."
        )


def test_there_is_none_of_this_step(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save(tmp_path, 6)
    assert refusal(lambda: choose_checkpoint(tmp_path, 4)) == (
        "--step 4: no checkpoint of this step. There are: 6, 3."
    )


def test_a_damaged_one_is_named_and_the_one_before_it_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, 1)
    flip(save(tmp_path, 2) / "b.pt")
    assert choose_checkpoint(tmp_path, None)[1].step == 1
    said = capsys.readouterr()
    damaged = tmp_path / "checkpoints/step_00000002/b.pt"
    assert said.err == f"warning: {damaged}: damaged; this checkpoint is left out\n"
    assert said.out == ""  # the sample goes there
    assert refusal(lambda: choose_checkpoint(tmp_path, 2)) == (
        "--step 2: its checkpoint is damaged. Choose another step."
    )
    assert str(damaged) in capsys.readouterr().err
    flip(tmp_path / "checkpoints/step_00000001/a.pt")
    assert refusal(lambda: choose_checkpoint(tmp_path, None)) == (
        f"--run {tmp_path}: every checkpoint is damaged. Restore a copy."
    )


def resumable(
    world_size: int = 2,
    zero_stage: int = 3,
    dtype: str = "bf16",
    recipe_fingerprint: str = "r" * 64,
    data_fingerprint: str = "d" * 64,
) -> None:
    check_resumable(
        Path("step"),
        manifest_of(1, {}),
        world_size=world_size,
        zero_stage=zero_stage,
        dtype=dtype,
        recipe_fingerprint=recipe_fingerprint,
        data_fingerprint=data_fingerprint,
    )


def test_the_same_job_may_go_on() -> None:
    resumable()


def test_another_recipe() -> None:
    for message, given in (
        (refusal(lambda: resumable(recipe_fingerprint="s" * 64)), "ssssssssssss, bf16"),
        (refusal(lambda: resumable(dtype="fp32")), "rrrrrrrrrrrr, fp32"),
    ):
        assert message == (
            "step: recipe_fingerprint: written by another recipe (rrrrrrrrrrrr, bf16) than "
            f"this one ({given}). Train with the recipe of this run, or use another --run-dir."
        )


def test_other_data() -> None:
    assert refusal(lambda: resumable(data_fingerprint="e" * 64, world_size=5)) == (
        "step: data_fingerprint: this run has read dddddddddddd, and the recipe's data now is "
        "eeeeeeeeeeee. Point data.path or data.sources at the data of this run, in its order; or "
        "use another --run-dir."
    )


RANKS = (
    "step: world_size: written by 2 ranks, and this job has 4. Start it with 2 ranks."
)  # fmt: skip
STAGE = (
    "step: zero_stage: written at stage 3, and the template has 0. Use a --template of stage 3."
)  # fmt: skip


def test_another_world_size_and_another_stage_are_said_together() -> None:
    assert refusal(lambda: resumable(world_size=4)) == RANKS
    assert refusal(lambda: resumable(zero_stage=0)) == STAGE
    assert refusal(lambda: resumable(world_size=4, zero_stage=0)) == f"{RANKS}\n{STAGE}"


def test_a_copied_checkpoint_is_complete(tmp_path: Path) -> None:
    save(tmp_path / "a", 1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert choose_checkpoint(tmp_path / "b", 1)[1].step == 1
