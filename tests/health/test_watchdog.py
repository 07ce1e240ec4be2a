"""Real ranks are killed, stopped and left hanging; the watchdog says which, and ends the job."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from gpt2_ds.health.stacks import Stacks
from gpt2_ds.health.watchdog import Watchdog
from tests.health.watched_ranks import Ranks
from tests.ranks import run_ranks

pytestmark = pytest.mark.heavy
LONG_MATRIX = pytest.param(0, marks=pytest.mark.faults)  # rank 0, which holds the store
TIMEOUT_SECONDS = 8.0


def named(ranks: Ranks, rank: int) -> str:
    pid = (ranks.run_dir / f"rank{rank}").read_text()
    return f"rank {rank} on {os.uname().nodename} (pid {pid})"


@pytest.mark.parametrize("victim", [LONG_MATRIX, 1])
def test_a_killed_rank_is_named_by_the_one_that_waits_for_it(tmp_path: Path, victim: int) -> None:
    """gloo notices, and the main thread asks what happened."""
    with Ranks(tmp_path, "run", "run") as ranks:
        ranks.wait_for_step_3()
        ranks.send(victim, signal.SIGKILL)
        ends = ranks.ends(seconds=15)
        code, error = ends[1 - victim]
        assert ends[victim][0] == -signal.SIGKILL
        assert code == 1
        assert f"{named(ranks, victim)} was killed or died in step " in error
        assert error.count("was killed or died") == 1


@pytest.mark.parametrize("victim", [LONG_MATRIX, 1])
def test_a_killed_rank_is_named_where_nothing_else_notices(tmp_path: Path, victim: int) -> None:
    """As under NCCL: the main thread is in the middle of something."""
    deeds = ["apart"] * 3
    deeds[victim] = "hang"
    with Ranks(tmp_path, *deeds) as ranks:
        ranks.wait_for_step_3()
        time.sleep(3.0)  # a rank says every half second where it is
        ranks.send(victim, signal.SIGKILL)
        ends = ranks.ends(seconds=15)
        others = [end for rank, end in enumerate(ends) if rank != victim]
        assert [code for code, _ in others] == [1, 1]
        said = [error for _, error in others if "error:" in error]
        assert len(said) == 1
        sentence = f"error: {named(ranks, victim)} was killed or died in step 3 while waiting for"
        assert sentence in said[0]


def test_under_nccl_a_killed_rank_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own thread may abort the process soon after."""
    monkeypatch.setenv("BACKEND", "nccl")
    with Ranks(tmp_path, "apart", "hang") as ranks:
        ranks.wait_for_step_3()
        time.sleep(3.0)  # a rank says every half second where it is
        ranks.send(1, signal.SIGKILL)
        (code, error), _ = ranks.ends(seconds=15)  # without a grace for the main thread
        assert code == 1
        assert f"error: {named(ranks, 1)} was killed or died in step 3" in error


@pytest.mark.parametrize(
    "deeds",
    [
        ("apart", "fail"),
        pytest.param(("fail", "apart"), marks=pytest.mark.faults),
        pytest.param(("run", "fail"), marks=pytest.mark.faults),
    ],
)
def test_a_rank_that_fails_alone_ends_the_others(tmp_path: Path, deeds: tuple[str, str]) -> None:
    failing = deeds.index("fail")
    with Ranks(tmp_path, *deeds) as ranks:
        ends = ranks.ends(seconds=60)
        assert [code for code, _ in ends] == [1, 1]
        assert "the disk is full" in ends[failing][1]
        assert f"{named(ranks, failing)} failed in step 3" in ends[1 - failing][1]
        assert "killed" not in ends[1 - failing][1]


