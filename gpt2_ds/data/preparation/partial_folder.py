"""What a preparation has done so far, on disk: however it ended, the same command resumes.

.NAME.partial/      beside the dataset NAME that it becomes
  lock              held by the process that works
  job.json          what was asked for
  units.jsonl       a line for each unit that is complete, written after all of its files
  pieces/           the validation documents of each unit
  seen.sqlite       hashes of the documents, to find duplicates
  dataset/          what will be renamed to NAME
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from gpt2_ds.config.errors import Fault, UserError, user_error
from gpt2_ds.data.format.manifest import Count, ShardEntry, SkippedDocuments
from gpt2_ds.files.durable_file import sync, write_durably

Job = dict[str, Any]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Counts(_Line):
    """What went by up to the end of a unit.

    Args:
        documents: that were taken.
        tokens: of them.
        text_bytes: of them.
        input_bytes: about how much of the input was read.
        duplicates: skipped, because an equal document came before.
        skipped: bad documents, by why.
    """

    documents: Count = 0
    tokens: Count = 0
    text_bytes: Count = 0
    input_bytes: Count = 0
    duplicates: Count = 0
    skipped: dict[str, SkippedDocuments] = {}


class ValidationPiece(_Line):
    """The validation documents of one unit: lengths in uint32, then tokens.

    Args:
        file: in `pieces/`.
        documents: how many.
        tokens: of them.
    """

    file: str
    documents: Count
    tokens: Count


class UnitRecord(_Line):
    """A line of `units.jsonl`.

    Args:
        unit: counted from 0.
        shard: its train documents; None: it has none.
        piece: its validation documents; None: it has none.
        position: where reading resumes: input, file, place in the file.
        counts: at the end of the unit.
    """

    unit: Count
    shard: ShardEntry | None
    piece: ValidationPiece | None
    position: tuple[int, int, tuple[Any, ...] | None]
    counts: Counts


def partial_path(out: Path) -> Path:
    """Where the dataset `out` is while it is not complete."""
    return out.with_name(f".{out.name}.partial")


@contextmanager
def locked_folder(out: Path) -> Iterator[PartialFolder]:
    """The folder of a preparation, locked against a second one.

    Raises:
        UserError: another process is preparing `out`.
    """
    path = partial_path(out)
    lock = _lock(path)
    try:
        yield PartialFolder(path)
    finally:
        os.close(lock)


def _lock(path: Path) -> int:
    while True:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its owner before may have deleted the folder as its last act.
            if os.path.samestat(os.fstat(lock), (path / "lock").stat()):
                return lock
        except BlockingIOError as error:
            os.close(lock)
            raise user_error(
                str(path), "another preparation is at work in it", "Wait for it, or end it."
            ) from error
        except FileNotFoundError:
            pass
        os.close(lock)


class PartialFolder:
    """The folder, and what stands in its journal. Use `locked_folder`.

    Attributes:
        records: of the complete units, in order.
        is_ours: whether it was begun for the same request, or is new.
        stored_job: what was asked for when it was begun; None: it is new.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dataset = path / "dataset"
        self.pieces = path / "pieces"
        self.seen = path / "seen.sqlite"
        self._journal = path / "units.jsonl"
        self._job = path / "job.json"
        self.stored_job: Job | None = None
        self.is_ours = not self._job.exists()
        self.records: list[UnitRecord] = []
        if self._job.exists():
            self.stored_job = json.loads(self._job.read_bytes())
            self.records = self._read_journal()

    @property
    def shards(self) -> list[ShardEntry]:
        """The train shards that are complete."""
        return [record.shard for record in self.records if record.shard is not None]

    @property
    def is_published(self) -> bool:
        """Whether its dataset has its name already, and only the rest has still to be deleted."""
        return bool(self.records) and not self.dataset.exists()

    def begin(self, job: Job) -> None:
        """Begin or resume the work.

        Args:
            job: what is asked for: all that the result depends on, in words and numbers of JSON.

        Raises:
            UserError: something else was asked for when the folder was begun; names each key.
        """
        job = json.loads(json.dumps(job))
        if self.stored_job is None:
            write_durably(self._job, [json.dumps(job, indent=1).encode()])
        elif differing := [
            key for key in {**self.stored_job, **job} if self.stored_job.get(key) != job.get(key)
        ]:
            raise UserError(
                *(
                    Fault(
                        f"{self.path}: {key}",
                        f"begun with {self.stored_job.get(key)!r}, and it is {job.get(key)!r} now",
                        "Use the same again, or delete the folder to begin anew.",
                    )
                    for key in differing
                )
            )
        self.is_ours = True

    def clear_unfinished(self) -> None:
        """Delete what belongs to no complete unit, and make the folders that are missing.

        Raises:
            UserError: a file of a complete unit is missing.
        """
        kept = {self.dataset / shard.file for shard in self.shards}
        kept |= {path.with_suffix(".idx") for path in kept}
        kept |= {self.pieces / record.piece.file for record in self.records if record.piece}
        for path in sorted(kept):
            if not path.exists():
                raise user_error(str(path), "missing", f"Delete {self.path} to begin anew.")
        for folder in (self.dataset / "train", self.dataset / "validation", self.pieces):
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.iterdir():
                if path not in kept:
                    path.unlink()
        sync(self.dataset)
        sync(self.path)

    def write_piece(
        self, unit: int, tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64]
    ) -> ValidationPiece:
        """Keep the validation documents of a unit."""
        file = f"unit-{unit:05d}"
        parts: list[bytes | memoryview] = [lengths.astype("<u4").tobytes(), tokens.data.cast("B")]
        write_durably(self.pieces / file, parts)
        return ValidationPiece(file=file, documents=len(lengths), tokens=len(tokens))

    def read_piece(
        self, piece: ValidationPiece, dtype: np.dtype[Any]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """Its tokens, and how many of them each document has."""
        data = (self.pieces / piece.file).read_bytes()
        lengths = np.frombuffer(data, "<u4", piece.documents).astype(np.int64)
        return np.frombuffer(data, dtype, piece.tokens, 4 * piece.documents), lengths

    def append(self, record: UnitRecord) -> None:
        """Add the line of a unit, all of whose files are on the disk."""
        with self._journal.open("ab") as journal:
            journal.write(record.model_dump_json().encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        if not self.records:
            sync(self.path)
        self.records.append(record)

    def publish(self, out: Path) -> None:
        """Give the complete dataset its name, and delete the rest.

        Raises:
            OSError: something has been put there since.
        """
        self.dataset.rename(out)
        sync(out.parent)
        self.remove()

    def remove(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _read_journal(self) -> list[UnitRecord]:
        if not self._journal.exists():
            return []
        data = self._journal.read_bytes()
        complete = data[: data.rfind(b"\n") + 1]
        if len(complete) < len(data):  # killed while writing the last line
            os.truncate(self._journal, len(complete))
        try:
            lines = complete.splitlines()
            records = [UnitRecord.model_validate_json(line) for line in lines]
        except ValidationError as error:
            raise user_error(
                str(self._journal),
                f"damaged: {error.errors()[0]['msg']}",
                f"Delete {self.path} to begin anew.",
            ) from error
        return records
