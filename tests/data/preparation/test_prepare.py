from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.data.dataset import Dataset
from gpt2_ds.data.preparation import encoding_pool
from gpt2_ds.data.preparation import prepare as prepare_module
from gpt2_ds.data.preparation.prepare import ensure_prepared, prepare
from gpt2_ds.data.preparation.progress import Progress
from gpt2_ds.data.shards import map_tokens, read_header, read_index
from gpt2_ds.data.tokenizer import Tokenizer, load_tokenizer

REPOSITORY = Path(__file__).resolve().parents[3]
BYTES = load_tokenizer("bytes")
WORDS = ["the", "naïve", "日本", "\n", "<|endoftext|>", "🙂", "x = 1", "  "]


def texts(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randrange(1, 200))) for i in range(n)]


def write_rows(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def documents_of(out: Path, split: str) -> list[str]:
    """The texts back, by the index of each shard."""
    found = []
    tokenizer = Tokenizer.open(out / "tokenizer")
    for shard in sorted((out / split).glob("*.bin")):
        header = read_header(shard)
        tokens = map_tokens(shard, header)
        starts = read_index(shard, header).tolist()
        assert starts[0] == 0
        for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            assert tokens[start] == tokenizer.eot_token
            found.append(tokenizer.decode(tokens[start + 1 : end]))
    return found


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def test_shards_decode_back_to_the_documents(tmp_path: Path) -> None:
    documents = texts(300)
    out = tmp_path / "deep" / "out"
    manifest = prepare(
        [write_rows(tmp_path / "a.jsonl", documents)],
        out,
        BYTES,
        validation_fraction=0.2,
        shard_tokens=20_000,
    )
    train, validation = documents_of(out, "train"), documents_of(out, "validation")
    assert len(train) + len(validation) == 300
    assert train == [text for text in documents if text in set(train)]
    assert validation == [text for text in documents if text in set(validation)]
    assert 30 < len(validation) < 90
    shards = [shard for shard in manifest.shards if shard.split == "train"]
    assert len(shards) > 3
    assert all(10_000 < shard.tokens < 30_000 for shard in shards[:-1])
    dataset = Dataset.open(out)
    dataset.verify()
    assert dataset.split("train").n_tokens == sum(len(text.encode()) + 1 for text in train)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert out.stat().st_mode & 0o777 == out.parent.stat().st_mode & 0o777  # others may read


def test_any_number_of_workers_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "BLOCK_BYTES", 3000)
    path = write_rows(tmp_path / "a.jsonl", texts(200))
    for workers in (1, 2, 3):
        prepare(
            [path],
            tmp_path / str(workers),
            BYTES,
            workers=workers,
            validation_fraction=0.1,
            shard_tokens=10_000,
        )
    assert len(contents(tmp_path / "1")) > 12
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


def test_gpt2(tmp_path: Path, gpt2_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_cache))
    documents = texts(20)
    path = write_rows(tmp_path / "a.jsonl", documents)
    gpt2 = load_tokenizer("gpt2")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))  # not needed any more
    prepare([path], tmp_path / "out", gpt2, workers=2, validation_fraction=0)
    assert documents_of(tmp_path / "out", "train") == documents


def test_the_choice_of_validation_is_of_the_text(tmp_path: Path) -> None:
    documents = texts(200)
    one = write_rows(tmp_path / "one.jsonl", documents)
    prepare([one], tmp_path / "1", BYTES, validation_fraction=0.1)
    (tmp_path / "two").mkdir()
    write_rows(tmp_path / "two" / "a.jsonl", documents[::-2])
    write_rows(tmp_path / "two" / "b.jsonl", documents[-2::-2])
    prepare([tmp_path / "two"], tmp_path / "2", BYTES, validation_fraction=0.1, shard_tokens=5000)
    chosen = documents_of(tmp_path / "1", "validation")
    assert sorted(chosen) == sorted(documents_of(tmp_path / "2", "validation"))
    prepare([one], tmp_path / "3", BYTES, validation_fraction=0.3)
    assert set(chosen) < set(documents_of(tmp_path / "3", "validation"))


def test_a_validation_input_is_the_whole_validation(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", texts(50))
    (tmp_path / "v.txt").write_text("valid")
    manifest = prepare([train], tmp_path / "out", BYTES, validation_inputs=[tmp_path / "v.txt"])
    assert documents_of(tmp_path / "out", "train") == texts(50)
    assert documents_of(tmp_path / "out", "validation") == ["valid"]
    assert manifest.source.validation_fraction == 0
    assert [each.name for each in manifest.source.validation_inputs] == [str(tmp_path / "v.txt")]
    with pytest.raises(UserError, match=r"train.jsonl is part of the input .* already"):
        prepare([train], tmp_path / "new", BYTES, validation_inputs=[train])


def test_skipped_documents_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{}\n{"text": ""}\n{"text": ""}\n')
    with pytest.raises(UserError, match=r"a.jsonl: line 2: no field 'text'"):
        prepare([path], tmp_path / "out", BYTES)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]  # nothing is left behind
    manifest = prepare([path], tmp_path / "out", BYTES, on_bad="skip")
    assert manifest.source is not None
    counts = {why: each.count for why, each in manifest.source.skipped.items()}
    assert counts == {"empty": 2, "no_text_field": 1}


