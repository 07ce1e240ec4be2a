"""Facts of ranks that differ where a test wants them to."""

from __future__ import annotations

from typing import Any

from gpt2_ds.preflight.rank_facts import RankFacts

GIB = 1 << 30


def rank_facts(rank: int, node: int, node_ranks: int, **other: Any) -> RankFacts:
    values: dict[str, Any] = {
        "rank": rank,
        "host": f"host-{node}",
        "node": node,
        "node_ranks": node_ranks,
        "versions": {"Python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6"},
        "commit": "c" * 40,
        "sources": "d" * 64,
        "recipe": "e" * 64,
        "data": "f" * 64,
        "local_rank": rank - node,
        "devices": 0,
        "machine_devices": 0,
        "cores": 8,
        "memory_bytes": 64 * GIB,
        "free_memory_bytes": 32 * GIB,
        "device_model": "cpu",
        "driver": "",
        "device_memory_bytes": 0,
        "free_device_memory_bytes": 0,
        "shm_bytes": 8 * GIB,
    }
    return RankFacts(**(values | other))


def two_hosts(**of_the_last: Any) -> list[RankFacts]:
    """Ranks 0 and 1 on host-0, 2 and 3 on host-2."""
    ranks = [rank_facts(rank, rank // 2 * 2, 2) for rank in range(3)]
    return [*ranks, rank_facts(3, 2, 2, **of_the_last)]
