"""launch/slurm.sbatch by a real Slurm of two nodes: trained, stopped, requeued, gone on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.faults.jobs import Job, losses_of, newest_step, with_no_process, words_of
from tests.launch.documented_words import AWKWARD, documented_sets
from tests.launch.two_slurm_nodes import SlurmNodes, two_slurm_nodes
from tests.small_run import SETTINGS, small_dataset

pytestmark = pytest.mark.heavy

FOUR_RANKS = (
    "--nodes=2",
    "--ntasks-per-node=2",
    "--cpus-per-task=1",
    "--gpus-per-node=2",
    "--time=10",
)
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
STEPS = 160
LONG = (
    f"schedule.total_tokens={256 * STEPS}",
    "evaluation.interval_steps=20",
    "checkpoint.interval_steps=1000",
)


@pytest.fixture(scope="module")
def nodes() -> Iterator[SlurmNodes]:
    with two_slurm_nodes() as started:
        yield started


def until(condition: Callable[[], object], failed: Callable[[], str], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, failed()
        time.sleep(0.05)


def end_of(nodes: SlurmNodes, number: str, output: Path, seconds: float = 150) -> dict[str, str]:
    """What Slurm says of a job that is over."""
    until(lambda: nodes.state(number) in OVER, lambda: said(output) + nodes.logs(), seconds)
    return nodes.job(number)


def said(output: Path) -> str:
    return output.read_text() if output.exists() else ""


def fake_python(folder: Path, lines: str) -> dict[str, str]:
    """An environment in which `python` is a short script of bash."""
    folder.mkdir()
    (folder / "python").write_text(f"#!/bin/bash\n{lines}\n")
    (folder / "python").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def signals_waiting(pid: int) -> int:
    """The signals that a stopped process has got, a bit each."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = (line.split()[1] for line in status.splitlines() if line.startswith("ShdPnd:"))
    return int(next(found, "0"), 16)


def ranks_of(run_dir: Path) -> list[int]:
    """Process ids of the ranks that train into a run directory."""
    numbers = [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]
    return [
        pid
        for pid in numbers
        if words_of(pid)[1:3] == ["-u", "launch/train.py"] and str(run_dir) in words_of(pid)
    ]


def test_stopped_before_the_time_limit_requeued_and_gone_on(
    nodes: SlurmNodes, tmp_path: Path
) -> None:
    run_dir, output = tmp_path / "slurm", tmp_path / "slurm.out"
    data = small_dataset(tmp_path)
    sets = (*SETTINGS, *LONG, f"data.path={data}")
    number = nodes.submit(
        *FOUR_RANKS,
        f"--output={output}",
        "launch/slurm.sbatch",
        *("--recipe", "recipes/quickstart.yaml", "--template", "ds_configs/zero1.json"),
        *("--run-dir", str(run_dir)),
        *(word for each in sets for word in ("--set", each)),
        MASTER_ADDR="127.0.0.1",  # no name leads to a node that is not there
    )
    until(lambda: newest_step(run_dir) >= 3 or nodes.state(number) in OVER, lambda: said(output))
    ranks = ranks_of(run_dir)
    assert len(ranks) == 4, said(output)
    for pid in ranks:  # so that it is not done before Slurm has looked at its limits
        os.kill(pid, signal.SIGSTOP)
    nodes.run("scontrol", "update", f"JobId={number}", "TimeLimit=2")

    def back_in_the_queue() -> bool:
        for pid in ranks:  # Slurm wakes them itself, before its signal; seen in 22.05
            if signals_waiting(pid) & 1 << (signal.SIGUSR1 - 1):
                with_no_process(partial(os.kill, pid, signal.SIGCONT))
        # Where it stays for two minutes. A start before the first one has ended altogether would
        # take the exit code of the first for its own.
        return nodes.state(number) == "PENDING" and nodes.idle()

    until(back_in_the_queue, lambda: said(output) + nodes.logs())
    assert "is to go back into the queue" in said(output)
    stopped_at = newest_step(run_dir)
    assert 3 <= stopped_at < STEPS
    time.sleep(2)  # a node refuses a start within the second in which it ended the job before
    nodes.run("scontrol", "update", f"JobId={number}", "TimeLimit=10", "StartTime=now")
    job = end_of(nodes, number, output)
    ended = (job["JobState"], job["Restarts"], job["BatchHost"])
    assert ended == ("COMPLETED", "1", "n1"), said(output) + nodes.logs()
    assert f"resuming from step {stopped_at}" in said(output)
    assert "Traceback" not in said(output)

    unbroken = Job(tmp_path / "unbroken", data, *LONG, ranks=4, template="zero1")
    try:
        assert unbroken.wait() == [0] * 4, unbroken.text()
    finally:
        unbroken.kill()
    assert losses_of(run_dir) == losses_of(tmp_path / "unbroken")
    assert len(losses_of(run_dir)) == STEPS + STEPS // 20


