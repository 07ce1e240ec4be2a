"""What the environment holds in secret is in no file, no line and no process list."""

from __future__ import annotations

import os
import signal
import zipfile
import zlib
from pathlib import Path

import pytest

from tests.faults.jobs import Job, family, job

SECRETS = {
    "HF_TOKEN": "hf_Zq7secretOne",
    "AWS_SECRET_ACCESS_KEY": "aws/Kx9secretTwo",
    "WANDB_API_KEY": "wandb0Wv5secretThree",
    "MY_PASSWORD": "pass-Jt3secretFour",
}
LONG = ("schedule.total_tokens=2560000", "schedule.decay_tokens=2560000")


def leaks(folder: Path) -> list[str]:
    """Files under a folder that hold a secret, as they are or packed."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        parts = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                parts += [archive.read(name) for name in archive.namelist()]
        if parts[0][:2] == b"\x1f\x8b":
            parts.append(zlib.decompress(parts[0], wbits=31))
        for value in SECRETS.values():
            if any(value.encode() in part for part in parts):
                found.append(f"{path.relative_to(folder)}: {value}")
    return found


def told_in_process_list(started: Job) -> list[str]:
    """Command lines of the job that hold a secret; there must be some command lines."""
    lines = []
    for pid in family([process.pid for process in started.processes]):
        try:
            lines.append(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue  # a process that has just ended
    assert lines
    return [line for line in lines if any(value in line for value in SECRETS.values())]


def test_a_leak_is_found(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/binary").write_bytes(b"\0\xff" + SECRETS["HF_TOKEN"].encode() + b"\xff")
    with zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", SECRETS["MY_PASSWORD"] * 20)
    (tmp_path / "innocent").write_text("HF_TOKEN")
    assert [leak.partition(":")[0] for leak in leaks(tmp_path)] == ["deep/binary", "packed"]


@pytest.mark.heavy
def test_secrets_stay_secret(data: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    run = runs / "run"
    with job(run, data, *LONG, deepspeed=True, environment=SECRETS) as started:
        started.until(lambda: (run / "checkpoints/latest").exists())
        ranks = started.rank_processes()
        environment = Path(f"/proc/{ranks[1]}/environ").read_bytes()
        assert all(value.encode() in environment for value in SECRETS.values())  # they are there
        told = told_in_process_list(started)
        os.kill(ranks[1], signal.SIGTERM)
        started.wait(60)
    with job(run, data, *LONG, "optimizer.lr=2e-3", ranks=1, environment=SECRETS) as refused:
        assert refused.wait(60) == [2], refused.text()
        assert "error: " in refused.text()
    with job(runs / "none", data, "data.path=/nowhere", ranks=1, environment=SECRETS) as failing:
        assert failing.wait(60) == [2], failing.text()
    assert told == []
    written = {path.name.partition(".")[0] for path in runs.rglob("*") if path.is_file()}
    assert {"run", "none", "events", "ledger", "metrics", "environment", "manifest"} <= written
    assert leaks(runs) == []
