"""After preparation nothing needs a network: training, validation, samples and generation."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.preparation.request import Request
from tests.conftest import REPOSITORY
from tests.launch.commands import bare_environment, run_command
from tests.ranks import free_port
from tests.small_run import SETTINGS


def cut_off(command: str) -> str:
    """The command in a network of nothing but loopback, where the kernel lets us make one."""
    unshare, ip = shutil.which("unshare"), shutil.which("ip")
    if unshare is None or ip is None or os.geteuid() != 0:
        return command
    if subprocess.run([unshare, "--net", "true"], capture_output=True).returncode:
        return command
    bash = shutil.which("bash")
    return f"{unshare} --net {bash} -c '{ip} link set lo up && {command}'"


def test_the_guard_sees_who_tries(tmp_path: Path) -> None:
    environment = bare_environment(tmp_path)
    for call in ("connect", "connect_ex"):
        program = f'import socket; socket.socket().{call}(("192.0.2.1", 80))'
        shown = run_command(f"python -c '{program}'", tmp_path, environment)
        assert "a connection to ('192.0.2.1', 80) was tried" in shown.stderr
    lines = (tmp_path / "network_attempts").read_text().splitlines()
    assert lines == ["('192.0.2.1', 80)"] * 2


@pytest.mark.heavy
def test_nothing_connects_after_preparation(
    gpt2_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_cache))  # to prepare, and not after it
    files = sorted((REPOSITORY / "gpt2_ds").rglob("*.py"))
    prepare(Request(inputs=files, out=tmp_path / "data", tokenizer="gpt2", validation_fraction=0.1))
    environment = bare_environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"}
    assert "TIKTOKEN_CACHE_DIR" not in environment
    words = " ".join(f"--set {setting}" for setting in SETTINGS)
    train = (
        f"deepspeed --master_port {free_port()} --num_gpus 2 launch/train.py --recipe "
        f"recipes/quickstart.yaml {words} --set tokenizer.name=gpt2 --set "
        f"data.path={tmp_path}/data --run-dir {tmp_path}/run"
    )
    generate = f"python launch/generate.py --run {tmp_path}/run --prompt The --max-new-tokens 5"
    look = f"python launch/inspect_data.py stats {tmp_path}/data --samples 1"
    for command in (train, generate, look):
        shown = run_command(cut_off(command), REPOSITORY, environment)
        assert shown.returncode == 0, shown.stderr
        assert not (tmp_path / "home/network_attempts").exists()
