"""Disks that are full or cannot be written to: a clear error, no hang, nothing lost."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2_ds.checkpoint.manifest import complete_checkpoints, damaged_files
from tests.checkpoint.saved_files import contents
from tests.faults.jobs import Job, family, job, losses_of

SETTINGS = (
    "schedule.total_tokens=19200",  # 75 steps
    "schedule.decay_tokens=19200",
    "evaluation.interval_steps=30",
    "checkpoint.interval_steps=15",
    "checkpoint.keep_last=100",
)
FILE_LIMIT_BYTES = 100_000  # fewer than a file of weights has


class Disk:
    """A small disk at a folder; where nobody may mount one, a limit on the size of files.

    Args:
        folder: becomes the disk.
        size: of it, as mount writes it.
    """

    def __init__(self, folder: Path, size: str = "64m") -> None:
        folder.mkdir()
        self.folder, self._ballast = folder, folder / "ballast"
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        self.mounted = os.geteuid() == 0 and subprocess.run(mount, check=False).returncode == 0

    def fill(self, started: Job | None = None, but_for: int = 0) -> None:
        """Leave only so many bytes free, for a job that runs or is started next."""
        if not self.mounted:
            limits = (FILE_LIMIT_BYTES, resource.RLIM_INFINITY)
            pids = [os.getpid()] if started is None else started.rank_processes()
            for pid in pids:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
            return
        while (free := self.free() - but_for) > 0:
            with self._ballast.open("ab", buffering=0) as file:
                file.write(b"\0" * min(free, 1 << 20))

    def free(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def make_room(self) -> None:
        """What a person does then."""
        if self.mounted:
            self._ballast.unlink()
        else:
            everything = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(os.getpid(), resource.RLIMIT_FSIZE, everything)

    def forbid_writing(self) -> None:
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
        else:
            self.folder.chmod(0o500)

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)
        else:
            self.make_room()
            self.folder.chmod(0o700)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "run")
    yield made
    made.close()


def failed(started: Job, seconds: float) -> str:
    """What a job said that ended by itself, soon, with an error of its own and no traceback."""
    codes = started.wait(seconds)
    said = started.text()
    assert set(codes) <= {1, 2}, said
    assert "Traceback" not in said
    assert "error: " in said
    assert family([process.pid for process in started.processes]) == []
    return said


def checkpoints(run: Path) -> dict[str, bytes]:
    """The bytes of all that is complete."""
    return {
        f"{path.name}/{name}": content
        for path, _ in complete_checkpoints(run)
        for name, content in contents(path).items()
    }


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param("true", marks=pytest.mark.heavy),
        pytest.param("false", marks=pytest.mark.faults),
    ],
)
def test_a_disk_that_fills_up(behind: str, disk: Disk, data: Path, tmp_path: Path) -> None:
    run, settings = disk.folder, (*SETTINGS, f"checkpoint.write_behind={behind}")
    with job(tmp_path / "unbroken", data, *settings) as unbroken:
        with job(run, data, *settings) as started:
            started.until(lambda: (run / "checkpoints/latest").exists())
            disk.fill(started, but_for=65_536)
            before = checkpoints(run)
            said = failed(started, 30)
        assert f"{run}/checkpoints/step_000000" in said
        assert ("Make room on this disk" if disk.mounted else "File too large") in said
        assert before.items() <= checkpoints(run).items()
        for path, manifest in complete_checkpoints(run):
            assert damaged_files(path, manifest) == []
        assert unbroken.wait() == [0, 0], unbroken.text()
    disk.make_room()
    with job(run, data, *settings) as again:
        assert again.wait() == [0, 0], again.text()
    assert "resuming from step " in again.text()
    assert losses_of(run) == losses_of(tmp_path / "unbroken")
    assert not list((run / "checkpoints").glob("*.tmp"))


@pytest.mark.heavy
def test_a_disk_that_is_full_from_the_start(disk: Disk, data: Path) -> None:
    disk.fill()
    with job(disk.folder, data, *SETTINGS, ranks=1) as started:
        said = failed(started, 60)
    if disk.mounted:
        assert "error: free disk: 0 bytes for " in said
        assert f"on the disk of {disk.folder}. Make room, or name another disk" in said
    else:
        assert f"{disk.folder}/checkpoints/step_00000015.tmp" in said
        assert "File too large" in said
    assert complete_checkpoints(disk.folder) == []


@pytest.mark.faults
@pytest.mark.parametrize("free_kilobytes", [4, 8, 12, 16, 20, 32, 64, 128, 256, 512, 768])
def test_a_disk_with_little_room(free_kilobytes: int, disk: Disk, data: Path) -> None:
    """The run's first files, its metrics, TensorBoard's, a checkpoint: one has no room."""
    disk.fill(but_for=free_kilobytes * 1024)
    settings = (*SETTINGS, "schedule.total_tokens=256000", "checkpoint.interval_steps=100")
    with job(disk.folder, data, *settings, ranks=1) as started:
        said = failed(started, 120)
    last = said.strip().splitlines()[-1]
    print(f"\n{free_kilobytes} KiB free: {last}")
    assert str(disk.folder) in last, "it names what is full"
    if disk.mounted:
        assert "room" in said


@pytest.mark.heavy
def test_a_folder_that_cannot_be_written_to(disk: Disk, data: Path) -> None:
    disk.forbid_writing()
    with job(disk.folder, data, *SETTINGS, ranks=1) as started:
        said = failed(started, 60)
    assert f"error: {disk.folder}: cannot be written (" in said
    assert "or name another with --run-dir." in said


HANGS = """
import os, time

