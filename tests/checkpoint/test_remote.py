"""Copies elsewhere: complete or not there, sent once, fetched right or not at all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from gpt2_ds.checkpoint import remote as remote_checkpoints
from gpt2_ds.checkpoint.manifest import (
    MANIFEST,
    FileRecord,
    complete_checkpoints,
    damaged_files,
    seal,
    step_name,
)
from gpt2_ds.checkpoint.remote import UPLOADING, Damaged, RemoteCheckpoints
from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.files import remote_files
from gpt2_ds.files.remote_source import RemoteFault
from tests.checkpoint.saved_files import FILES, contents, flip, manifest_of, refusal, save


def remote_of(address: object, attempts: int = 2) -> RemoteCheckpoints:
    return RemoteCheckpoints(str(address), attempts=attempts, first_delay_seconds=0.001)


@pytest.fixture(params=["path", "file", "memory"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> RemoteCheckpoints:
    kinds = {"path": tmp_path / "away", "file": f"file://{tmp_path}/away/"}
    fsspec.filesystem("memory").rm("/", recursive=True)
    return remote_of(kinds.get(request.param, "memory://bucket/run"))


class Watched:
    """Stands before a file system; counts what is sent and fails on request."""

    def __init__(self, remote: RemoteCheckpoints) -> None:
        self.files = remote.files._files
        self.sent: list[str] = []
        self.removed: list[str] = []
        self.fail_after, self.error = 10**9, OSError(5, "the line is cut")
        self._lock = threading.Lock()
        remote.files._files = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.files, name)

    def _count(self, path: str) -> None:
        with self._lock:
            if len(self.sent) >= self.fail_after:
                raise self.error
            self.sent.append(path.partition("/step_")[2].partition("/")[2])

    def put_file(self, local: str, path: str, callback: Any) -> None:
        self._count(path)
        self.files.put_file(local, path, callback=callback)

    def pipe_file(self, path: str, content: bytes) -> None:
        self._count(path)
        self.files.pipe_file(path, content)

    def rm(self, path: str, recursive: bool) -> None:
        self.removed.append(path.partition("/step_")[2])
        self.files.rm(path, recursive=recursive)


def test_a_copy_comes_back_whole(remote: RemoteCheckpoints, tmp_path: Path) -> None:
    assert remote.complete() == []
    for step in (2, 10, 3):
        remote.upload(save(tmp_path / "a", step, {**FILES, "f": bytes([step])}))
    assert remote.complete() == [10, 3, 2]
    for step in (3, 10):
        path = remote.fetch(step, tmp_path / "b")
        assert path == tmp_path / "b/checkpoints" / step_name(step)
        assert contents(path) == contents(tmp_path / "a/checkpoints" / step_name(step))
    found = complete_checkpoints(tmp_path / "b")
    assert [(manifest.step, damaged_files(path, manifest)) for path, manifest in found] == [
        (10, []),
        (3, []),
    ]
    assert sorted(path.name for path in (tmp_path / "b/checkpoints").iterdir()) == [
        step_name(3),
        step_name(10),
    ]


def assert_sent_once(sent: list[str]) -> None:
    """The files go side by side, the manifest once they are all there."""
    assert [sent[0], *sorted(sent[1:-1]), sent[-1]] == [UPLOADING, *FILES, MANIFEST]


def test_the_manifest_is_last(tmp_path: Path) -> None:
    remote = remote_of(tmp_path / "away")
    watched = Watched(remote)
    remote.upload(save(tmp_path, 1))
    assert_sent_once(watched.sent)
    assert contents(tmp_path / "away") == {
        f"{step_name(1)}/{name}": content
        for name, content in contents(tmp_path / "checkpoints" / step_name(1)).items()
    }
    watched.sent.clear()
    remote.upload(tmp_path / "checkpoints" / step_name(1))
    assert watched.sent == []  # complete already


@pytest.mark.parametrize("fail_after", range(len(FILES) + 2))
def test_an_upload_that_broke_off_goes_on(
    remote: RemoteCheckpoints, tmp_path: Path, fail_after: int
) -> None:
    watched = Watched(remote)
    path = save(tmp_path, 1)
    watched.fail_after = fail_after
    message = refusal(lambda: remote.upload(path), RunError)
    assert (
        "the line is cut, at the last of 2 attempts. See whether this machine reaches it, then"
        in message
    )
    assert remote.complete() == []
    before, watched.fail_after = list(watched.sent), 10**9
    remote.upload(path)
    assert remote.complete() == [1]
    assert_sent_once(watched.sent)  # over both: nothing twice
    assert len(before) == fail_after
    assert contents(remote.fetch(1, tmp_path / "b")) == contents(path)


def test_a_half_sent_file_is_sent_again(tmp_path: Path) -> None:
    remote = remote_of(tmp_path / "away")
    watched, path = Watched(remote), save(tmp_path, 1)
    watched.fail_after = 3
    refusal(lambda: remote.upload(path), RunError)
    _, whole, half = watched.sent
    (tmp_path / "away" / step_name(1) / half).write_bytes(b"bet")
    watched.fail_after = 10**9
    remote.upload(path)
    assert watched.sent.count(half) == 2
    assert watched.sent.count(whole) == 1
    assert contents(remote.fetch(1, tmp_path / "b")) == contents(path)


@pytest.mark.parametrize("fail_after", [4, 10**9])
def test_another_checkpoint_of_the_same_step_and_sizes_replaces_it(
    tmp_path: Path, fail_after: int
) -> None:
    """After a fall-back a step is done again: equal sizes say nothing of what was sent before."""
    remote = remote_of(tmp_path / "away")
    watched = Watched(remote)
    watched.fail_after = fail_after
    first = save(tmp_path / "a", 1)
    if fail_after < 10**9:
        refusal(lambda: remote.upload(first), RunError)
        watched.fail_after = 10**9
    else:
        remote.upload(first)
    other = {name: content[::-1] for name, content in FILES.items()}
    second = save(tmp_path / "b", 1, other, created="later")
    watched.fail_after = len(watched.sent) + 2
    refusal(lambda: remote.upload(second), RunError)
    assert remote.complete() == []  # neither the old one nor a mixture
    watched.fail_after = 10**9
    remote.upload(second)
    assert contents(remote.fetch(1, tmp_path / "c")) == contents(second)


def test_a_failure_that_passes_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = remote_of(tmp_path / "away", attempts=3)
    watched = Watched(remote)
    errors = [TimeoutError("slow"), OSError(5, "broken")]
    send = watched.files.put_file

    def put_file(local: str, path: str, callback: Any) -> None:
        if errors:
            raise errors.pop()
        send(local, path, callback=callback)

    watched.put_file = put_file  # type: ignore[method-assign]
    remote.upload(save(tmp_path, 1))
    assert remote.complete() == [1]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    where = f"file://{tmp_path}/away" if "file://" in lines[0] else f"{tmp_path}/away"
    assert lines[0].startswith(f"warning: {where}/{step_name(1)}/a.pt: OSError")
    assert lines[0].endswith("broken: attempt 2 of 3 in 0.0 s")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (lambda away: flip(away / "b.pt"), "b.pt: sha256 "),
    "cut": (lambda away: (away / "b.pt").write_bytes(b"x"), "b.pt: 1 bytes, expected 400"),
    "longer": (
        lambda away: (away / "b.pt").write_bytes(FILES["b.pt"] + b"x"),
        "b.pt: 401 bytes, expected 400",
    ),
    "missing": (lambda away: (away / "b.pt").unlink(), "b.pt: not there"),
    "manifest": (lambda away: flip(away / MANIFEST), "manifest.json: damaged"),
    "other step": (
        lambda away: (away / MANIFEST).write_text(seal(manifest_of(7, {}))),
        "manifest.json: damaged",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_copy_is_named(tmp_path: Path, kind: str) -> None:
    remote, (damage, said) = remote_of(tmp_path / "away"), DAMAGE[kind]
    remote.upload(save(tmp_path / "a", 2))
    where = tmp_path / "away" / step_name(2)
    damage(where)
    assert refusal(lambda: remote.fetch(2, tmp_path / "b"), Damaged).startswith(f"{where}/{said}")
    assert complete_checkpoints(tmp_path / "b") == []


@pytest.mark.parametrize("name", ["../../stolen", "deep/../a.pt", "/absolute"])
def test_a_copy_that_leads_out_of_its_folder_is_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    remote = remote_of(tmp_path / "away")
    remote.upload(save(tmp_path / "a", 1))
    name = f"{tmp_path}/absolute" if name == "/absolute" else name
    record = FileRecord(bytes=500, sha256="0" * 64)
    manifest = tmp_path / "away" / step_name(1) / MANIFEST
    manifest.write_text(seal(manifest_of(1, {name: record})))
    fetched: list[Path] = []
    # An object store may hold a file of any name.
    monkeypatch.setattr(remote.files, "sizes", lambda _: {name: 500})
    monkeypatch.setattr(remote.files, "download", lambda _, path, *__: fetched.append(path))
    assert name in refusal(lambda: remote.fetch(1, tmp_path / "b"), Damaged)
    assert fetched == []


def test_a_link_in_the_place_of_the_fetched_is_not_followed(tmp_path: Path) -> None:
    remote = remote_of(tmp_path / "away")
    remote.upload(save(tmp_path / "a", 1))
    (tmp_path / "mine").mkdir()
    (tmp_path / "b/checkpoints").mkdir(parents=True)
    (tmp_path / "b/checkpoints" / f"{step_name(1)}.tmp").symlink_to(tmp_path / "mine")
    path = remote.fetch(1, tmp_path / "b")
    assert not path.is_symlink()
    assert contents(path) == contents(tmp_path / "a/checkpoints" / step_name(1))
    assert contents(tmp_path / "mine") == {}


def test_a_fetch_that_broke_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = remote_of(tmp_path / "away", attempts=1)
    remote.upload(save(tmp_path / "a", 1))
    fetched: list[str] = []
    whole = remote.files.download

    def download(name: str, *rest: Any) -> None:
        if not name.endswith(("/a.pt", "/b.pt")):
            while len(fetched) < 2:  # these two are under way at the same time
                time.sleep(0.001)
            raise RunError("the line is cut")
        whole(name, *rest)
        fetched.append(name)

    monkeypatch.setattr(remote.files, "download", download)
    refusal(lambda: remote.fetch(1, tmp_path / "b"), RunError)
    assert complete_checkpoints(tmp_path / "b") == []
    assert len(fetched) == 2
    flip(tmp_path / "b/checkpoints" / f"{step_name(1)}.tmp" / "b.pt")
    monkeypatch.setattr(remote.files, "download", whole)
    seen: list[str] = []
    chunks = remote.files._source.chunks

    def watched(name: str, *rest: Any) -> Any:
        seen.append(name)
        return chunks(name, *rest)

    monkeypatch.setattr(remote.files._source, "chunks", watched)
    path = remote.fetch(1, tmp_path / "b")
    assert contents(path) == contents(tmp_path / "a/checkpoints" / step_name(1))
    again = ["b.pt", "deep/c.pt", "deep/d", "e", MANIFEST]
    assert sorted(seen) == [f"{step_name(1)}/{name}" for name in again]


def test_a_reading_that_breaks_off_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = remote_of(tmp_path / "away")
    path = save(tmp_path / "a", 1, {"big": bytes(range(256)) * (3 << 12)})  # several pieces
    remote.upload(path)
    whole, broken = remote.files._source.chunks, [True]

    def chunks(name: str, *rest: Any) -> Iterator[bytes]:
        for piece in whole(name, *rest):
            yield piece
            if name.endswith("big") and broken and broken.pop():
                raise RemoteFault("the line is cut")

    monkeypatch.setattr(remote.files._source, "chunks", chunks)
    assert contents(remote.fetch(1, tmp_path / "b")) == contents(path)
    assert broken == []


@pytest.mark.parametrize("n_spoilt, n_readings", [(1, 2), (9, 2)])
def test_bytes_that_the_line_made_wrong_are_read_once_more(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    n_spoilt: int,
    n_readings: int,
) -> None:
    """A good copy is not given up for the line; a damaged one is not read eight times."""
    remote = remote_of(tmp_path / "away", attempts=8)
    path = save(tmp_path / "a", 1)
    remote.upload(path)
    whole, readings = remote.files._source.chunks, []

    def chunks(name: str, *rest: Any) -> Iterator[bytes]:
        content = b"".join(whole(name, *rest))
        if name.endswith("b.pt"):
            readings.append(name)
            content = content[::-1] if len(readings) <= n_spoilt else content
        yield content

    monkeypatch.setattr(remote.files._source, "chunks", chunks)
    if n_spoilt < n_readings:
        assert contents(remote.fetch(1, tmp_path / "b")) == contents(path)
    else:
        refusal(lambda: remote.fetch(1, tmp_path / "b"), Damaged)
    assert len(readings) == n_readings
    where = f"{tmp_path}/away/{step_name(1)}/b.pt"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {where}: sha256 ")
    assert line.endswith(": attempt 2 of 2 in 0.0 s")


def test_what_had_its_name_is_quarantined(tmp_path: Path) -> None:
    remote = remote_of(tmp_path / "away")
    remote.upload(save(tmp_path / "a", 1))
    flip(save(tmp_path / "b", 1) / MANIFEST)
    path = remote.fetch(1, tmp_path / "b")
    assert contents(path) == contents(tmp_path / "a/checkpoints" / step_name(1))
    others = [other.name for other in path.parent.iterdir() if other != path]
    assert len(others) == 1
    assert others[0].startswith(f"{path.name}.damaged")


def test_pruning_keeps_the_asked_and_the_newest(remote: RemoteCheckpoints, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        remote.upload(save(tmp_path, step))
    watched = Watched(remote)
    watched.fail_after = 2
    refusal(lambda: remote.upload(save(tmp_path, 5)), RunError)
    watched.removed.clear()
    remote.prune({2})
    assert remote.complete() == [4, 2]
    assert watched.removed[:2] == [f"00000005/{MANIFEST}", "00000005"]  # unfinished
    assert watched.removed[2:] == [
        word for step in (3, 1) for word in (f"{step:08d}/{MANIFEST}", f"{step:08d}")
    ]
    assert remote.files.sizes(step_name(5)) == {}
    remote.prune(())
    assert remote.complete() == [4]


def test_a_link_among_the_copies_is_left_alone(tmp_path: Path) -> None:
    remote = remote_of(tmp_path / "away")
    remote.upload(save(tmp_path / "a", 2))
    mine = save(tmp_path / "mine", 1)
    (tmp_path / "away" / step_name(1)).symlink_to(mine)
    assert remote.complete() == [2]
    remote.prune(())
    assert len(contents(mine)) == len(FILES) + 1


def test_what_is_damaged_here_is_not_copied(tmp_path: Path) -> None:
    remote = remote_of(tmp_path / "away")
    path = save(tmp_path, 1)
    (path / "b.pt").write_bytes(b"short")
    assert refusal(lambda: remote.upload(path), RunError) == (
        f"{tmp_path}/away/{step_name(1)}/b.pt: 5 bytes, expected 400 once it was copied."
    )
    (path / "b.pt").unlink()
    message = f"{path}/b.pt: not there; the checkpoint is not copied."
    assert refusal(lambda: remote.upload(path), RunError) == message
    (path / "b.pt").symlink_to(tmp_path / "secret")
    (tmp_path / "secret").write_bytes(FILES["b.pt"])
    assert refusal(lambda: remote.upload(path), RunError) == message
    flip(path / MANIFEST)
    assert refusal(lambda: remote.upload(path), RunError) == (
        f"{path}/{MANIFEST}: damaged; the checkpoint is not copied."
    )
    (path / MANIFEST).unlink()
    assert refusal(lambda: remote.upload(path), RunError) == (
        f"{path}/{MANIFEST}: No such file or directory; the checkpoint is not copied."
    )
    assert remote.complete() == []


def test_addresses_that_cannot_be_used() -> None:
    for address in ("http://host/x", "https://me:secret@host/x?signature=1"):
        message = refusal(lambda address=address: remote_of(address), UserError)
        assert message.endswith(": cannot be written to. Give s3://, gs:// or a path.")
        assert "secret" not in message
        assert "signature" not in message
    assert refusal(lambda: remote_of("s4://b/x")).startswith("s4://b/x: no kind of addr")


def test_a_full_disk_here_is_said_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = remote_of(tmp_path / "away")
    remote.upload(save(tmp_path / "a", 1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def refused(*_: object) -> None:
        raise RunError("the disk is full, in the middle of a file.")

    with monkeypatch.context() as patch:
        patch.setattr(remote_files, "write_all", refused)
        message = refusal(lambda: remote.fetch(1, tmp_path / "b"), RunError)
    assert message == "the disk is full, in the middle of a file."
    monkeypatch.setattr(remote_checkpoints, "write_durably", full)
    message = refusal(lambda: remote.fetch(1, tmp_path / "b"), RunError)
    assert "the disk is full" in message
    assert complete_checkpoints(tmp_path / "b") == []
    (tmp_path / "c").write_text("a file where the run should be")
    assert refusal(lambda: remote.fetch(1, tmp_path / "c"), RunError).endswith(
        "cannot be written (Not a directory). Mend it, then give the same command again."
    )
    assert capsys.readouterr().err == ""
