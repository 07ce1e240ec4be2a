"""Hosts that cannot be reached, die or are cut off; a signal to a job over two hosts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2_ds.checkpoint.manifest import complete_checkpoints
from tests.faults.jobs import events_of, job, length, losses_of, newest_step
from tests.launch.two_host_jobs import LONG, OPENMPI, TwoHostJob, train_words, until_empty
from tests.launch.two_hosts import TwoHosts, two_hosts
from tests.small_run import small_dataset

pytestmark = pytest.mark.heavy

IMPATIENT = ("health.timeout_seconds=20",)
STEPS_TO_THE_END = 40


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[TwoHosts]:
    with two_hosts(tmp_path / "hosts") as pair:
        yield pair


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("two_hosts"))


def start(
    hosts: TwoHosts, data: Path, tmp_path: Path, *settings: str, way: str = "", words: str = ""
) -> TwoHostJob:
    """A run that would take long."""
    run_dir = tmp_path / "run"
    command = f"deepspeed --hostfile hostfile {way} {train_words(data, run_dir, *LONG, *settings)}"
    return TwoHostJob(hosts, run_dir, f"{command} {words}")


def error_of(text: str) -> str:
    """The line that says what happened."""
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if "error: " in line]
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize(
    "trouble", ["no sshd", pytest.param("the link is cut", marks=pytest.mark.faults)]
)
def test_a_host_that_cannot_be_reached_ends_the_job_with_its_name(
    hosts: TwoHosts, data: Path, tmp_path: Path, trouble: str
) -> None:
    if trouble == "no sshd":
        hosts.second.kill()
    else:
        hosts.cut()
    began = time.monotonic()
    started = start(hosts, data, tmp_path, *IMPATIENT)
    assert started.wait(240) != 0
    print(f"{trouble}: named {time.monotonic() - began:.1f} s after the command")
    assert "host node2 (ranks 2, 3) did not come" in error_of(started.text())
    started.until_gone()
    assert newest_step(started.run_dir) == 0


@pytest.mark.parametrize("dead", ["second", pytest.param("first", marks=pytest.mark.faults)])
def test_a_dead_host_ends_the_job_which_goes_on_without_it(
    hosts: TwoHosts, data: Path, tmp_path: Path, dead: str
) -> None:
    started = start(hosts, data, tmp_path)
    started.until(lambda: complete_checkpoints(started.run_dir))  # it is written behind the steps
    victim, other = hosts.both if dead == "first" else hosts.both[::-1]
    victim.kill()
    killed = time.monotonic()
    until_empty(other, 30)
    print(f"the {dead} host died: all had ended {time.monotonic() - killed:.1f} s later")
    if dead == "first":  # with the command that was typed
        return
    assert started.wait(1) != 0
    assert time.monotonic() - killed < 31
    assert "node2" in error_of(started.text())
    before = complete_checkpoints(started.run_dir)[0][1].step
    hosts.write_hostfile(2)
    again = start(hosts, data, tmp_path, words=f"--max-steps {before + STEPS_TO_THE_END}")
    assert again.wait() == 0, again.text()
    assert f"resuming from step {before}" in again.text()
    assert "written by 4 ranks" in again.text()
    assert newest_step(started.run_dir) == before + STEPS_TO_THE_END


@pytest.mark.faults
def test_a_cut_link_ends_both_sides(hosts: TwoHosts, data: Path, tmp_path: Path) -> None:
    started = start(hosts, data, tmp_path)
    started.until_step(4)
    assert set(hosts.second.ranks()) == {2, 3}
    hosts.cut()
    cut = time.monotonic()
    for host in hosts.both:
        until_empty(host, 45)
    print(f"the link was cut: all had ended {time.monotonic() - cut:.1f} s later")
    assert started.wait(1) != 0
    assert "host node2 (ranks 2, 3) does not answer" in error_of(started.text())
    logs = started.run_dir / "logs"
    assert "host node1 (ranks 0, 1) does not answer" in (logs / "rank_00002.log").read_text()


@pytest.mark.parametrize(
    "way, number, program",
    [
        ("", signal.SIGTERM, "deepspeed"),
        (OPENMPI, signal.SIGTERM, "deepspeed"),
        pytest.param(OPENMPI, signal.SIGUSR1, "mpirun", marks=pytest.mark.faults),
    ],
    ids=["pdsh", "openmpi", "mpirun"],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    hosts: TwoHosts, data: Path, tmp_path: Path, way: str, number: signal.Signals, program: str
) -> None:
    hosts.write_environment(MASTER_ADDR=hosts.first.address)
    rare = "checkpoint.interval_steps=100000"
    started = start(hosts, data, tmp_path, rare, way=way)
    started.until_step(4)
    started.signal(program, number)
    assert started.wait(60) != 0
    started.until_gone()
    saved = complete_checkpoints(started.run_dir)[0][1].step
    assert saved >= 4
    assert newest_step(started.run_dir) == saved
    again = start(hosts, data, tmp_path, rare, way=way, words=f"--max-steps {saved + 3}")
    assert again.wait() == 0, again.text()
    assert f"resuming from step {saved}" in again.text()
    steps = [numbers[0] for numbers in losses_of(started.run_dir) if len(numbers) > 2]
    assert steps == list(range(1, saved + 4))


@pytest.mark.parametrize(
    "way",
    [pytest.param("", id="pdsh"), pytest.param(OPENMPI, id="openmpi", marks=pytest.mark.faults)],
)
def test_restarts_bring_back_a_rank_that_died_on_the_other_host(
    hosts: TwoHosts, data: Path, tmp_path: Path, way: str
) -> None:
    with job(tmp_path / "one_host", data, *length(60), ranks=4) as unbroken:
        assert unbroken.wait(300) == [0, 0, 0, 0], unbroken.text()
    hosts.write_environment(MASTER_ADDR=hosts.first.address)
    started = start(hosts, data, tmp_path, *length(60), way=way, words="--restarts 1")
    started.until(lambda: complete_checkpoints(started.run_dir))
    os.kill(hosts.second.ranks()[3], signal.SIGKILL)
    assert started.wait() == 0, started.text()
    assert "restart 1 of 1: the last attempt " in started.text()
    assert len(events_of(started.run_dir, "restart")) == 1
    assert len(events_of(started.run_dir, "resume")) == 1
    assert losses_of(started.run_dir) == losses_of(unbroken.run_dir)  # to the last bit
    started.until_gone()


@pytest.mark.faults
def test_restarts_end_when_a_host_is_gone(hosts: TwoHosts, data: Path, tmp_path: Path) -> None:
    """Each waits for it: a minute at least, for the supervisor there might only be slow."""
    started = start(hosts, data, tmp_path, *IMPATIENT, words="--restarts 2")
    started.until(lambda: complete_checkpoints(started.run_dir))
    hosts.second.kill()
    killed = time.monotonic()
    assert started.wait(240) != 0
    print(f"restarts without the other host: ended {time.monotonic() - killed:.1f} s later")
    assert started.text().count("error: host node2 (ranks 2, 3) did not come within 60 s") == 2
    until_empty(hosts.first, 10)


@pytest.mark.faults
def test_what_kill_9_of_deepspeed_leaves_is_ended_by_a_signal(
    hosts: TwoHosts, data: Path, tmp_path: Path
) -> None:
    started = start(hosts, data, tmp_path, "checkpoint.interval_steps=100000")
    started.until_step(4)
    started.signal("deepspeed", signal.SIGKILL)
    time.sleep(5)
    assert [set(host.ranks()) for host in hosts.both] == [{0, 1}, {2, 3}]
    hosts.second.run("pkill -f [l]aunch/train.py")  # not the shell that runs it
    started.until_gone()
    assert complete_checkpoints(started.run_dir)[0][1].step >= 4


@pytest.mark.faults
def test_a_dead_host_ends_a_job_of_openmpi(hosts: TwoHosts, data: Path, tmp_path: Path) -> None:
    hosts.write_environment(MASTER_ADDR=hosts.first.address)
    words = train_words(data, tmp_path / "run", *LONG)
    started = TwoHostJob(
        hosts, tmp_path / "run", f"deepspeed --hostfile hostfile {OPENMPI} {words}"
    )
    started.until_step(4)
    hosts.second.kill()
    until_empty(hosts.first, 30)
    assert started.wait(1) != 0
    assert "node2" in started.text()


def test_the_network_device_need_not_be_named(hosts: TwoHosts, data: Path, tmp_path: Path) -> None:
    """gloo by itself takes 127.0.1.1, as the hosts call themselves, and cannot connect."""
    (hosts.work / ".gpt2_ds_env").unlink()
    started = start(hosts, data, tmp_path, words="--max-steps 4")
    assert started.wait(240) == 0, started.text()
    assert newest_step(started.run_dir) == 4