if os.environ.get("RANK") == os.environ.get("HANGING_RANK"):
    fsync = os.fsync

    def hanging(file):
        descriptor = file if isinstance(file, int) else file.fileno()
        while os.environ["HANGING_FILE"] in os.readlink(f"/proc/self/fd/{descriptor}"):
            time.sleep(1)
        fsync(file)

    os.fsync = hanging
"""


@pytest.mark.heavy
@pytest.mark.parametrize(
    "behind, victim, file, step, doing",
    [
        ("true", 1, "step_00000006.tmp/zero", 8, "writing {run}/checkpoints/step_00000006.tmp"),
        ("false", 1, "step_00000006.tmp/zero", 6, "writing {run}/checkpoints/step_00000006.tmp/"),
        # Rank 0 writes one file more than the other, which waits for it.
        ("false", 0, "step_00000006.tmp/zero", 6, "writing {run}/checkpoints/step_00000006.tmp/"),
        ("true", 0, "/latest.tmp", None, "completing {run}/checkpoints/step_00000003"),
    ],
)
def test_a_disk_that_does_not_answer(
    behind: str, victim: int, file: str, step: int | None, doing: str, data: Path, tmp_path: Path
) -> None:
    """As a network disk that is gone: the system waits for it for ever."""
    (tmp_path / "hangs").mkdir()
    (tmp_path / "hangs/sitecustomize.py").write_text(HANGS)
    run = tmp_path / "run"
    settings = ("health.timeout_seconds=8", f"checkpoint.write_behind={behind}")
    environment = {
        "PYTHONPATH": str(tmp_path / "hangs"),
        "HANGING_RANK": str(victim),
        "HANGING_FILE": file,
    }
    with job(run, data, *settings, environment=environment) as started:
        started.until_step(3)
        pid = started.rank_processes()[victim]
        said = failed(started, 60)
    name = f"error: rank {victim} on {platform.node()} (pid {pid}) hangs in step "
    assert f"{name}{'' if step is None else f'{step} '}" in said
    assert f" while {doing.format(run=run)}" in said
    assert f"rank {1 - victim} on" not in said
    with job(run, data, *settings) as again:
        assert again.wait(120) == [0, 0], again.text()
    assert "resuming from step 3" in again.text()


@pytest.mark.heavy
def test_a_ledger_on_a_full_disk(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "ledger.jsonl").symlink_to("/dev/full")
    with job(run, data, *SETTINGS) as started:
        said = failed(started, 60)
    assert f"error: {run}/ledger.jsonl: cannot be written (No space left on device)" in said
    assert "Make room on this disk" in said