def test_a_taken_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"--out .*/out: there already. Name another --out, or del"):
        prepare([tmp_path / "a"], tmp_path / "out", BYTES)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"workers": 0}, "--workers: 0 is below 1. Use 1 or more"),
        ({"validation_fraction": 1.0}, r"--validation-fraction: 1.0 is not in \[0, 1\)"),
        ({"validation_fraction": float("nan")}, "--validation-fraction: nan is not in"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare([tmp_path / "a"], tmp_path / "out", BYTES, **arguments)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "b"}\n{}\n')
    with pytest.raises(UserError, match=r"nothing to train on: 1 documents for validation, 1 skip"):
        prepare([path], tmp_path / "out", BYTES, on_bad="skip", validation_fraction=0.999)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_module, "write_shard", full)
    path = write_rows(tmp_path / "a.jsonl", texts(3))
    with pytest.raises(RunError, match=r"out: could not be written: .*No space left on device"):
        prepare([path], tmp_path / "out", BYTES)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_out_that_appears_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prepare_module._sync_directories

    def other_finishes_first(directory: Path) -> None:
        real(directory)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()

    monkeypatch.setattr(prepare_module, "_sync_directories", other_finishes_first)
    with pytest.raises(RunError, match=r"out: could not be written: .*not empty"):
        prepare([write_rows(tmp_path / "a.jsonl", texts(3))], tmp_path / "out", BYTES)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["theirs"]


def killed_worker(texts: list[str]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_pool, "_encode_in_worker", killed_worker)
    path = write_rows(tmp_path / "a.jsonl", texts(3))
    with pytest.raises(RunError, match="a worker process died, perhaps for want of memory"):
        prepare([path], tmp_path / "out", BYTES, workers=2)
    assert not (tmp_path / "out").exists()


def prepare_when_told(path: Path, source: Path) -> None:
    def make() -> None:
        with (path.parent / "calls").open("a") as calls:
            calls.write("x")
        time.sleep(0.3)
        prepare([source], path, BYTES)

    ensure_prepared(path, make)
    Dataset.open(path)


def test_several_ranks_prepare_once(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "a.jsonl", texts(5))
    context = multiprocessing.get_context("spawn")
    ranks = [
        context.Process(target=prepare_when_told, args=(tmp_path / "new" / "out", source))
        for _ in range(3)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert (tmp_path / "new" / "calls").read_text() == "x"


def test_a_dataset_that_is_there_needs_no_lock(tmp_path: Path) -> None:
    prepare([write_rows(tmp_path / "a.jsonl", texts(5))], tmp_path / "out", BYTES)
    ensure_prepared(tmp_path / "out", lambda: pytest.fail("prepared again"))
    assert not (tmp_path / ".out.lock").exists()


def test_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(10**6)
    progress.add(3, 500_000, 7)
    assert capsys.readouterr().err == ""
    progress.finish()
    assert capsys.readouterr().err.startswith("3 documents, 0.5 MB in 0.0 s (")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress(10**6)
    progress.add(3, 500_000, 7)
    shown = capsys.readouterr().err
    assert shown.startswith("\r\x1b[K3 documents, 0.5 MB")
    assert shown.endswith("7 tokens, 0 s left")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = str(REPOSITORY / "launch" / "prepare_data.py")
    return subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, timeout=120
    )


def test_the_command(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", texts(30))
    out = tmp_path / "out"
    arguments = (str(path), "--out", str(out), "--tokenizer", "bytes", "--workers", "2")
    done = command(*arguments, "--validation-fraction", "0.2")
    assert done.returncode == 0, done.stderr
    dataset = Dataset.open(out)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"train: {dataset.split('train').n_tokens:,} tokens, ")
    assert lines[1].startswith(f"validation: {dataset.split('validation').n_tokens:,} tokens, ")
    assert lines[-1] == "  deepspeed launch/train.py --recipe recipes/RECIPE.yaml"
    assert done.stderr.startswith("30 documents, ")
    again = command(*arguments)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == (
        f"error: --out {out}: there already. Name another --out, or delete it.\n"
    )


def test_the_help_has_an_example_and_every_flag() -> None:
    shown = command("--help").stdout
    assert "python launch/prepare_data.py python-stdlib --tokenizer bytes --out" in shown
    flags = "out tokenizer workers text-field validation-fraction validation on-bad"
    assert all(f"--{flag} " in shown for flag in flags.split())


def test_a_killed_preparation_leaves_no_worker_and_no_dataset(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", texts(100) * 500)
    program = (
        "import sys; sys.argv[1:] = "
        f"[{str(path)!r}, '--out', {str(tmp_path / 'out')!r}, "
        "'--tokenizer', 'bytes', '--workers', '2']\n"
        f"import runpy; runpy.run_path({str(REPOSITORY / 'launch/prepare_data.py')!r}, "
        "run_name='__main__')"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    deadline = time.monotonic() + 30
    while len(workers := children.read_text().split()) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)  # two workers and the resource tracker
    assert len(workers) == 3
    parent.kill()
    parent.wait()
    while alive := [pid for pid in workers if Path(f"/proc/{pid}/exe").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)
    assert not (tmp_path / "out").exists()


def test_windows_of_prepared_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefg")
    prepare([tmp_path / "a.txt"], tmp_path / "out", BYTES, validation_fraction=0)
    split = Dataset.open(tmp_path / "out").split("train")
    assert split.windows(np.array([0, 1]), 3).tolist() == [[256, 97, 98, 99], [99, 100, 101, 102]]