@pytest.mark.parametrize("victim", [LONG_MATRIX, 1])
def test_a_stopped_rank_is_named_and_all_write_their_stacks(tmp_path: Path, victim: int) -> None:
    with Ranks(tmp_path, "run", "run", timeout_seconds=TIMEOUT_SECONDS) as ranks:
        ranks.wait_for_step_3()
        time.sleep(1.0)
        ranks.send(victim, signal.SIGSTOP)
        ends = ranks.ends(seconds=TIMEOUT_SECONDS + 10)
        assert [code for code, _ in ends] == [1, 1]
        error = ends[1 - victim][1]
        assert f"error: {named(ranks, victim)} is stopped or stuck: nothing was heard of" in error
        assert f"The stacks of all ranks are in {tmp_path}/logs. " in error
        assert "error" not in ends[victim][1]
        for rank in (0, 1):
            stacks = (tmp_path / f"logs/stacks_rank_0000{rank}.txt").read_text()
            assert stacks.startswith(named(ranks, rank))
            assert " in steps\n" in stacks


def test_a_rank_without_a_running_thread_is_written_down_and_killed(tmp_path: Path) -> None:
    with Ranks(tmp_path, "run", "hold", timeout_seconds=TIMEOUT_SECONDS) as ranks:
        (zero, error), (one, _) = ranks.ends(seconds=90)
        assert (zero, one) == (1, -signal.SIGKILL)
        assert f"{named(ranks, 1)} is stopped or stuck" in error
        assert " in steps\n" in (tmp_path / "logs/stacks_rank_00001.txt").read_text()


def test_a_hanging_main_thread_is_named(tmp_path: Path) -> None:
    with Ranks(tmp_path, "run", "hang", timeout_seconds=TIMEOUT_SECONDS) as ranks:
        ranks.wait_for_step_3()
        (zero, error), (one, nothing) = ranks.ends(seconds=TIMEOUT_SECONDS + 10)
        assert (zero, one) == (1, 1)
        hangs = f"error: {named(ranks, 1)} hangs in step 3 while waiting for data: nothing was done"
        assert hangs in error
        assert f"health.timeout_seconds is {TIMEOUT_SECONDS:g}." in error
        assert "error" not in nothing


def test_a_hanging_rank_alone_on_its_host_ends_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTS", "one each")
    with Ranks(tmp_path, "run", "hang", timeout_seconds=TIMEOUT_SECONDS) as ranks:
        ranks.wait_for_step_3()
        (zero, error), (one, _) = ranks.ends(seconds=TIMEOUT_SECONDS + 10)
        assert (zero, one) == (1, 1)
        pid = (tmp_path / "rank1").read_text()
        assert f"error: rank 1 on host1 (pid {pid}) hangs in step 3 while waiting" in error
        for rank in (0, 1):
            stacks = (tmp_path / f"logs/stacks_rank_0000{rank}.txt").read_text()
            assert " in steps\n" in stacks


def test_a_stopped_rank_alone_on_its_host_is_named_and_ends_once_it_is_woken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOSTS", "one each")
    with Ranks(tmp_path, "run", "run", timeout_seconds=TIMEOUT_SECONDS) as ranks:
        ranks.wait_for_step_3()
        time.sleep(1.0)
        ranks.send(1, signal.SIGSTOP)
        assert ranks.processes[0].wait(TIMEOUT_SECONDS + 10) == 1
        pid = (tmp_path / "rank1").read_text()
        ranks.send(1, signal.SIGCONT)
        (_, error), (one, _) = ranks.ends(seconds=20)
        assert f"error: rank 1 on host1 (pid {pid}) is stopped or stuck" in error
        ends = f"no other rank is there to end it: `kill -9 {pid}` on host1, if it outlives the"
        assert ends in error
        assert one == 1


def test_all_hang_at_one_point(tmp_path: Path) -> None:
    with Ranks(tmp_path, "hang", "hang", timeout_seconds=TIMEOUT_SECONDS) as ranks:
        ranks.wait_for_step_3()
        (zero, error), (one, nothing) = ranks.ends(seconds=TIMEOUT_SECONDS + 10)
        assert (zero, one) == (1, 1)
        assert "error: all ranks hang in step 3 while waiting for data" in error
        assert "error" not in nothing


@pytest.mark.parametrize("early", [LONG_MATRIX, 1])
def test_leaving_early_is_no_death(tmp_path: Path, early: int) -> None:
    deeds = ["apart"] * 3
    deeds[early] = "leave"
    with Ranks(tmp_path, *deeds) as ranks:
        ranks.wait_for_step_3()
        assert ranks.processes[early].wait(20) == 0
        time.sleep(6.0)
        (tmp_path / "go").touch()
        assert [code for code, _ in ranks.ends(seconds=30)] == [0, 0, 0]
        assert not list((tmp_path / "logs").iterdir())