@pytest.mark.parametrize(
    "code, state", [("0", "COMPLETED"), ("1", "FAILED"), ("2", "FAILED"), ("137", "FAILED")]
)
def test_only_a_saved_job_is_requeued(
    nodes: SlurmNodes, tmp_path: Path, code: str, state: str
) -> None:
    output = tmp_path / "out"
    environment = fake_python(tmp_path / "bin", f"exit {code}")
    number = nodes.submit(*FOUR_RANKS, f"--output={output}", "launch/slurm.sbatch", **environment)
    job = end_of(nodes, number, output)
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == (state, "0", f"{code}:0")


def test_a_signal_before_the_ranks_have_met_requeues_too(nodes: SlurmNodes, tmp_path: Path) -> None:
    output = tmp_path / "out"
    environment = fake_python(tmp_path / "bin", "kill -USR1 $$; sleep 60")
    number = nodes.submit(*FOUR_RANKS, f"--output={output}", "launch/slurm.sbatch", **environment)

    def requeued() -> bool:
        job = nodes.job(number)
        return (job.get("Restarts"), job.get("JobState")) == ("1", "PENDING")

    until(requeued, lambda: said(output) + nodes.logs())
    assert "is to go back into the queue" in said(output)
    assert "could not" not in said(output)
    nodes.run("scancel", number)


def test_a_requeue_that_is_refused_is_said(nodes: SlurmNodes, tmp_path: Path) -> None:
    output = tmp_path / "out"
    environment = fake_python(tmp_path / "bin", "exit 75")
    words = (*FOUR_RANKS, "--no-requeue", f"--output={output}", "launch/slurm.sbatch")
    number = nodes.submit(*words, **environment)
    job = end_of(nodes, number, output)
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == ("FAILED", "0", "75:0")
    assert f"Job {number} could not be requeued: give the sbatch line again" in said(output)


@pytest.mark.parametrize(
    "words, state, restarts",
    [((), "CANCELLED", "0"), (("--signal=USR1",), "PENDING", "1")],
    ids=["cancelled", "asked_to_save"],
)
def test_what_scancel_does(
    nodes: SlurmNodes, tmp_path: Path, words: tuple[str, ...], state: str, restarts: str
) -> None:
    output, marks = tmp_path / "out", tmp_path / "marks"
    marks.mkdir()
    save = f"sleep $((SLURM_PROCID + 1)); touch {marks}/saved_$SLURM_PROCID; exit 75"
    lines = f"trap '{save}' TERM USR1\n"
    lines += f"touch {marks}/began_$SLURM_PROCID; while true; do sleep 0.1; done"
    environment = fake_python(tmp_path / "bin", lines)
    number = nodes.submit(*FOUR_RANKS, f"--output={output}", "launch/slurm.sbatch", **environment)
    until(lambda: len(list(marks.glob("began_*"))) == 4, lambda: said(output))
    nodes.run("scancel", *words, number)
    until(lambda: len(list(marks.glob("saved_*"))) == 4, lambda: said(output))
    until(lambda: nodes.state(number) == state, lambda: str(nodes.job(number)), seconds=20)
    time.sleep(1)
    job = nodes.job(number)
    assert (job["JobState"], job["Restarts"]) == (state, restarts)
    nodes.run("scancel", number)


