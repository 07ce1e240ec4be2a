"""How fast, and in how much memory. For a quiet machine; printed with `-s`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.preparation.prepared_text import COMMAND, REPOSITORY

CORPUS_BYTES = 100_000_000
LARGE_BYTES = 1_000_000_000

# A process of its own: started once, measured without the start of Python and of the tokenizer,
# but with that of the pool.
OURS = """
import sys, time

if __name__ == "__main__":
    from pathlib import Path

    from gpt2_ds.data.preparation import prepare as module
    from gpt2_ds.data.preparation.request import Request

    gpt2 = module.load_tokenizer("gpt2")
    module.load_tokenizer = lambda name: gpt2
    request = Request(inputs=[sys.argv[1]], out=Path(sys.argv[2]), workers=int(sys.argv[3]),
                      validation_fraction=0)
    began = time.perf_counter()
    module.prepare(request)
    print(time.perf_counter() - began)
"""

# The way of build-nanogpt's fineweb.py, on JSON lines instead of a dataset of the hub.
THEIRS = """
import json, multiprocessing, os, sys, time
import numpy as np
import tiktoken

encoding = tiktoken.get_encoding("gpt2")

def tokenize(document):
    tokens = [encoding.eot_token]
    tokens.extend(encoding.encode_ordinary(document["text"]))
    tokens = np.array(tokens)
    assert (0 <= tokens).all() and (tokens < 2**16).all()
    return tokens.astype(np.uint16)

def documents(path):
    with open(path) as file:
        for line in file:
            yield json.loads(line)

if __name__ == "__main__":
    began = time.perf_counter()
    with multiprocessing.Pool(max(1, int(sys.argv[3]))) as pool:
        held, n = np.empty((int(1e8),), dtype=np.uint16), 0
        for tokens in pool.imap(tokenize, documents(sys.argv[1]), chunksize=16):
            held[n : n + len(tokens)] = tokens
            n += len(tokens)
        np.save(sys.argv[2], held[:n])
    print(time.perf_counter() - began)
"""


def write_corpus(path: Path, n_bytes: int) -> Path:
    """JSON lines of 2 to 5 kB, cut from the sources of Python's standard library."""
    sources = sorted(Path(os.__file__).parent.glob("*.py"))
    text = "".join(source.read_text(encoding="utf-8", errors="replace") for source in sources)
    rng, written = random.Random(0), 0
    with path.open("w") as file:
        while written < n_bytes:
            begin = rng.randrange(len(text) - 5000)
            document = text[begin : begin + rng.randrange(2000, 5000)]
            written += file.write(json.dumps({"text": document}) + "\n")
    return path


def seconds(folder: Path, program: str, corpus: Path, workers: int, gpt2_cache: Path) -> float:
    out = folder / f"out-{time.monotonic_ns()}"
    script = folder / "measured.py"
    script.write_text(program)
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "TIKTOKEN_CACHE_DIR": str(gpt2_cache),
    }
    words = [sys.executable, str(script), str(corpus), str(out), str(workers)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("speed") / "corpus.jsonl", CORPUS_BYTES)


@pytest.mark.benchmark
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_two_processes_are_faster_than_one(tmp_path: Path, corpus: Path, gpt2_cache: Path) -> None:
    runs = [
        [seconds(tmp_path, OURS, corpus, workers, gpt2_cache) for workers in (1, 2)]
        for _ in range(3)
    ]
    one, two = (min(times) for times in zip(*runs, strict=True))
    print(f"one process {one:.2f} s, two {two:.2f} s: {one / two:.2f}x")
    assert one / two >= 1.7


@pytest.mark.benchmark
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_faster_than_a_document_a_task(tmp_path: Path, corpus: Path, gpt2_cache: Path) -> None:
    """fineweb.py takes half of the cores; with all of them it is measured too."""
    contestants = ((OURS, 2), (THEIRS, max(1, (os.cpu_count() or 1) // 2)), (THEIRS, 2))
    runs = [
        [seconds(tmp_path, program, corpus, n, gpt2_cache) for program, n in contestants]
        for _ in range(3)
    ]
    ours, theirs, theirs_on_two = (min(times) for times in zip(*runs, strict=True))
    print(
        f"ours {ours:.2f} s, fineweb.py's way {theirs:.2f} s: {theirs / ours:.2f}x; with two "
        f"processes {theirs_on_two:.2f} s: {theirs_on_two / ours:.2f}x"
    )
    assert theirs / ours >= 1.4


def peak_bytes(pid: int) -> int:
    """The most memory that a process had so far; 0: it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(found[0].split()[1]) * 1024 if found else 0


@pytest.mark.heavy
@pytest.mark.benchmark
def test_a_gigabyte_in_less_than_one(tmp_path: Path, gpt2_cache: Path) -> None:
    large = write_corpus(tmp_path / "large.jsonl", LARGE_BYTES)
    words = [sys.executable, str(COMMAND), str(large), "--out", str(tmp_path / "out")]
    peaks: dict[int, int] = {}
    with subprocess.Popen(
        [*words, "--workers", "2"],
        env={**os.environ, "TIKTOKEN_CACHE_DIR": str(gpt2_cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        while running.poll() is None:
            try:
                pids = [running.pid, *map(int, children.read_text().split())]
            except (FileNotFoundError, ProcessLookupError):
                break
            for pid in pids:
                peaks[pid] = max(peaks.get(pid, 0), peak_bytes(pid))
            time.sleep(0.1)
    assert running.returncode == 0
    print({pid: f"{peak / 2**20:.0f} MiB" for pid, peak in peaks.items()})
    assert len(peaks) >= 3
    assert sum(peaks.values()) < 2**30
