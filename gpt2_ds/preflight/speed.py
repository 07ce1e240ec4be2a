"""How fast each device multiplies matrices, and how fast the ranks all-reduce."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from gpt2_ds.hosts.launcher import rank
from gpt2_ds.parallel.agreement import gathered, totals
from gpt2_ds.preflight.comparisons import one_per_node
from gpt2_ds.preflight.rank_facts import RankFacts
from gpt2_ds.preflight.verdicts import Check, failed, ok, warning

_SLOW_SHARE = 0.8
_SLOW_NODE_SHARE = 0.5
_MATMUL_SECONDS = 1.0
_REPEATS = 5
_LATENCY_REPEATS = 20
_GPU_BYTES, _CPU_BYTES = 256 << 20, 8 << 20


def matmul_flops(device: torch.device) -> float:
    """FLOP/s of this device on a large matrix product, after warming up: the median of many.

    In bf16 on a GPU, as training is; in fp32 on a CPU.
    """
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    # Not ones: those cost a GPU less power, and it would not slow down as it does in training.
    matrix = torch.randn(size, size, device=device).to(dtype)
    seconds: list[float] = []
    end = time.perf_counter() + _MATMUL_SECONDS
    while len(seconds) < 3 * _REPEATS or time.perf_counter() < end:
        began = time.perf_counter()
        matrix @ matrix
        _finish(device)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(seconds[len(seconds) // 3 :])


def matmul(
    facts: Sequence[RankFacts],
    device: torch.device,
    measure: Callable[[torch.device], float] = matmul_flops,
) -> Check:
    """Each device's speed against the median of the others; a slow one is named. Collective.

    All measure at once, as they will train. CPUs share their machine with others: a slow one is
    only a warning.

    Args:
        facts: of all ranks.
        device: of this rank.
        measure: gives FLOP/s.
    """
    totals([0.0])  # begin together
    return compare_speeds(facts, gathered(measure(device)), device)


def compare_speeds(
    facts: Sequence[RankFacts], speeds: Sequence[float], device: torch.device
) -> Check:
    """Each device's speed against the median of the others.

    Args:
        facts: of all ranks.
        speeds: FLOP/s by rank.
        device: of any rank; only its kind counts.
    """
    slow = slow_ones(speeds, _SLOW_SHARE)
    if not slow:
        return ok("matmul", f"{min(speeds) / 1e12:.3g} to {max(speeds) / 1e12:.3g} TFLOP/s")
    named = ", ".join(
        f"rank {i} on {facts[i].host} (device {facts[i].local_rank}) reaches "
        f"{speeds[i] / 1e12:.3g} TFLOP/s, {share:.0%} of the median of the others"
        for i, share in slow.items()
    )
    if device.type == "cpu":
        return warning("matmul", named, "See what else runs on that machine, and its clock rate.")
    fix = "See nvidia-smi -q there for heat, power limits and other processes; train without it."
    return failed("matmul", named, fix)


def slow_ones(speeds: Sequence[float], least_share: float) -> dict[int, float]:
    """Those below a share of the median of the others, by place, with what they reach of it.

    Args:
        speeds: larger is faster.
        least_share: 0 to 1.

    >>> slow_ones([10.0, 9.0, 10.0, 7.0], 0.8)
    {3: 0.7}
    >>> slow_ones([10.0], 0.8)
    {}
    """
    found = {}
    for i, speed in enumerate(speeds):
        others = [*speeds[:i], *speeds[i + 1 :]]
        if others and speed < least_share * statistics.median(others):
            found[i] = speed / statistics.median(others)
    return found


@dataclass(frozen=True)
class AllReduce:
    """What some ranks reach in an all-reduce.

    Args:
        bytes_per_second: that a rank sends: 2 (n - 1) / n times the size of the sum, over the time.
        latency_seconds: of the sum of one number.
    """

    bytes_per_second: float
    latency_seconds: float

    def __str__(self) -> str:
        speed, latency = self.bytes_per_second / 1e9, self.latency_seconds * 1e6
        return f"{speed:.3g} GB/s, {latency:.0f} microseconds"


_NOTHING = AllReduce(0.0, 0.0)


def network(facts: Sequence[RankFacts], device: torch.device) -> list[Check]:
    """All-reduce inside each machine, and between the machines when there are several. Collective.

    Between: the first rank of each machine, all together; of three and more also each with the
    two beside it, so that a machine with a slow network is named.

    Args:
        facts: of all ranks.
        device: of this rank.
    """
    nodes = one_per_node(facts)
    groups = [[fact.rank for fact in facts if fact.node == node.node] for node in nodes]
    inside = gathered(_all_reduce(groups, device))
    found = {node.host: reached for node in nodes if (reached := inside[node.rank])}
    fix = "Compare nvidia-smi topo -m, and what else runs there, with another machine."
    checks = [compare_nodes("all-reduce inside a node", found, fix)] if found else []
    if len(nodes) > 1:
        between = gathered(_all_reduce([[node.rank for node in nodes]], device))[0]
        checks.append(ok("all-reduce between nodes", f"{between} on {len(nodes)} nodes"))
    if len(nodes) > 2:
        fix = "See its network card, cable and switch port; NCCL_SOCKET_IFNAME names the card."
        checks.append(compare_nodes("all-reduce of two nodes", _links(nodes, device), fix))
    return checks


def _links(nodes: Sequence[RankFacts], device: torch.device) -> dict[str, AllReduce]:
    """What each machine reaches with the better of the two beside it in a ring."""
    best: dict[str, AllReduce] = {}
    for pairs in ring_rounds(len(nodes)):
        reached = gathered(_all_reduce([[nodes[i].rank for i in pair] for pair in pairs], device))
        for node in nodes:
            now = reached[node.rank]
            if now and now.bytes_per_second > best.get(node.host, _NOTHING).bytes_per_second:
                best[node.host] = now
    return best


def ring_rounds(n: int) -> list[list[tuple[int, int]]]:
    """Neighbours in a ring of `n`, in rounds in which nobody is twice.

    >>> ring_rounds(5)
    [[(0, 1), (2, 3)], [(1, 2), (3, 4)], [(4, 0)]]
    """
    pairs = [(i, (i + 1) % n) for i in range(n)]
    return [pairs[: n - 1 : 2], pairs[1 : n - 1 : 2], pairs[n - 1 :]]


def compare_nodes(name: str, found: Mapping[str, AllReduce], fix: str) -> Check:
    """All-reduce of each machine; one below half of the others' median is named.

    Args:
        name: of the check.
        found: what each host reaches.
        fix: what to do where one is slow.
    """
    hosts, reached = list(found), list(found.values())
    slow = slow_ones([sums.bytes_per_second for sums in reached], _SLOW_NODE_SHARE)
    if slow:
        text = ", ".join(f"{hosts[i]}: {reached[i]}, {slow[i]:.0%} of the others" for i in slow)
        return warning(name, text, fix)
    least = min(found, key=lambda host: found[host].bytes_per_second)
    return ok(name, f"{found[least]}" + (f" ({least}, the least)" if len(found) > 1 else ""))


def _all_reduce(groups: list[list[int]], device: torch.device) -> AllReduce | None:
    """What this rank's group reaches, all groups at once; None: it is in none, or alone."""
    handles = [dist.new_group(ranks) for ranks in groups]  # every rank makes every group
    mine = next((i for i, ranks in enumerate(groups) if rank() in ranks), None)
    if mine is None or len(groups[mine]) == 1:
        return None
    n_bytes = _GPU_BYTES if device.type == "cuda" else _CPU_BYTES
    large = torch.zeros(n_bytes // 4, device=device)
    seconds = _time(large, handles[mine], _REPEATS)
    latency = _time(large[:1].clone(), handles[mine], _LATENCY_REPEATS)
    n = len(groups[mine])
    return AllReduce(2 * (n - 1) / n * n_bytes / seconds, latency)


def _time(numbers: torch.Tensor, group: dist.ProcessGroup, repeats: int) -> float:
    """Median seconds of an all-reduce; the first, which makes the connections, does not count."""
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        dist.all_reduce(numbers, group=group)
        _finish(numbers.device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
