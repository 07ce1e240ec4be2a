"""A slow device and a slow machine are named; numbers that no machine reaches are not made up."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_ds.preflight import speed
from gpt2_ds.preflight.speed import (
    AllReduce,
    compare_nodes,
    compare_speeds,
    matmul,
    matmul_flops,
    ring_rounds,
)
from gpt2_ds.preflight.verdicts import Check, Verdict, failed, ok, warning
from tests.preflight.facts import rank_facts, two_hosts
from tests.ranks import run_ranks

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SLOW = "rank 3 on host-2 (device 1) reaches 70 TFLOP/s, 70% of the median of the others"


def test_a_slow_device() -> None:
    speeds = [100e12, 99e12, 101e12, 70e12]
    assert compare_speeds(two_hosts(), speeds, GPU) == failed(
        "matmul",
        SLOW,
        "See nvidia-smi -q there for heat, power limits and other processes; train without it.",
    )
    fix = "See what else runs on that machine, and its clock rate."
    assert compare_speeds(two_hosts(), speeds, CPU) == warning("matmul", SLOW, fix)
    speeds[3] = 81e12
    assert compare_speeds(two_hosts(), speeds, GPU) == ok("matmul", "81 to 101 TFLOP/s")


def test_of_two_the_slow_one_does_not_count_for_the_median() -> None:
    check = compare_speeds(two_hosts()[:2], [100e12, 70e12], GPU)
    assert check.verdict is Verdict.FAILED
    assert "70% of the median of the others" in check.found


def test_a_machine_with_a_slow_network() -> None:
    good, bad = AllReduce(100e9, 20e-6), AllReduce(40e9, 20e-6)
    name, fix = "all-reduce of two nodes", "See its card."
    assert compare_nodes(name, {"a": good}, fix) == ok(name, "100 GB/s, 20 microseconds")
    poor = {"a": good, "b": AllReduce(90e9, 30e-6)}
    assert compare_nodes(name, poor, fix) == ok(name, "90 GB/s, 30 microseconds (b, the least)")
    assert compare_nodes(name, {"a": good, "b": bad, "c": good}, fix) == warning(
        name, "b: 40 GB/s, 20 microseconds, 40% of the others", fix
    )


def slow_on_rank_2() -> list[Check]:
    """Three machines; whatever large the last takes part in takes 0.3 s longer."""
    from gpt2_ds.hosts.launcher import rank

    reduce = torch.distributed.all_reduce

    def delayed(*args: Any, **named: Any) -> Any:
        if rank() == 2 and args[0].numel() > 1:  # the many for the latency have one number
            time.sleep(0.3)
        return reduce(*args, **named)

    speed.dist.all_reduce = delayed
    return speed.network([rank_facts(i, i, 1) for i in range(3)], CPU)


@pytest.mark.heavy
def test_the_slow_machine_of_three_is_named(tmp_path: Path) -> None:
    first, *others = run_ranks(slow_on_rank_2, 3, tmp_path)
    assert others == [first, first]
    between, pairs = first
    assert between.name == "all-reduce between nodes"
    assert between.found.endswith(" on 3 nodes")
    assert pairs.verdict is Verdict.WARNING
    assert re.match(r"host-2: [^,]+, \d+ microseconds, \d+% of the others$", pairs.found)
    assert pairs.fix == (
        "See its network card, cable and switch port; NCCL_SOCKET_IFNAME names the card."
    )


@pytest.mark.parametrize("n", range(3, 12))
def test_a_ring_meets_each_neighbour_once(n: int) -> None:
    rounds = ring_rounds(n)
    assert sorted(pair for pairs in rounds for pair in pairs) == [
        (i, (i + 1) % n) for i in range(n)
    ]
    for pairs in rounds:
        members = [i for pair in pairs for i in pair]
        assert len(set(members)) == len(members)


def test_what_a_cpu_reaches_is_possible() -> None:
    flops = matmul_flops(CPU)
    # Two units of 16 fp32 products and sums at 6 GHz in each core are more than any CPU has.
    assert 1e8 < flops < (os.cpu_count() or 1) * 2 * 16 * 2 * 6e9


def test_alone_nothing_is_slow() -> None:
    check = matmul([rank_facts(0, 0, 1)], CPU, lambda device: 5e12)
    assert check == ok("matmul", "5 to 5 TFLOP/s")
