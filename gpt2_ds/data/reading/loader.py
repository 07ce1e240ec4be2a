"""Batches of tokens for the training loop, read ahead by one thread."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import torch

from gpt2_ds.config.errors import user_error
from gpt2_ds.config.numbers import divisors
from gpt2_ds.data.format.split import Split, Tokens
from gpt2_ds.data.order.permutation import rank_sample_ids
from gpt2_ds.data.order.samples import Samples, require_windows

CHUNK_TOKENS = 2**21  # handed over at a time: two milliseconds of gathering
CHUNK_SAMPLES = 2**12  # at most: short ones cost by their number
LOCATED_SAMPLES = 2**15  # placed at a time: a call for one costs as much as for a thousand

Chunk = Tokens | torch.Tensor  # as on the disk, or int64 in page-locked memory


class TokenLoader:
    """The micro-batches of one rank, without end; epochs follow each other.

    With the same seed and global batch size, the ranks together see the same samples in each
    optimizer step, however many they are. To resume, give the number of samples seen. It counts
    what the *optimizer* has seen: what was read ahead and not used is read again.

    Args:
        samples: what to read, in which order.
        global_batch_size: sequences an optimizer step, all ranks.
        micro_batch_size: B, sequences a batch, this rank; may be set to another between batches.
        rank: 0..world_size-1, among the data-parallel processes.
        world_size: the number of data-parallel processes.
        samples_seen: sequences all ranks have been trained on before; a whole number of steps.
        pin_memory: copy batches into page-locked memory; needs a CUDA device.
        prefetch: chunks of one or more batches read ahead.

    Raises:
        UserError: the batch sizes do not divide.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        samples_seen: int = 0,
        pin_memory: bool = False,
        prefetch: int = 2,
    ) -> None:
        share = len(rank_sample_ids(samples_seen, global_batch_size, rank, world_size))
        if share % micro_batch_size:
            fit = divisors(share)
            raise user_error(
                "batch.micro_batch_size",
                f"{micro_batch_size} does not divide the {share} sequences a step of each rank",
                f"Use one of {', '.join(map(str, fit))}.",
            )
        reading = _Reading(samples, micro_batch_size, samples_seen, rank, world_size)
        self._reading = reading
        self._queue: queue.Queue[Chunk | Exception] = queue.Queue(maxsize=prefetch)
        self.micro_batch_size = micro_batch_size
        self._chunk: Chunk = torch.empty(0)  # what is still unread of it
        stop = threading.Event()
        # The current CUDA device belongs to a thread: without it, pinning opens device 0.
        device = torch.cuda.current_device() if pin_memory else None
        thread = threading.Thread(
            target=_read_ahead,
            args=(reading, self._queue, stop, device),
            name="token-loader",
            daemon=True,
        )
        # Runs at close(), when the loader is forgotten, or before the interpreter ends: a thread
        # still in numpy or torch by then can abort the process.
        self._close = weakref.finalize(self, _end_thread, thread, stop)
        thread.start()

    @property
    def samples_read(self) -> int:
        """Samples before the one that is read next, all ranks: ahead of what training has seen."""
        return self._reading.next_sample - self._reading.rank

    def __iter__(self) -> TokenLoader:
        """Itself."""
        return self

    def __next__(self) -> torch.Tensor:
        """The next micro-batch: (micro_batch_size, T + 1) int64.

        Raises:
            RuntimeError: the loader is closed.
            Exception: whatever the reading thread ran into.
        """
        if not self._close.alive:
            raise RuntimeError("the TokenLoader is closed")
        parts, wanted = list[torch.Tensor](), self.micro_batch_size
        while wanted:
            if not len(self._chunk):
                self._chunk = self._next_chunk()
            parts.append(_int64(self._chunk[:wanted]))
            self._chunk = self._chunk[wanted:]
            wanted -= len(parts[-1])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _next_chunk(self) -> Chunk:
        item = self._queue.get()
        if isinstance(item, Exception):
            self._queue.put(item)  # for the next call too: the thread has ended
            raise item
        return item

    def close(self) -> None:
        """End the thread; may be called twice."""
        self._close()

    def __enter__(self) -> TokenLoader:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self.close()


class _Reading:
    """The chunks of one rank: its samples are n + r, n + r + W, ... across all steps."""

    def __init__(
        self, samples: Samples, micro_batch_size: int, samples_seen: int, rank: int, world_size: int
    ) -> None:
        self.rank = rank
        self.next_sample = samples_seen + rank
        self._samples, self._world_size = samples, world_size
        wanted = min(CHUNK_SAMPLES, CHUNK_TOKENS // samples.seq_length)
        self._chunk_samples = micro_batch_size * max(1, wanted // micro_batch_size)

    def chunks(self) -> Iterator[Tokens]:
        """A few micro-batches in one piece, without end: (n B, T + 1)."""
        n = n_located = self._chunk_samples
        while True:
            ids = self.next_sample + self._world_size * np.arange(n_located, dtype=np.int64)
            sources, windows = self._samples.locate(ids)
            for start in range(0, n_located, n):
                here = slice(start, start + n)
                tokens = self._samples.read(sources[here], windows[here])
                self.next_sample += self._world_size * n
                yield tokens
            # Few at first, so that the first batch comes at once.
            n_located = n * max(1, min(4 * n_located, LOCATED_SAMPLES) // n)


def _int64(chunk: Chunk) -> torch.Tensor:
    if isinstance(chunk, torch.Tensor):
        return chunk
    return torch.from_numpy(chunk.astype(np.int64))


def _read_ahead(
    reading: _Reading,
    ready: queue.Queue[Chunk | Exception],
    stop: threading.Event,
    device: int | None,
) -> None:
    # Holds no reference to the loader, so that a forgotten loader is collected.
    chunks = reading.chunks()
    while not stop.is_set():
        item: Chunk | Exception
        try:
            item = next(chunks)
            if device is not None:
                torch.cuda.set_device(device)
                item = _int64(item).pin_memory()
        except Exception as error:
            item = error
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.05)
                break
            except queue.Full:
                continue
        if isinstance(item, Exception):
            return


def _end_thread(thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    thread.join()


def validation_batches(
    split: Split,
    *,
    n_windows: int,
    seq_length: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
) -> Iterator[tuple[torch.Tensor, int]]:
    """The batches of one rank's part of a validation.

    The windows are spread evenly over the split and are the same set for every world size. Every
    rank gets the same number of batches, because a forward pass may be collective; rows beyond
    `n_valid` are a repeated window, which must not be in the sums.

    Args:
        split: what to read.
        n_windows: to validate on, all ranks together.
        seq_length: T, tokens a sequence.
        micro_batch_size: B, sequences a batch.
        rank: 0..world_size-1.
        world_size: the number of processes that share the windows.

    Returns:
        An iterator of (tokens (B, T + 1) int64, n_valid in 0..B).

    Raises:
        UserError: the split has fewer windows.
    """
    in_split = require_windows(split, seq_length, at_least=max(1, n_windows))
    chosen = np.arange(n_windows, dtype=np.int64) * in_split // n_windows
    mine = chosen[rank::world_size]
    largest_share = -(-n_windows // world_size)

    def batches() -> Iterator[tuple[torch.Tensor, int]]:
        for start in range(0, largest_share, micro_batch_size):
            ids = mine[start : start + micro_batch_size]
            padding = np.full(micro_batch_size - len(ids), chosen[0])
            rows = split.windows(np.concatenate([ids, padding]), seq_length)
            yield torch.from_numpy(rows.astype(np.int64)), len(ids)

    return batches()
