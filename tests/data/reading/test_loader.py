from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format.split import Split
from gpt2_ds.data.order.samples import Samples
from gpt2_ds.data.reading import loader as loader_module
from gpt2_ds.data.reading.loader import TokenLoader, validation_batches
from tests.data.reading.cached_shards import until
from tests.data.small_dataset import make_dataset

T = 4
N_WINDOWS = 50


@pytest.fixture(autouse=True, scope="module")
def _small_chunks() -> Iterator[None]:
    """10 samples of 4 tokens at a time, or one batch: as many hand-overs as a long run has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader_module, "CHUNK_TOKENS", 10 * T)
        yield


@pytest.fixture(scope="module")
def split() -> Iterator[Split]:
    """50 windows in 3 shards; the first token of a window tells which one it is."""
    with tempfile.TemporaryDirectory() as folder:
        yield make_split(Path(folder), [20, 13, 17])


def make_split(directory: Path, windows: list[int]) -> Split:
    ends = np.cumsum(windows)
    shards = [np.arange((end - n) * T, end * T + 1) for end, n in zip(ends, windows, strict=True)]
    return make_dataset(directory, shards).split("train")


def read(
    split: Split,
    n_steps: int,
    world_size: int,
    samples_seen: int = 0,
    micro_batch_size: int = 1,
    lanes: int = 0,
) -> list[list[int]]:
    """The windows of each step, in the order of the samples."""
    per_rank = []
    for rank in range(world_size):
        with TokenLoader(
            Samples([split], seq_length=T, seed=5, lanes=lanes),
            global_batch_size=24,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
            samples_seen=samples_seen,
        ) as loader:
            n_batches = n_steps * 24 // world_size // micro_batch_size
            rows = torch.cat(list(islice(loader, n_batches)))
        assert rows.dtype == torch.int64
        assert rows.shape == (n_steps * 24 // world_size, T + 1)
        assert (rows - rows[:, :1] == torch.arange(T + 1)).all()  # contiguous tokens
        per_rank.append((rows[:, 0] // T).view(n_steps, -1))
    steps = torch.stack(per_rank, dim=2)  # (step, sample of the rank, rank)
    return steps.flatten(1).tolist()


@pytest.mark.parametrize("lanes", [0, 2])
def test_every_world_size_reads_the_same_samples_in_the_same_order(
    split: Split, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loader_module, "CHUNK_TOKENS", 25 * 24 * T)
        one = read(split, n_steps=25, world_size=1, lanes=lanes)
    for world_size in range(1, 25):
        if 24 % world_size == 0:
            for size in {1, 24 // world_size}:
                assert read(split, 25, world_size, micro_batch_size=size, lanes=lanes) == one
    flat = np.array(one).ravel()
    assert len(flat) == 12 * N_WINDOWS
    assert (np.sort(flat.reshape(12, N_WINDOWS), axis=1) == np.arange(N_WINDOWS)).all()


@settings(max_examples=15)
@given(stop=st.integers(0, 8), before=st.sampled_from([1, 2, 8]), after=st.sampled_from([1, 3, 4]))
def test_resume_with_another_world_size_is_never_having_stopped(
    split: Split, stop: int, before: int, after: int
) -> None:
    whole = read(split, n_steps=9, world_size=1)
    first = read(split, stop, before) if stop else []
    assert first + read(split, 9 - stop, after, samples_seen=24 * stop) == whole


def open_loader(split: Split, **changes: Any) -> TokenLoader:
    given: dict[str, Any] = {
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "rank": 0,
        "world_size": 1,
    }
    return TokenLoader(Samples([split], seq_length=T, seed=1), **(given | changes))


def test_a_batch_that_grows_reads_the_same_samples(split: Split) -> None:
    """Sizes that divide neither each other nor what is read ahead."""
    with open_loader(split) as loader:
        whole = torch.cat([next(loader) for _ in range(60)])
    with open_loader(split) as loader:
        parts = []
        for size in (1, 1, 3, 2, 5, 5, 7, 40, 6):
            loader.micro_batch_size = size
            parts += [next(loader), next(loader)]
            assert [len(part) for part in parts[-2:]] == [size, size]
    found = torch.cat(parts)[:120]
    assert torch.equal(found, whole[: len(found)])
    assert len(found) == 120


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "token-loader"]


def test_close_ends_the_thread(split: Split) -> None:
    loader = open_loader(split)
    next(loader)
    assert len(loader_threads()) == 1
    loader.close()
    loader.close()
    assert not loader_threads()
    with pytest.raises(RuntimeError, match="the TokenLoader is closed"):
        next(loader)


def test_a_forgotten_loader_ends_its_thread(split: Split) -> None:
    loader = open_loader(split)
    next(iter(loader))
    del loader
    gc.collect()
    assert not loader_threads()


def test_reads_no_further_ahead_than_asked(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = split.windows
    monkeypatch.setattr(split, "windows", lambda *args: calls.append(1) or real(*args))
    monkeypatch.setattr(loader_module, "CHUNK_TOKENS", 2 * T)
    with open_loader(split, prefetch=3) as loader:
        until(lambda: len(calls) == 4 and loader.samples_read == 8)
        time.sleep(0.2)
        assert len(calls) == 4  # three wait, one is in the thread's hand
        assert loader.samples_read == 8


def test_what_the_thread_runs_into_is_raised_by_next(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = split.windows
    calls = []

    def windows(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("stale file handle")
        return real(*args)

    monkeypatch.setattr(split, "windows", windows)
    monkeypatch.setattr(loader_module, "CHUNK_TOKENS", 2 * T)
    with open_loader(split) as loader:
        next(loader)
        next(loader)
        for _ in range(2):  # and again: it never continues silently
            with pytest.raises(OSError, match="stale file handle"):
                next(loader)


def test_a_program_may_end_without_close(tmp_path: Path) -> None:
    make_split(tmp_path, [20])
    program = f"""
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.reading.loader import TokenLoader
from gpt2_ds.data.order.samples import Samples
split = Dataset.open({str(tmp_path)!r}).split("train")
loader = TokenLoader(Samples([split], seq_length=4, seed=1),
    global_batch_size=1, micro_batch_size=1, rank=0, world_size=1)
