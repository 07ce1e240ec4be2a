"""A prepared dataset: opened, checked, and read split by split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gpt2_ds.config.errors import user_error
from gpt2_ds.data.format.layouts import read_layout
from gpt2_ds.data.format.manifest import (
    MANIFEST_FILE,
    Manifest,
    ShardEntry,
    SplitName,
    read_manifest,
)
from gpt2_ds.data.format.shards import NO_TOKENIZER
from gpt2_ds.data.format.split import Split
from gpt2_ds.data.format.tokenizer import Tokenizer
from gpt2_ds.data.format.verify import verify_shard
from gpt2_ds.files.heartbeat import UNHEARD, Heartbeat

TOKENIZER_DIRECTORY = "tokenizer"
_RESTORE = "Restore the dataset from where it came from, or prepare it again."


class Dataset:
    """A directory made by `prepare`, or a copy of its small files with the shards elsewhere.

    Args:
        path: with `manifest.json` and `tokenizer/`.
        manifest: what it holds.
        tokenizer: its own.
        locate: gives the file of a shard on this machine; may fetch it first.
        address: where the user says it is, for messages.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        tokenizer: Tokenizer,
        locate: Callable[[ShardEntry], Path],
        address: str,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.address = address
        self._locate = locate

    @classmethod
    def open(cls, path: Path | str) -> Dataset:
        """Open a local dataset, checking manifest, tokenizer, and each shard's header and size.

        Raises:
            UserError: there is none, or a part of it is missing or is not what the manifest says.
        """
        path = Path(path)
        dataset = cls.open_small_files(path, lambda entry: path / entry.file, str(path))
        for entry in dataset.manifest.shards:
            _check_header(path, dataset.manifest, entry)
        return dataset

    @classmethod
    def open_small_files(
        cls, path: Path, locate: Callable[[ShardEntry], Path], address: str
    ) -> Dataset:
        """Open a dataset by its manifest and tokenizer alone. Arguments as for the class.

        Raises:
            UserError: one of the two is missing, damaged, or does not fit the other.
        """
        manifest = read_manifest(path)
        tokenizer = Tokenizer.open(path / TOKENIZER_DIRECTORY)
        if tokenizer.sha256 != manifest.tokenizer.sha256:
            raise user_error(
                f"{path / TOKENIZER_DIRECTORY}",
                f"sha256 {tokenizer.sha256}, and {MANIFEST_FILE} says {manifest.tokenizer.sha256}",
                _RESTORE,
            )
        return cls(path, manifest, tokenizer, locate, address)

    @property
    def fingerprint(self) -> str:
        """The sha256 over what training sees: see `Manifest.fingerprint`."""
        return self.manifest.fingerprint

    def entries(self, name: SplitName) -> tuple[ShardEntry, ...]:
        """The shards of a split, in order."""
        return tuple(entry for entry in self.manifest.shards if entry.split == name)

    def split(self, name: SplitName) -> Split:
        """The split called `name`.

        Raises:
            UserError: the dataset has no shard of it.
        """
        entries = self.entries(name)
        if not entries:
            raise user_error(
                f"{self.address}: {name}",
                "the dataset has no such split",
                "Prepare it again with a larger --validation-fraction, or with --validation FILE.",
            )
        return Split(name, entries, self.manifest.dtype, self._locate)

    def verify(self, part: int = 0, parts: int = 1, heartbeat: Heartbeat = UNHEARD) -> None:
        """Read every `parts`-th shard from the `part`-th on, and compare it with the manifest.

        Args:
            part: 0..parts-1; the ranks of a run share the work by rank and world size.
            parts: how many share it.
            heartbeat: beats after each shard.

        Raises:
            UserError: a shard is not what was written, or its index does not fit it.
        """
        for entry in self.manifest.shards[part::parts]:
            verify_shard(self._locate(entry), entry, n_vocab=self.tokenizer.n_vocab)
            heartbeat.beat()


def _check_header(directory: Path, manifest: Manifest, entry: ShardEntry) -> None:
    path = directory / entry.file
    if not path.resolve().is_relative_to(directory.resolve()):
        raise user_error(
            str(path), f"a link out of the dataset, to {path.resolve()}", "Copy the file itself."
        )
    header = read_layout(path, entry.layout)
    documents = header.n_documents or entry.documents  # shards of other projects say 0
    got = (header.dtype.name, header.n_tokens, documents, header.file_bytes)
    said = (manifest.dtype, entry.tokens, entry.documents, entry.bytes)
    if got != said:
        raise user_error(
            str(path),
            f"(type, tokens, documents, bytes) are {got}, and {MANIFEST_FILE} says {said}",
            _RESTORE,
        )
    if header.tokenizer_sha256 not in (manifest.tokenizer.sha256, NO_TOKENIZER):
        raise user_error(
            str(path),
            f"made with tokenizer {header.tokenizer_sha256}, and {MANIFEST_FILE} says "
            f"{manifest.tokenizer.sha256}",
            _RESTORE,
        )
