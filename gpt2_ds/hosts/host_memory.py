"""The memory of this machine, or of what limits this process where that has less."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def total_memory() -> int:
    """Bytes that there are."""
    return min([_meminfo("MemTotal"), *(limit for limit, _ in _limits())])


def free_memory() -> int:
    """Bytes that can be taken."""
    return min([_meminfo("MemAvailable"), *(max(0, limit - used) for limit, used in _limits())])


def _meminfo(key: str) -> int:
    with Path("/proc/meminfo").open(encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def _limits() -> list[tuple[int, int]]:
    """Bytes that may be used and that are, of each control group around this process with a limit.

    A container shows its own as the root; Slurm and systemd set theirs on groups further down.
    """
    found = []
    for group, limit, usage, inactive in _groups():
        try:
            bytes_limit = int((group / limit).read_text(encoding="ascii"))
        except (OSError, ValueError):  # another kind of group, or "max"
            continue
        found.append((bytes_limit, _used(group, usage, inactive)))
    return found


def _groups() -> Iterator[tuple[Path, str, str, str]]:
    """Folders that may hold a limit, with the names of limit, usage and cached files in there."""
    try:
        lines = _OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    own = {"": "", "memory": ""}  # by controller; "" is version 2
    own |= {
        controller: path
        for _, controllers, path in (line.split(":", 2) for line in lines)
        for controller in controllers.split(",")
    }
    for folder in _up_from(_CGROUP, own[""]):
        yield folder, "memory.max", "memory.current", "inactive_file"
    for folder in _up_from(_CGROUP / "memory", own["memory"]):
        yield folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


def _up_from(root: Path, own: str) -> list[Path]:
    """The folder of a group and of all above it; those that a container does not show fail to open.

    >>> [str(folder) for folder in _up_from(Path("/sys"), "/slurm/job_1")]
    ['/sys/slurm/job_1', '/sys/slurm', '/sys']
    """
    inside = root / own.strip("/")
    return [inside, *(parent for parent in inside.parents if parent.is_relative_to(root))]


def _used(group: Path, usage: str, inactive: str) -> int:
    """Bytes that a group uses; 0 where it cannot be told."""
    try:
        used = int((group / usage).read_text(encoding="ascii"))
        statistics = (group / "memory.stat").read_text(encoding="ascii").split()
        # Files that were read stay in memory until it is needed.
        return used - int(statistics[statistics.index(inactive) + 1])
    except (OSError, ValueError):
        return 0
