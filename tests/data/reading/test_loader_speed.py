"""The loader against those of nanoGPT and build-nanogpt, written anew here as those projects do."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch

from gpt2_ds.data.format.split import Split
from gpt2_ds.data.order.samples import Samples
from gpt2_ds.data.reading.loader import TokenLoader
from tests.data.small_dataset import make_dataset

B, T = 8, 1024
N_TOKENS = 50_000_000
SHARD_TOKENS = 2**25
BUILD_NANOGPT_SHARD_TOKENS = 10_000_000  # its 100M hold 1e10 tokens in 100 shards; here in 5


def nanogpt_batches(file: Path, n: int) -> int:
    """https://github.com/karpathy/nanoGPT, train.py, get_batch, on a CPU."""
    for _ in range(n):
        data = np.memmap(file, dtype=np.uint16, mode="r")  # anew each time, against a leak
        ix = torch.randint(len(data) - T, (B,))
        x = torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + T].astype(np.int64)) for i in ix])
        assert x.shape == y.shape == (B, T)
    return n * B * T


def build_nanogpt_batches(files: list[Path]) -> int:
    """https://github.com/karpathy/build-nanogpt, train_gpt2.py, DataLoaderLite, one pass."""
    n = 0
    for file in files:
        tokens = torch.tensor(np.load(file).astype(np.int32), dtype=torch.long)
        position = 0
        while position + B * T + 1 <= len(tokens):
            buffer = tokens[position : position + B * T + 1]
            x, y = buffer[:-1].view(B, T), buffer[1:].view(B, T)
            assert x.shape == y.shape == (B, T)
            position += B * T
            n += 1
    return n * B * T


def our_batches(split: Split, n: int) -> int:
    samples = Samples([split], seq_length=T, seed=1)
    with TokenLoader(
        samples, global_batch_size=B, micro_batch_size=B, rank=0, world_size=1
    ) as loader:
        for tokens in islice(loader, n):  # x and y in one: the loss shifts them
            assert tokens.shape == (B, T + 1)
    return n * B * T


def speed(read: Callable[[], int]) -> float:
    began = time.perf_counter()
    n_tokens = read()
    return n_tokens / (time.perf_counter() - began)


@pytest.mark.benchmark
def test_five_times_as_fast_as_the_loaders_in_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = np.random.default_rng(0).integers(0, 256, N_TOKENS, dtype=np.uint16)
    parts = [tokens[i : i + SHARD_TOKENS] for i in range(0, N_TOKENS, SHARD_TOKENS)]
    split = make_dataset(tmp_path / "ours", parts).split("train")
    tokens.tofile(tmp_path / "train.bin")
    files = []
    for start in range(0, N_TOKENS, BUILD_NANOGPT_SHARD_TOKENS):
        files.append(tmp_path / f"edufineweb_train_{start}.npy")
        np.save(files[-1], tokens[start : start + BUILD_NANOGPT_SHARD_TOKENS])
    epoch = N_TOKENS // (B * T)
    contestants: dict[str, Callable[[], int]] = {
        "ours": lambda: our_batches(split, 2 * epoch),
        "build-nanogpt": lambda: build_nanogpt_batches(files),
        "nanoGPT": lambda: nanogpt_batches(tmp_path / "train.bin", 1000),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(7):  # in turn, so that a change of the machine meets all
        for name, read in contestants.items():
            speeds[name].append(speed(read))
    medians = {name: median(each) for name, each in speeds.items()}
    with capsys.disabled():
        print({name: f"{each / 1e6:.0f} Mtok/s" for name, each in medians.items()})
    assert medians["ours"] >= 5 * medians["build-nanogpt"]
    assert medians["ours"] >= 5 * medians["nanoGPT"]
