"""A prepared dataset: opened, checked, and read window by window."""

from __future__ import annotations

from pathlib import Path

from gpt2_ds.config.errors import user_error
from gpt2_ds.data.manifest import MANIFEST_FILE, Manifest, ShardEntry, SplitName, read_manifest
from gpt2_ds.data.shards import (
    NO_TOKENIZER,
    ShardHeader,
    read_header,
    verify_shard,
)
from gpt2_ds.data.split import Split
from gpt2_ds.data.tokenizer import Tokenizer

TOKENIZER_DIRECTORY = "tokenizer"
_RESTORE = "Restore the dataset from where it came from, or prepare it again."


class Dataset:
    """A directory made by `prepare`. Use `Dataset.open`."""

    def __init__(
        self, path: Path, manifest: Manifest, tokenizer: Tokenizer, headers: list[ShardHeader]
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.tokenizer = tokenizer
        self._headers = headers

    @classmethod
    def open(cls, path: Path | str) -> Dataset:
        """Open a dataset, checking its manifest, its tokenizer, and each shard's header and size.

        Raises:
            UserError: there is none, or a part of it is missing or is not what the manifest says.
        """
        path = Path(path)
        manifest = read_manifest(path)
        headers = [_checked_header(path, manifest, shard) for shard in manifest.shards]
        tokenizer = Tokenizer.open(path / TOKENIZER_DIRECTORY)
        if tokenizer.sha256 != manifest.tokenizer.sha256:
            raise user_error(
                f"{path / TOKENIZER_DIRECTORY}",
                f"sha256 {tokenizer.sha256}, and {MANIFEST_FILE} says {manifest.tokenizer.sha256}",
                _RESTORE,
            )
        return cls(path, manifest, tokenizer, headers)

    @property
    def fingerprint(self) -> str:
        """The sha256 over what training sees: see `Manifest.fingerprint`."""
        return self.manifest.fingerprint

    def split(self, name: SplitName) -> Split:
        """The split called `name`.

        Raises:
            UserError: the dataset has no shard of it.
        """
        shards = [
            (self.path / shard.file, header)
            for shard, header in zip(self.manifest.shards, self._headers, strict=True)
            if shard.split == name
        ]
        if not shards:
            raise user_error(
                f"{self.path}: {name}",
                "the dataset has no such split",
                "Prepare it again with a larger --validation-fraction, or with --validation FILE.",
            )
        return Split(name, shards)

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Read every `parts`-th shard from the `part`-th on, and compare it with the manifest.

        Args:
            part: 0..parts-1; the ranks of a run share the work by rank and world size.
            parts: how many share it.

        Raises:
            UserError: a shard is not what was written, or its index does not fit it.
        """
        for shard in self.manifest.shards[part::parts]:
            verify_shard(self.path / shard.file, shard)


def _checked_header(directory: Path, manifest: Manifest, shard: ShardEntry) -> ShardHeader:
    path = directory / shard.file
    if not path.resolve().is_relative_to(directory.resolve()):
        raise user_error(
            str(path), f"a link out of the dataset, to {path.resolve()}", "Copy the file itself."
        )
    header = read_header(path)
    got = (header.dtype.name, header.n_tokens, header.n_documents, header.file_bytes)
    said = (manifest.dtype, shard.tokens, shard.documents, shard.bytes)
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
    return header
