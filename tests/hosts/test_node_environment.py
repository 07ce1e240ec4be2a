"""The file of environment variables that every rank reads for itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.hosts.node_environment import load_node_environment
from tests.conftest import REPOSITORY

SECRET = "hf_Zq7theSecretValue"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test puts into the environment is gone after it."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def write(folder: Path, text: str | bytes, mode: int = 0o644) -> Path:
    path = folder / ".gpt2_ds_env"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def refused(folder: Path, text: str | bytes, mode: int = 0o644) -> list[str]:
    path, before = write(folder, text, mode), dict(os.environ)
    with pytest.raises(UserError) as refusal:
        load_node_environment(folder)
    assert dict(os.environ) == before  # all of it, or nothing
    return str(refusal.value).replace(str(path), "FILE").split("\n")


def test_without_the_file_nothing_changes(tmp_path: Path) -> None:
    before = dict(os.environ)
    load_node_environment(tmp_path)
    assert dict(os.environ) == before


def test_values_are_taken_as_they_are_to_the_end_of_the_line(tmp_path: Path) -> None:
    write(
        tmp_path, "# of this cluster\n\n  \n  # more\nA_1=x y  \nB=\nC=a=$HOME`ls`{1,2}\"'#é\n_d=1"
    )
    load_node_environment(tmp_path)
    found = {name: os.environ[name] for name in ("A_1", "B", "C", "_d")}
    assert found == {"A_1": "x y  ", "B": "", "C": "a=$HOME`ls`{1,2}\"'#é", "_d": "1"}


def test_the_file_wins_over_what_the_process_was_given(tmp_path: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    write(tmp_path, "GLOO_SOCKET_IFNAME=eth0\n")
    load_node_environment(tmp_path)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth0"


def test_where_to_meet_only_fills_in_what_the_launcher_did_not_say(tmp_path: Path) -> None:
    os.environ["MASTER_ADDR"] = "10.0.0.1"
    os.environ.pop("MASTER_PORT", None)
    write(tmp_path, "MASTER_ADDR=node1\nMASTER_PORT=29500\n")
    load_node_environment(tmp_path)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.1", "29500")


def test_the_file_is_the_working_directorys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "FROM_HERE=1\n")
    monkeypatch.chdir(tmp_path)
    load_node_environment()
    assert os.environ["FROM_HERE"] == "1"


@pytest.mark.parametrize("name", ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
def test_what_the_launcher_gives_each_rank_is_refused(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, f"\n{name}=1\n") == [
        f"FILE:2: sets {name}, which the launcher gives each rank. Delete the line."
    ]


@pytest.mark.parametrize("name", ("LD_LIBRARY_PATH", "PYTHONPATH"))
def test_what_is_read_before_the_file_is_refused(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, f"{name}=/x\n") == [
        f"FILE:1: sets {name}, which is read when a process starts, before this file. Put it into "
        ".deepspeed_env, or into the shell's start-up file of every node."
    ]


@pytest.mark.parametrize(
    "line", ("NAME", "export NAME=1", "NAME =1", " NAME=1", "1NAME=1", "=1", "NA-ME=1", SECRET)
)
def test_a_line_that_is_no_variable_is_refused_and_not_shown(tmp_path: Path, line: str) -> None:
    assert refused(tmp_path, f"OTHER=1\n{line}\n") == [
        "FILE:2: is not NAME=value. Write one variable a line, without `export` and spaces."
    ]


def test_all_faults_come_at_once_and_show_no_value(tmp_path: Path) -> None:
    text = f"A={SECRET}\r\nB='{SECRET}'\nC={SECRET}\nC={SECRET}\nD=\0\nE=\"{SECRET}\"\nF='\n"
    assert refused(tmp_path, text) == [
        "FILE:1: gives A a value with a Windows line end or a zero byte. Write it anew.",
        "FILE:2: puts the value of B in quotes, which would become part of it. Remove them.",
        "FILE:4: names C again. Give each variable one line.",
        "FILE:5: gives D a value with a Windows line end or a zero byte. Write it anew.",
        "FILE:6: puts the value of E in quotes, which would become part of it. Remove them.",
    ]


@pytest.mark.parametrize(
    "name", ("HF_TOKEN", "hf_token", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "PGPASSWORD")
)
@pytest.mark.parametrize("mode", (0o640, 0o604, 0o620))
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, name: str, mode: int) -> None:
    assert refused(tmp_path, f"NCCL_DEBUG=INFO\n{name}={SECRET}\n", mode) == [
        f"FILE: holds {name}, and others may read it (mode {mode:o}). "
        f"Type chmod 600 {tmp_path}/.gpt2_ds_env.".replace(f"{tmp_path}/.gpt2_ds_env", "FILE")
    ]


def test_a_secret_of_ones_own_is_taken_and_no_secret_may_be_seen(tmp_path: Path) -> None:
    write(tmp_path, f"HF_TOKEN={SECRET}\n", 0o600)
    load_node_environment(tmp_path)
    assert os.environ["HF_TOKEN"] == SECRET
    write(tmp_path, "TOKENIZERS_PARALLELISM=false\nNCCL_IB_PKEY=1\n", 0o644)
    load_node_environment(tmp_path)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, b"A=\xff\n") == ["FILE: is not UTF-8 text. Save it as UTF-8."]
    (tmp_path / ".gpt2_ds_env").unlink()
    (tmp_path / ".gpt2_ds_env").mkdir()
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)\. Make it readable"):
        load_node_environment(tmp_path)


def test_the_train_command_reads_it_before_anything_else(tmp_path: Path) -> None:
    write(tmp_path, "RANK=1\n")
    shown = subprocess.run(
        [sys.executable, REPOSITORY / "launch/train.py", "--recipe", "none.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 2
    assert "error: .gpt2_ds_env:1: sets RANK, which the launcher gives" in shown.stderr
