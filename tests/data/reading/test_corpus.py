"""Streamed datasets read as local ones are, through a cache smaller than they are."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2_ds.config.errors import UserError
from gpt2_ds.config.recipe import DataSection, PhaseSection, SourceSection
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.format.manifest import Layout, ShardEntry
from gpt2_ds.data.format.split import OPEN_ATTEMPTS, Split
from gpt2_ds.data.reading.corpus import Corpus
from gpt2_ds.data.reading.loader import TokenLoader
from tests.data.reading.cached_shards import downloads
from tests.data.small_dataset import make_dataset
from tests.files.fault_server import FaultServer, serving

T = 64
N_SHARDS = 40


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the loader is no more than a few shards ahead: the shards here are small."""
    monkeypatch.setattr("gpt2_ds.data.reading.loader.CHUNK_TOKENS", 16 * T)


def made(path: Path, windows: int = 16, n_shards: int = N_SHARDS, seed: int = 0) -> Dataset:
    generator = np.random.default_rng(seed)
    shards = [generator.integers(0, 256, windows * T + 1) for _ in range(n_shards)]
    return make_dataset(path, shards, [generator.integers(0, 256, 4 * T + 1)])


@contextmanager
def served(path: Path, latency_seconds: float = 0.0) -> Iterator[FaultServer]:
    files = {
        f"/{file.relative_to(path).as_posix()}": file.read_bytes()
        for file in path.rglob("*")
        if file.is_file()
    }
    with serving(files, latency_seconds) as server:
        yield server


def train_bytes(dataset: Dataset) -> int:
    return sum(entry.bytes for entry in dataset.entries("train"))


def section(path: str | Path, tmp_path: Path, **keys: Any) -> DataSection:
    return DataSection(path=str(path), seq_length=T, cache_path=str(tmp_path / "cache"), **keys)


