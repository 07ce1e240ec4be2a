"""The commands of launch/slurm.md, with small numbers, in a real Slurm of two nodes."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.launch.test_readme import SET_UP
from tests.launch.test_slurm import FOUR_RANKS, end_of, said
from tests.launch.two_slurm_nodes import SlurmNodes, two_slurm_nodes
from tests.ranks import free_port
from tests.small_run import SETTINGS, metrics_of, small_dataset

pytestmark = pytest.mark.heavy

PAGE = (REPOSITORY / "launch/slurm.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()
]
# What is of this machine, not of the page.
REPLACED = {
    "--nodes=4": "--nodes=2",
    "--ntasks-per-node=4": "--ntasks-per-node=2",
    "--ntasks-per-node=8": "--ntasks-per-node=2",
    "--gpus-per-node=4": "--gpus-per-node=2",
    "--gpus-per-node=8": "--gpus-per-node=2",
    "--partition=gpu": "--partition=all",
    "--nodelist=node-1,node-2": "--nodelist=n1,n2",
    "=10.0.0.1": "=127.0.0.1",
    "=ib0": "=lo",
    "--expect-ranks 16": "--expect-ranks 4",
    "recipes/gpt2_124m.yaml": "recipes/quickstart.yaml",
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[SlurmNodes]:
    with two_slurm_nodes() as started:
        yield started


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data"))


def small(command: str, data: Path, run_dir: Path) -> str:
    """The command with what is replaced, and a model that trains in seconds."""
    for old, new in REPLACED.items():
        command = command.replace(old, new)
    sets = " ".join(f"--set {word}" for word in (*SETTINGS, f"data.path={data}"))
    steps = "--max-steps 2" if "preflight" not in command else ""
    before, script, after = re.split(r"(launch/\S+)", command, maxsplit=1)
    return f"{before}{script} {sets} --run-dir {run_dir} {steps} {after}"


def commands(*words: str) -> list[str]:
    """Those of the page that hold all of some words; all of them are run."""
    return [line for line in COMMANDS if all(word in line for word in words)]


def test_every_command_of_the_page_is_run_here() -> None:
    set_up, plan, *rest = COMMANDS
    assert set_up == SET_UP  # by the README's test
    assert plan.startswith("python launch/train.py ")
    jobs, alone = commands("sbatch "), commands("srun ")
    assert rest == [*jobs, *commands("export "), *alone]
    assert (len(jobs), len(alone)) == (4, 2)


def test_the_plan_needs_no_slurm_and_no_gpu() -> None:
    (command,) = commands("--dry-run")
    shown = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert re.search(r"^world_size +16 +derived$", shown.stdout, re.M)


@pytest.mark.parametrize("command", commands("sbatch "))
def test_a_job_of_the_page(command: str, nodes: SlurmNodes, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    # No name leads to a node that is not there; the page's own MASTER_ADDR comes after.
    missing = " ".join(word for word in FOUR_RANKS if f"{word.partition('=')[0]}=" not in command)
    words = small(command, data, tmp_path / "run")
    before, after = words.split("sbatch ", 1)
    line = f"MASTER_ADDR=127.0.0.1; export MASTER_ADDR; {before}sbatch --parsable {missing} "
    number = nodes.run("bash", "-c", f"{line} --output={output} {after}")
    assert number, line
    job = end_of(nodes, number, output)
    assert job["JobState"] == "COMPLETED", said(output)
    assert job["TimeLimit"] == ("08:00:00" if "--time" in command else "00:10:00")
    assert [step for step, _ in metrics_of(tmp_path / "run", "step", "loss")] == [1, 2]
    assert "(4 ranks x" in said(output)


def test_srun_alone_in_an_allocation(nodes: SlurmNodes, data: Path, tmp_path: Path) -> None:
    output, script = tmp_path / "out", tmp_path / "script"
    (export,) = commands("export ")
    sruns = [small(command, data, tmp_path / "run") for command in commands("srun ")]
    lines = ["#!/bin/bash", "set -e", export, 'echo "at $MASTER_ADDR"']
    # Not 29500: README's commands, which the other worker may run meanwhile, meet there.
    own = ["MASTER_ADDR=127.0.0.1", f"export MASTER_PORT={free_port()}"]
    script.write_text("\n".join([*lines, *own, *sruns, ""]))
    number = nodes.submit(*FOUR_RANKS, f"--output={output}", str(script))
    assert end_of(nodes, number, output)["JobState"] == "COMPLETED", said(output)
    text = said(output)
    assert text.startswith("at n1\n")
    assert re.search(r"^rendezvous +ok .* ranks: 4, nodes: 2$", text, re.M), text
    assert re.search(r"^all-reduce between nodes +ok ", text, re.M), text
    assert text.count("check  ") == 1  # one table
    assert [step for step, _ in metrics_of(tmp_path / "run", "step", "loss")] == [1, 2]
