"""Encoded documents to units: each makes one train shard, and work resumes after any of them.

A unit ends with the first document at which its tokens of one split reach the size of a shard.
That is decided from the documents in their order, so it depends neither on the number of workers
nor on how documents were sent to them.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from gpt2_ds.data.format.manifest import ShardEntry, SkippedDocuments, SplitName
from gpt2_ds.data.format.shards import write_shard
from gpt2_ds.data.format.tokenizer import Tokenizer
from gpt2_ds.data.preparation.blocks import Block
from gpt2_ds.data.preparation.disk_space import bytes_still_needed, require_space
from gpt2_ds.data.preparation.encoding_pool import Encoded
from gpt2_ds.data.preparation.held_documents import (
    HeldDocuments,
    Lengths,
    Tokens,
    chosen_documents,
    end_of_part,
    shuffled,
    starts_of,
)
from gpt2_ds.data.preparation.partial_folder import Counts, PartialFolder, UnitRecord
from gpt2_ds.data.preparation.reading import BEGINNING
from gpt2_ds.data.preparation.request import Request
from gpt2_ds.data.preparation.seen_texts import SeenTexts

FIRST_PLACES = 5  # of bad documents, kept for each reason


def are_validation(digests: npt.NDArray[np.uint8], fraction: float) -> npt.NDArray[np.bool_]:
    """Whether the hash of each text, as a number in [0, 1), is below the fraction.

    Args:
        digests: (n, 32) uint8: sha256.
        fraction: in [0, 1).

    Returns:
        (n,) bool.
    """
    firsts = np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0]
    return firsts < np.uint64(math.ceil(fraction * 2**64))


class UnitWriter:
    """Takes documents in order, and writes each unit when it is full.

    Args:
        folder: of the preparation, with the units that are complete.
        tokenizer: made the tokens.
        request: says what becomes of them.
        total_input_bytes: of the preparation; None: not known.
    """

    def __init__(
        self,
        folder: PartialFolder,
        tokenizer: Tokenizer,
        request: Request,
        total_input_bytes: int | None,
    ) -> None:
        self.counts = folder.records[-1].counts if folder.records else Counts()
        self._folder = folder
        self._tokenizer = tokenizer
        self._request = request
        self._total_input_bytes = total_input_bytes
        self._unit = len(folder.records)
        self._train = HeldDocuments(tokenizer.dtype)
        self._validation = HeldDocuments(tokenizer.dtype)
        self._seen = SeenTexts(folder.seen, self._unit) if request.deduplicate else None
        self._position = BEGINNING

    def add(self, block: Block, encoded: Encoded) -> None:
        """Add the next block.

        Raises:
            RunError: the disk does not hold the next shard.
            OSError: writing failed.
            sqlite3.Error: writing the hashes failed.
        """
        lengths, digests = encoded.lengths, encoded.digests
        if self._seen is not None:
            new = self._seen.are_new(digests)
        else:
            new = np.ones(len(lengths), np.bool_)
        if block.is_validation:
            validation = new.copy()
        else:
            validation = new & are_validation(digests, self._request.validation_fraction)
        train, bad, begin = new & ~validation, list(block.bad), 0
        starts = np.append(starts_of(lengths), len(encoded.tokens))
        while begin < len(lengths):
            end = self._end_of_unit(lengths, train, validation, begin)
            is_full, end = end <= len(lengths), min(end, len(lengths))
            tokens, here = encoded.tokens[starts[begin] : starts[end]], slice(begin, end)
            self._train.add(*chosen_documents(tokens, lengths[here], train[here]))
            self._validation.add(*chosen_documents(tokens, lengths[here], validation[here]))
            if self._seen is not None:
                self._seen.add(digests[here][new[here]], self._unit)
            self._count(block, encoded, begin, end, new)
            while bad and bad[0][0] < end:
                self._skip(*bad.pop(0)[1:])
            self._position = block.positions[end - 1]
            if is_full:
                self._write()
            begin = end
        for _, why, where in bad:
            self._skip(why, where)
        self._add_to_counts(input_bytes=block.input_bytes)

    def finish(self) -> list[ShardEntry]:
        """Write what is left, and put the validation documents together.

        Returns:
            All shards, train before validation.
        """
        if self._train.n_documents or self._validation.n_documents:
            self._write()
        return self._folder.shards + self._merge_validation()

    def close(self) -> None:
        """Close the files."""
        if self._seen is not None:
            self._seen.close()

    def needed_bytes(self) -> int:
        """About how much is still to be written: what is held, and the rest of the input."""
        token_bytes = self._tokenizer.dtype.itemsize
        held = self._train.n_tokens + self._validation.n_tokens
        written = self.counts.tokens * token_bytes
        rest = bytes_still_needed(self.counts.input_bytes, self._total_input_bytes, written)
        return held * token_bytes + rest

    def _end_of_unit(
        self,
        lengths: Lengths,
        train: npt.NDArray[np.bool_],
        validation: npt.NDArray[np.bool_],
        begin: int,
    ) -> int:
        """The document after the last of the unit; more than there are, if the unit is not full."""
        limit = self._request.shard_tokens
        return begin + min(
            end_of_part(np.where(chosen, lengths, 0)[begin:], held.n_tokens, limit)
            for chosen, held in ((train, self._train), (validation, self._validation))
        )

    def _count(
        self, block: Block, encoded: Encoded, begin: int, end: int, new: npt.NDArray[np.bool_]
    ) -> None:
        here = slice(begin, end)
        kept = new[here].tolist()
        sizes = [
            len(text) for text, is_kept in zip(block.texts[here], kept, strict=True) if is_kept
        ]
        self._add_to_counts(
            documents=len(sizes),
            tokens=int(encoded.lengths[here][new[here]].sum()),
            text_bytes=sum(sizes),
            duplicates=len(kept) - len(sizes),
        )

    def _add_to_counts(self, **more: int) -> None:
        so_far = {name: getattr(self.counts, name) + n for name, n in more.items()}
        self.counts = self.counts.model_copy(update=so_far)

    def _skip(self, why: str, where: str) -> None:
        skipped = self.counts.skipped
        before = skipped.get(why, SkippedDocuments(count=0, first=()))
        first = (*before.first, where)[:FIRST_PLACES]
        more = {why: SkippedDocuments(count=before.count + 1, first=first)}
        self.counts = self.counts.model_copy(update={"skipped": skipped | more})

    def _write(self) -> None:
        """Write the unit, then its line in the journal."""
        n_bytes = sum(
            held.n_tokens * self._tokenizer.dtype.itemsize + 4 * held.n_documents
            for held in (self._train, self._validation)
        )
        require_space(self._folder.path, n_bytes, self.needed_bytes())
        if self._seen is not None:
            self._seen.commit()
        shard = piece = None
        if self._train.n_documents:
            tokens, lengths = self._train.take()
            if (seed := self._request.shuffle_seed) is not None:
                tokens, lengths = shuffled(tokens, lengths, seed, self._unit)
            shard = self._write_shard("train", len(self._folder.shards), tokens, lengths)
        if self._validation.n_documents:
            piece = self._folder.write_piece(self._unit, *self._validation.take())
        at = self._position
        record = UnitRecord(
            unit=self._unit,
            shard=shard,
            piece=piece,
            position=(at.input, at.file, at.place),
            counts=self.counts,
        )
        self._folder.append(record)
        self._unit += 1

    def _write_shard(
        self, split: SplitName, number: int, tokens: Tokens, lengths: Lengths
    ) -> ShardEntry:
        return write_shard(
            self._folder.dataset,
            f"{split}/shard-{number:05d}.bin",
            split,
            tokens,
            starts_of(lengths),
            eot_token=self._tokenizer.eot_token,
            tokenizer_sha256=self._tokenizer.sha256,
        )

    def _merge_validation(self) -> list[ShardEntry]:
        """Shards of the validation documents of all units, a unit at a time."""
        shards: list[ShardEntry] = []
        held = HeldDocuments(self._tokenizer.dtype)

        def write() -> None:
            require_space(self._folder.path, held.n_tokens * self._tokenizer.dtype.itemsize, 0)
            shards.append(self._write_shard("validation", len(shards), *held.take()))

        for record in self._folder.records:
            if record.piece is None:
                continue
            tokens, lengths = self._folder.read_piece(record.piece, self._tokenizer.dtype)
            starts, begin = np.append(starts_of(lengths), len(tokens)), 0
            while begin < len(lengths):
                limit = self._request.shard_tokens
                end = begin + end_of_part(lengths[begin:], held.n_tokens, limit)
                is_full, end = end <= len(lengths), min(end, len(lengths))
                held.add(tokens[starts[begin] : starts[end]], lengths[begin:end])
                if is_full:
                    write()
                begin = end
        if held.n_documents:
            write()
        return shards
