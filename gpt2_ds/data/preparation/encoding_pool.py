"""Documents in blocks to worker processes, token arrays back in order.

Blocks of about a megabyte, because a task costs about a millisecond; arrays, because lists of ints
take longer to send than to make.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2_ds.config.errors import RunError
from gpt2_ds.data.tokenizer import Tokenizer

Arrays = list[npt.NDArray[np.unsignedinteger[Any]]]


@dataclass
class Block:
    """Consecutive documents of one unit.

    Args:
        unit: which one.
        texts: of the documents.
        is_validation: whether each goes to the validation split.
        input_bytes: of all of them.
    """

    unit: int
    texts: list[str] = field(default_factory=list)
    is_validation: list[bool] = field(default_factory=list)
    input_bytes: int = 0


def encode_documents(tokenizer: Tokenizer, texts: list[str]) -> Arrays:
    """Each document as an array that begins with the end-of-text token."""
    return [
        np.concatenate([np.array([tokenizer.eot_token], tokenizer.dtype), tokenizer.encode(text)])
        for text in texts
    ]


def encode_blocks(
    blocks: Iterator[Block], tokenizer_directory: Path, workers: int
) -> Iterator[tuple[Block, Arrays]]:
    """Each block with its documents' tokens, in the order of the blocks.

    Args:
        blocks: read only as far ahead as keeps the workers busy.
        tokenizer_directory: where `Tokenizer.save` put it; each worker loads it from there.
        workers: 1 works in this process.

    Raises:
        RunError: a worker process died.
    """
    if workers == 1:
        tokenizer = Tokenizer.open(tokenizer_directory)
        for block in blocks:
            yield block, encode_documents(tokenizer, block.texts)
        return
    pool = ProcessPoolExecutor(
        workers,
        # A fork of a process with threads (torch's, a launcher's) may hang.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer_directory,),
    )
    pending: deque[tuple[Block, Future[Arrays]]] = deque()
    try:
        for block in blocks:
            pending.append((block, pool.submit(_encode_in_worker, block.texts)))
            if len(pending) > 2 * workers:
                first, future = pending.popleft()
                yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    except BrokenProcessPool as error:
        raise RunError(
            "a worker process died, perhaps for want of memory. Use fewer --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker_tokenizer: Tokenizer | None = None


def _start_worker(tokenizer_directory: Path) -> None:
    global _worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the pool
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A killed parent ends no worker: they would wait for work forever.
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    _worker_tokenizer = Tokenizer.open(tokenizer_directory)


def _die_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _encode_in_worker(texts: list[str]) -> Arrays:
    assert _worker_tokenizer is not None
    return encode_documents(_worker_tokenizer, texts)
