"""The memory of this machine, or of the container that this process is in where it has less."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # version 2, version 1


def total_memory() -> int:
    """Bytes that there are."""
    return min([_meminfo("MemTotal"), *_limits()])


def free_memory() -> int:
    """Bytes that can be taken."""
    free = _meminfo("MemAvailable")
    for limit in _limits():
        free = min(free, max(0, limit - _used()))
    return free


def _meminfo(key: str) -> int:
    with Path("/proc/meminfo").open(encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def _limits() -> list[int]:
    """Bytes that the container may use; empty where nothing limits it."""
    found = []
    for name in _LIMITS:
        try:
            found.append(int((_CGROUP / name).read_text(encoding="ascii")))
        except (OSError, ValueError):  # another kind of container, or "max"
            continue
    return found


def _used() -> int:
    """Bytes that the container uses; 0 where it cannot be told."""
    try:
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        statistics = (_CGROUP / "memory.stat").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return 0
    # Files that were read stay in memory until it is needed.
    return used - int(statistics[statistics.index("inactive_file") + 1])
