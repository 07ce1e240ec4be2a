"""The memory of the machine, and of a container, as the kernel tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.hosts import host_memory
from gpt2_ds.hosts.host_memory import free_memory, total_memory


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
    (tmp_path / "memory/memory.usage_in_bytes").write_text("1500000\n")
    (tmp_path / "memory/memory.stat").write_text("inactive_file 9\ntotal_inactive_file 200000\n")
    assert (total_memory(), free_memory()) == (2_000_000, 700_000)


@pytest.mark.parametrize(
    "own, folder, names",
    [
        ("0::/slurm/job_7/step_0/task_0\n", "slurm/job_7", ("memory.max", "memory.current")),
        (
            "9:cpu:/other\n8:hugetlb,memory:/slurm/uid_0/job_7\n0::/\n",
            "memory/slurm/uid_0/job_7",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ),
        ("0::/user.slice/run-1.scope\n", "user.slice/run-1.scope", ("memory.max", "none")),
    ],
)
def test_a_limit_of_slurm_or_systemd(
    own: str,
    folder: str,
    names: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a group of this process or above it; the narrowest counts."""
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory, "_OWN", tmp_path / "own")
    (tmp_path / "own").write_text(own)
    group = tmp_path / "cgroup" / folder
    group.mkdir(parents=True)
    (group / names[0]).write_text("3000000\n")
    (group.parent / names[0]).write_text("9223372036854771712\n")  # version 1's word for none
    used = 0
    if names[1] != "none":
        (group / names[1]).write_text("1000000\n")
        (group / "memory.stat").write_text("inactive_file 0\ntotal_inactive_file 0\n")
        used = 1_000_000
    assert (total_memory(), free_memory()) == (3_000_000, 3_000_000 - used)


def test_beside_a_group_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory, "_OWN", tmp_path / "own")
    (tmp_path / "own").write_text("0::/a\n")
    for folder in (tmp_path, tmp_path / "cgroup/b"):
        folder.mkdir(exist_ok=True, parents=True)
        (folder / "memory.max").write_text("1000\n")
    assert total_memory() == of_machine("MemTotal:")
