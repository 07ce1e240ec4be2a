"""What follows from the ranks' statuses: who died, who hangs, and nobody when all is well."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.health.rank_status import (
    Diagnosis,
    RankProcess,
    Status,
    find_end,
    find_hang,
)
from gpt2_ds.hosts.process import Process

RANKS = [
    RankProcess(rank, f"host{rank // 2}", f"place{rank // 2}", Process(100 + rank, 1))
    for rank in range(4)
]
GOING = Status(number=9, step=7, marks=2, doing="averaging")


def test_a_status_comes_back() -> None:
    status = Status(3, 4, 5, "saving", 0.5, "left", [1, 2], heard=True)
    assert Status.from_json(status.to_json()) == status
    diagnosis = Diagnosis("dead", [1], "rank 1 died")
    assert Diagnosis.from_json(diagnosis.to_json()) == diagnosis


def test_the_dead_are_named() -> None:
    seen = Status(gone=[1, 3])
    found = find_end(RANKS, [GOING, GOING, seen, Status(step=2, doing="saving")])
    assert found is not None
    assert found.kind == "dead"
    assert found.ranks == [1, 3]
    assert found.sentence == (
        "rank 1 on host0 (pid 101) was killed or died in step 7 while averaging; rank 3 on host1 "
        "(pid 103) was killed or died in step 2 while saving. `dmesg` on host0 and host1 shows "
        "whether the memory ran out. The same command resumes from the last complete checkpoint."
    )


def test_who_left_before_is_not_dead() -> None:
    seen = Status(gone=[1, 3])
    assert find_end(RANKS, [GOING, Status(end="left"), seen, Status(end="dumped")]) is None


def test_an_error_of_its_own() -> None:
    failed = Status(step=7, doing="saving", end="failed")
    found = find_end(RANKS, [GOING, failed, Status(gone=[1]), GOING])
    assert found == Diagnosis(
        "failed",
        [1],
        "rank 1 on host0 (pid 101) failed in step 7 while saving; its own message says why.",
    )


def hang(statuses: list[Status], silent: list[float]) -> Diagnosis | None:
    return find_hang(RANKS, statuses, silent, 30.0)


def idle(step: int, marks: int, seconds: float, end: str | None = None) -> Status:
    return Status(1, step, marks, "averaging", seconds, end)


def test_a_silent_rank_is_named_before_those_that_wait_for_it() -> None:
    statuses = [idle(7, 2, 31.0), idle(7, 2, 31.0), idle(7, 2, 0.2), idle(7, 2, 31.0)]
    assert hang(statuses, [0.0, 0.5, 31.0, 0.5]) == Diagnosis(
        "hang",
        [2],
        "rank 2 on host1 (pid 102) is stopped or stuck: nothing was heard of it for 31 s, since "
        "step 7 while averaging",
    )


def test_of_those_that_wait_at_one_point_the_one_that_does_not_get_on_is_named() -> None:
    """They wait until all have written: the others say again and again that they still do."""
    statuses = [idle(7, 2, 0.1), idle(7, 2, 0.1), idle(7, 2, 31.0), idle(7, 2, 5.0)]
    assert hang(statuses, [0.0] * 4) == Diagnosis(
        "hang",
        [2],
        "rank 2 on host1 (pid 102) hangs in step 7 while averaging: nothing was done for 31 s",
    )


def test_who_waits_for_a_rank_that_gets_on_does_not_hang() -> None:
    """A slow disk: the others wait until all of a file is written."""
    statuses = [idle(7, 2, 31.0), idle(7, 1, 0.1), idle(7, 2, 31.0), idle(7, 2, 31.0)]
    assert hang(statuses, [0.0] * 4) is None
    assert (found := hang(statuses, [0.0, 0.0, 31.0, 0.0])) is not None
    assert found.ranks == [2]  # nothing is heard of it


def test_a_silent_rank_alone_on_its_host_is_to_be_ended_by_hand() -> None:
    statuses = [idle(7, 2, 31.0), idle(7, 2, 31.0), idle(7, 2, 0.2)]
    found = find_hang(RANKS[:3], statuses, [0.0, 0.5, 31.0], 30.0)
    assert found is not None
    assert found.sentence == (
        "rank 2 on host1 (pid 102) is stopped or stuck: nothing was heard of it for 31 s, since "
        "step 7 while averaging; no other rank is there to end it: `kill -9 102` on host1, if it "
        "outlives the launcher"
    )


def test_the_rank_that_came_least_far_is_named() -> None:
    statuses = [idle(7, 2, 31.0), idle(7, 1, 31.0), idle(7, 2, 31.0), idle(7, 2, 31.0)]
    assert hang(statuses, [0.0] * 4) == Diagnosis(
        "hang",
        [1],
        "rank 1 on host0 (pid 101) hangs in step 7 while averaging: nothing was done for 31 s",
    )
    behind = [idle(7, 1, 31.0), idle(6, 9, 31.0), idle(7, 1, 31.0), idle(6, 9, 31.0)]
    found = hang(behind, [0.0] * 4)
    assert found is not None
    assert found.ranks == [1, 3]


def test_all_at_one_point() -> None:
    found = hang([idle(7, 2, 30.0)] * 4, [0.0, 1.5, 2.0, 2.5])
    assert found == Diagnosis(
        "hang",
        [0, 1, 2, 3],
        "all ranks hang in step 7 while averaging: nothing was done for 30 s",
    )


def test_a_rank_alone_is_named() -> None:
    found = find_hang(RANKS[:1], [idle(7, 2, 40.0)], [0.0], 30.0)
    assert found is not None
    assert found.sentence.startswith("rank 0 on host0 (pid 100) hangs in step 7")


def test_one_that_is_not_heard_of_is_to_blame_at_a_common_place() -> None:
    """A stopped rank: the others wait for it where it stands, since a little longer."""
    found = hang([idle(7, 2, 22.0)] * 4, [0.5, 8.5, 0.5, 1.0])
    assert found == Diagnosis(
        "hang",
        [1],
        "rank 1 on host0 (pid 101) is stopped or stuck: nothing was heard of it for 8 s, since "
        "step 7 while averaging",
    )
    found = hang([idle(7, 2, 31.0), idle(7, 1, 31.0), *[idle(7, 2, 31.0)] * 2], [0, 0, 8.5, 0])
    assert found is not None
    assert found.ranks == [1]  # rank 2 was heard of late, and has come further


def test_who_left_hangs_no_more() -> None:
    gone = idle(1, 1, 99.0, "left")
    assert hang([gone, idle(7, 2, 1.0), idle(7, 2, 1.0), gone], [99.0, 0.0, 0.0, 99.0]) is None
    assert hang([gone] * 4, [99.0] * 4) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.floats(0, 15), st.floats(0, 15)),
        min_size=4,
        max_size=4,
    )
)
def test_nobody_hangs_before_the_timeout(rows: list[tuple[int, int, float, float]]) -> None:
    statuses = [idle(step, marks, seconds) for step, marks, seconds, _ in rows]
    assert hang(statuses, [silent for *_, silent in rows]) is None


def test_this_process_knows_itself() -> None:
    this = RankProcess.of_this_process(3)
    assert this.rank == 3
    assert this.process.lives()
    assert this.place == RankProcess.of_this_process(1).place
    assert str(this) == f"rank 3 on {this.host} (pid {this.process.pid})"