next(loader)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_micro_batch_that_does_not_divide_is_refused(split: Split) -> None:
    with pytest.raises(UserError) as refused:
        open_loader(split, global_batch_size=12, micro_batch_size=4, world_size=2)
    assert str(refused.value) == (
        "batch.micro_batch_size: 4 does not divide the 6 sequences a step of each rank. "
        "Use one of 1, 2, 3, 6."
    )


def test_a_split_too_short_for_a_window_is_refused(split: Split) -> None:
    with pytest.raises(UserError) as refused:
        Samples([split], seq_length=1000, seed=1)
    assert str(refused.value) == (
        "split train: 203 tokens make 0 windows of 1000 + 1 tokens, and 1 are needed. "
        "Use a shorter sequence, ask for fewer windows, or prepare more text."
    )


@pytest.mark.parametrize("n_windows", [1, 7, 16, 50])
def test_validation_is_the_same_set_for_every_world_size(split: Split, n_windows: int) -> None:
    expected = [i * N_WINDOWS // n_windows for i in range(n_windows)]
    for world_size in (1, 2, 3, 8):
        seen, counts = [], []
        for rank in range(world_size):
            batches = list(
                validation_batches(
                    split,
                    n_windows=n_windows,
                    seq_length=T,
                    micro_batch_size=3,
                    rank=rank,
                    world_size=world_size,
                )
            )
            counts.append(len(batches))
            for tokens, n_valid in batches:
                assert tokens.shape == (3, T + 1)
                seen += (tokens[:n_valid, 0] // T).tolist()
        assert sorted(seen) == expected
        assert len(set(counts)) == 1  # the same number of forward passes on every rank


def test_validation_on_more_windows_than_there_are_is_refused_before_the_first_batch(
    split: Split,
) -> None:
    with pytest.raises(UserError, match=r"make 50 windows of 4 .* and 51 are needed"):
        validation_batches(
            split, n_windows=51, seq_length=T, micro_batch_size=3, rank=0, world_size=1
        )
