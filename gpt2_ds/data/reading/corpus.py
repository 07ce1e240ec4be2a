"""What a run reads: one dataset, or several by weight; on this machine, or streamed to it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2_ds.config.errors import user_error
from gpt2_ds.config.recipe import DataSection
from gpt2_ds.data.format.dataset import TOKENIZER_DIRECTORY, Dataset
from gpt2_ds.data.format.manifest import ShardEntry
from gpt2_ds.data.format.split import MAX_OPEN_SHARDS
from gpt2_ds.data.format.tokenizer import Tokenizer
from gpt2_ds.data.order.mixture import Mixture, Phase
from gpt2_ds.data.order.samples import Samples
from gpt2_ds.data.reading.cache import ShardCache
from gpt2_ds.data.reading.streaming import open_streamed
from gpt2_ds.files.heartbeat import UNHEARD, Heartbeat
from gpt2_ds.files.remote_files import RemoteFolder, is_remote
from gpt2_ds.hosts.launcher import world_size


@dataclass(frozen=True)
class Corpus:
    """The datasets of a run. Use `Corpus.open`.

    Args:
        datasets: by the name of their source; the name is empty where `data.path` names one.
        remotes: of those that are streamed.
        cache: of their shards, if there are any.
        data: the recipe's section.
    """

    datasets: dict[str, Dataset]
    remotes: dict[str, RemoteFolder]
    cache: ShardCache | None
    data: DataSection

    @classmethod
    def open(cls, data: DataSection, where: Callable[[str], str] = str) -> Corpus:
        """Open every source of a recipe.

        Args:
            data: the recipe's section.
            where: says where in the user's files a key of the recipe stands.

        Raises:
            UserError: a dataset is missing or broken, two differ in their tokenizer, or the cache
                is too small to read them.
        """
        addresses = {name: source.path for name, source in (data.sources or {}).items()}
        addresses = addresses or {"": data.path or ""}
        datasets, remotes = {}, {}
        cache: ShardCache | None = None
        for name, address in addresses.items():
            if is_remote(address):
                cache = cache or ShardCache(Path(data.cache_path), int(data.cache_gigabytes * 1e9))
                remotes[name] = RemoteFolder(address)
                datasets[name] = open_streamed(remotes[name], cache)
            else:
                datasets[name] = Dataset.open(Path(address))
        corpus = cls(datasets, remotes, cache, data)
        corpus._check_tokenizers(where)
        corpus._check_cache(where)
        return corpus

    @property
    def tokenizer(self) -> Tokenizer:
        """The one of all sources."""
        return next(iter(self.datasets.values())).tokenizer

    @property
    def tokenizer_directory(self) -> Path:
        """Where the tokenizer is saved."""
        return next(iter(self.datasets.values())).path / TOKENIZER_DIRECTORY

    @property
    def fingerprint(self) -> str:
        """The sha256 over what training sees; that of the dataset itself where there is one."""
        if list(self.datasets) == [""]:
            return self.datasets[""].fingerprint
        named = [[name, dataset.fingerprint] for name, dataset in self.datasets.items()]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()

    def verify(self, part: int, parts: int, heartbeat: Heartbeat = UNHEARD) -> None:
        """Compare the local shards with their manifests; streamed ones are checked when fetched.

        Args:
            part: 0..parts-1; the ranks of a run share the work.
            parts: how many share it.
            heartbeat: beats after each shard.

        Raises:
            UserError: a shard is not what was written.
        """
        for name, dataset in self.datasets.items():
            if name not in self.remotes:
                dataset.verify(part, parts, heartbeat)

    def samples(self, seed: int, skipped: Sequence[tuple[int, int]] = ()) -> Samples:
        """The training samples by number, in the order that the seed gives.

        Args:
            seed: of the order.
            skipped: ranges of samples: (first, one behind the last) of each.
        """
        sources, mixture = self.data.sources or {}, None
        if sources:
            phases = [Phase(0, tuple(source.weight for source in sources.values()))]
            for phase in self.data.phases:
                first_sample = phase.from_tokens // self.data.seq_length
                phases.append(Phase(first_sample, tuple(phase.weights[name] for name in sources)))
            mixture = Mixture(phases)
        splits = {name: dataset.split("train") for name, dataset in self.datasets.items()}
        for name, split in splits.items():
            split.max_open_shards = max(1, MAX_OPEN_SHARDS // len(splits))
            if name in self.remotes and (lanes := self.data.lanes):
                # What is mapped keeps its place on the disk: no more than a rank reads at a time.
                shared = math.gcd(lanes, world_size()) if len(splits) == 1 else 1
                split.max_open_shards = lanes // shared + 2
        return Samples(
            list(splits.values()),
            seq_length=self.data.seq_length,
            seed=seed,
            lanes=self.data.lanes,
            names=tuple(self.datasets),
            mixture=mixture,
            skipped=skipped,
        )

    def follow(self, upcoming: Callable[[], list[tuple[int, ShardEntry]]]) -> None:
        """Fetch ahead what training will read, and keep what validation reads at hand.

        Args:
            upcoming: (source, shard) of what comes next: `Samples.upcoming`.
        """
        if self.cache is None:
            return
        for name, remote in self.remotes.items():
            for entry in self.datasets[name].entries("validation"):
                self.cache.keep(remote, entry)
        by_source = [self.remotes.get(name) for name in self.datasets]

        def streamed() -> list[tuple[RemoteFolder, ShardEntry]]:
            found = ((by_source[source], entry) for source, entry in upcoming())
            return [(remote, entry) for remote, entry in found if remote is not None]

        self.cache.follow(streamed)

    def close(self) -> None:
        """End reading ahead."""
        if self.cache is not None:
            self.cache.close()

    def _check_tokenizers(self, where: Callable[[str], str]) -> None:
        for name, dataset in self.datasets.items():
            if dataset.tokenizer.sha256 != self.tokenizer.sha256:
                first = next(iter(self.datasets))
                raise user_error(
                    where(f"data.sources.{name}"),
                    f"made with tokenizer {dataset.tokenizer.name!r} "
                    f"({dataset.tokenizer.sha256[:12]}), and {first} with "
                    f"{self.tokenizer.name!r} ({self.tokenizer.sha256[:12]})",
                    "Prepare both with one tokenizer.",
                )

    def _check_cache(self, where: Callable[[str], str]) -> None:
        if self.cache is None:
            return
        needed = self.needed_cache_bytes
        if needed > self.cache.max_bytes:
            fix = f"Set it to at least {_gigabytes(needed)}"
            if self.data.lanes == 0:
                fix += ", or set data.lanes to read a few shards at a time"
            elif self.data.lanes > 1:
                fix += f", or lower data.lanes {self.data.lanes}"
            raise user_error(
                where("data.cache_gigabytes"),
                f"{_gigabytes(self.cache.max_bytes)}, and this run reads {_gigabytes(needed)} at a "
                "time",
                f"{fix}.",
            )

    @property
    def needed_cache_bytes(self) -> int:
        """What must be in the cache at one time, so that nothing is fetched twice for want of room.

        That is all of validation and, of training, a shard a lane and one that is fetched ahead,
        each of the largest; without lanes, all shards.
        """
        needed = 0
        for name in self.remotes:
            dataset = self.datasets[name]
            needed += sum(entry.bytes for entry in dataset.entries("validation"))
            train = sorted((entry.bytes for entry in dataset.entries("train")), reverse=True)
            needed += sum(train[: self.data.lanes + 1] if self.data.lanes else train)
        return needed


def _gigabytes(n_bytes: int) -> str:
    """Never less than it is.

    >>> _gigabytes(1_234_567_891)
    '1.235'
    """
    return f"{-(-n_bytes // 10**6) / 1000:g}"
