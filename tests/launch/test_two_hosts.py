"""Training over two hosts, with real ssh: pdsh and OpenMPI give what one host gives."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.jobs import job, losses_of
from tests.launch.documented_words import AWKWARD, documented_sets
from tests.launch.host import until
from tests.launch.two_host_jobs import OPENMPI, SSH_ENDS, TwoHostJob, train_words
from tests.launch.two_hosts import TwoHosts, two_hosts
from tests.small_run import metrics_of, small_dataset

pytestmark = pytest.mark.heavy

SECRET = "hf_Zq7secretOfThisRun"
WAYS = {"pdsh": "", "openmpi": OPENMPI}
_ECHO = """
import hashlib, json, os, sys
from pathlib import Path
from gpt2_ds.hosts.launcher import adopt_launcher_variables, rank
from gpt2_ds.hosts.node_environment import load_node_environment

before = "HF_TOKEN" in os.environ
load_node_environment()
adopt_launcher_variables()
folder, *words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
found = {
    "words": words,
    "before": before,
    "secret": hashlib.sha256(os.environ["HF_TOKEN"].encode()).hexdigest(),
    "extensions": os.environ["TORCH_EXTENSIONS_DIR"],
    "host": os.uname().nodename,
}
(Path(folder) / f"rank_{rank()}.json").write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two_hosts")


@pytest.fixture(scope="module")
def hosts(folder: Path) -> Iterator[TwoHosts]:
    with two_hosts(folder / "hosts") as pair:
        pair.write_environment(
            HF_TOKEN=SECRET,
            TORCH_EXTENSIONS_DIR=str(folder / "extensions"),
            MASTER_ADDR=pair.first.address,
        )
        yield pair


@pytest.fixture(scope="module")
def data(folder: Path, hosts: TwoHosts) -> Path:
    return small_dataset(folder)


@pytest.fixture(scope="module")
def one_host(folder: Path, data: Path) -> Path:
    """The run directory of 1 host x 4 ranks."""
    with job(folder / "runs/one_host", data, ranks=4) as started:
        assert started.wait(300) == [0, 0, 0, 0], started.text()
    return started.run_dir


@dataclass(frozen=True)
class Trained:
    """A finished run over both hosts, and what was seen on the way."""

    way: str
    code: int
    run_dir: Path
    text: str
    command_lines: set[str]
    hosts_of_ranks: dict[int, str]


@pytest.fixture(scope="module", params=WAYS)
def trained(request: pytest.FixtureRequest, hosts: TwoHosts, folder: Path, data: Path) -> Trained:
    run_dir = folder / "runs" / request.param
    run_dir.parent.mkdir(exist_ok=True)
    command = f"deepspeed --hostfile hostfile {WAYS[request.param]} {train_words(data, run_dir)}"
    started = TwoHostJob(hosts, run_dir, command)
    lines, where = set(), {}
    while started.running():
        for host in hosts.both:
            lines |= {" ".join(words) for words in host.processes().values()}
            where |= dict.fromkeys(host.ranks(), host.name)
        time.sleep(0.2)
    return Trained(request.param, started.wait(), run_dir, started.text(), lines, where)


def test_two_hosts_give_the_losses_of_one(
    trained: Trained, one_host: Path, hosts: TwoHosts
) -> None:
    assert trained.code == 0, trained.text
    assert trained.hosts_of_ranks == {0: "node1", 1: "node1", 2: "node2", 3: "node2"}
    assert losses_of(trained.run_dir) == losses_of(one_host)  # to the last bit
    assert len(losses_of(one_host)) == 8 + 2
    found = json.loads((trained.run_dir / "environment.json").read_text())
    assert found["hosts"] == ["node1", "node1", "node2", "node2"]


def test_nothing_is_left_on_either_host(trained: Trained, hosts: TwoHosts) -> None:
    assert trained.code == 0, trained.text
    until(lambda: not hosts.left(), "the end of all on both hosts")  # sshd's come a little later
    assert [host.shared_memory() for host in hosts.both] == [[], []]


