"""What a user is told, and with which exit code."""

from __future__ import annotations

import io
import sys

import pytest

from gpt2_ds.config import errors
from gpt2_ds.config.errors import (
    Fault,
    RunError,
    UserError,
    exit_code_of,
    nearest,
    on_all_ranks,
    user_error,
    warn,
)


def test_a_fault_is_file_key_what_fix() -> None:
    fault = Fault("recipes/x.yaml: model.n_head", "5 does not divide 64.", "Set it to 4.")
    assert str(fault) == "recipes/x.yaml: model.n_head: 5 does not divide 64. Set it to 4."


def test_a_user_error_holds_all_faults() -> None:
    faults = [Fault("a", "b", "c."), Fault("d", "e", "f.")]
    error = UserError(*faults)
    assert error.faults == tuple(faults)
    assert str(error) == "a: b. c.\nd: e. f."
    assert user_error("a", "b", "c.").faults == (faults[0],)


def test_nearest() -> None:
    assert nearest("n_haed", ["n_layer", "n_head"]) == "Did you mean n_head?"
    assert nearest("zzz", ["b", "a"]) == "Known here: a, b."


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr(errors.time, "sleep", taken.append)
    monkeypatch.delenv("RANK", raising=False)
    return taken


def refused() -> int:
    raise UserError(Fault("a", "b", "c."), Fault("d", "e", "f."))


def failed() -> int:
    raise RunError("the loss is NaN")


def test_the_command_gives_the_code(naps: list[float]) -> None:
    assert exit_code_of(lambda: 75) == 75
    assert naps == []


def test_a_wrong_input_is_code_2(naps: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(refused) == 2
    assert capfd.readouterr() == ("", "error: a: b. c.\nerror: d: e. f.\n")
    assert naps == []


def test_a_failed_run_is_code_1(naps: list[float], capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_code_of(failed) == 1
    assert capfd.readouterr() == ("", "error: the loss is NaN\n")


@pytest.mark.parametrize("command, code", [(refused, 2), (failed, 1)])
def test_another_rank_speaks_only_if_it_outlives_rank_0(
    naps: list[float],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: object,
    code: int,
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert exit_code_of(command) == code  # type: ignore[arg-type]
    assert naps == [4.0]  # in which a launcher ends it, if rank 0 found the same
    assert capfd.readouterr().err.startswith("error (rank 3): ")


@pytest.mark.parametrize("rank, said", [("0", "error: together\n"), ("3", "")])
@pytest.mark.parametrize("kind", [UserError, RunError])
def test_what_all_ranks_agreed_on_is_said_once(
    naps: list[float],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Exception],
    rank: str,
    said: str,
) -> None:
    error = RunError("together") if kind is RunError else UserError(Fault("together", "", ""))

    def together() -> int:
        raise on_all_ranks(error)

    monkeypatch.setenv("RANK", rank)
    assert exit_code_of(together) == (1 if kind is RunError else 2)
    assert capfd.readouterr().err.replace(": . ", "") == said


def test_a_bug_keeps_its_traceback(naps: list[float]) -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code_of(lambda: 1 // 0)


def test_a_warning_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    warn("a: is slow. Look at it.")
    assert capsys.readouterr() == ("", "warning: a: is slow. Look at it.\n")


def test_a_warning_is_written_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of two threads do not mix in a line."""
    stream, written = io.StringIO(), []
    monkeypatch.setattr(stream, "write", written.append)
    monkeypatch.setattr(sys, "stderr", stream)
    warn("slow")
    assert written == ["warning: slow\n"]
