"""The environment files that DeepSpeed sends to the nodes: what arrives, and what is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gpt2_ds.hosts import hostfile
from gpt2_ds.hosts.hostfile import check_environment_file, check_sent_variables
from tests.config.small_recipe import faults_of, only_fault
from tests.hosts.test_hostfile import file

GOOD = [
    "NCCL_DEBUG=INFO",
    "GLOO_SOCKET_IFNAME=eth0,eth1",
    "X=a b; c & d | e > f (g) * ? ~ ! # '",  # in double quotes all plain
    "X=",
    "TOKENIZERS_PARALLELISM=false",
    "KEYBOARD=1",
    "MONKEY=1",
    " X = a=b%20c ",
]


def test_a_good_environment_file(tmp_path: Path) -> None:
    check_environment_file(file(tmp_path, "\n".join(GOOD).encode() + b"\n"))
    check_environment_file(file(tmp_path, "\r\n".join(GOOD).encode()))
    check_environment_file(file(tmp_path, b""))


def pasted(name: str, value: str) -> str:
    """What a shell makes of a value that DeepSpeed's own runner pastes into its command."""
    from deepspeed.launcher.multinode_runner import PDSHRunner

    runner = PDSHRunner.__new__(PDSHRunner)
    runner.exports = {}
    runner.add_export(name, value)
    line = f'export {name}={runner.exports[name]}; printf %s "${name}"'
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True).stdout


def test_what_passes_arrives_as_it_was_written(tmp_path: Path) -> None:
    for line in GOOD:
        name, _, value = line.partition("=")
        assert pasted(name.strip(), value) == value.strip()


@pytest.mark.parametrize("value", ["$HOME", "$(id)", "`id`", 'a"b', 'a"; id; "', "a\\$b"])
def test_what_a_shell_would_change_is_refused(tmp_path: Path, value: str) -> None:
    assert pasted("X", value) != value  # it would
    path = file(tmp_path, f"A=1\nX={value}\n".encode())
    message = only_fault(lambda: check_environment_file(path))
    assert message.startswith(f"{path}:2: the value of X holds ")
    assert message.endswith(
        ", which the remote shell or pdsh would run or change. "
        "Take it out, or move the line to .gpt2_ds_env, which no shell reads."
    )


@pytest.mark.parametrize("value, found", [("a%h", "%h"), ("%n", "%n"), ("x\x00", "\x00")])
def test_what_pdsh_would_change_is_refused(tmp_path: Path, value: str, found: str) -> None:
    path = file(tmp_path, f"X={value}y\n".encode())
    assert f"the value of X holds {found!r}, " in only_fault(lambda: check_environment_file(path))


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "secret"],
)
def test_a_secret_is_refused_and_not_repeated(tmp_path: Path, name: str) -> None:
    path = file(tmp_path, f"{name}=abc123\n".encode())
    message = only_fault(lambda: check_environment_file(path))
    assert message == (
        f"{path}:1: sends {name}, which looks like a secret: DeepSpeed prints it, and the process "
        "lists of all nodes show it. Move the line to .gpt2_ds_env, whose values appear nowhere."
    )


def test_every_bad_line_of_an_environment_file_is_named(tmp_path: Path) -> None:
    path = file(tmp_path, b"A=1\n\nB\n# C=2\nexport D=3\nx;id;=4\n=5\nE=6\n")
    faults = [str(fault) for fault in faults_of(lambda: check_environment_file(path))]
    ends = "which DeepSpeed ends at. Write NAME=value, or delete it."
    run = (
        "names no variable before the =; a remote shell would run the line. "
        "Write NAME=value, or delete it: the file knows no comments."
    )
    assert faults == [
        f"{path}:2: is an empty line, {ends}",
        f"{path}:3: is a line without =, {ends}",
        f"{path}:4: {run}",
        f"{path}:5: {run}",
        f"{path}:6: {run}",
        f"{path}:7: {run}",
    ]


def test_an_environment_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert only_fault(lambda: check_environment_file(tmp_path)) == (
        f"{tmp_path}: cannot be read (Is a directory). Make it readable, or delete it."
    )


def test_variables_that_are_sent_without_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc123")
    monkeypatch.setenv("NCCL_DEBUG_FILE", "/tmp/nccl.%h.$X")
    monkeypatch.setenv("HF_TOKEN", "is not sent")
    monkeypatch.setenv("X", "$(id)")
    fix = "Unset it in this shell, and write it into .gpt2_ds_env."
    assert sorted(str(fault) for fault in faults_of(check_sent_variables)) == [
        "MLFLOW_TRACKING_TOKEN: sends MLFLOW_TRACKING_TOKEN, which looks like a secret: DeepSpeed "
        f"prints it, and the process lists of all nodes show it. {fix}",
        "NCCL_DEBUG_FILE: the value of NCCL_DEBUG_FILE holds '%h', which the remote shell or pdsh "
        f"would run or change. {fix}",
    ]
    monkeypatch.delenv("MLFLOW_TRACKING_TOKEN")
    monkeypatch.delenv("NCCL_DEBUG_FILE")
    check_sent_variables()


def test_the_names_are_those_that_deepspeed_sends() -> None:
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
    from deepspeed.launcher.runner import EXPORT_ENVS

    cuda = CUDA_Accelerator.export_envs(CUDA_Accelerator.__new__(CUDA_Accelerator))
    assert set(hostfile._SENT) == {*EXPORT_ENVS, *cuda}
