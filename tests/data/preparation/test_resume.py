"""Real processes, really killed: what resumes gives the same bytes as what ran in one go."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.data.preparation.prepared_text import (
    COMMAND,
    contents,
    prepare_texts,
    texts,
    write_rows,
)

# Processes that begin with everything imported: there are hundreds of them.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.data.preparation.prepared_text"])
ALL_FLAGS = {"deduplicate": True, "shuffle_seed": 5}


@dataclass(frozen=True)
class Moment:
    """When a process kills itself: before or after it calls something for the n-th time."""

    n: int
    before: bool
    owner: str = "os"
    name: str = "fsync"

    def watch(self) -> None:
        owner = {"os": os, "shutil": shutil, "Path": Path}[self.owner]
        real, left = getattr(owner, self.name), [self.n]

        def watched(*arguments: Any, **keywords: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and self.before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **keywords)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, self.name, watched)


@dataclass
class Job:
    """A preparation in a folder of its own."""

    folder: Path
    inputs: list[Path]
    flags: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def prepare(self, workers: int, moment: Moment | None = None) -> None:
        if moment is not None:
            moment.watch()
        settings: dict[str, Any] = {"shard_tokens": 12_000, "validation_fraction": 0.2}
        prepare_texts(self.inputs, self.out, workers=workers, **settings, **self.flags)

    @property
    def is_done(self) -> bool:
        """A process can be killed after its work, too: all is there then, and nothing else."""
        return self.out.exists() and not (self.folder / ".out.partial").exists()

    def is_killed(self, workers: int, moment: Moment) -> bool:
        """Whether it was; else it came to its end before."""
        process = CONTEXT.Process(target=self.prepare, args=(workers, moment))
        process.start()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
        return process.exitcode != 0


def make_job(folder: Path, kind: str, flags: dict[str, Any]) -> Job:
    documents = texts(240)
    documents += documents[::7]  # duplicates, in other units
    cut = len(documents) // 2
    return Job(
        folder,
        [
            write_rows(folder / f"a.{kind}", documents[:cut]),
            write_rows(folder / f"b.{kind}", documents[cut:]),
        ],
        flags,
    )


@pytest.mark.heavy
@pytest.mark.parametrize("flags", [{}, ALL_FLAGS], ids=["plain", "flags"])
@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_killed_again_and_again(tmp_path: Path, kind: str, flags: dict[str, Any]) -> None:
    job = make_job(tmp_path, kind, flags)
    job.prepare(workers=1)
    unbroken = contents(job.out)
    assert sum(name.startswith("train/") and name.endswith(".bin") for name in unbroken) >= 8
    rng = random.Random(f"{kind} {flags}")
    for choice in ([1], [1], [2, 1, 1, 1]):  # processes, which may be others each time
        shutil.rmtree(job.out)
        kills = 0
        while not job.is_done:
            n = rng.randrange(4, 40) if kills < 4 else rng.randrange(40, 200)
            kills += job.is_killed(rng.choice(choice), Moment(n, rng.random() < 0.5))
            assert kills < 100
        assert kills >= 4
        assert contents(job.out) == unbroken
        assert not (tmp_path / ".out.partial").exists()


@pytest.mark.heavy
def test_killed_at_every_write(tmp_path: Path) -> None:
    """Before and after each of the moments at which something comes to the disk."""
    job = make_job(tmp_path, "jsonl", ALL_FLAGS)
    job.prepare(workers=1)
    unbroken = contents(job.out)
    moments = [Moment(n, before=n % 4 == 1) for n in range(1, 180, 2)]
    moments += [Moment(1, before, "shutil", "rmtree") for before in (True, False)]
    moments += [Moment(1, before, "Path", "rename") for before in (True, False)]
    n_killed = 0
    for moment in moments:
        shutil.rmtree(job.out)
        if job.is_killed(1, moment):
            n_killed += 1
            if not job.is_done:
                job.prepare(workers=1)
        assert contents(job.out) == unbroken, moment
        assert not (tmp_path / ".out.partial").exists()
    assert 60 < n_killed < len(moments)  # up to the last


@pytest.mark.heavy
def test_killed_by_the_clock(tmp_path: Path) -> None:
    """The command itself, from outside."""
    job = make_job(tmp_path, "jsonl.gz", ALL_FLAGS)
    job.prepare(workers=1)
    unbroken = contents(job.out)
    words = [sys.executable, str(COMMAND), *map(str, job.inputs), "--out", str(job.out)]
    words += ["--tokenizer", "bytes", "--shard-tokens", "12000", "--validation-fraction", "0.2"]
    words += ["--deduplicate", "--shuffle-seed", "5"]
    rng = random.Random(3)
    for workers in ("1", "2", "2"):
        shutil.rmtree(job.out)
        for _ in range(4):
            with subprocess.Popen([*words, "--workers", workers], stderr=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL) as running:  # fmt: skip
                time.sleep(rng.uniform(0.3, 1.6))
                running.kill()
            if job.is_done:
                break
        else:
            job.prepare(workers=1)
        assert contents(job.out) == unbroken


def test_standard_input_resumes(tmp_path: Path) -> None:
    """The same text has to be given again."""
    rows = write_rows(tmp_path / "a.jsonl", texts(200)).read_bytes()
    out = tmp_path / "out"
    words = [sys.executable, str(COMMAND), "-", "--out", str(out)]
    words += ["--tokenizer", "bytes", "--shard-tokens", "12000"]

    def run(text: bytes) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(words, input=text, capture_output=True, timeout=120)

    lines = rows.splitlines(keepends=True)
    broken = run(b"".join([*lines[:150], b"oops\n"]))
    assert broken.returncode == 2
    assert b"standard input: line 151: not JSON" in broken.stderr
    assert b"The same command resumes." in broken.stderr
    other = run(rows.replace(b"the", b"THE"))
    assert other.returncode == 2
    assert b"bytes are not those that were read before" in other.stderr
    assert run(rows).returncode == 0
    found = contents(out)
    shutil.rmtree(out)
    assert run(rows).returncode == 0
    assert contents(out) == found
