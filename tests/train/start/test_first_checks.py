"""While the data is checked, which may take minutes, ranks are watched and signals are heard."""

from __future__ import annotations

import platform
import signal
import time
from pathlib import Path

import pytest

from gpt2_ds.config.template_file import load_template
from gpt2_ds.parallel.agreement import gathered
from gpt2_ds.train.start.first_checks import compiled_ops_of
from tests.conftest import REPOSITORY
from tests.health.watched_ranks import Ranks
from tests.ranks import run_ranks
from tests.small_run import small_dataset, small_plan

STALE = "a build of async_io died"

# argv: run directory, timeout in seconds, the dataset, and how many of its shards a rank can read;
# behind a blank, which rank comes to the end of them.
_CHECKING = """
import os, sys, time
from pathlib import Path
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.data.reading.corpus import Corpus
from gpt2_ds.train.job import leaving
from gpt2_ds.train.run import train
from tests.small_run import small_corpus, small_plan

run_dir, data = Path(sys.argv[1]), Path(sys.argv[3])

def verify(self, part, parts, heartbeat):
    (run_dir / f"rank{rank()}").write_text(str(os.getpid()))
    readable, _, ends = sys.argv[4].partition(" ")
    for _ in range(int(readable)):
        time.sleep(1)
        heartbeat.beat()
    if str(rank()) != ends:
        time.sleep(600)

Corpus.verify = verify
timeout = f"health.timeout_seconds={sys.argv[2]}"
plan = small_plan(data, run_dir, timeout, world_size=2)
with leaving(plan) as outcome:
    outcome.exit_code = train(plan, small_corpus(data))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data"))


def checking(
    data: Path, run_dir: Path, shards: int | str = 0, timeout_seconds: float = 60
) -> Ranks:
    run_dir.mkdir()
    words = (str(data), str(shards))
    return Ranks(run_dir, *words, timeout_seconds=timeout_seconds, code=_CHECKING)


def clear_twice(folder: Path) -> tuple[list[list[str]], str]:
    """What is left of the locks, on two machines that share no disk, then on one; what is said."""
    import os
    from contextlib import redirect_stderr
    from io import StringIO

    from gpt2_ds.hosts import launcher
    from gpt2_ds.train.start import first_checks

    me, left, said = launcher.rank(), [], StringIO()
    nvme = small_plan("data/x", folder / "run", template="zero3_nvme", world_size=2)
    for place in ("apart", "together"):
        root = folder / (f"{place}_{me}" if place == "apart" else place)
        os.environ["TORCH_EXTENSIONS_DIR"] = str(root)
        if place == "apart":
            first_checks.local_ranks = lambda: range(me, me + 1)
        else:
            first_checks.local_ranks = launcher.local_ranks
        if place == "apart" or me == 0:
            for op in ("async_io", "quantizer"):
                (root / op).mkdir(parents=True)
                (root / op / "lock").touch()
        gathered(None)
        with redirect_stderr(said):
            first_checks.clear_stale_locks(nvme.template)
        left.append(sorted(path.parent.name for path in root.glob("*/lock")))
    return left, said.getvalue()


@pytest.mark.heavy
def test_each_machine_clears_its_own_locks_once(tmp_path: Path) -> None:
    ranks = run_ranks(clear_twice, 2, tmp_path, tmp_path)
    for left, _ in ranks:
        assert left == [["quantizer"], ["quantizer"]]  # which the template does not load
    assert [said.count(STALE) for _, said in ranks] == [2, 1]


@pytest.mark.parametrize(
    "template, ops",
    [
        ("zero3", []),
        ("zero2_offload", ["cpu_adam"]),
        ("zero3_nvme", ["cpu_adam", "async_io"]),
        ("zero3_hpz_quantized", ["quantizer"]),
    ],
)
def test_the_ops_of_a_template(template: str, ops: list[str]) -> None:
    loaded = load_template(REPOSITORY / f"ds_configs/{template}.json")
    assert compiled_ops_of(loaded) == ops


@pytest.mark.heavy
def test_a_rank_that_is_killed_is_named(data: Path, tmp_path: Path) -> None:
    with checking(data, tmp_path / "run") as ranks:
        ranks.wait_for_step_3()
        time.sleep(3.0)  # a rank says every half second where it is
        ranks.send(1, signal.SIGKILL)
        (code, error), _ = ranks.ends(20)
        pid = ranks.processes[1].pid
    assert code == 1
    assert "Traceback" not in error
    assert (
        f"error: rank 1 on {platform.node()} (pid {pid}) was killed or died in step 0 while "
        "checking data. "
    ) in error


@pytest.mark.heavy
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


@pytest.mark.heavy
def test_the_rank_whose_disk_hangs_is_named(data: Path, tmp_path: Path) -> None:
    with checking(data, tmp_path / "run", shards="1 0", timeout_seconds=8) as ranks:
        ended = ranks.ends(60)
    assert [code for code, _ in ended] == [1, 1]
    said = "".join(text for _, text in ended)
    assert f"error: rank 1 on {platform.node()} (pid " in said
    assert " hangs in step 0 while checking data: nothing was done for " in said


@pytest.mark.heavy
def test_a_disk_that_hangs_is_no_check_that_takes_long(data: Path, tmp_path: Path) -> None:
    with checking(data, tmp_path / "run", shards=9, timeout_seconds=8) as ranks:
        ended = ranks.ends(60)
    assert [code for code, _ in ended] == [1, 1]
    assert (
        "error: all ranks hang in step 0 while checking data: nothing was done for "
        in (ended[0][1])
    )
    stacks = (tmp_path / "run/logs/stacks_rank_00001.txt").read_text()
    assert "in verify" in stacks
