"""Which beats the watchdog hears, and as what."""

from __future__ import annotations

import pytest

from gpt2_ds.files.heartbeat import UNHEARD, Heartbeat

Heard = list[tuple[str, bool]]


@pytest.fixture
def heard() -> Heard:
    return []


@pytest.fixture
def heartbeat(heard: Heard) -> Heartbeat:
    return Heartbeat(lambda doing, alone: heard.append((doing, alone)))


def test_a_thread_is_heard_only_through_the_one_that_waits(
    heartbeat: Heartbeat, heard: Heard
) -> None:
    """Otherwise it would hide a main thread that hangs."""
    writing = heartbeat.during("writing a")
    for _ in range(3):
        writing.beat()
    assert heard == []
    writing.report(done=False)
    assert heard == [("writing a", False)]


def test_what_does_not_get_on_is_not_reported(heartbeat: Heartbeat, heard: Heard) -> None:
    writing = heartbeat.during("writing a")
    counts = []
    for beats, done in ((0, False), (0, False), (2, False), (0, False), (0, True), (0, True)):
        for _ in range(beats):
            writing.beat()
        writing.report(done)
        counts.append(len(heard))
    assert counts == [1, 1, 2, 2, 3, 4]  # the first says what is waited for


def test_two_works_of_one_listener_are_apart(heartbeat: Heartbeat, heard: Heard) -> None:
    one, other = heartbeat.during("writing a"), heartbeat.during("writing b")
    for work in (one, other):
        work.report(done=False)
    one.beat()
    other.report(done=False)
    one.report(done=False)
    assert [doing for doing, _ in heard] == ["writing a", "writing b", "writing a"]


@pytest.mark.parametrize("alone", [False, True])
def test_the_main_thread_is_heard_at_once(heartbeat: Heartbeat, heard: Heard, alone: bool) -> None:
    writing = heartbeat.of_main_thread("writing a", alone=alone)
    assert heard == []
    writing.beat()
    writing.beat()
    assert heard == 2 * [("writing a", alone)]


def test_where_nobody_listens_all_is_as_usual() -> None:
    UNHEARD.beat()
    UNHEARD.report(done=True)
    UNHEARD.of_main_thread("writing a").beat()
    UNHEARD.during("writing a").report(done=False)
