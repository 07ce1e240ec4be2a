"""Which checkpoints of a run are complete. Reads no tensors and imports no torch."""

from __future__ import annotations

import errno
import hashlib
import re
import stat
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from gpt2_ds.config.errors import RunError, user_error, warn
from gpt2_ds.config.recipe_file import LoadedRecipe, load_stored
from gpt2_ds.config.same_run import fingerprint, refuse_other
from gpt2_ds.files.checksum import sha256_of
from gpt2_ds.files.heartbeat import UNHEARD, Heartbeat

MANIFEST = "manifest.json"
RECIPE = "recipe.yaml"

_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_NOT_SEALED = '"sha256": ""'  # the manifest's own; no file's is empty


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
        recipe_fingerprint: sha256 of what changes the result; compared where no recipe was saved.
        data_fingerprint: of the dataset.
        versions: of torch, deepspeed and this project.
        files: path relative to the step directory to size and hash.
        layout: how DeepSpeed's files are cut; only a job with an equal text loads them as they are.
        probe_loss: nats per token of the stored probe batch, as the saved model gave it.
        skipped_samples: ranges [first, end) of samples that training skips, as asked.
        skipped_updates: since the start, because loss or gradient was not finite.
        created: when, UTC, ISO 8601.
        sha256: of the text of the manifest with this field empty; `seal` puts it in.
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
    layout: str
    probe_loss: float
    skipped_samples: list[tuple[int, int]]
    skipped_updates: int
    created: str
    sha256: str = ""


def seal(manifest: CheckpointManifest) -> str:
    """The text of `manifest.json`, protected by a hash over every byte of it."""
    text = manifest.model_copy(update={"sha256": ""}).model_dump_json(indent=2) + "\n"
    before, mark, after = text.rpartition(_NOT_SEALED)
    return f'{before}{mark[:-1]}{hashlib.sha256(text.encode()).hexdigest()}"{after}'


def step_name(step: int) -> str:
    """The folder of a step.

    >>> step_name(1000)
    'step_00001000'
    """
    return f"step_{step:08d}"


def hash_file(path: Path, heartbeat: Heartbeat = UNHEARD) -> FileRecord:
    """Size in bytes and sha256 of a file; `heartbeat` is of the reading."""
    return FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path, heartbeat))


def read_manifest(checkpoint: Path) -> CheckpointManifest | None:
    """The manifest of a step directory; None when it is missing or damaged, or a link.

    Raises:
        RunError: it cannot be read, which does not mean that it is damaged.
    """
    path = checkpoint / MANIFEST
    try:
        if checkpoint.is_symlink() or not stat.S_ISREG(path.lstat().st_mode):
            return None
        return parse_manifest(path.read_bytes())
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return None
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path}: cannot be read: {error.strerror}. That is not damage, and nothing was changed. "
        "Check this disk and who may read it, then give the same command again."
    )


def parse_manifest(raw: bytes) -> CheckpointManifest | None:
    """The manifest in the bytes of a file; None: they are damaged, or were not sealed."""
    try:
        manifest = CheckpointManifest.model_validate_json(raw)
    except ValidationError:
        return None
    sealed = f'{_NOT_SEALED[:-1]}{manifest.sha256}"'.encode()
    hashed = hashlib.sha256(raw.replace(sealed, _NOT_SEALED.encode())).hexdigest()
    return manifest if manifest.sha256 == hashed else None


def damaged_files(
    checkpoint: Path,
    manifest: CheckpointManifest,
    *,
    part: int = 0,
    parts: int = 1,
    heartbeat: Heartbeat = UNHEARD,
) -> list[str]:
    """Files of this part that are missing, or not what the manifest says.

    A name that leads out of the step directory is damage, whatever is there.

    Args:
        checkpoint: the step directory.
        manifest: its manifest.
        part: this rank, of `parts` that share the work.
        parts: ranks.
        heartbeat: of the reading.

    Raises:
        RunError: a file cannot be read, which does not mean that it is damaged.
    """
    names = sorted(manifest.files)[part::parts]
    return [
        name for name in names if not is_whole(checkpoint, name, manifest.files[name], heartbeat)
    ]


def is_inside(checkpoint: Path, name: str) -> bool:
    """Whether a name in a manifest stays in the step directory, links followed."""
    try:
        inside = (checkpoint / name).resolve().is_relative_to(checkpoint.resolve())
    except (OSError, ValueError, RuntimeError):  # too long; not a file name; a loop of links
        return False
    return inside and ".." not in PurePosixPath(name).parts


