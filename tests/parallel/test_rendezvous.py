"""Ranks that do not come are named by their hosts, on every rank that did."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys

import pytest

from gpt2_ds.parallel.rendezvous import Present, unfit
from tests.conftest import REPOSITORY
from tests.parallel.test_process_group import start_two
from tests.ranks import free_port

_MEET = """
import sys
from gpt2_ds.config.errors import exit_code_of
from gpt2_ds.parallel import rendezvous
from gpt2_ds.parallel.process_group import join, leave
rendezvous._FIRST_WORD_SECONDS = 0.5
leave(exit_code_of(lambda: print(join(1, rendezvous_seconds=float(sys.argv[1]))) or 0))
"""


@pytest.mark.heavy
def test_all_that_came_end_and_rank_0_says_who_did_not() -> None:
    """Two of four ranks; without a launcher's word of hosts."""
    both = start_two(_MEET, "20", WORLD_SIZE="4")
    for rank, process in enumerate(both):
        _, error = process.communicate(timeout=120)
        assert process.returncode == 1
        said = "error: ranks 2, 3 did not come within 20 s; 2 of 4 ranks did. See what those"
        assert (said in error) == (rank == 0), error
        waiting = re.search(r"waiting for ranks (1, )?2, 3 for \d+ s, at most 20 s", error)
        assert (waiting is not None) == (rank == 0)
        assert "Traceback" not in error


@pytest.mark.heavy
def test_the_hosts_of_the_launcher_are_named() -> None:
    """DeepSpeed's own launcher starts the two ranks of node a; those of b and c are not there."""
    info = base64.urlsafe_b64encode(json.dumps({"a": [0, 1], "b": [0, 1], "c": [0]}).encode())
    words = [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch"),
        f"--world_info={info.decode()}",
        *("--node_rank=0", "--master_addr=127.0.0.1", f"--master_port={free_port()}"),
        *("--no_python", "--no_local_rank", sys.executable, "-W", "ignore", "-c", _MEET, "20"),
    ]
    done = subprocess.run(
        words, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert (
        "error: host b (ranks 2, 3) and host c (rank 4) did not come within 20 s; 2 of 5 ranks "
        "did. See whether b lives, and what those ranks print; no firewall"
    ) in done.stderr


def present(host: str, local_rank: int, kind: str = "cuda", devices: int = 2) -> Present:
    return Present(host, "10.0.0.1", kind, devices, local_rank)


GOOD = [present("a", 0), present("a", 1), present("b", 0), present("b", 1)]
DRIVER = (
    "See what nvidia-smi says on {}: whether its driver is loaded, and whether this user, or the "
    "container, sees the devices."
)


def test_machines_that_fit() -> None:
    assert unfit(GOOD, None) == []
    assert unfit([present("a", i, "cpu", 0) for i in range(4)], None) == []
    assert unfit([], None) == []  # some did not come


def test_a_machine_whose_driver_fails_is_named_also_when_it_is_half_of_all() -> None:
    everyone = [*GOOD[:2], present("b", 0, "cpu", 0), present("b", 1, "cpu", 0)]
    (fault,) = unfit(everyone, None)
    says = "would compute on cpu, and the others on cuda. "
    assert str(fault) == f"host b (ranks 2, 3): {says}{DRIVER.format('b')}"
    (fault,) = unfit(everyone[::-1], ["x", "x", "y", "y"])  # the launcher's words; of rank 0
    assert str(fault) == f"host x (ranks 0, 1): {says}{DRIVER.format('x')}"


def test_a_rank_without_a_device_is_named_once_a_machine() -> None:
    everyone = [*GOOD, present("b", 2), present("b", 3)]
    (fault,) = unfit(everyone, None)
    assert str(fault) == (
        "host b: has 2 devices, and rank 4 would take number 2 of them, counted from 0. "
        "Write slots=2 for it in the hostfile, or start 2 ranks there."
    )
    (fault,) = unfit([GOOD[0], present("b", 0, devices=0)], None)
    assert str(fault) == (
        "host b: has 0 devices, and rank 1 would take number 0 of them, counted from 0. "
        "See what nvidia-smi says on b."
    )


_ODD = """
import os, sys
import torch
from gpt2_ds.config.errors import exit_code_of
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.parallel import process_group
from gpt2_ds.parallel.process_group import join, leave
if rank() == int(sys.argv[1]):
    process_group.local_device = lambda: torch.device("cuda", 0)
    process_group.get_accelerator().device_count = lambda: 1
leave(exit_code_of(lambda: print(join(1)) or 0))
"""


@pytest.mark.heavy
@pytest.mark.parametrize("on_gpu", [0, 1])
def test_all_ranks_end_where_one_has_no_gpu(on_gpu: int) -> None:
    for rank, process in enumerate(start_two(_ODD, str(on_gpu))):
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2, error
        said = f"(rank {1 - on_gpu}): would compute on cpu, and the others on cuda. See what"
        assert (said in error) == (rank == 0), error
        assert "Traceback" not in error