def test_a_job_that_was_suspended_goes_on(tmp_path: Path) -> None:
    with Ranks(tmp_path, "run", "run", timeout_seconds=TIMEOUT_SECONDS) as ranks:
        ranks.wait_for_step_3()
        for rank in (0, 1):
            ranks.send(rank, signal.SIGSTOP)
        time.sleep(TIMEOUT_SECONDS + 2)
        for rank in (0, 1):
            ranks.send(rank, signal.SIGCONT)
        assert [code for code, _ in ranks.ends(seconds=90)] == [0, 0]


def _alone(run_dir: Path) -> float:
    """Seconds of a mark; and errors that no rank's end explains."""
    with Watchdog(run_dir, 60) as watchdog:
        began = time.monotonic()
        assert watchdog.what_happened(RuntimeError("Connection closed")) is None
        assert time.monotonic() - began < 6
        began = time.monotonic()
        assert watchdog.what_happened(ValueError("x")) is None
        assert time.monotonic() - began < 1
        seconds = []
        for _ in range(20):
            began = time.perf_counter()
            for step in range(1000):
                watchdog.mark(step // 4, "averaging")
            seconds.append((time.perf_counter() - began) / 1000)
        assert watchdog._mark[:3] == (249, 4, "averaging")
        return min(seconds)


def test_one_rank_and_the_cost_of_a_mark(tmp_path: Path) -> None:
    (seconds,) = run_ranks(_alone, 1, tmp_path, tmp_path)
    assert seconds < 2e-6
    assert list((tmp_path / "logs").iterdir()) == []


def test_stacks_of_an_earlier_attempt_stay(tmp_path: Path) -> None:
    path = tmp_path / "logs/stacks_rank_00000.txt"
    for title in ("first", "second"):
        stacks = Stacks(path)
        stacks.open()
        stacks.dump(title)
        stacks.close()
    text = path.read_text()
    assert text.index("first, ") < text.index("second, ")
    assert text.count("test_stacks_of_an_earlier_attempt_stay") == 2


def test_where_no_file_can_be_made_stderr_gets_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").touch()
    stacks = Stacks(tmp_path / "logs/stacks.txt")
    with capfd.disabled():
        pass
    stacks._file = open(os.dup(2), "w")  # noqa: SIM115, PTH123  pytest's own has no number
    stacks.open()
    stacks.dump("here")
    stacks.close()
    assert "here, " in capfd.readouterr().err


def test_the_same_words_again_are_no_other_point() -> None:
    watchdog = Watchdog.__new__(Watchdog)
    watchdog._mark = (0, 0, "", 0.0)
    places = []
    for say in (
        lambda: watchdog.mark(7, "saving"),
        watchdog.heartbeat.of_main_thread("writing a").beat,
        watchdog.heartbeat.of_main_thread("writing a").beat,
        watchdog.heartbeat.of_main_thread("writing b").beat,
        lambda: watchdog.mark(7, "writing b"),
    ):
        before = watchdog._mark[3]
        say()
        places.append(watchdog._mark[:3])
        assert watchdog._mark[3] > before
    assert places == [
        (7, 1, "saving"),
        (7, 2, "writing a"),
        (7, 2, "writing a"),
        (7, 3, "writing b"),
        (7, 4, "writing b"),
    ]


def test_a_rank_is_behind_while_it_works_alone() -> None:
    """Ranks write different numbers of files; afterwards all are at one point again."""
    watchdog = Watchdog.__new__(Watchdog)
    watchdog._mark = (7, 4, "saving", 0.0)
    places = []
    for doing, alone in (
        ("a", True),
        ("a", True),
        ("saving", False),
        ("b", True),
        ("saving", False),
    ):
        watchdog.heartbeat.of_main_thread(doing, alone=alone).beat()
        places.append(watchdog._mark[:2])
    assert places == [(7, 3), (7, 3), (7, 4), (7, 3), (7, 4)]
