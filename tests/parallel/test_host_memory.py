"""The memory of the machine, and of a container, as the kernel tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.parallel import host_memory
from gpt2_ds.parallel.host_memory import free_memory, total_memory


def of_machine(key: str) -> int:
    words = Path("/proc/meminfo").read_text().split()
    return int(words[words.index(key) + 1]) * 1024


def test_a_machine_without_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
    assert total_memory() == of_machine("MemTotal:")
    assert free_memory() == pytest.approx(of_machine("MemAvailable:"), rel=0.05)
    (tmp_path / "memory.max").write_text("max\n")
    assert total_memory() == of_machine("MemTotal:")


@pytest.mark.parametrize(
    "current, inactive, free",
    [("400000", "100000", 700_000), ("1200000", "100000", 0), (None, None, 1_000_000)],
)
def test_a_container(
    current: str | None,
    inactive: str | None,
    free: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000000\n")
    if current is not None:
        (tmp_path / "memory.current").write_text(f"{current}\n")
        (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nslab 7\n")
    assert (total_memory(), free_memory()) == (1_000_000, free)


def test_a_container_of_the_older_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("2000000\n")
    assert (total_memory(), free_memory()) == (2_000_000, 2_000_000)
