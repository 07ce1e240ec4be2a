"""Blocks of documents go to worker processes, and token arrays come back in order.

Blocks of about a megabyte, because a task costs about a millisecond; one array a block, because
lists of ints take longer to send than to make. Hashes are made by the workers too, so that the one
process that reads and writes keeps many of them busy.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import connection
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.data.format.tokenizer import Tokenizer
from gpt2_ds.data.preparation.blocks import Block

DIGEST_BYTES = 32
Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Encoded:
    """What became of a block's documents.

    Args:
        tokens: (n_tokens,) of the tokenizer's type: of all documents, each after its end-of-text.
        lengths: (n_documents,) int64: how many tokens each has, with its end-of-text.
        digests: (n_documents, 32) uint8: the sha256 of each text in UTF-8.
    """

    tokens: Tokens
    lengths: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint8]


def encode_documents(tokenizer: Tokenizer, texts: Sequence[bytes]) -> Encoded:
    """Encode and hash texts in UTF-8."""
    end_of_text = np.array([tokenizer.eot_token], tokenizer.dtype)
    parts: list[Tokens] = [np.empty(0, tokenizer.dtype)]
    lengths = np.empty(len(texts), np.int64)
    for i, text in enumerate(texts):
        tokens = tokenizer.encode(text.decode())
        parts += end_of_text, tokens
        lengths[i] = 1 + len(tokens)
    digests = b"".join(hashlib.sha256(text).digest() for text in texts)
    return Encoded(
        np.concatenate(parts),
        lengths,
        np.frombuffer(digests, np.uint8).reshape(len(texts), DIGEST_BYTES),
    )


def encode_blocks(
    blocks: Iterator[Block], tokenizer: Tokenizer, workers: int
) -> Generator[tuple[Block, Encoded], None, None]:
    """Each block with what became of it, in the order of the blocks.

    Args:
        blocks: read only as far ahead as keeps the workers busy.
        tokenizer: does the work; each worker gets a copy.
        workers: 1 works in this process.

    Raises:
        UserError: reading the blocks raised it; all blocks before it were yielded.
        RunError: a worker process died, or lacks memory; or reading the blocks raised it.
    """
    if workers == 1:
        for block in blocks:
            yield block, encode_documents(tokenizer, block.texts)
        return
    pool = ProcessPoolExecutor(
        workers,
        # A fork of a process with threads (torch's, a launcher's) may hang.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(_sendable(tokenizer),),
    )
    pending: deque[tuple[Block, Future[Encoded]]] = deque()
    failure = None
    try:
        for block_or_failure in _until_failure(blocks):
            if isinstance(block_or_failure, Exception):
                failure = block_or_failure
                break
            block = block_or_failure
            pending.append((block, pool.submit(_encode_in_worker, block.texts)))
            if len(pending) > 2 * workers:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
        if failure is not None:
            raise failure
    except (BrokenProcessPool, MemoryError) as error:
        raise RunError(
            "a worker process died, perhaps for want of memory. Use fewer --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _until_failure(blocks: Iterator[Block]) -> Iterator[Block | UserError | RunError]:
    """The blocks, and last what went wrong: it is raised after the blocks before it are encoded."""
    try:
        yield from blocks
    except (UserError, RunError) as error:
        yield error


_worker_tokenizer: Tokenizer | None = None


def _sendable(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, to be pickled with all it knows.

    tiktoken 0.14 pickles the encodings of its own registry by name, and the other process would
    look for their files, and perhaps download them.
    """
    import tiktoken

    known = tokenizer.encoding
    encoding = tiktoken.Encoding(
        known.name,
        pat_str=known._pat_str,
        mergeable_ranks=known._mergeable_ranks,
        special_tokens=known._special_tokens,
    )
    return replace(tokenizer, encoding=encoding)


def _start_worker(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the pool
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A killed parent ends no worker: they would wait for work forever.
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    _worker_tokenizer = tokenizer


def _die_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _encode_in_worker(texts: list[bytes]) -> Encoded:
    assert _worker_tokenizer is not None
    return encode_documents(_worker_tokenizer, texts)
