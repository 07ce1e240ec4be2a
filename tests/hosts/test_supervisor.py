"""A rank that ends in a failure is started again, with real processes; the launcher sees none."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2_ds.hosts.process import Process
from gpt2_ds.hosts.supervisor import attempt, exit_code, supervise
from tests.config.small_recipe import only_fault
from tests.conftest import REPOSITORY
from tests.ranks import free_port

# Each attempt writes down what it is, and ends as the word of its number says.
_TRAIN = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, "")
folder, restarts, *ends = sys.argv[1:]
if "GPT2_DS_SUPERVISED" not in os.environ:
    (Path(folder) / "supervisor").write_text(str(os.getpid()))
from gpt2_ds.hosts.supervisor import supervise
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
supervise(int(restarts))
attempt = os.environ.get("GPT2_DS_SUPERVISED", "none")
got = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, lambda number, frame: got.append(number))
with open(Path(folder) / "attempts", "a") as file:
    file.write(f"{attempt} {os.getpid()} {time.monotonic()}\\n")
end = ends[min(int(attempt), len(ends)) - 1] if attempt != "none" else ends[0]
if end == "wait":
    while not got:
        time.sleep(0.02)
    (Path(folder) / "got").write_text(signal.Signals(got[0]).name)
    os._exit(75)
if end == "KILL":
    os.kill(os.getpid(), signal.SIGKILL)
os._exit(int(end))
"""


