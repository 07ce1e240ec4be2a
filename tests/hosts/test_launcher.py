"""What the launcher says is checked before a rank trains with it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt2_ds.hosts import launcher
from gpt2_ds.hosts.launcher import (
    adopt_launcher_variables,
    check_world_size,
    deepspeed_nodes,
    hosts_of_ranks,
    local_ranks,
    nodes,
)
from tests.config.small_recipe import only_fault
from tests.conftest import REPOSITORY

OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
# What Slurm 22.05 gives to rank 3 of `srun` on two nodes with two tasks each ...
TASK = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_GTIDS": "2,3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "4",
}
# ... and to the shell of that job's script.
BATCH = {
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_GTIDS": "0",
    "SLURM_NTASKS": "4",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
# What Open MPI 4.1 gives to rank 3 of 2 x 2.
MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """This process's variables without a launcher's; what a test sets is gone after it."""
    named = ("SLURM_", "OMPI_", "LOCAL_", "CROSS_", "CUDA_VISIBLE_DEVICES", "TORCHELASTIC_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(named) and name not in OURS
    }
    monkeypatch.setattr(os, "environ", kept)
    launcher._deepspeed_nodes.cache_clear()
    yield kept
    launcher._deepspeed_nodes.cache_clear()


def ours(environment: dict[str, str]) -> list[str | None]:
    return [environment.get(name) for name in OURS]


@pytest.mark.parametrize("theirs", [TASK, MPI], ids=["srun", "mpirun"])
def test_a_rank_of_srun_or_mpirun(environment: dict[str, str], theirs: dict[str, str]) -> None:
    environment |= theirs | {"MASTER_ADDR": "n1"}
    adopt_launcher_variables()
    assert ours(environment) == ["3", "4", "1", "2", "n1", "29500"]
    assert list(local_ranks()) == [2, 3]


def test_a_port_that_was_given_stays(environment: dict[str, str]) -> None:
    environment |= TASK | {"MASTER_ADDR": "n1", "MASTER_PORT": "4711"}
    adopt_launcher_variables()
    assert environment["MASTER_PORT"] == "4711"


def test_mpirun_within_slurm_counts_its_own_ranks(environment: dict[str, str]) -> None:
    orted = TASK | {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_GTIDS": "1"}
    environment |= orted | MPI | {"MASTER_ADDR": "n1"}
    adopt_launcher_variables()
    assert ours(environment)[:2] == ["3", "4"]
    assert hosts_of_ranks() is None


@pytest.mark.parametrize(
    "given",
    [
        {},
        BATCH,
        BATCH | {"SLURM_STEP_ID": "4294967291"},  # a batch script
        BATCH | {"SLURM_STEP_ID": "4294967290"},  # a shell that salloc opened
    ],
)
def test_nobody_is_waited_for_that_nobody_started(
    environment: dict[str, str], given: dict[str, str]
) -> None:
    environment |= given
    adopt_launcher_variables()
    assert ours(environment) == [None] * 6


@pytest.mark.parametrize("theirs", [TASK, MPI], ids=["srun", "mpirun"])
def test_a_launcher_within_srun_or_mpirun_counts(
    environment: dict[str, str], theirs: dict[str, str]
) -> None:
    environment |= theirs | {"RANK": "0", "WORLD_SIZE": "1"}
    adopt_launcher_variables()
    assert ours(environment) == ["0", "1", None, None, None, None]


def test_one_rank_alone_needs_no_rendezvous(environment: dict[str, str]) -> None:
    one = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_GTIDS": "0"}
    environment |= TASK | one | {"SLURM_STEP_NUM_TASKS": "1"}
    adopt_launcher_variables()
    assert ours(environment) == ["0", "1", "0", "1", None, None]


@pytest.mark.parametrize(
    "theirs, name, fix",
    [
        (
            TASK,
            "srun",
            "Type before srun: `export MASTER_ADDR=$(scontrol show hostnames | head -n 1)`.",
        ),
        (
            MPI,
            "mpirun",
            "Add to mpirun: -x MASTER_ADDR=HOST -x MASTER_PORT=29500, HOST the first node.",
        ),
    ],
)
def test_no_meeting_place(
    environment: dict[str, str], theirs: dict[str, str], name: str, fix: str
) -> None:
    environment |= theirs
    assert only_fault(adopt_launcher_variables) == (
        f"MASTER_ADDR: is not set, and {name} started 4 ranks: it is the address of "
        f"their rendezvous. {fix}"
    )
    assert environment["RANK"] == "3"  # so that rank 0 is the one to print it


def test_ranks_of_a_node_that_do_not_follow_each_other(environment: dict[str, str]) -> None:
    environment |= TASK | {"SLURM_GTIDS": "1,3", "MASTER_ADDR": "n1"}
    assert only_fault(adopt_launcher_variables) == (
        "srun: placed ranks 1, 3 on one node, which do not follow each other. "
        "Give it --distribution=block."
    )


def test_a_rank_that_sees_a_part_of_the_devices(environment: dict[str, str]) -> None:
    environment |= TASK | {"CUDA_VISIBLE_DEVICES": "1", "MASTER_ADDR": "n1"}
    assert only_fault(adopt_launcher_variables) == (
        "srun: shows this rank 1 of the devices of its node (CUDA_VISIBLE_DEVICES=1), and started "
        "2 ranks there. Show each rank all of them: --gpus-per-node=2 in place of --gpus-per-task "
        "or --gpu-bind."
    )


@pytest.mark.parametrize("devices", ["0,1", "0,1,2", ""])
def test_devices_enough_or_none(environment: dict[str, str], devices: str) -> None:
    environment |= TASK | {"CUDA_VISIBLE_DEVICES": devices, "MASTER_ADDR": "n1"}
    adopt_launcher_variables()
    assert environment["RANK"] == "3"


def test_expect_ranks(environment: dict[str, str]) -> None:
    environment["WORLD_SIZE"] = "8"
    check_world_size(None)
    check_world_size(8)
    assert only_fault(lambda: check_world_size(16)) == (
        "--expect-ranks 16: the launcher started 8 ranks. "
        "Check --hostfile and its slots, --num_gpus, or srun's --ntasks, then submit again."
    )


def test_ranks_and_nodes(environment: dict[str, str]) -> None:
    read = (launcher.rank, launcher.world_size, launcher.local_world_size, launcher.nodes)
    assert [call() for call in read] == [0, 1, 1, 1]
    environment |= {"RANK": "5", "WORLD_SIZE": "12", "LOCAL_WORLD_SIZE": "8"}
    assert [call() for call in read] == [5, 12, 8, 2]
    environment["LOCAL_SIZE"] = "4"
    assert [call() for call in read] == [5, 12, 4, 3]


def test_the_ranks_of_this_machine(environment: dict[str, str]) -> None:
    environment |= {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2"}
    assert list(local_ranks()) == [4, 5, 6]  # its own at least
    environment["LOCAL_WORLD_SIZE"] = "4"
    assert list(local_ranks()) == [4, 5, 6, 7]
    assert hosts_of_ranks() is None


def launch_words(slots: dict[str, list[int]], *words: str) -> list[str]:
    """As DeepSpeed's runner starts its launcher on a node."""
    world = base64.urlsafe_b64encode(json.dumps(slots).encode()).decode()
    start = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", f"--world_info={world}"]
    return [*start, *words]


