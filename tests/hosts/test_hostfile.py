"""What DeepSpeed's launcher would paste into commands on other machines is read before it does."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from gpt2_ds.hosts import hostfile
from gpt2_ds.hosts.hostfile import (
    check_hostfile,
    environment_files,
    named_hostfile,
    read_hostfile,
)
from tests.config.small_recipe import faults_of, only_fault


def file(folder: Path, content: bytes, name: str = "hostfile") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_a_good_hostfile(tmp_path: Path) -> None:
    content = b"# two nodes\nworker-1 slots=8\n\n10.0.0.2\t slots=4  # the second\nc_3 slots=1"
    hosts = read_hostfile(file(tmp_path, content))
    assert hosts == {"worker-1": 8, "10.0.0.2": 4, "c_3": 1}


SHELL = ", which a shell would run or change"


@pytest.mark.parametrize(
    "line, why",
    [
        ("-oProxyCommand=x slots=2", ", which ssh would take for an option"),
        ("-F/etc/x slots=2", ", which ssh would take for an option"),
        ("w;reboot slots=2", SHELL),
        ("w|reboot slots=2", SHELL),
        ("w&reboot slots=2", SHELL),
        ("$(reboot) slots=2", SHELL),
        ("${HOME} slots=2", SHELL),
        ("`reboot` slots=2", SHELL),
        ("w>x slots=2", SHELL),
        ("w slots=2;reboot", SHELL),
        ("w slots=0", ", so no rank would run there"),
        ("w slots=00", ", so no rank would run there"),
        ("w slots=-1", ""),
        ("w slots=two", ""),
        ("w slots=2 slots=3", ""),
        ("w slots = 2", ""),
        ("w", ""),
        ("w x slots=2", ""),
        ("slots=2", ""),
        ("exec:w slots=2", ""),
        ("w:1 slots=2", ""),
        (
            "fe80::1 slots=2",
            ", and pdsh takes no IPv6 address: give it a name in /etc/hosts",
        ),
        ("w[1-3] slots=2", ""),
        ("w,v slots=2", ""),
        ("user@w slots=2", ""),
        ("w slots=2\r", ", with a Windows line end"),
        ("# rack 3\r", ", with a Windows line end"),
        ("# rack 3\r-oProxyCommand=x slots=2", ", which DeepSpeed reads as two lines"),
        ("wörker slots=2", ""),
        ("w\u00a0slots=2", ""),
        ("w\x0bslots=2", ""),
        ("w\x00 slots=2", ""),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, why: str) -> None:
    path = file(tmp_path, f"good slots=1\n{line}\n".encode())
    assert only_fault(lambda: read_hostfile(path)) == (
        f"{path}:2: is {line!r}{why}. Write `host slots=N`: a plain name or address, N at least 1."
    )


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    path = file(tmp_path, b"a slots=1\nb\nc slots=2\na slots=4\n\xff\xfe slots=1\n")
    faults = faults_of(lambda: read_hostfile(path))
    assert [fault.where for fault in faults] == [f"{path}:{line}" for line in (2, 4, 5)]
    assert str(faults[1]) == f"{path}:4: names a again. Give each host one line."


@pytest.mark.parametrize("content", [b"", b"\n \n", b"# none\n"])
def test_an_empty_hostfile(tmp_path: Path, content: bytes) -> None:
    path = file(tmp_path, content)
    message = only_fault(lambda: read_hostfile(path))
    assert message == f"{path}: names no host. Write `host slots=N` for each node."


def test_a_missing_hostfile(tmp_path: Path) -> None:
    assert only_fault(lambda: read_hostfile(tmp_path / "no")) == (
        f"--hostfile {tmp_path / 'no'}: cannot be read (No such file or directory); DeepSpeed "
        "would train on this machine alone. Name a file with a line `host slots=N` for each node."
    )
    assert "Is a directory" in only_fault(lambda: read_hostfile(tmp_path))


FOLDER = Path("/job")


@pytest.mark.parametrize(
    "command, found",
    [
        ("deepspeed --hostfile h launch/train.py --hostfile other", "h"),
        ("python /venv/bin/deepspeed --hostfile h launch/train.py", "h"),
        ("/venv/bin/ds -H h launch/train.py", "h"),
        ("deepspeed -Hh launch/train.py", "h"),
        ("deepspeed -H=h launch/train.py", "h"),
        ("deepspeed --hostfile=h launch/train.py", "h"),
        ("deepspeed --num_gpus 2 --hostfile /etc/h launch/train.py", "/etc/h"),
        ("deepspeed launch/train.py --hostfile other", None),
        ("python /venv/bin/deepspeed launch/train.py --hostfile other", None),
        ("deepspeed launch/train.py", None),
        ("bash -c deepspeed --hostfile h", None),
        ("python -u /venv/bin/deepspeed --hostfile h launch/train.py", "h"),
        ("python -m deepspeed.launcher.runner --hostfile h launch/train.py", "h"),
        ("deepspeed --hostf h launch/train.py", "h"),
        ("deepspeed --ho=h launch/train.py", "h"),
        ("deepspeed --venv_script x.py --hostfile h launch/train.py", "h"),
        ("deepspeed -e x.py --force -q -iw@v --no_ssh_check -H h launch/train.py", "h"),
        ("deepspeed --hostfile other --hostfile h --save_pid train -H no", "h"),
        ("deepspeed --module pkg.train --hostfile other", None),
        ("deepspeed", None),
        ("", None),
    ],
)
def test_the_hostfile_of_a_command(command: str, found: str | None) -> None:
    parents = [(["bash", "-c", "x"], Path("/other")), (command.split() or [""], FOLDER)]
    assert named_hostfile(iter(parents)) == (FOLDER / found if found else None)


def test_the_options_are_read_as_deepspeed_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.launcher import runner

    command = ["-e", "x.py", "--force", "-q", "-iw@v", "--no_ssh_check", "--ho", "h", "a.py", "-H"]
    assert runner.parse_args([*command, "no"]).hostfile == "h"
    # Its parser itself, which parse_args keeps to itself.
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, args: self)
    parser = runner.parse_args()
    switches = [action for action in parser._actions if action.nargs == 0]
    assert {name for action in switches for name in action.option_strings} == set(
        hostfile._SWITCHES
    )
    shared = [name for name in parser._option_string_actions if name.startswith("--ho")]
    assert shared == ["--hostfile"]
    assert len([name for name in parser._option_string_actions if name.startswith("--h")]) > 1


def test_the_nearest_launcher_counts() -> None:
    near, far = ["deepspeed", "launch/train.py"], ["deepspeed", "--hostfile", "h", "x.py"]
    assert named_hostfile(iter([(near, FOLDER), (far, FOLDER)])) is None


def test_a_named_hostfile_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(tmp_path, b"w")
    parents = [(["deepspeed", "--hostfile", "hostfile", "x.py"], tmp_path)]
    monkeypatch.setattr(hostfile, "ancestors", lambda: iter(parents))
    assert only_fault(check_hostfile).startswith(f"{path}:1: is 'w'.")
    path.write_text("w slots=1")
    check_hostfile()


def test_the_environment_files_that_deepspeed_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    monkeypatch.chdir(here)
    assert environment_files() == []
    paths = [file(folder, b"", ".deepspeed_env") for folder in (home, here)]
    assert environment_files() == paths
    monkeypatch.setenv("DS_ENV_FILE", "named")
    assert environment_files() == []
    named = file(here, b"", "named")
    assert environment_files() == [named]
    monkeypatch.setenv("DS_ENV_FILE", str(named))
    assert environment_files() == [named]
