from __future__ import annotations

import errno
import threading

import pytest

from gpt2_ds.record.terminal import say, say_file_trouble, warn_on_rank_0


def test_what_all_ranks_know_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, expected in (("0", ("step 3\n", "warning: slow\n")), ("1", ("", ""))):
        monkeypatch.setenv("RANK", rank)
        say("step 3")
        warn_on_rank_0("slow")
        assert capsys.readouterr() == expected


def test_a_full_disk_in_a_thread_of_a_library_is_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def raised(error: Exception) -> str:
        say_file_trouble(threading.ExceptHookArgs((type(error), error, None, None)))
        return capsys.readouterr().err

    full = OSError(errno.ENOSPC, "No space left on device", "runs/x/events")
    said = raised(full)
    assert said.startswith("warning: ")
    assert "runs/x/events" in said
    assert said.count("\n") == 1
    assert "ValueError: of another kind" in raised(ValueError("of another kind"))