def test_a_mistake_is_said_first_and_final(nodes: SlurmNodes, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = ("--recipe", "recipes/quickstart.yaml", "--set", "optimizer.lr=fast", "--dry-run")
    number = nodes.submit(
        *FOUR_RANKS, f"--output={output}", "launch/slurm.sbatch", *words, MASTER_ADDR="127.0.0.1"
    )
    job = end_of(nodes, number, output)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")
    assert said(output).startswith("error: --set: optimizer.lr: is 'fast'"), said(output)
    assert "Traceback" not in said(output)


def test_every_documented_set_arrives_as_it_was_typed(nodes: SlurmNodes, tmp_path: Path) -> None:
    output, arrived = tmp_path / "out", tmp_path / "arrived"
    lines = f"printf '%s\\0' \"$@\" >{arrived}_$SLURM_PROCID"
    lines += f'\necho "$MASTER_ADDR $MASTER_PORT $SLURM_CPUS_PER_TASK" >{arrived}_where'
    environment = fake_python(tmp_path / "bin", lines)
    words = [word for each in (*documented_sets(), *AWKWARD) for word in ("--set", each)]
    number = nodes.submit(
        *FOUR_RANKS, f"--output={output}", "launch/slurm.sbatch", *words, **environment
    )
    assert end_of(nodes, number, output)["JobState"] == "COMPLETED"
    expected = ["-u", "launch/train.py", "--expect-ranks", "4", *words, ""]
    for rank in range(4):
        got = Path(f"{arrived}_{rank}").read_bytes().decode().split("\0")
        assert got == expected
    port = 20000 + int(number) % 10000  # where none is given
    assert Path(f"{arrived}_where").read_text() == f"n1 {port} 1\n"  # scontrol's first host
    number = nodes.submit(
        *FOUR_RANKS, f"--output={output}", "launch/slurm.sbatch", **environment, MASTER_PORT="4242"
    )
    assert end_of(nodes, number, output)["JobState"] == "COMPLETED"
    assert Path(f"{arrived}_where").read_text() == "n1 4242 1\n"


_PROBE = """
import json, sys
sys.path.insert(0, {root!r})
from gpt2_ds.hosts.launcher import *
adopt_launcher_variables()
with open(f"{out}_{{rank()}}", "w") as file:
    json.dump([world_size(), list(local_ranks()), nodes(), hosts_of_ranks()], file)
"""


def test_what_srun_tells_its_ranks(nodes: SlurmNodes, tmp_path: Path) -> None:
    output, seen = tmp_path / "out", tmp_path / "seen"
    probe, script = tmp_path / "probe.py", tmp_path / "script"
    probe.write_text(_PROBE.format(root=str(REPOSITORY), out=seen))
    # the shell of the script itself comes last: it would overwrite what rank 0 has seen
    script.write_text(
        f"#!/bin/bash\nsrun python {probe}\nmv {seen}_0 {seen}_task\npython {probe}\n"
    )
    number = nodes.submit(*FOUR_RANKS, f"--output={output}", str(script), MASTER_ADDR="127.0.0.1")
    assert end_of(nodes, number, output)["JobState"] == "COMPLETED", said(output)
    hosts = ["n1", "n1", "n2", "n2"]
    expected = {"task": [0, 1], "1": [0, 1], "2": [2, 3], "3": [2, 3]}
    for name, ranks in expected.items():
        assert json.loads(Path(f"{seen}_{name}").read_text()) == [4, ranks, 2, hosts]
    assert json.loads(Path(f"{seen}_0").read_text()) == [1, [0], 1, None]
