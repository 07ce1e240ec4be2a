from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.format.shards import write_shard
from gpt2_ds.data.format.tokenizer import load_tokenizer
from gpt2_ds.data.preparation import blocks, encoding_pool, units
from gpt2_ds.data.preparation import prepare as prepare_module
from gpt2_ds.data.preparation.prepare import ensure_prepared
from tests.data.preparation.prepared_text import (
    contents,
    documents_of,
    prepare_texts,
    texts,
    write_rows,
)


def test_shards_decode_back_to_the_documents(tmp_path: Path) -> None:
    documents = texts(300)
    out = tmp_path / "deep" / "out"
    manifest = prepare_texts(
        [write_rows(tmp_path / "a.jsonl", documents)],
        out,
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
    assert all(20_000 <= shard.tokens < 21_500 for shard in shards[:-1])
    dataset = Dataset.open(out)
    dataset.verify()
    assert dataset.split("train").n_tokens == sum(len(text.encode()) + 1 for text in train)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert out.stat().st_mode & 0o777 == out.parent.stat().st_mode & 0o777  # others may read


def test_any_number_of_workers_writes_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 3000)
    path = write_rows(tmp_path / "a.jsonl", texts(200))
    for workers in (1, 2, 3):
        prepare_texts(
            [path],
            tmp_path / str(workers),
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
    monkeypatch.setattr(prepare_module, "load_tokenizer", lambda name: gpt2)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))  # not needed any more
    prepare_texts([path], tmp_path / "out", tokenizer="gpt2", workers=2, validation_fraction=0)
    assert documents_of(tmp_path / "out", "train") == documents


def test_the_choice_of_validation_is_of_the_text(tmp_path: Path) -> None:
    documents = texts(200)
    one = write_rows(tmp_path / "one.jsonl", documents)
    prepare_texts([one], tmp_path / "1", validation_fraction=0.1)
    (tmp_path / "two").mkdir()
    write_rows(tmp_path / "two" / "a.jsonl", documents[::-2])
    write_rows(tmp_path / "two" / "b.jsonl", documents[-2::-2])
    prepare_texts([tmp_path / "two"], tmp_path / "2", validation_fraction=0.1, shard_tokens=5000)
    chosen = documents_of(tmp_path / "1", "validation")
    assert sorted(chosen) == sorted(documents_of(tmp_path / "2", "validation"))
    prepare_texts([one], tmp_path / "3", validation_fraction=0.3)
    assert set(chosen) < set(documents_of(tmp_path / "3", "validation"))


def test_a_validation_input_is_the_whole_validation(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", texts(50))
    (tmp_path / "v.txt").write_text("valid")
    manifest = prepare_texts([train], tmp_path / "out", validation=[tmp_path / "v.txt"])
    assert documents_of(tmp_path / "out", "train") == texts(50)
    assert documents_of(tmp_path / "out", "validation") == ["valid"]
    assert manifest.source is not None
    assert manifest.source.validation_fraction == 0
    assert [each.name for each in manifest.source.validation_inputs] == [str(tmp_path / "v.txt")]
    with pytest.raises(UserError, match=r"train.jsonl is part of the input .* already"):
        prepare_texts([train], tmp_path / "new", validation=[train])


def test_skipped_documents_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{}\n{"text": ""}\n{"text": ""}\n')
    with pytest.raises(UserError, match=r"a.jsonl: line 2: no field 'text'"):
        prepare_texts([path], tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]  # nothing is left behind
    manifest = prepare_texts([path], tmp_path / "out", on_bad="skip")
    assert manifest.source is not None
    skipped = {why: (each.count, each.first) for why, each in manifest.source.skipped.items()}
    assert skipped == {
        "empty": (2, (f"{path}: line 3", f"{path}: line 4")),
        "no_text_field": (1, (f"{path}: line 2",)),
    }


def test_bad_files_of_python_are_no_mistake_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a.py").write_text("a")
    (tmp_path / "lib" / "empty.py").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "lib"))
    manifest = prepare_texts(["python-stdlib"], tmp_path / "out", validation_fraction=0)
    assert manifest.source is not None
    assert manifest.source.skipped["empty"].count == 1
    with pytest.raises(UserError, match=r"empty.py: line 1: an empty document. Remove it. Or"):
        prepare_texts([tmp_path / "lib"], tmp_path / "new")


def test_the_first_few_places_of_the_skipped_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' + "{}\n" * 7)
    manifest = prepare_texts([path], tmp_path / "out", on_bad="skip")
    assert manifest.source is not None
    skipped = manifest.source.skipped["no_text_field"]
    assert (skipped.count, skipped.first) == (7, tuple(f"{path}: line {n}" for n in range(2, 7)))


