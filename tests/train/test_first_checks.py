"""While the data is checked, which may take minutes, ranks are watched and signals are heard."""

from __future__ import annotations

import platform
import signal
import time
from pathlib import Path

import pytest

from tests.small_run import small_dataset
from tests.train.watched_ranks import Ranks

pytestmark = pytest.mark.heavy

# argv: run directory, timeout in seconds, the dataset, and how many of its shards a rank can read.
_CHECKING = """
import os, sys, time
from pathlib import Path
from gpt2_ds.config.launcher import rank
from gpt2_ds.data.corpus import Corpus
from gpt2_ds.train.arguments import TRAIN
from gpt2_ds.train.run import train_and_leave
from tests.small_run import small_corpus, small_plan

run_dir, data = Path(sys.argv[1]), Path(sys.argv[3])

def verify(self, part, parts, shard_done):
    (run_dir / f"rank{rank()}").write_text(str(os.getpid()))
    for _ in range(int(sys.argv[4])):
        time.sleep(1)
        shard_done()
    time.sleep(600)

Corpus.verify = verify
timeout = f"health.timeout_seconds={sys.argv[2]}"
train_and_leave(small_plan(data, run_dir, timeout, world_size=2), small_corpus(data), TRAIN)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data"))


def checking(data: Path, run_dir: Path, shards: int = 0, timeout_seconds: float = 60) -> Ranks:
    run_dir.mkdir()
    words = (str(data), str(shards))
    return Ranks(run_dir, *words, timeout_seconds=timeout_seconds, code=_CHECKING)


def test_a_rank_that_is_killed_is_named(data: Path, tmp_path: Path) -> None:
    with checking(data, tmp_path / "run") as ranks:
        ranks.wait_for_step_3()
        time.sleep(1.2)  # a rank says every half second where it is
        ranks.send(1, signal.SIGKILL)
        (code, error), _ = ranks.ends(20)
        pid = ranks.processes[1].pid
    assert code == 1
    assert "Traceback" not in error
    assert (
        f"error: rank 1 on {platform.node()} (pid {pid}) was killed or died in step 0 while "
        "checking data. "
    ) in error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_it_as_a_stop(data: Path, tmp_path: Path, number: signal.Signals) -> None:
    with checking(data, tmp_path / "run") as ranks:
        ranks.wait_for_step_3()
        for rank in (0, 1):
            ranks.send(rank, number)
        ended = ranks.ends(20)
    assert [code for code, _ in ended] == [75, 75], ended
    said = (tmp_path / "run/logs/rank_00000.log").read_text()
    name = signal.Signals(number).name
    assert (
        f"Stopped before the first step (rank 0: {name}, rank 1: {name}). The same command "
        "begins again.\n"
    ) in said


def test_a_disk_that_hangs_is_no_check_that_takes_long(data: Path, tmp_path: Path) -> None:
    with checking(data, tmp_path / "run", shards=9, timeout_seconds=5) as ranks:
        ended = ranks.ends(60)
    assert [code for code, _ in ended] == [1, 1]
    assert (
        "error: all ranks hang in step 0 while checking data: nothing was done for "
        in (ended[0][1])
    )
    stacks = (tmp_path / "run/logs/stacks_rank_00001.txt").read_text()
    assert "in verify" in stacks
