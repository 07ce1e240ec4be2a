"""Two jobs never write into one run directory; a dead one holds it no longer."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpt2_ds.record.run_lock import RunLock
from tests.config.small_recipe import only_fault
from tests.conftest import REPOSITORY

_HOLD = """
import sys
from pathlib import Path
from gpt2_ds.record.run_lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(run_dir: Path) -> subprocess.Popen[str]:
    """Another job that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, run_dir],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def enter(run_dir: Path) -> None:
    with RunLock(run_dir):
        pass


def test_a_second_job_is_told_who_holds_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs/x"
    with holder(run_dir) as process:
        message = only_fault(lambda: enter(run_dir))
        head, _, tail = message.partition(", since ")
        assert head == f"{run_dir}: is in use by process {process.pid} on {platform.node()}"
        since, _, fix = tail.partition(". ")
        assert datetime.now(UTC) - datetime.fromisoformat(since) < timedelta(minutes=2)
        assert fix == "Wait until that job ends, stop it, or name another folder with --run-dir."
        process.communicate("")
    enter(run_dir)


def test_the_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
    enter(tmp_path)


def test_a_refused_job_changes_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        for _ in range(2):
            message = only_fault(lambda: enter(tmp_path))
            assert f"process {process.pid} " in message
        process.communicate("")


def test_a_process_it_started_does_not_hold_it(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        child = subprocess.Popen(["sleep", "30"], close_fds=False)
    enter(tmp_path)
    child.kill()
    child.wait()


def test_a_longer_name_of_before_leaves_no_rest(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text("a-very-long-host-name" * 20 + " 1 2026-01-01T00:00:00")
    enter(tmp_path)
    words = (tmp_path / "run.lock").read_text().split()
    assert words[:2] == [platform.node(), str(os.getpid())]
    assert len(words) == 3


def test_a_holder_that_did_not_write_its_name(tmp_path: Path) -> None:
    with (tmp_path / "run.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "is in use by another job. Wait until" in only_fault(lambda: enter(tmp_path))


def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "run.lock").symlink_to("/dev/full")
    assert only_fault(lambda: enter(tmp_path)) == (
        f"{tmp_path}: cannot be written (No space left on device). Make room on this disk, or name "
        "another with --run-dir."
    )


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert only_fault(lambda: enter(tmp_path / "file/run")) == (
        f"{tmp_path / 'file/run'}: cannot be written (Not a directory). Name a folder that you may "
        "write to with --run-dir."
    )


def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        tmp_path.chmod(0o555)
        assert "cannot be written (Permission denied)" in only_fault(lambda: enter(tmp_path))
        tmp_path.chmod(0o755)
        return
    if shutil.which("mount") is None:
        pytest.skip("root may write everywhere, and there is no mount to forbid it")
    command = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(tmp_path)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("root may write everywhere, and may not mount")
    try:
        assert "cannot be written (Read-only file system). Make" in only_fault(
            lambda: enter(tmp_path)
        )
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    enter(tmp_path)
    assert capfd.readouterr().err == (
        f"warning: {tmp_path / 'run.lock'}: this disk does not support locks (Function not "
        "implemented); make sure that no second job uses this run directory.\n"
    )


def test_a_lock_that_fails_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    assert "cannot be written (Input/output error)" in only_fault(lambda: enter(tmp_path))