def batches(corpus: Corpus, n_samples: int, batch: int = 16) -> torch.Tensor:
    """The first samples, read as training reads them."""
    samples = corpus.samples(seed=3)
    with (
        closing(corpus),
        TokenLoader(
            samples, global_batch_size=batch, micro_batch_size=batch, rank=0, world_size=1
        ) as loader,
    ):
        corpus.follow(lambda: samples.upcoming(loader.samples_read, n_samples, [0], 1))
        return torch.cat(list(islice(loader, n_samples // batch)))


@pytest.mark.parametrize("lanes", [1, 4])
def test_an_epoch_through_a_cache_of_a_quarter_is_as_read_from_the_disk(
    tmp_path: Path, lanes: int, small_chunks: None
) -> None:
    local = made(tmp_path / "local")
    n = N_SHARDS * 16
    quarter = train_bytes(local) / 4e9
    with served(tmp_path / "local") as server, downloads() as downloaded:
        streamed = Corpus.open(
            section(server.address, tmp_path, lanes=lanes, cache_gigabytes=quarter)
        )
        got = batches(streamed, n)
    expected = batches(Corpus.open(section(tmp_path / "local", tmp_path, lanes=lanes)), n)
    assert torch.equal(got, expected)
    assert torch.equal(got.sum(1).sort().values, torch.cat(everything(local)).sum(1).sort().values)
    assert streamed.fingerprint == local.fingerprint
    assert sum(downloaded) <= 1.25 * train_bytes(local)
    files = (tmp_path / "cache").glob("*.bin")
    assert sum(file.stat().st_size for file in files) <= quarter * 1e9


def everything(dataset: Dataset) -> list[torch.Tensor]:
    split = dataset.split("train")
    windows = split.windows(np.arange(split.n_windows(T)), T)
    return [torch.from_numpy(windows.astype(np.int64))]


def test_each_machine_downloads_its_own_lanes(tmp_path: Path, small_chunks: None) -> None:
    """Two machines of one rank, 4 lanes: together little more than the data."""
    local = made(tmp_path / "local")
    n = N_SHARDS * 16
    with served(tmp_path / "local") as server, downloads() as downloaded:
        for rank in (0, 1):
            data = section(server.address, tmp_path / str(rank), lanes=4)
            corpus = Corpus.open(data)
            samples = corpus.samples(seed=3)
            with (
                closing(corpus),
                TokenLoader(
                    samples, global_batch_size=16, micro_batch_size=8, rank=rank, world_size=2
                ) as loader,
            ):
                corpus.follow(
                    lambda: samples.upcoming(loader.samples_read, n, [rank], 2)  # noqa: B023
                )
                for _ in islice(loader, n // 16):
                    pass
    assert sum(downloaded) <= 1.3 * train_bytes(local)


def test_validation_is_kept_at_hand(tmp_path: Path) -> None:
    local = made(tmp_path / "local")
    with served(tmp_path / "local") as server:
        corpus = Corpus.open(section(server.address, tmp_path, lanes=2, cache_gigabytes=1.5e-5))
        samples = corpus.samples(seed=3)
        validation = corpus.datasets[""].split("validation")
        corpus.follow(lambda: samples.upcoming(0, N_SHARDS * 16, [0], 1))
        train = samples.splits[0]
        for window in range(0, N_SHARDS * 16, 16):  # the cache has room for a few of them
            train.windows(np.array([window]), T)
            windows = validation.windows(np.arange(4), T)
        assert server.requests[f"/{validation.entries[0].file}"] == 1
        corpus.close()
    assert (windows == local.split("validation").windows(np.arange(4), T)).all()


def test_a_damaged_manifest_or_tokenizer_on_the_way_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "local")
    for name in ("manifest.json", "tokenizer/ranks.tiktoken", "tokenizer/tokenizer.json"):
        with served(tmp_path / "local") as server:
            server.files[f"/{name}"] = server.files[f"/{name}"].replace(b"1", b"2", 1)
            with pytest.raises(UserError, match=name.rpartition("/")[2]):
                Corpus.open(section(server.address, tmp_path))


def test_a_cache_too_small_for_the_plan_is_refused_at_start(tmp_path: Path) -> None:
    local = made(tmp_path / "local", windows=1000, n_shards=10)
    largest = max(entry.bytes for entry in local.manifest.shards)
    validation = local.entries("validation")[0].bytes
    with served(tmp_path / "local") as server:
        for lanes, needed, advice in (
            (0, 10 * largest, ", or set data.lanes to read a few shards at a time"),
            (4, 5 * largest, ", or lower data.lanes 4"),
            (1, 2 * largest, ""),
        ):
            needed += validation
            with pytest.raises(UserError) as refused:
                Corpus.open(
                    section(server.address, tmp_path, lanes=lanes, cache_gigabytes=2e-4),
                    lambda key: f"file: {key}",
                )
            enough = -(-needed // 10**6) / 1000
            assert str(refused.value) == (
                f"file: data.cache_gigabytes: 0.001, and this run reads {enough:g} at a time. "
                f"Set it to at least {enough:g}{advice}."
            )
            data = section(server.address, tmp_path, lanes=lanes, cache_gigabytes=needed / 1e9)
            corpus = Corpus.open(data)
            assert corpus.needed_cache_bytes == needed


def test_sources_local_and_streamed_are_mixed(tmp_path: Path) -> None:
    made(tmp_path / "web"), made(tmp_path / "books", n_shards=8, seed=1)
    with served(tmp_path / "books") as server:

        def mixed(books: str) -> Corpus:
            return Corpus.open(
                DataSection(
                    sources={
                        "web": SourceSection(path=str(tmp_path / "web"), weight=3.0),
                        "books": SourceSection(path=books, weight=1.0),
                    },
                    phases=[PhaseSection(from_tokens=320 * T, weights={"web": 0.5, "books": 0.5})],
                    seq_length=T,
                    lanes=2,
                    cache_path=str(tmp_path / "cache"),
                )
            )

        streamed, local = mixed(server.address), mixed(str(tmp_path / "books"))
        assert streamed.fingerprint == local.fingerprint
        assert torch.equal(batches(streamed, 640), batches(local, 640))
    samples = local.samples(seed=3)
    assert samples.tokens_by_source(320) == {"web": 240 * T, "books": 80 * T}
    assert samples.tokens_by_source(640) == {"web": 400 * T, "books": 240 * T}
    only = Corpus.open(section(tmp_path / "web", tmp_path))
    assert only.fingerprint == only.datasets[""].fingerprint != streamed.fingerprint


def test_verify_reads_what_is_local(tmp_path: Path) -> None:
    local = made(tmp_path / "local", n_shards=3)
    with served(tmp_path / "local") as server:
        streamed = Corpus.open(section(server.address, tmp_path))
        shard = tmp_path / "local" / local.manifest.shards[2].file
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        streamed.verify(0, 1)
        assert not server.requests[f"/{local.manifest.shards[2].file}"]
    corpus = Corpus.open(section(tmp_path / "local", tmp_path))
    corpus.verify(1, 2)
    corpus.verify(0, 4)
    with pytest.raises(UserError, match=r"00002.bin: sha256 \w+, expected"):
        corpus.verify(2, 4)


@pytest.mark.benchmark
def test_twenty_million_tokens_a_second_behind_ten_milliseconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """48 shards of 4 MiB, a cache of a quarter, 4 lanes, sequences of 1,024."""
    generator = np.random.default_rng(0)
    shards = [generator.integers(0, 256, 2**21, dtype=np.uint16) for _ in range(48)]
    local = make_dataset(tmp_path / "local", shards, [shards[0][:65]])
    with served(tmp_path / "local", latency_seconds=0.01) as server, downloads() as downloaded:
        corpus = Corpus.open(
            DataSection(
                path=server.address,
                seq_length=1024,
                lanes=4,
                cache_path=str(tmp_path / "cache"),
                cache_gigabytes=train_bytes(local) / 4e9,
            )
        )
        n = 48 * (2**21 - 1) // 1024 // 16 * 16
        began = time.perf_counter()
        batches(corpus, n)
        seconds = time.perf_counter() - began
    share = sum(downloaded) / train_bytes(local)
    with capsys.disabled():
        print(f"{n * 1024 / seconds / 1e6:.0f} Mtok/s, {share:.2f} of the data downloaded")
    assert n * 1024 / seconds > 20e6
    assert share <= 1.25


@pytest.mark.parametrize("layout", ["llm.c", "npy"])
def test_a_shard_deleted_before_it_is_opened_is_asked_for_again(
    tmp_path: Path, layout: Layout
) -> None:
    tokens = np.arange(100, dtype=np.uint16)
    if layout == "npy":
        np.save(tmp_path / "kept.npy", tokens)
    else:
        (tmp_path / "kept.bin").write_bytes(bytes(1024) + tokens.tobytes())
    (kept,) = tmp_path.iterdir()
    asked = []

    def locate(shard: ShardEntry) -> Path:
        asked.append(shard)
        return kept if len(asked) == OPEN_ATTEMPTS else tmp_path / "gone"

    shard = ShardEntry(
        split="train",
        file="x.bin",
        layout=layout,
        tokens=100,
        documents=0,
        bytes=0,
        sha256="0" * 64,
        block_crc32=(),
        index_sha256=None,
    )
    split = Split("train", [shard], "uint16", locate)
    assert (split.tokens(0) == tokens).all()
    with pytest.raises(FileNotFoundError):
        Split("train", [shard], "uint16", lambda _: tmp_path / "gone").tokens(0)


def test_few_shards_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = made(tmp_path / "local", n_shards=3)
    sources = {n: SourceSection(path=str(local.path), weight=1.0) for n in "abcd"}
    four = Corpus.open(DataSection(sources=sources, seq_length=T))
    assert [split.max_open_shards for split in four.samples(1).splits] == [64] * 4
    with served(tmp_path / "local") as server:
        streamed = Corpus.open(section(server.address, tmp_path, lanes=12))
        assert streamed.samples(1).splits[0].max_open_shards == 14
        monkeypatch.setenv("WORLD_SIZE", "8")  # a rank reads every fourth lane
        assert streamed.samples(1).splits[0].max_open_shards == 5


def test_a_cache_of_somebody_else_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "local", n_shards=3)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/datasets").write_text("")  # root may write where others may not
    with served(tmp_path / "local") as server:
        with pytest.raises(UserError, match=r"data.cache_path: .* cannot be written \(.*Name a f"):
            Corpus.open(section(server.address, tmp_path))


def test_small_files_that_are_right_are_left_alone(tmp_path: Path) -> None:
    made(tmp_path / "local", n_shards=3)
    with served(tmp_path / "local") as server:
        first = Corpus.open(section(server.address, tmp_path)).tokenizer_directory
        before = {path: path.stat().st_mtime_ns for path in first.iterdir()}
        (first / "ranks.tiktoken").write_bytes(b"damaged")
        again = Corpus.open(section(server.address, tmp_path)).tokenizer_directory
    assert again == first
    same = {path.name for path in first.iterdir() if path.stat().st_mtime_ns == before[path]}
    assert same == {"tokenizer.json"}