def test_what_deepspeed_says_of_its_nodes() -> None:
    slots = {"worker-1": [0, 3], "10.0.0.2": [1]}
    words = launch_words(slots, "--node_rank=1", "x.py", "--node_rank=7", "--world_info=x")
    assert deepspeed_nodes(words) == ({"worker-1": 2, "10.0.0.2": 1}, 1)
    assert deepspeed_nodes(launch_words(slots, "x.py"))[1] == 0


_PROBE = """
import os, sys
sys.path.insert(0, {root!r})
from gpt2_ds.hosts.launcher import hosts_of_ranks, local_ranks, nodes
seen = [*local_ranks(), nodes(), *hosts_of_ranks()]
with open({out!r} + os.environ["RANK"], "w") as file:
    print(os.environ["LOCAL_RANK"], *seen, file=file)
"""


@pytest.mark.heavy
def test_nodes_with_unlike_slots_under_deepspeed_itself(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(_PROBE.format(root=str(REPOSITORY), out=str(tmp_path / "rank_")))
    slots = {"one": [0], "two": [0, 1]}
    for node in (0, 1):
        command = launch_words(slots, f"--node_rank={node}", "--master_addr=127.0.0.1")
        subprocess.run([*command, str(probe)], env=environment, check=True, capture_output=True)
    seen = [(tmp_path / f"rank_{rank}").read_text().strip() for rank in range(3)]
    # the first of each is DeepSpeed's LOCAL_RANK: on the second node not in order
    assert seen == ["0 0 2 one two two", "1 1 2 2 one two two", "0 1 2 2 one two two"]


def test_a_run_within_a_job_of_deepspeed_is_not_that_job(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = [(launch_words({"a": [0], "b": [0, 1]}, "--node_rank=1", "x.py"), Path("/"))]
    monkeypatch.setattr(launcher, "ancestors", lambda: iter(parents))
    assert (list(local_ranks()), nodes(), hosts_of_ranks()) == ([0], 1, None)


@pytest.fixture
def scontrol(tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's command in its one use here; tests/launch/test_slurm.py has the real one."""
    script = tmp_path / "scontrol"
    script.write_text(
        '#!/bin/sh\n[ "$1 $2 $3" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"\n'
    )
    script.chmod(0o755)
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"


@pytest.mark.usefixtures("scontrol")
def test_the_hosts_of_a_job_of_slurm(environment: dict[str, str]) -> None:
    environment |= TASK | {"MASTER_ADDR": "n1", "SLURM_STEP_TASKS_PER_NODE": "1,3"}
    assert hosts_of_ranks() is None  # RANK is not srun's yet
    adopt_launcher_variables()
    assert hosts_of_ranks() == ["n1", "n2", "n2", "n2"]
    environment["SLURM_STEP_TASKS_PER_NODE"] = "1,2"
    assert hosts_of_ranks() is None  # does not add up
    environment |= {"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "RANK": "2"}
    assert hosts_of_ranks() is None  # another launcher has counted the nodes in another order
    environment |= {"RANK": "3", "WORLD_SIZE": "8"}
    assert hosts_of_ranks() is None  # torchrun's ranks, and it was srun that started it


def test_no_scontrol_no_hosts(environment: dict[str, str], tmp_path: Path) -> None:
    environment |= TASK | {"MASTER_ADDR": "n1", "PATH": str(tmp_path)}
    assert shutil.which("scontrol", path=str(tmp_path)) is None
    adopt_launcher_variables()
    assert hosts_of_ranks() is None