def test_a_taken_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"--out .*/out: there already. Name another --out, or del"):
        prepare_texts([tmp_path / "a"], tmp_path / "out")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"workers": 0}, "--workers: 0 is below 1. Use 1 or more"),
        ({"validation_fraction": 1.0}, r"--validation-fraction: 1.0 is not in \[0, 1\)"),
        ({"validation_fraction": float("nan")}, "--validation-fraction: nan is not in"),
        (
            {"shard_tokens": 0},
            r"--shard-tokens: 0 is not in 1..1073741824. Leave it out: it is 335",
        ),
        ({"shard_tokens": 2**30 + 1}, "--shard-tokens: 1073741825 is not in"),
        ({"config": "en"}, "--config: en, and no input is a dataset. Leave it out, or name hf:O"),
        ({"revision": "v1"}, "--revision: v1, and no input is a dataset"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: Any, message: str) -> None:
    (tmp_path / "a").write_text("a")
    with pytest.raises(UserError, match=message):
        prepare_texts([tmp_path / "a"], tmp_path / "out", **arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]  # nothing is left behind


def test_nothing_to_train_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "b"}\n{}\n')
    with pytest.raises(UserError, match=r"nothing to train on: 1 document for validation, 1 skip"):
        prepare_texts([path], tmp_path / "out", on_bad="skip", validation_fraction=0.999)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise OSError(5, "Input/output error")

    path = write_rows(tmp_path / "a.jsonl", texts(3))
    with monkeypatch.context() as patched:
        patched.setattr(units, "write_shard", broken)
        with pytest.raises(RunError, match=r"could not be written: .*output error. The same comm"):
            prepare_texts([path], tmp_path / "out")
    prepare_texts([path], tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/out: could not be written: .*Not a directory"):
        prepare_texts([path], tmp_path / "file" / "out")


def test_an_out_that_appears_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prepare_module._sync_directories

    def other_finishes_first(directory: Path) -> None:
        real(directory)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()

    monkeypatch.setattr(prepare_module, "_sync_directories", other_finishes_first)
    with pytest.raises(RunError, match=r".out.partial: could not be written: .*not empty"):
        prepare_texts([write_rows(tmp_path / "a.jsonl", texts(3))], tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["theirs"]


def killed_worker(texts: list[bytes]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_pool, "_encode_in_worker", killed_worker)
    path = write_rows(tmp_path / "a.jsonl", texts(3))
    with pytest.raises(RunError, match="a worker process died, perhaps for want of memory"):
        prepare_texts([path], tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    prepare_texts([path], tmp_path / "out", workers=2)  # the same call resumes


def test_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = write_shard

    def pressed_in_the_second(directory: Path, file: str, *rest: Any, **more: Any) -> Any:
        if file.endswith("1.bin"):
            raise KeyboardInterrupt
        return real(directory, file, *rest, **more)

    monkeypatch.setattr(units, "write_shard", pressed_in_the_second)
    path = write_rows(tmp_path / "a.jsonl", texts(100))
    message = "Stopped by Ctrl-C. Complete shards kept: 1. The same command resumes."
    with pytest.raises(RunError, match=message):
        prepare_texts([path], tmp_path / "out", shard_tokens=5000)
    monkeypatch.undo()
    prepare_texts([path], tmp_path / "out", shard_tokens=5000)
    prepare_texts([path], tmp_path / "unbroken", shard_tokens=5000)
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def prepare_when_told(path: Path, source: Path) -> None:
    def make() -> None:
        with (path.parent / "calls").open("a") as calls:
            calls.write("x")
        time.sleep(0.3)
        prepare_texts([source], path)

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
    prepare_texts([write_rows(tmp_path / "a.jsonl", texts(5))], tmp_path / "out")
    ensure_prepared(tmp_path / "out", lambda: pytest.fail("prepared again"))
    assert not (tmp_path / ".out.lock").exists()


def test_a_run_that_makes_its_data_resumes_too(tmp_path: Path) -> None:
    """Training holds a lock of its own around all of it, and it may be killed in between."""
    source, out = write_rows(tmp_path / "a.jsonl", texts(100)), tmp_path / "out"

    def make() -> None:
        prepare_texts([source], out, shard_tokens=5000)

    bad = tmp_path / "b.jsonl"
    bad.write_bytes(source.read_bytes() + b"{}\n")
    with pytest.raises(UserError, match=r"line 101: no field 'text'.* kept: 10. The same comm"):
        prepare_texts([bad], out, shard_tokens=5000)
    with pytest.raises(UserError, match=r"INPUT: begun with .*b.jsonl.*, and it is .*a.jsonl"):
        ensure_prepared(out, make)
    shutil.rmtree(tmp_path / ".out.partial")
    ensure_prepared(out, make)
    Dataset.open(out).verify()


def test_windows_of_prepared_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefg")
    prepare_texts([tmp_path / "a.txt"], tmp_path / "out", validation_fraction=0)
    split = Dataset.open(tmp_path / "out").split("train")
    assert split.windows(np.array([0, 1]), 3).tolist() == [[256, 97, 98, 99], [99, 100, 101, 102]]