def test_a_secret_reaches_the_ranks_and_is_seen_nowhere(trained: Trained, folder: Path) -> None:
    trainings = [line for line in trained.command_lines if "train.py" in line]
    assert len(trainings) >= 2  # of the launcher and of the ranks
    assert not [line for line in trained.command_lines if SECRET in line]
    assert SECRET not in trained.text
    files = [path for path in trained.run_dir.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_rank_0_is_on_the_terminal_and_each_rank_has_a_log(trained: Trained) -> None:
    assert "step 8/8" in trained.text
    logs = {path.name: path.read_text() for path in (trained.run_dir / "logs").glob("rank_*.log")}
    assert sorted(logs) == [f"rank_{rank:05d}.log" for rank in range(4)]
    assert "step 8/8" in logs["rank_00000.log"]


@pytest.mark.parametrize("way", WAYS)
def test_words_and_environment_arrive_as_they_were_given(
    hosts: TwoHosts, tmp_path: Path, way: str
) -> None:
    (hosts.work / "echo.py").write_text(_ECHO)
    # Over pdsh, what a remote shell would change belongs into a recipe, as launch/hostfile.md says.
    words = documented_sets() + (AWKWARD if way == "openmpi" else [])
    sets = " ".join(f"--set {shlex.quote(word)}" for word in words)
    shown = hosts.first.run(
        f"deepspeed --hostfile hostfile {WAYS[way]} echo.py {tmp_path} {sets}", 120
    )
    assert shown.returncode == 0, shown.stderr
    found = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(4)]
    for arrived, host in zip(found, ("node1", "node1", "node2", "node2"), strict=True):
        assert arrived["words"] == [part for word in words for part in ("--set", word)]
        assert arrived["secret"] == hashlib.sha256(SECRET.encode()).hexdigest()
        assert not arrived["before"]  # no launcher brought it: the file did
        assert arrived["extensions"].endswith("/extensions")
        assert arrived["host"] == host
    assert SECRET not in shown.stdout + shown.stderr


def test_hosts_may_have_unlike_numbers_of_slots(
    hosts: TwoHosts, folder: Path, data: Path, tmp_path: Path
) -> None:
    six_sequences = (
        "batch.global_batch_tokens=192",
        "schedule.total_tokens=1536",  # 8 steps
        "schedule.warmup_tokens=384",
        "schedule.decay_tokens=1536",
    )
    hosts.write_hostfile(1, 2, name="uneven")
    command = (
        f"deepspeed --hostfile uneven {train_words(data, tmp_path / 'uneven', *six_sequences)}"
    )
    started = TwoHostJob(hosts, tmp_path / "uneven", f"{command} --expect-ranks 3")
    assert started.wait() == 0, started.text()
    with job(tmp_path / "alone", data, *six_sequences, ranks=1) as alone:
        assert alone.wait() == [0], alone.text()
    uneven, one = (metrics_of(tmp_path / run, "step", "loss") for run in ("uneven", "alone"))
    assert [step for step, _ in uneven] == list(range(1, 9))
    assert uneven == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in one]


def preflight_words(data: Path, run_dir: Path) -> str:
    return train_words(data, run_dir).replace("launch/train.py", "launch/preflight.py")


def test_a_failure_of_the_second_half_names_the_other_host(
    hosts: TwoHosts, data: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    mounted = hosts.second.run(f"mount -t tmpfs tmpfs {runs}")  # a disk of its own
    assert mounted.returncode == 0, mounted.stderr
    try:
        command = f"deepspeed --hostfile hostfile {preflight_words(data, runs / 'run')}"
        shown = hosts.first.run(f"{SSH_ENDS}{command}", 180)
    finally:
        hosts.second.run(f"umount {runs}")
    assert shown.returncode == 1, shown.stdout + shown.stderr
    rank = "rank {} on node2 does not see what rank 0 writes there"
    row = f"run directory +failed +{runs}/run: {rank.format(2)}, {rank.format(3)}"
    assert re.search(f"^node1: {row}$", shown.stdout, re.M), shown.stdout
    assert "failed: run directory: Put it on a disk that all nodes share" in shown.stdout
    assert "Traceback" not in shown.stdout + shown.stderr
    until(lambda: not hosts.left(), "the end of all on both hosts")  # sshd's come a little later


@pytest.mark.benchmark
def test_both_halves_of_preflight_take_less_than_a_minute(
    hosts: TwoHosts, data: Path, tmp_path: Path
) -> None:
    seconds = []
    for command in (
        "python launch/preflight.py --hostfile hostfile",
        f"deepspeed --hostfile hostfile {preflight_words(data, tmp_path / 'run')}",
    ):
        began = time.monotonic()
        shown = hosts.first.run(command, 120)
        seconds.append(time.monotonic() - began)
        assert shown.returncode == 0, shown.stdout + shown.stderr
    print(f"preflight: {seconds[0]:.1f} s the first half, {seconds[1]:.1f} s the second")
    assert sum(seconds) < 60
