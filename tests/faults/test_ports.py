"""The master port is another program's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.jobs import job


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def message(port: int) -> str:
    return f"error: --master_port {port}: is in use by another process on "


@pytest.mark.heavy
def test_a_busy_port_is_named_after_the_last_restart_too(
    busy_port: int, data: Path, tmp_path: Path
) -> None:
    with job(
        tmp_path / "run", data, words=("--restarts", "1"), deepspeed=True, port=busy_port
    ) as started:
        (code,) = started.wait(60)
        text = started.text()
        assert started.left() == [], text
    assert code == 1, text
    assert text.count(message(busy_port)) == 2, text  # restarts are used up
    assert f"Give another: deepspeed --master_port {busy_port + 1} ...;" in text
    assert text.count("restart 1 of 1: the last attempt ended with exit code 1.") == 1
    assert "restart 2" not in text
    assert "Traceback" not in text


@pytest.mark.heavy
def test_a_busy_port_ends_rank_0(busy_port: int, data: Path, tmp_path: Path) -> None:
    with job(tmp_path / "run", data, port=busy_port) as started:
        assert started.processes[0].wait(60) == 1
        text = started.text()
    assert text.count(message(busy_port)) == 1, text
    assert "Traceback" not in text