class Supervised:
    """A started rank; it and its child are ended with the block."""

    def __init__(self, folder: Path, restarts: int, *ends: str, **environment: str) -> None:
        self.folder = folder
        script = folder / "train.py"
        script.write_text(_TRAIN)
        own = {key: value for key, value in os.environ.items() if key not in ("RANK",)}
        self.process = subprocess.Popen(
            [sys.executable, "-u", script, folder, str(restarts), *ends],
            cwd=REPOSITORY,
            env=own | environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Supervised:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        for _, pid, _ in self.attempts():
            if process := Process.find(pid):
                os.kill(process.pid, signal.SIGKILL)

    def attempts(self) -> list[tuple[str, int, float]]:
        """Mark, pid and time of each attempt."""
        path = self.folder / "attempts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(mark, int(pid), float(at)) for mark, pid, at in (line.split() for line in lines)]

    def wait_for_attempt(self, number: int) -> None:
        end = time.monotonic() + 60
        while len(self.attempts()) < number:
            assert time.monotonic() < end
            time.sleep(0.02)

    def ends(self) -> tuple[int, list[str]]:
        _, error = self.process.communicate(timeout=60)
        return self.process.returncode, error.splitlines()


def test_no_restarts_is_no_supervisor(tmp_path: Path) -> None:
    with Supervised(tmp_path, 0, "3") as rank:
        assert rank.ends() == (3, [])
        assert [(mark, pid) for mark, pid, _ in rank.attempts()] == [("none", rank.process.pid)]


@pytest.mark.parametrize("code", [0, 2, 75])
def test_a_final_end_is_passed_on(tmp_path: Path, code: int) -> None:
    with Supervised(tmp_path, 3, str(code)) as rank:
        assert rank.ends() == (code, [])
        ((mark, pid, _),) = rank.attempts()
        assert mark == "1"
        assert pid != rank.process.pid


def test_a_failure_starts_the_same_command_again(tmp_path: Path) -> None:
    with Supervised(tmp_path, 3, "1", "KILL", "0") as rank:
        code, said = rank.ends()
        assert code == 0
        assert said == [
            "restart 1 of 3: the last attempt ended with exit code 1.",
            "restart 2 of 3: the last attempt was killed by SIGKILL.",
        ]
        marks, _, times = zip(*rank.attempts(), strict=True)
        assert marks == ("1", "2", "3")
        assert 1.0 < times[1] - times[0] < 4.0
        assert 2.0 < times[2] - times[1] < 5.0  # it waits longer each time


def test_after_the_last_restart_the_failure_counts(tmp_path: Path) -> None:
    with Supervised(tmp_path, 1, "1", "KILL") as rank:
        code, said = rank.ends()
        assert code == 137
        assert len(said) == 1
        assert len(rank.attempts()) == 2


def test_only_rank_0_tells(tmp_path: Path) -> None:
    closed = str(free_port())
    with Supervised(
        tmp_path, 1, "1", "0", RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=closed
    ) as rank:
        assert rank.ends() == (0, [])
        assert len(rank.attempts()) == 2


def test_a_rank_waits_until_rank_0_of_the_last_attempt_is_gone(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        with Supervised(
            tmp_path, 1, "1", "0", RANK="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
        ) as rank:
            rank.wait_for_attempt(1)
            time.sleep(3.0)
            assert len(rank.attempts()) == 1
            listener.close()
            assert rank.ends() == (0, [])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_is_forwarded_and_ends_the_restarts(tmp_path: Path, name: str) -> None:
    with Supervised(tmp_path, 3, "wait") as rank:
        rank.wait_for_attempt(1)
        rank.process.send_signal(signal.Signals[name])
        assert rank.ends() == (75, [])
        assert (tmp_path / "got").read_text() == name
        assert len(rank.attempts()) == 1


def test_a_child_that_dies_of_a_forwarded_signal_is_not_started_again(tmp_path: Path) -> None:
    with Supervised(tmp_path, 3, "wait") as rank:
        rank.wait_for_attempt(1)
        ((_, child, _),) = rank.attempts()
        os.kill(child, signal.SIGSTOP)  # the forwarded one stays pending
        rank.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        os.kill(child, signal.SIGKILL)
        assert rank.ends() == (137, [])


def test_a_signal_between_two_attempts(tmp_path: Path) -> None:
    with Supervised(tmp_path, 9, "1", "1", "1", "0") as rank:
        rank.wait_for_attempt(3)
        time.sleep(1.0)  # of the 4 s before the next one
        rank.process.send_signal(signal.SIGTERM)
        code, _ = rank.ends()
        assert code == 75
        assert len(rank.attempts()) == 3


def test_the_child_ends_with_its_supervisor(tmp_path: Path) -> None:
    with Supervised(tmp_path, 3, "wait") as rank:
        rank.wait_for_attempt(1)
        ((_, child, _),) = rank.attempts()
        process = Process.find(child)
        assert process is not None
        rank.process.kill()
        end = time.monotonic() + 10
        while process.lives():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert (tmp_path / "got").read_text() == "SIGTERM"


def test_without_its_launcher_a_rank_is_not_started_again(tmp_path: Path) -> None:
    package = tmp_path / "deepspeed/launcher"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package.parent / "__init__.py").touch()
    (tmp_path / "train.py").write_text(_TRAIN)
    (package / "launch.py").write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, *sys.argv[1:]])\n"
    )
    rank = [tmp_path / "train.py", tmp_path, "5", "1", "1", "0"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "deepspeed.launcher.launch", *rank],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
        stderr=subprocess.DEVNULL,
    )
    path, end = tmp_path / "attempts", time.monotonic() + 60
    while not path.exists() or len(path.read_text().splitlines()) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    supervisor = Process.find(int((tmp_path / "supervisor").read_text()))
    assert supervisor is not None
    launcher.kill()
    launcher.wait()
    while supervisor.lives():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert len(path.read_text().splitlines()) == 2


def test_torchrun_keeps_each_rendezvous_apart(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys\nfrom gpt2_ds.hosts.supervisor import supervise\nsupervise(1)\n"
        "print(os.environ['TORCHELASTIC_RESTART_COUNT'], flush=True)\nos._exit(1)\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        cwd=REPOSITORY,
        env=os.environ
        | {"PYTHONPATH": str(REPOSITORY), "TORCHELASTIC_RESTART_COUNT": "0", "RANK": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.split() == ["0", "1"]


def test_a_number_below_0() -> None:
    message = only_fault(lambda: supervise(-1))
    assert message == "--restarts -1: is below 0. Give a number from 0 up."


def test_exit_codes_as_a_shell_has_them() -> None:
    assert [exit_code(code) for code in (0, 1, 75, -9, -15)] == [0, 1, 75, 137, 143]


@pytest.mark.parametrize("value, again", [(None, 0), ("1", 0), ("2", 1), ("4", 3)])
def test_how_often_it_was_started_again(
    value: str | None, again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPT2_DS_SUPERVISED", raising=False)
    if value is not None:
        monkeypatch.setenv("GPT2_DS_SUPERVISED", value)
    assert attempt() == again
