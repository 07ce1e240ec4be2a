"""Copies of a run's checkpoints at an address: each one is complete, or it is not there."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable
from pathlib import Path

from gpt2_ds.checkpoint.folder import quarantine
from gpt2_ds.checkpoint.manifest import (
    MANIFEST,
    RECIPE,
    CheckpointManifest,
    FileRecord,
    is_inside,
    parse_manifest,
    step_name,
)
from gpt2_ds.config.errors import RunError, user_error, warn
from gpt2_ds.config.recipe_file import LoadedRecipe, parse_stored
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.files.durable_file import sync, write_durably
from gpt2_ds.files.heartbeat import UNHEARD, Heartbeat
from gpt2_ds.files.remote_files import RemoteFolder, Wording, WrongBytes
from gpt2_ds.files.remote_source import Stopped, redacted
from gpt2_ds.files.tree import ExpectedFile, fetch_files, in_parallel, missing_files
from gpt2_ds.files.trouble import writing
from gpt2_ds.parallel.agreement import by_rank_0

UPLOADING = "uploading.json"  # the manifest of an upload that has begun
_WORDING = Wording(
    where="{file}",
    missing="there is no such file or folder",
    missing_fix="Make the folder (bucket) first, and check the address: checkpoint.copy_to.",
    refused_fix="Give this machine the right to read and to write it, by credentials in the "
    "environment.",
    broken="{file}: {fault}, at the last of {attempts} attempts. See whether this machine reaches "
    "it, then give the same command again.",
    wrong="{file}: {fault}",
)
# A copy may have many gigabytes; bytes that are wrong twice are hardly the network's fault.
_ATTEMPTS_AT_WRONG_BYTES = 2
# s3fs holds and sends 10 parts of 50 MB of a large file at a time: beside training, memory limits
# how many such files are sent.
_SENDS_AT_ONCE = 2


class Damaged(Exception):
    """A copy is not what was uploaded; says which file, and how."""


class RemoteCheckpoints:
    """The checkpoints of one run under one address, through fsspec.

    Where the address cannot be used, every method raises as `RemoteFolder` says.

    Args:
        address: of the run's folder: s3://, gs://, or a path.
        attempts: how often to try in all, where a failure may pass.
        first_delay_seconds: before the second attempt; doubles up to 30 seconds.
        stall_seconds: a read that gets no byte for so long has failed.
        heartbeat: of what is done with them.

    Raises:
        UserError: such an address is not known or cannot be written to, or a package is missing.
    """

    def __init__(
        self,
        address: str,
        *,
        attempts: int = 8,
        first_delay_seconds: float = 0.5,
        stall_seconds: float = 60.0,
        heartbeat: Heartbeat = UNHEARD,
    ) -> None:
        if address.startswith(("http://", "https://")):
            raise user_error(
                redacted(address), "cannot be written to", "Give s3://, gs:// or a path."
            )
        self._heartbeat = heartbeat
        self.files = RemoteFolder(
            address.rstrip("/"),
            attempts=attempts,
            attempts_at_wrong_bytes=_ATTEMPTS_AT_WRONG_BYTES,
            first_delay_seconds=first_delay_seconds,
            stall_seconds=stall_seconds,
            wording=_WORDING,
            heartbeat=heartbeat,
        )

    def complete(self) -> list[int]:
        """Steps whose copy was finished, newest first. Their files are not read here."""
        return [step for step in self._steps() if self.files.has(f"{step_name(step)}/{MANIFEST}")]

    def upload(self, checkpoint: Path) -> None:
        """Copy a step directory: its files, and the manifest once they are all there.

        What an earlier upload of the same checkpoint has sent is not sent again.

        Raises:
            RunError: the checkpoint is damaged, or what was copied is not there.
        """
        raw, manifest = _local_manifest(checkpoint)
        folder = checkpoint.name
        if self.files.read_if_there(f"{folder}/{MANIFEST}") == raw:
            return
        sent: dict[str, int] = {}
        if self.files.read_if_there(f"{folder}/{UPLOADING}") == raw:
            sent = self.files.sizes(folder)
        else:  # of another checkpoint of this step: equal sizes would say nothing
            self._remove(folder)
            self.files.write(f"{folder}/{UPLOADING}", raw)
        for name in manifest.files:
            if not is_inside(checkpoint, name) or not (checkpoint / name).is_file():
                raise RunError(f"{checkpoint / name}: not there; the checkpoint is not copied.")
        in_parallel(
            lambda name: self.files.send(checkpoint / name, f"{folder}/{name}"),
            [name for name, record in manifest.files.items() if sent.get(name) != record.bytes],
            _SENDS_AT_ONCE,
        )
        sizes = self.files.sizes(folder)
        for name, record in manifest.files.items():
            if sizes.get(name) != record.bytes:
                where = self.files.at(f"{folder}/{name}")
                raise RunError(f"{where}: {_how(sizes.get(name), record)} once it was copied.")
        self.files.write(f"{folder}/{MANIFEST}", raw)
        self.files.remove(f"{folder}/{UPLOADING}")

    def fetch(self, step: int, run_dir: Path) -> Path:
        """Copy a step directory to this machine: complete, right and on the disk, or not there.

        Args:
            step: one of `complete()`.
            run_dir: the run; the checkpoint comes into its folder of checkpoints.

        Returns:
            The step directory. A damaged folder of this name is quarantined.

        Raises:
            Damaged: the copy is not what was uploaded.
            RunError: this machine's disk is full, or fails.
        """
        name = step_name(step)
        raw, manifest = self._manifest(step)
        partial = run_dir / "checkpoints" / f"{name}.tmp"
        with writing(partial, 0):
            if partial.is_symlink():
                partial.unlink()
            partial.mkdir(parents=True, exist_ok=True)
        sizes = self.files.sizes(name)
        for file, record in manifest.files.items():
            where = self.files.at(f"{name}/{file}")
            if not is_inside(partial, file) or sizes.get(file) != record.bytes:
                raise Damaged(f"{where}: {_how(sizes.get(file), record)}")
        files = [
            ExpectedFile(file, record.bytes, record.sha256)
            for file, record in manifest.files.items()
        ]
        try:  # a fetch that was interrupted has left whole files
            missing = missing_files(partial, files, heartbeat=self._heartbeat)
            fetch_files(self.files, missing, partial, under=f"{name}/")
        except WrongBytes as error:
            raise Damaged(str(error)) from error
        with writing(partial, len(raw)):
            return _finished(partial, manifest, raw)

    def manifest(self, step: int) -> CheckpointManifest:
        """The manifest of a copy.

        Raises:
            Damaged: it is not what was uploaded.
        """
        return self._manifest(step)[1]

    def _manifest(self, step: int) -> tuple[bytes, CheckpointManifest]:
        name = f"{step_name(step)}/{MANIFEST}"
        raw = self.files.read_if_there(name) or b""
        manifest = parse_manifest(raw)
        if manifest is None or manifest.step != step:
            raise Damaged(f"{self.files.at(name)}: damaged")
        return raw, manifest

    def recipe(self, manifest: CheckpointManifest) -> LoadedRecipe | None:
        """The recipe in a copy; None: there is none.

        Raises:
            Damaged: it is not what was uploaded.
            UserError: it is of a version that knew other keys.
        """
        if (record := manifest.files.get(RECIPE)) is None:
            return None
        name = f"{step_name(manifest.step)}/{RECIPE}"
        raw, where = self.files.read_if_there(name), self.files.at(name)
        if raw is None or hashlib.sha256(raw).hexdigest() != record.sha256:
            raise Damaged(f"{where}: {'not there' if raw is None else 'damaged'}")
        return parse_stored(raw.decode(errors="replace"), where)

    def prune(self, keep: Iterable[int]) -> None:
        """Delete the copies of all other steps, finished or not; never the newest complete one."""
        kept = {*keep, *self.complete()[:1]}
        for step in self._steps():
            if step not in kept:
                self._remove(step_name(step))

    def _remove(self, folder: str) -> None:
        self.files.remove(f"{folder}/{MANIFEST}")  # first: then it is not a checkpoint any more
        self.files.remove(folder)

    def _steps(self) -> list[int]:
        matches = (re.fullmatch("step_([0-9]{8,})", name) for name in self.files.names())
        return sorted({int(match[1]) for match in matches if match}, reverse=True)


def _local_manifest(checkpoint: Path) -> tuple[bytes, CheckpointManifest]:
    path = checkpoint / MANIFEST
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; the checkpoint is not copied.") from error
    if (manifest := parse_manifest(raw)) is None:
        raise RunError(f"{path}: damaged; the checkpoint is not copied.")
    return raw, manifest


def _finished(partial: Path, manifest: CheckpointManifest, raw: bytes) -> Path:
    """Give a fetched folder, whose files are on the disk, its manifest and its name."""
    final = partial.with_name(step_name(manifest.step))
    write_durably(partial / MANIFEST, [raw])
    for folder in {(partial / file).parent for file in manifest.files}:
        sync(folder)
    quarantine(final)  # it was damaged: nothing is fetched otherwise
    partial.rename(final)
    sync(final.parent)
    return final


def _how(n_bytes: int | None, record: FileRecord) -> str:
    return "not there" if n_bytes is None else f"{n_bytes} bytes, expected {record.bytes}"


def remote_of(plan: RunPlan, heartbeat: Heartbeat = UNHEARD) -> RemoteCheckpoints:
    """The copies of a run; its recipe must ask for them.

    Args:
        plan: the run.
        heartbeat: of what is done with them.
    """
    return RemoteCheckpoints(
        f"{(plan.recipe.checkpoint.copy_to or '').rstrip('/')}/{plan.run_dir.resolve().name}",
        heartbeat=heartbeat,
    )


def copying(plan: RunPlan, heartbeat: Heartbeat) -> Heartbeat:
    """The heartbeat of sending copies."""
    return heartbeat.during(f"copying checkpoints to {plan.recipe.checkpoint.copy_to}")


def finish_copy(plan: RunPlan, step: int, heartbeat: Heartbeat) -> None:
    """Send the last checkpoint, or what is missing of its copy, before the job ends. Collective.

    Raises:
        RunError: it could not be sent. The same command tries again.
    """
    if plan.recipe.checkpoint.copy_to is not None:
        checkpoint = plan.run_dir / "checkpoints" / step_name(step)
        sending = copying(plan, heartbeat)
        by_rank_0(lambda: remote_of(plan, sending).upload(checkpoint), sending)


class Uploader:
    """Uploads in its own thread, one checkpoint at a time; of those that wait, only the newest.

    A failure is a warning; training continues.

    Args:
        remote: where the copies go.
    """

    def __init__(self, remote: RemoteCheckpoints) -> None:
        self._remote = remote
        self._change = threading.Condition()
        self._busy: Path | None = None
        self._waiting: Path | None = None
        self._gone: set[int] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="checkpoint-copy", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> Path | None:
        """The step directory that is being read; leave it where it is."""
        with self._change:
            return self._busy

    @property
    def idle(self) -> bool:
        """All that was submitted is sent, or could not be."""
        with self._change:
            return self._busy is None and self._waiting is None

    def submit(self, checkpoint: Path, gone: Iterable[int] = ()) -> None:
        """Upload a complete step directory after the one that is under way.

        Args:
            checkpoint: the step directory. An older one that still waits is dropped.
            gone: steps whose copies are deleted, once this one is complete. Others stay: this disk
                may have lost what the copies still hold.
        """
        with self._change:
            self._waiting = checkpoint
            self._gone |= set(gone)
            self._change.notify_all()

    def close(self, wait_seconds: float = 600.0) -> None:
        """Finish what was submitted, as far as time allows; the next upload sends the rest."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join(wait_seconds)
        if self._thread.is_alive():
            self._remote.files.stop.set()
            warn(f"{self._remote.files.address}: the copy of the newest checkpoint is not complete")

    def _work(self) -> None:
        while (checkpoint := self._next()) is not None:
            self._try(checkpoint)
            with self._change:
                self._busy = None

    def _next(self) -> Path | None:
        with self._change:
            self._change.wait_for(lambda: self._waiting is not None or self._closed)
            self._busy, self._waiting = self._waiting, None
            return self._busy

    def _try(self, checkpoint: Path) -> None:
        try:
            self._remote.upload(checkpoint)
            if self._gone:
                self._remote.prune(set(self._remote.complete()) - self._gone)
        except Stopped:
            return  # `close` has warned
        except Exception as error:  # whatever it is, it must be seen
            warn(f"{error} There is no copy of {checkpoint.name}; training continues.")
