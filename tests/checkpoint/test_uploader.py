"""Uploads behind the training: one at a time, the newest waits, a failure is seen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpt2_ds.checkpoint.manifest import step_name
from gpt2_ds.checkpoint.remote import RemoteCheckpoints, Uploader
from gpt2_ds.config.errors import RunError
from tests.checkpoint.saved_files import FILES, save


class Gated(RemoteCheckpoints):
    """Uploads only while the gate is open."""

    def __init__(self, address: Path) -> None:
        super().__init__(str(address), attempts=1)
        self.gate, self.at_once = threading.Event(), 0
        self.begun: list[Path] = []
        self.error: Exception | None = None
        self._inside = 0

    def upload(self, checkpoint: Path) -> None:
        self._inside += 1
        self.at_once = max(self.at_once, self._inside)
        self.begun.append(checkpoint)
        try:
            assert self.gate.wait(20)
            if self.error is not None:
                raise self.error
            super().upload(checkpoint)
        finally:
            self._inside -= 1


@pytest.fixture
def remote(tmp_path: Path) -> Gated:
    return Gated(tmp_path / "away")


@pytest.fixture
def uploader(remote: Gated) -> Iterator[Uploader]:
    uploader = Uploader(remote)
    yield uploader
    remote.gate.set()
    uploader.close()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_the_newest_waits_and_the_others_go(
    remote: Gated, uploader: Uploader, tmp_path: Path
) -> None:
    assert uploader.busy is None
    assert uploader.idle
    paths = [save(tmp_path, step) for step in (1, 2, 3, 4)]
    uploader.submit(paths[0])
    wait_until(lambda: uploader.busy == paths[0])
    for path in paths[1:]:
        uploader.submit(path)
    assert uploader.busy == paths[0]
    assert not uploader.idle
    remote.gate.set()
    uploader.close()
    assert remote.begun == [paths[0], paths[3]]
    assert (remote.at_once, uploader.busy) == (1, None)
    assert remote.complete() == [4, 1]


def test_older_copies_go_when_a_newer_one_is_complete(
    remote: Gated, uploader: Uploader, tmp_path: Path
) -> None:
    remote.gate.set()
    for step, gone, keep in ((1, [], {1}), (2, [], {1, 2}), (3, [2], {1, 3}), (4, [1, 9], {3, 4})):
        uploader.submit(save(tmp_path, step), gone)
        wait_until(lambda step=step: step in remote.complete() and uploader.busy is None)
        wait_until(lambda keep=keep: set(remote.complete()) == keep)


@pytest.mark.parametrize("error", [RunError("the line is cut."), ValueError("strange.")])
def test_a_failure_is_said_and_the_next_one_mends_it(
    remote: Gated,
    uploader: Uploader,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    remote.gate.set()
    remote.error = error
    uploader.submit(save(tmp_path, 1))
    wait_until(lambda: uploader.idle)
    assert capsys.readouterr().err == (
        f"warning: {error} There is no copy of {step_name(1)}; training continues.\n"
    )
    remote.error = None
    uploader.submit(save(tmp_path, 2))
    wait_until(lambda: remote.complete() == [2])
    uploader.close()
    assert capsys.readouterr().err == ""


def test_closing_waits_for_what_was_submitted(remote: Gated, tmp_path: Path) -> None:
    uploader = Uploader(remote)
    uploader.submit(save(tmp_path, 1))
    threading.Timer(0.1, remote.gate.set).start()
    uploader.close()
    assert remote.complete() == [1]
    Uploader(remote).close()  # nothing was: at once


def test_closing_does_not_wait_for_ever(
    remote: Gated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uploader = Uploader(remote)
    uploader.submit(save(tmp_path, 1))
    began = time.monotonic()
    uploader.close(wait_seconds=0.1)
    assert 0.1 <= time.monotonic() - began < 5
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}/away: the copy of the newest checkpoint is not complete\n"
    )
    remote.gate.set()


def test_closing_ends_the_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = RemoteCheckpoints(str(tmp_path / "away"), attempts=100, first_delay_seconds=20)
    tried: list[str] = []

    def broken(local: str, path: str, callback: object) -> None:
        tried.append(path)
        raise OSError(5, "the line is cut")

    monkeypatch.setattr(remote.files._files, "put_file", broken)
    uploader = Uploader(remote)
    uploader.submit(save(tmp_path, 1))
    wait_until(lambda: bool(tried))
    uploader.close(wait_seconds=0.01)
    wait_until(lambda: uploader.busy is None)
    assert 1 <= len(tried) == len(set(tried)) < len(FILES)  # two at a time, each once
    assert "There is no copy" not in capsys.readouterr().err  # said once, by `close`
