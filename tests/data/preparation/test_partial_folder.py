from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.format.shards import write_shard
from gpt2_ds.data.preparation import units
from gpt2_ds.data.preparation.partial_folder import PartialFolder, partial_path
from tests.data.preparation.prepared_text import contents, prepare_texts, texts, write_rows


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "a.jsonl", texts(100))


def stopped(out: Path, source: Path, after: int, **keywords: Any) -> Path:
    """A preparation that a failing disk ended after so many units; its folder."""

    def broken(folder: Path, file: str, *rest: Any, **more: Any) -> Any:
        if file == f"train/shard-{after:05d}.bin":
            (folder / f"{file}.tmp").write_bytes(b"half")
            raise OSError(5, "Input/output error")
        return write_shard(folder, file, *rest, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(units, "write_shard", broken)
        kept = f"Complete shards kept: {after}. The same command resumes" if after else "begins ag"
        with pytest.raises(RunError, match=kept):
            start(out, source, **keywords)
    return partial_path(out)


def start(out: Path, source: Path, **keywords: Any) -> None:
    settings = {"shard_tokens": 5000, "validation_fraction": 0.2, **keywords}
    prepare_texts([source], out, **settings)


def test_what_is_kept(tmp_path: Path, source: Path) -> None:
    partial = stopped(tmp_path / "out", source, after=3)
    assert partial == tmp_path / ".out.partial"
    lines = (partial / "units.jsonl").read_text().splitlines()
    assert [json.loads(line)["unit"] for line in lines] == [0, 1, 2]
    kept = (partial / "dataset/train/shard-00000.bin").stat().st_mtime_ns
    start(tmp_path / "out", source)
    assert (tmp_path / "out/train/shard-00000.bin").stat().st_mtime_ns == kept  # not made again
    assert not partial.exists()
    start(tmp_path / "unbroken", source)
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("torn", [b"{", b'{"unit": 3, "shard"', b"\x00" * 100])
def test_a_torn_last_line_is_dropped(tmp_path: Path, source: Path, torn: bytes) -> None:
    partial = stopped(tmp_path / "out", source, after=3)
    with (partial / "units.jsonl").open("ab") as journal:
        journal.write(torn)
    stopped(tmp_path / "out", source, after=5)
    assert len((partial / "units.jsonl").read_text().splitlines()) == 5
    start(tmp_path / "out", source)
    start(tmp_path / "unbroken", source)
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def test_a_damaged_journal(tmp_path: Path, source: Path) -> None:
    partial = stopped(tmp_path / "out", source, after=3)
    journal = partial / "units.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'"unit":1', b'"unit":x'))
    with pytest.raises(
        UserError, match=r"units.jsonl: damaged: Invalid JSON.* Delete .*.partial t"
    ):
        start(tmp_path / "out", source)
    assert journal.exists()


def test_bad_documents_are_counted_once(tmp_path: Path) -> None:
    """Those between two units too, which are read again."""
    source = tmp_path / "a.jsonl"
    source.write_text("".join(f'{{"text": "{i}"}}\n{{}}\n[]\n' for i in range(9)))
    for workers, after in ((1, 3), (2, 5), (1, 8)):
        keywords = {"shard_tokens": 1, "validation_fraction": 0, "on_bad": "skip"}
        stopped(tmp_path / "out", source, after=after, workers=workers, **keywords)
        start(tmp_path / "out", source, **keywords)
        start(tmp_path / "unbroken", source, **keywords)
        assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")
        shutil.rmtree(tmp_path / "out")
        shutil.rmtree(tmp_path / "unbroken")


def test_leftovers_of_an_unfinished_unit_are_no_data(tmp_path: Path, source: Path) -> None:
    partial = stopped(tmp_path / "out", source, after=3)
    for name in ("dataset/train/shard-00099.bin", "dataset/validation/x.bin", "pieces/unit-00077"):
        (partial / name).write_bytes(b"junk")
    start(tmp_path / "out", source)
    start(tmp_path / "unbroken", source)
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def test_other_settings_are_refused(tmp_path: Path, source: Path) -> None:
    partial = stopped(tmp_path / "out", source, after=3)
    with pytest.raises(UserError) as refused:
        start(tmp_path / "out", source, shard_tokens=6000, shuffle_seed=4)
    fix = "Use the same again, or delete the folder to begin anew."
    assert str(refused.value).splitlines() == [
        f"{partial}: --shuffle-seed: begun with None, and it is 4 now. {fix}",
        f"{partial}: --shard-tokens: begun with 5000, and it is 6000 now. {fix}",
    ]
    for changed in (
        {"text_field": "body"},
        {"validation_fraction": 0.3},
        {"document_separator": "%"},
        {"deduplicate": True},
        {"split": "other"},
    ):
        with pytest.raises(UserError, match=f"--{next(iter(changed)).replace('_', '-')}: begun w"):
            start(tmp_path / "out", source, **changed)
    other = tmp_path / "ranks"
    other.write_bytes(b"".join(b"%s %d\n" % (_base64(i), i) for i in range(256)))
    with pytest.raises(
        UserError, match=r"--tokenizer: begun with 'bytes, sha256 .* is 'ranks, sha"
    ):
        prepare_texts([source], tmp_path / "out", tokenizer=str(other), shard_tokens=5000)
    os.utime(source, ns=(1, 2))
    size = source.stat().st_size
    with pytest.raises(UserError, match=rf"time of {source}: begun .* it is \[{size}, 2\] now"):
        start(tmp_path / "out", source)
    assert len((partial / "units.jsonl").read_text().splitlines()) == 3


def _base64(value: int) -> bytes:
    import base64

    return base64.b64encode(bytes([value]))


def test_what_changes_no_byte_may_change(tmp_path: Path) -> None:
    bad = tmp_path / "b.jsonl"
    rows = write_rows(tmp_path / "a.jsonl", texts(100)).read_bytes()
    bad.write_bytes(rows + b"{}\n" + rows.replace(b'"text": "', b'"text": "more '))
    with pytest.raises(UserError, match=r"line 101: no .* kept: 8. The same command resumes"):
        start(tmp_path / "out", bad)
    with pytest.raises(UserError, match=r"line 101: no .* kept: 8. The same command resumes"):
        start(tmp_path / "out", bad, workers=2)
    start(tmp_path / "out", bad, on_bad="skip", workers=2)
    start(tmp_path / "unbroken", bad, on_bad="skip")
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def test_an_early_mistake_leaves_nothing(tmp_path: Path, source: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        prepare_texts([source, tmp_path / "none"], tmp_path / "out")
    assert not partial_path(tmp_path / "out").exists()


def test_an_early_mistake_in_a_second_start_deletes_nothing(tmp_path: Path, source: Path) -> None:
    partial = stopped(tmp_path / "out", source, after=0)
    with pytest.raises(UserError, match="no such file"):
        prepare_texts([tmp_path / "none"], tmp_path / "out")
    assert (partial / "job.json").exists()


@pytest.mark.parametrize("name", ["dataset/train/shard-00001.idx", "pieces/*", "dataset"])
def test_a_file_that_was_taken_away(tmp_path: Path, source: Path, name: str) -> None:
    partial = stopped(tmp_path / "out", source, after=3)
    for path in partial.glob(name):
        path.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"00000?.*: missing. Delete .*/.out.partial to begin anew|"
                       r"00001.idx: missing"):  # fmt: skip
        start(tmp_path / "out", source)


def test_two_at_once(tmp_path: Path, source: Path) -> None:
    partial = stopped(tmp_path / "out", source, after=3)
    with (partial / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError) as refused:
            start(tmp_path / "out", source)
    said = f"{partial}: another preparation is at work in it. Wait for it, or end it."
    assert str(refused.value) == said
    start(tmp_path / "out", source)


def test_a_folder_that_goes_while_it_is_waited_for(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last act of another preparation is to delete it."""
    real = fcntl.flock

    def deleted_before(descriptor: int, flags: int) -> None:
        monkeypatch.undo()
        shutil.rmtree(partial_path(tmp_path / "out"))
        real(descriptor, flags)

    monkeypatch.setattr(fcntl, "flock", deleted_before)
    start(tmp_path / "out", source)
    Dataset.open(tmp_path / "out").verify()


def race(out: Path, source: Path, barrier: Any, told: Any) -> None:
    for number in range(10):
        barrier.wait(60)
        try:
            start(out.with_name(f"{number}"), source)
            told.put("made")
        except UserError as error:
            told.put("refused" if "there already" in str(error) or "at work" in str(error) else "?")


def test_a_race_has_one_winner(tmp_path: Path, source: Path) -> None:
    context = multiprocessing.get_context("spawn")
    told, barrier = context.Queue(), context.Barrier(3)
    runners = [
        context.Process(target=race, args=(tmp_path / "out", source, barrier, told), daemon=True)
        for _ in range(3)
    ]
    for runner in runners:
        runner.start()
    said = sorted(told.get(timeout=60) for _ in range(30))
    for runner in runners:
        runner.join(10)
    assert said == ["made"] * 10 + ["refused"] * 20
    for number in range(10):
        Dataset.open(tmp_path / str(number)).verify()
        assert not partial_path(tmp_path / str(number)).exists()


def test_killed_when_only_the_cleaning_was_left(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PartialFolder, "remove", lambda self: None)
    start(tmp_path / "out", source)
    monkeypatch.undo()
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match="--shard-tokens: begun with 5000, and it is 6000 now"):
        start(tmp_path / "out", source, shard_tokens=6000)
    start(tmp_path / "out", source)
    assert contents(tmp_path / "out") == before
    assert not partial_path(tmp_path / "out").exists()
    with pytest.raises(UserError, match="there already"):
        start(tmp_path / "out", source)


def test_an_out_that_came_while_it_was_stopped(tmp_path: Path, source: Path) -> None:
    stopped(tmp_path / "out", source, after=3)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"there already. Name another --out, or delete it"):
        start(tmp_path / "out", source)
    (tmp_path / "out").rmdir()
    start(tmp_path / "out", source)


def test_nothing_of_it_is_in_the_dataset(tmp_path: Path, source: Path) -> None:
    start(tmp_path / "out", source, deduplicate=True)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"manifest.json", "tokenizer", "train", "validation"}
    assert {path.suffix for path in (tmp_path / "out" / "train").iterdir()} == {".bin", ".idx"}


def test_the_note_comes_after_the_files(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line is on the disk, and what it speaks of was there before."""
    events: list[str] = []
    real_sync, real_append = os.fsync, PartialFolder.append

    def append(self: PartialFolder, record: Any) -> None:
        events.append("append")
        real_append(self, record)

    def sync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_sync(descriptor)

    monkeypatch.setattr(PartialFolder, "append", append)
    monkeypatch.setattr(os, "fsync", sync)
    start(tmp_path / "out", source)
    first = events[: events.index("append") + 2]
    assert first[-1] == "units.jsonl"
    for name in ("shard-00000.bin.tmp", "shard-00000.idx.tmp", "train", "dataset"):
        assert name in first[:-2]
    piece = next(i for i, event in enumerate(events) if event.startswith("unit-"))
    assert events[piece + 1 : piece + 4] == ["pieces", "append", "units.jsonl"]
    assert events.count("units.jsonl") == events.count("append") > 5
    assert events[-1] == tmp_path.name  # where the dataset has its name
    assert events.index("manifest.json.tmp") > len(events) - 1 - events[::-1].index("append")