def is_whole(
    checkpoint: Path, name: str, expected: FileRecord, heartbeat: Heartbeat = UNHEARD
) -> bool:
    """Whether one file of a step directory is there, and what its manifest says.

    Raises:
        RunError: it cannot be read.
    """
    path = checkpoint / name
    if not is_inside(checkpoint, name):
        return False
    try:
        found = path.stat()
        return (
            stat.S_ISREG(found.st_mode)
            and found.st_size == expected.bytes  # spares hashing what was cut off
            and hash_file(path, heartbeat) == expected
        )
    except ValueError:  # not a file name
        return False
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return False
        raise _unreadable(path, error) from error


def step_folders(run_dir: Path) -> list[tuple[Path, CheckpointManifest | None]]:
    """Every folder with the name of a checkpoint and its manifest, newest first.

    None in place of a manifest: it is missing or damaged, or of another step, or the folder is a
    link. Hashes of files are not compared here.

    Raises:
        RunError: the folder or a manifest cannot be read.
    """
    found: dict[int, tuple[Path, CheckpointManifest | None]] = {}
    folder = run_dir / "checkpoints"
    try:
        paths = list(folder.iterdir())  # glob finds nothing in a folder that cannot be read
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return []
        raise _unreadable(folder, error) from error
    for path in paths:
        digits = re.fullmatch("step_([0-9]{8,})", path.name)
        if digits is None or path.name != step_name(step := int(digits[1])):
            continue
        manifest = read_manifest(path)
        found[step] = path, manifest if manifest is None or manifest.step == step else None
    return [found[step] for step in sorted(found, reverse=True)]


def complete_checkpoints(run_dir: Path) -> list[tuple[Path, CheckpointManifest]]:
    """Step directories that were finished, newest first. Hashes are not compared here."""
    return [(path, manifest) for path, manifest in step_folders(run_dir) if manifest is not None]


def asked_folders(run_dir: Path, step: int | None) -> list[tuple[Path, CheckpointManifest | None]]:
    """The `step_folders`: all of them, or that of `step`.

    Raises:
        UserError: there is none.
    """
    folders = step_folders(run_dir)
    if not folders:
        raise user_error(
            f"--run {run_dir}",
            "holds no complete checkpoint",
            "Train first: deepspeed launch/train.py --recipe recipes/quickstart.yaml.",
        )
    if step is None:
        return folders
    asked = [pair for pair in folders if pair[0].name == step_name(step)]
    if not asked:
        steps = ", ".join(str(manifest.step) for _, manifest in folders if manifest is not None)
        raise user_error(
            f"--step {step}", "no checkpoint of this step", f"There are: {steps or 'none'}."
        )
    return asked


def choose_checkpoint(run_dir: Path, step: int | None) -> tuple[Path, CheckpointManifest]:
    """An undamaged checkpoint to read: the newest, or that of `step`.

    Raises:
        UserError: there is none, or the asked one is missing or damaged.
    """
    for path, manifest in asked_folders(run_dir, step):
        damaged = [MANIFEST] if manifest is None else damaged_files(path, manifest)
        if manifest is not None and not damaged:
            return path, manifest
        warn(f"{path / damaged[0]}: damaged; this checkpoint is skipped")
    if step is not None:
        raise user_error(f"--step {step}", "its checkpoint is damaged", "Choose another step.")
    raise user_error(f"--run {run_dir}", "every checkpoint is damaged", "Restore a copy.")


def saved_recipe(checkpoint: Path, manifest: CheckpointManifest) -> LoadedRecipe | None:
    """The recipe in a step directory; None: there is none, or it is damaged.

    Raises:
        UserError: it is of a version that knew other keys.
        RunError: it cannot be read.
    """
    record = manifest.files.get(RECIPE)
    if record is None or not is_whole(checkpoint, RECIPE, record):
        return None
    return load_stored(checkpoint / RECIPE)


def check_resumable(
    path: Path | str,
    manifest: CheckpointManifest,
    *,
    stored: LoadedRecipe | None,
    loaded: LoadedRecipe,
    data_fingerprint: str,
) -> None:
    """Refuse to resume from the checkpoint of another run. Ranks and ZeRO stage may change.

    Args:
        path: the step directory, or the address of a copy.
        manifest: its manifest.
        stored: the recipe in it; None: there is none, and the manifest's hash counts.
        loaded: the recipe to resume with.
        data_fingerprint: of the data to resume with.

    Raises:
        UserError: another recipe or dataset.
    """
    now = fingerprint(loaded.recipe, manifest.tokens_seen)
    if stored is not None:
        refuse_other(stored, loaded, manifest.tokens_seen)
    elif manifest.recipe_fingerprint != now:
        raise user_error(
            f"{path}: recipe_fingerprint",
            f"written by another recipe ({manifest.recipe_fingerprint[:12]}, {manifest.dtype}) "
            f"than this one ({now[:12]}, {loaded.recipe.precision.dtype})",
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
