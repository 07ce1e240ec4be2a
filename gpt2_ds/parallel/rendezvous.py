"""Wait until all ranks have joined; name the machines whose ranks have not, or do not fit."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import groupby

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from gpt2_ds.config.errors import Fault, RunError, UserError, on_all_ranks
from gpt2_ds.config.numbers import ranks_named
from gpt2_ds.hosts.launcher import hosts_of_ranks, rank, world_size
from gpt2_ds.hosts.network_device import address_towards, name_gloo_device

_LOOK_SECONDS = 0.2
_FIRST_NOTICE_SECONDS = 15.0
_NOTICE_SECONDS = 60.0


@dataclass(frozen=True)
class Present:
    """What a rank says of itself when it joins.

    Args:
        host: its machine's name.
        address: its machine's, on the way to rank 0.
        kind: of its device, in torch's words: "cuda", "cpu".
        devices: of that kind that it sees; 0 for CPUs.
        local_rank: which of them it would take.
    """

    host: str
    address: str
    kind: str
    devices: int
    local_rank: int


def rendezvous(timeout_seconds: float, kind: str, devices: int) -> TCPStore:
    """Rendezvous of all ranks at the launcher's address, before torch's own. Collective.

    When a machine's ranks do not come, torch itself says only how many did, and only after its
    whole timeout. A rank without a GPU would wait with gloo for others that wait with NCCL.

    Args:
        timeout_seconds: how long rank 0 waits for the others, and they for it.
        kind: of this rank's device, as in `Present`.
        devices: that it sees.

    Returns:
        The store, to hold on to until torch's own is open: it is the same server.

    Raises:
        RunError: on all ranks that came: names the hosts whose ranks did not, as far as the
            launcher named them.
        UserError: on all ranks: names the hosts whose devices are not those of the others, or too
            few.
        RuntimeError: torch's own, where rank 0 cannot listen or cannot be reached.
    """
    elastic = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    server = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=rank() == 0 and not elastic,
        timeout=timedelta(seconds=timeout_seconds),
        wait_for_workers=False,
        multi_tenant=True,  # torch's own store then uses the same port
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"rendezvous/{attempt}", server)
    address = address_towards(os.environ["MASTER_ADDR"])
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    mine = Present(platform.node(), address, kind, devices, local_rank)
    store.set(f"here/{rank()}", json.dumps(asdict(mine)))
    if rank() == 0:
        missing = _wait_for_others(store, timeout_seconds)
        everyone = [] if missing else _everyone(store)
        faults = unfit(everyone, hosts_of_ranks())
        answer = {
            "missing": _who_is_missing(missing, timeout_seconds) if missing else "",
            "faults": [asdict(fault) for fault in faults],
            "addresses": list(dict.fromkeys(member.address for member in everyone)),
        }
        store.set("answer", json.dumps(answer))
        if missing or faults:
            time.sleep(1.0)  # the store ends with this process, and the others are to read it
    else:
        # Rank 0 waits as long again where it joins last.
        store.wait(["answer"], timedelta(seconds=2 * timeout_seconds))
    answer = json.loads(store.get("answer"))
    if answer["missing"]:
        raise on_all_ranks(RunError(answer["missing"]))
    if answer["faults"]:
        raise on_all_ranks(UserError(*(Fault(**fault) for fault in answer["faults"])))
    name_gloo_device(answer["addresses"], address)
    return server


def _everyone(store: PrefixStore) -> list[Present]:
    """What each rank said of itself, by rank."""
    names = [f"here/{i}" for i in range(world_size())]
    return [Present(**json.loads(text)) for text in store.multi_get(names)]


def unfit(everyone: Sequence[Present], hosts: list[str] | None) -> list[Fault]:
    """The machines whose devices are not those of the others, or fewer than their ranks.

    Args:
        everyone: what each rank says of itself, by rank.
        hosts: of each rank, in the launcher's words; None where it does not tell.
    """
    names = hosts or [member.host for member in everyone]
    kinds = [member.kind for member in everyone]
    # Rather a device than a CPU: where a driver fails, DeepSpeed takes the CPU.
    most = max(kinds, key=lambda kind: (kind != "cpu", kinds.count(kind)), default="")
    others = [i for i, kind in enumerate(kinds) if kind != most]
    faults = []
    for host in dict.fromkeys(names[i] for i in others):
        here = [i for i in others if names[i] == host]
        faults.append(
            Fault(
                describe_ranks(here, names),
                f"would compute on {kinds[here[0]]}, and the others on {most}",
                f"See what nvidia-smi says on {host}: whether its driver is loaded, and whether "
                "this user, or the container, sees the devices.",
            )
        )
    short: dict[str, int] = {}
    for i, member in enumerate(everyone):
        if member.kind == most != "cpu" and member.local_rank >= member.devices:
            short.setdefault(names[i], i)
    for host, i in short.items():
        count = everyone[i].devices
        faults.append(
            Fault(
                f"host {host}",
                f"has {count} devices, and rank {i} would take number "
                f"{everyone[i].local_rank} of them, counted from 0",
                f"Write slots={count} for it in the hostfile, or start {count} ranks there."
                if count
                else f"See what nvidia-smi says on {host}.",
            )
        )
    return faults


def _wait_for_others(store: PrefixStore, timeout_seconds: float) -> list[int]:
    """The ranks that did not come in time."""
    missing = list(range(1, world_size()))
    began = time.monotonic()
    notice_at = began + _FIRST_NOTICE_SECONDS
    while True:
        missing = [i for i in missing if not store.check([f"here/{i}"])]
        now = time.monotonic()
        if not missing or now - began >= timeout_seconds:
            return missing
        if now >= notice_at:
            notice_at = now + _NOTICE_SECONDS
            print(
                f"waiting for {describe_ranks(missing, hosts_of_ranks())} for "
                f"{now - began:.0f} s, at most {timeout_seconds:g} s",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(_LOOK_SECONDS)


def _who_is_missing(missing: list[int], timeout_seconds: float) -> str:
    names = hosts_of_ranks()
    see = f"whether {names[missing[0]]} lives, and " if names else ""
    return (
        f"{describe_ranks(missing, names)} did not come within {timeout_seconds:g} s; "
        f"{world_size() - len(missing)} of {world_size()} ranks did. See {see}what those ranks "
        f"print; no firewall may stand between them and rank 0 at {os.environ['MASTER_ADDR']} "
        f"port {os.environ['MASTER_PORT']}, and that address must be of the network that joins the "
        "machines: deepspeed --master_addr names another."
    )


def describe_ranks(ranks: list[int], hosts: list[str] | None) -> str:
    """Ranks for a message, by host where the launcher names the hosts.

    >>> describe_ranks([2, 3, 5], None)
    'ranks 2, 3, 5'
    >>> describe_ranks([2, 3, 4], ["a", "a", "b", "b", "c"])
    'host b (ranks 2, 3) and host c (rank 4)'
    """
    if hosts is None:
        return ranks_named(ranks)
    parts = [
        f"host {host} ({ranks_named(list(group))})"
        for host, group in groupby(ranks, key=lambda i: hosts[i])
    ]
    return " and ".join(parts)
