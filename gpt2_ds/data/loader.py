"""Batches of tokens for the training loop, read ahead by one thread."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator
from types import TracebackType

import numpy as np
import torch

from gpt2_ds.config.derive import divisors
from gpt2_ds.config.errors import user_error
from gpt2_ds.data.order import rank_sample_ids, sample_windows
from gpt2_ds.data.split import Split


class TokenLoader:
    """The micro-batches of one rank, without end; epochs follow each other.

    The order is that of `gpt2_ds.data.order`: with the same seed and global batch size, the ranks
    together see the same samples in each optimizer step, however many they are. To resume, give
    the number of samples seen. It counts what the *optimizer* has seen: what was read ahead and
    not used is read again.

    Args:
        split: what to read.
        seq_length: T, tokens a sequence.
        global_batch_size: sequences an optimizer step, all ranks.
        micro_batch_size: sequences a batch, this rank.
        rank: 0..world_size-1, among the data-parallel processes.
        world_size: the number of data-parallel processes.
        seed: of the order.
        samples_seen: sequences all ranks have been trained on before; a whole number of steps.
        pin_memory: copy batches into page-locked memory; needs a CUDA device.
        prefetch: batches read ahead.

    Raises:
        UserError: the split is too short for one window, or the batch sizes do not divide.
    """

    def __init__(
        self,
        split: Split,
        *,
        seq_length: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        samples_seen: int = 0,
        pin_memory: bool = False,
        prefetch: int = 4,
    ) -> None:
        _require_windows(split, seq_length, at_least=1)
        share = len(rank_sample_ids(samples_seen, global_batch_size, rank, world_size))
        if share % micro_batch_size:
            fit = divisors(share)
            raise user_error(
                "batch.micro_batch_size",
                f"{micro_batch_size} does not divide the {share} sequences a step of each rank",
                f"Use one of {', '.join(map(str, fit))}.",
            )
        steps = _steps(
            split,
            seq_length=seq_length,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
            seed=seed,
            samples_seen=samples_seen,
        )
        self._queue: queue.Queue[torch.Tensor | Exception] = queue.Queue(maxsize=prefetch)
        stop = threading.Event()
        # The current CUDA device belongs to a thread: without it, pinning opens device 0.
        device = torch.cuda.current_device() if pin_memory else None
        thread = threading.Thread(
            target=_read_ahead,
            args=(steps, self._queue, stop, device),
            name="token-loader",
            daemon=True,
        )
        # Runs at close(), when the loader is forgotten, or before the interpreter ends: a thread
        # still in numpy or torch by then can abort the process.
        self._close = weakref.finalize(self, _end_thread, thread, stop)
        self._failure: Exception | None = None
        thread.start()

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
        if self._failure is None:
            item = self._queue.get()
            if isinstance(item, torch.Tensor):
                return item
            self._failure = item
        raise self._failure

    def close(self) -> None:
        """End the thread; may be called twice."""
        self._close()

    def __enter__(self) -> TokenLoader:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


def _steps(
    split: Split,
    *,
    seq_length: int,
    global_batch_size: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    seed: int,
    samples_seen: int,
) -> Iterator[torch.Tensor]:
    n_windows = split.n_windows(seq_length)
    while True:
        ids = rank_sample_ids(samples_seen, global_batch_size, rank, world_size)
        windows = sample_windows(ids, n_windows, seed)
        for start in range(0, len(windows), micro_batch_size):
            batch = split.windows(windows[start : start + micro_batch_size], seq_length)
            yield torch.from_numpy(batch)  # (B, T + 1)
        samples_seen += global_batch_size


def _read_ahead(
    batches: Iterator[torch.Tensor],
    ready: queue.Queue[torch.Tensor | Exception],
    stop: threading.Event,
    device: int | None,
) -> None:
    # Holds no reference to the loader, so that a forgotten loader is collected.
    while not stop.is_set():
        item: torch.Tensor | Exception
        try:
            item = next(batches)
            if device is not None:
                torch.cuda.set_device(device)
                item = item.pin_memory()
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
    `n_valid` are a repeated window, to be left out of the sums.

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
    in_split = _require_windows(split, seq_length, at_least=max(1, n_windows))
    chosen = np.arange(n_windows, dtype=np.int64) * in_split // n_windows
    mine = chosen[rank::world_size]
    largest_share = -(-n_windows // world_size)

    def batches() -> Iterator[tuple[torch.Tensor, int]]:
        for start in range(0, largest_share, micro_batch_size):
            ids = mine[start : start + micro_batch_size]
            padding = np.full(micro_batch_size - len(ids), chosen[0])
            rows = split.windows(np.concatenate([ids, padding]), seq_length)
            yield torch.from_numpy(rows), len(ids)

    return batches()


def _require_windows(split: Split, seq_length: int, at_least: int) -> int:
    n_windows = split.n_windows(seq_length)
    if n_windows < at_least:
        raise user_error(
            f"split {split.name}",
            f"{split.n_tokens} tokens make {n_windows} windows of {seq_length} + 1 tokens, "
            f"and {at_least} are needed",
            "Use a shorter sequence, ask for fewer windows, or prepare more text.",
        )
    return n_windows
