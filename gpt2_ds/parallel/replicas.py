"""Weights that every rank should hold alike: compared by exact checksums, the odd rank named."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import Tensor

_INTEGERS = (torch.int64, torch.int32, torch.int16)
_NAMED = 3  # weights of one rank that a sentence names


def replicated(engine: DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """What all ranks hold alike, by name: weights, and at stage 0 Adam's moments.

    At stage 3 those small weights that DeepSpeed keeps whole on every rank.
    """
    stage = engine.zero_optimization_stage()
    moments = engine.optimizer.state if stage == 0 else {}
    for name, parameter in engine.module.named_parameters():
        if stage < 3 or (parameter.ds_persist and parameter.ds_status == ZeroParamStatus.AVAILABLE):
            yield name, parameter.data
        for moment, value in moments.get(parameter, {}).items():
            if value.numel() > 1:
                yield f"{name} ({moment})", value


def checksums(engine: DeepSpeedEngine) -> dict[str, int]:
    """A checksum of each of `replicated`, by name: any one flipped bit changes it."""
    tensors = dict(replicated(engine))
    if not tensors:
        return {}
    # One copy from the device for all.
    sums = torch.stack([_checksum(tensor) for tensor in tensors.values()]).tolist()
    return dict(zip(tensors, sums, strict=True))


def _checksum(tensor: Tensor) -> Tensor:
    """The sum of the bytes read as integers, modulo 2**64: () int64.

    A flipped bit adds or takes off a power of two. The widest integers that fit are taken: their
    sum needs one pass and no copy.
    """
    flat = tensor.detach().reshape(-1)
    start, n_bytes = flat.data_ptr(), flat.numel() * flat.element_size()
    integer = next(t for t in _INTEGERS if start % t.itemsize == n_bytes % t.itemsize == 0)
    return flat.view(torch.uint8).view(integer).sum(dtype=torch.int64)


class Replicas:
    """Compares what all ranks should hold alike, and says which rank differs.

    Args:
        engine: whose weights these are.
        group: of all ranks, for tensors on the CPU.
    """

    def __init__(self, engine: DeepSpeedEngine, group: dist.ProcessGroup) -> None:
        self._engine, self._group = engine, group
        self._remembered: dict[str, int] = {}

    def remember(self) -> None:
        """Note what this rank holds right after an update; until `check` nothing may change it.

        A rank that finds its own weights changed by then is named, be there two of them or one.
        """
        self._remembered = checksums(self._engine)

    def check(self) -> list[str]:
        """Compare this rank with itself and with the others, before the next update. Collective.

        Returns:
            A sentence for each rank whose weights are not those of most ranks, or have changed
            since `remember`; one for all ranks where it is not known which are right. The same
            on every rank, and empty when all is well.
        """
        now = checksums(self._engine)
        if not now:
            return []
        # Where stage 3 gathered a weight since, there is nothing to compare it with.
        then = {name: self._remembered.get(name, value) for name, value in now.items()}
        self._remembered = {}
        mine = torch.tensor([list(now.values()), list(then.values())], dtype=torch.int64)
        table = [torch.empty_like(mine) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(table, mine, group=self._group)  # (2, weights) of each rank
        by_rank = torch.stack(table)
        if bool((by_rank == by_rank[0, 0]).all()):
            return []
        hosts = [""] * len(table)
        dist.all_gather_object(hosts, platform.node(), group=self._group)
        who = [f"rank {rank} on {host}" for rank, host in enumerate(hosts)]
        return differences(list(now), by_rank[:, 0].tolist(), by_rank[:, 1].tolist(), who)


def differences(
    names: list[str], now: list[list[int]], then: list[list[int]], who: list[str]
) -> list[str]:
    """Say which ranks are wrong.

    Args:
        names: of the weights.
        now: checksums, by rank and weight.
        then: those that the rank remembers from its last update.
        who: names each rank.
    """
    changed: dict[int, list[str]] = {}
    odd: dict[int, list[str]] = {}
    unclear: list[str] = []
    for i, name in enumerate(names):
        for rank in range(len(who)):
            if now[rank][i] != then[rank][i]:
                what = f"{name} (checksum {_hex(then[rank][i])}, now {_hex(now[rank][i])})"
                changed.setdefault(rank, []).append(what)
        updated = [of_rank[i] for of_rank in then]
        (usual, count), *others = Counter(updated).most_common()
        if others and 2 * count <= len(who):
            unclear.append(f"{name} (checksums {_few([_hex(value) for value in updated])})")
            continue
        for rank, value in enumerate(updated):
            if value != usual:
                what = f"{name} (checksum {_hex(value)}, theirs {_hex(usual)})"
                odd.setdefault(rank, []).append(what)
    sentences = [
        f"{who[rank]}: changed without an update: {_few(what)}" for rank, what in changed.items()
    ]
    sentences += [
        f"{who[rank]} differs from the other ranks in {_few(what)}" for rank, what in odd.items()
    ]
    if unclear:
        both = " and ".join(who) if len(who) == 2 else "the ranks"
        sentences.append(f"{both} differ, and which is right is not known: {_few(unclear)}")
    return sentences


def _hex(checksum: int) -> str:
    return f"{checksum % 2**64:016x}"


def _few(what: list[str]) -> str:
    more = len(what) - _NAMED
    return ", ".join(what[:_NAMED]) + (f" and {more} more" if more > 0 else "")
