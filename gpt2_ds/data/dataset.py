"""A prepared dataset: opened, checked, and read window by window."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_ds.config.errors import user_error
from gpt2_ds.data.manifest import MANIFEST_FILE, Manifest, ShardEntry, SplitName, read_manifest
from gpt2_ds.data.shards import (
    NO_TOKENIZER,
    ShardHeader,
    hash_file,
    map_tokens,
    read_header,
    read_index,
)
from gpt2_ds.data.tokenizer import Tokenizer

TOKENIZER_DIRECTORY = "tokenizer"
# A map holds a file descriptor, and a process often may have no more than 1,024 of them.
MAX_OPEN_SHARDS = 256
_RESTORE = "Restore the dataset from where it came from, or prepare it again."


class Split:
    """The tokens of one split, as windows of any length.

    A window lies inside one shard and begins `seq_length` tokens after the one before it. It has
    `seq_length + 1` tokens: its last is the first of the next, so every token but the first of
    a shard is predicted once.

    Args:
        name: of the split.
        shards: path and header of each, in order.
    """

    def __init__(self, name: str, shards: Sequence[tuple[Path, ShardHeader]]) -> None:
        self.name = name
        self._shards = tuple(shards)
        self._maps: OrderedDict[int, npt.NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()  # the read-ahead thread and the main one may both read
        self._cumulative: dict[int, npt.NDArray[np.int64]] = {}

    @property
    def n_tokens(self) -> int:
        """All tokens of the split."""
        return sum(header.n_tokens for _, header in self._shards)

    def n_windows(self, seq_length: int) -> int:
        """How many windows of `seq_length + 1` tokens there are: (tokens - 1) // T a shard."""
        return int(self._cumulative_windows(seq_length)[-1])

    def windows(self, ids: npt.NDArray[np.int64], seq_length: int) -> npt.NDArray[np.int64]:
        """Read windows.

        Args:
            ids: (n,) int64 in 0..n_windows-1, in any order.
            seq_length: T.

        Returns:
            (n, T + 1) int64 token ids.

        Raises:
            IndexError: there is no such window.
        """
        cumulative = self._cumulative_windows(seq_length)
        if len(ids) and not (ids.min() >= 0 and ids.max() < cumulative[-1]):
            raise IndexError(
                f"{self.name}: windows {ids.min()}..{ids.max()} of 0..{cumulative[-1] - 1}"
            )
        out = np.empty((len(ids), seq_length + 1), dtype=np.int64)
        owners = np.searchsorted(cumulative, ids, side="right") - 1
        starts = (ids - cumulative[owners]) * seq_length
        # Row by row: in a global shuffle over many shards nearly each row is of another one.
        for row, (shard, start) in enumerate(zip(owners.tolist(), starts.tolist(), strict=True)):
            out[row] = self._tokens(shard)[start : start + seq_length + 1]
        return out

    def _cumulative_windows(self, seq_length: int) -> npt.NDArray[np.int64]:
        """(n_shards + 1,): the windows before each shard, and all of them."""
        if seq_length not in self._cumulative:
            counts = [max(0, header.n_tokens - 1) // seq_length for _, header in self._shards]
            self._cumulative[seq_length] = np.cumsum([0, *counts], dtype=np.int64)
        return self._cumulative[seq_length]

    def _tokens(self, shard: int) -> npt.NDArray[Any]:
        with self._lock:
            if shard not in self._maps:
                self._maps[shard] = map_tokens(*self._shards[shard])
                if len(self._maps) > MAX_OPEN_SHARDS:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(shard)
            return self._maps[shard]


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
        entries = list(zip(self.manifest.shards, self._headers, strict=True))
        for shard, header in entries[part::parts]:
            path = self.path / shard.file
            if (got := hash_file(path)) != shard.sha256:
                raise user_error(
                    str(path), f"sha256 {got}, expected {shard.sha256}: damaged", _RESTORE
                )
            starts = np.flatnonzero(map_tokens(path, header) == self.tokenizer.eot_token)
            if not np.array_equal(starts, read_index(path, header)):
                raise user_error(
                    str(path.with_suffix(".idx")),
                    f"does not name the {len(starts)} places where documents begin in the shard",
                    _RESTORE,
                )


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
