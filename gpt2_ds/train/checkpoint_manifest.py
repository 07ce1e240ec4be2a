"""Which checkpoints of a run are complete. Reads no tensors and imports no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from gpt2_ds.config.errors import UserError, user_error
from gpt2_ds.data.durable_file import sha256_of

MANIFEST = "manifest.json"


class FileRecord(BaseModel):
    """Size and hash of one file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    bytes: int
    sha256: str


class CheckpointManifest(BaseModel):
    """What a complete step directory says of itself; written last.

    Args:
        step: optimizer steps done.
        samples_seen: training sequences consumed; the data's only state.
        tokens_seen: samples_seen times data.seq_length.
        world_size: ranks that wrote it.
        zero_stage: of the template it was written with.
        dtype: precision.dtype.
        recipe_fingerprint: sha256 of what changes the result.
        data_fingerprint: of the dataset.
        versions: of torch, deepspeed and this project.
        files: path relative to the step directory to size and hash.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    step: int
    samples_seen: int
    tokens_seen: int
    world_size: int
    zero_stage: int
    dtype: str
    recipe_fingerprint: str
    data_fingerprint: str
    versions: dict[str, str]
    files: dict[str, FileRecord]


def step_name(step: int) -> str:
    """The folder of a step.

    >>> step_name(1000)
    'step_00001000'
    """
    return f"step_{step:08d}"


def hash_file(path: Path) -> FileRecord:
    """Size in bytes and sha256 of a file."""
    return FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path))


def read_manifest(checkpoint: Path) -> CheckpointManifest | None:
    """The manifest of a step directory; None when it is missing or damaged."""
    try:
        return CheckpointManifest.model_validate_json((checkpoint / MANIFEST).read_bytes())
    except (OSError, ValidationError, json.JSONDecodeError):
        return None


def damaged_files(
    checkpoint: Path, manifest: CheckpointManifest, *, part: int = 0, parts: int = 1
) -> list[str]:
    """Files of this part whose size or hash is not what the manifest says.

    Args:
        checkpoint: the step directory.
        manifest: its manifest.
        part: this rank, of `parts` that share the work.
        parts: ranks.
    """
    damaged = []
    for name in sorted(manifest.files)[part::parts]:
        path, expected = checkpoint / name, manifest.files[name]
        inside = path.resolve().is_relative_to(checkpoint.resolve())
        if not inside or not path.is_file() or hash_file(path) != expected:
            damaged.append(name)
    return damaged


def complete_checkpoints(run_dir: Path) -> list[tuple[Path, CheckpointManifest]]:
    """Step directories that were finished, newest first. Hashes are not compared here."""
    found = []
    for path in sorted((run_dir / "checkpoints").glob("step_????????"), reverse=True):
        manifest = read_manifest(path)
        if manifest is not None and path.name == step_name(manifest.step):
            found.append((path, manifest))
    return found


def choose_checkpoint(run_dir: Path, step: int | None) -> tuple[Path, CheckpointManifest]:
    """An undamaged checkpoint to read: the newest, or that of `step`.

    Raises:
        UserError: there is none, or the asked one is missing or damaged.
    """
    complete = complete_checkpoints(run_dir)
    if not complete:
        raise user_error(
            f"--run {run_dir}",
            "holds no complete checkpoint",
            "Train first: deepspeed launch/train.py --recipe recipes/quickstart.yaml.",
        )
    if step is not None:
        complete = [pair for pair in complete if pair[1].step == step] or _no_such(complete, step)
    for path, manifest in complete:
        damaged = damaged_files(path, manifest)
        if not damaged:
            return path, manifest
        print(
            f"warning: {path / damaged[0]}: damaged; this checkpoint is left out", file=sys.stderr
        )
    if step is not None:
        raise user_error(f"--step {step}", "its checkpoint is damaged", "Choose another step.")
    raise user_error(f"--run {run_dir}", "every checkpoint is damaged", "Restore a copy.")


def _no_such(
    complete: list[tuple[Path, CheckpointManifest]], step: int
) -> list[tuple[Path, CheckpointManifest]]:
    steps = ", ".join(str(manifest.step) for _, manifest in complete)
    raise user_error(f"--step {step}", "no checkpoint of this step", f"There are: {steps}.")


def check_resumable(
    path: Path,
    manifest: CheckpointManifest,
    *,
    world_size: int,
    zero_stage: int,
    dtype: str,
    recipe_fingerprint: str,
    data_fingerprint: str,
) -> None:
    """Refuse to go on from a checkpoint in a form that DeepSpeed cannot load.

    Raises:
        UserError: another world size, ZeRO stage, number format, recipe or dataset.
    """
    if manifest.recipe_fingerprint != recipe_fingerprint or manifest.dtype != dtype:
        raise user_error(
            f"{path}: recipe_fingerprint",
            f"written by another recipe ({manifest.recipe_fingerprint[:12]}, {manifest.dtype}) "
            f"than this one ({recipe_fingerprint[:12]}, {dtype})",
            "Train with the recipe of this run, or use another --run-dir.",
        )
    if manifest.data_fingerprint != data_fingerprint:
        raise user_error(
            f"{path}: data_fingerprint",
            f"this run has read {manifest.data_fingerprint[:12]}, and the recipe's data now is "
            f"{data_fingerprint[:12]}",
            "Point data.path or data.sources at the data of this run, in its order; or use another "
            "--run-dir.",
        )
    faults = []
    if manifest.world_size != world_size:
        faults.append(
            user_error(
                f"{path}: world_size",
                f"written by {manifest.world_size} ranks, and this job has {world_size}",
                f"Start it with {manifest.world_size} ranks.",
            )
        )
    if manifest.zero_stage != zero_stage:
        faults.append(
            user_error(
                f"{path}: zero_stage",
                f"written at stage {manifest.zero_stage}, and the template has {zero_stage}",
                f"Use a --template of stage {manifest.zero_stage}.",
            )
        )
    if faults:
        raise UserError(*(fault for error in faults for fault in error.faults))
