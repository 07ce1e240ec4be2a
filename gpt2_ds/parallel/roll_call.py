"""Wait until all ranks are there, and name the machines whose ranks are not."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from itertools import groupby

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from gpt2_ds.config.errors import RunError, agreed
from gpt2_ds.config.launcher import hosts_of_ranks, rank, world_size
from gpt2_ds.parallel.network_device import address_towards, name_gloo_device

_LOOK_SECONDS = 0.2
_FIRST_WORD_SECONDS = 15.0
_WORD_SECONDS = 60.0
_ALL_HERE = "all are here"


def roll_call(timeout_seconds: float) -> TCPStore:
    """Meet all ranks at the launcher's address, before torch does. Collective.

    torch itself, when a machine's ranks do not come, says only how many did, after its whole
    timeout; meanwhile a run that was meant for many machines stands still.

    Args:
        timeout_seconds: how long rank 0 waits for the others, and they for it.

    Returns:
        The store of the meeting, to hold on to until torch's own is open: it is the same server.

    Raises:
        RunError: on all ranks that came: names the hosts whose ranks did not, as far as the
            launcher named them.
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
    store = PrefixStore(f"roll_call/{attempt}", server)
    mine = address_towards(os.environ["MASTER_ADDR"])
    store.set(f"here/{rank()}", mine)
    if rank() == 0:
        missing = _wait_for_others(store, timeout_seconds)
        said = _sentence(missing, timeout_seconds) if missing else _ALL_HERE
        if not missing:
            store.set("addresses", ",".join(dict.fromkeys(_addresses(store))))
        store.set("said", said)
        if missing:
            time.sleep(1.0)  # the store ends with this process, and the others are to read it
    else:
        # Rank 0 may have come as late as this one, and waits anew.
        store.wait(["said"], timedelta(seconds=2 * timeout_seconds))
        said = store.get("said").decode()
    if said != _ALL_HERE:
        raise agreed(RunError(said))
    name_gloo_device(store.get("addresses").decode().split(","), mine)
    return server


def _addresses(store: PrefixStore) -> list[str]:
    """Each rank's, by rank."""
    names = [f"here/{one}" for one in range(world_size())]
    return [address.decode() for address in store.multi_get(names)]


def _wait_for_others(store: PrefixStore, timeout_seconds: float) -> list[int]:
    """The ranks that did not come in time."""
    missing = list(range(1, world_size()))
    began = time.monotonic()
    word_at = began + _FIRST_WORD_SECONDS
    while True:
        missing = [one for one in missing if not store.check([f"here/{one}"])]
        now = time.monotonic()
        if not missing or now - began >= timeout_seconds:
            return missing
        if now >= word_at:
            word_at = now + _WORD_SECONDS
            print(
                f"waiting for {describe_ranks(missing, hosts_of_ranks())} since "
                f"{now - began:.0f} s, for at most {timeout_seconds:g} s",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(_LOOK_SECONDS)


def _sentence(missing: list[int], timeout_seconds: float) -> str:
    names = hosts_of_ranks()
    see = f"whether {names[missing[0]]} lives, and " if names else ""
    return (
        f"{describe_ranks(missing, names)} did not come within {timeout_seconds:g} s; "
        f"{world_size() - len(missing)} of {world_size()} ranks did. See {see}what those ranks "
        f"print; no firewall may stand between them and rank 0 at {os.environ['MASTER_ADDR']} "
        f"port {os.environ['MASTER_PORT']}."
    )


def describe_ranks(ranks: list[int], hosts: list[str] | None) -> str:
    """Ranks for a message, by host where the launcher names the hosts.

    >>> describe_ranks([2, 3, 5], None)
    'ranks 2, 3, 5'
    >>> describe_ranks([2, 3, 4], ["a", "a", "b", "b", "c"])
    'host b (ranks 2, 3) and host c (rank 4)'
    """
    if hosts is None:
        return _numbers(ranks)
    parts = [
        f"host {host} ({_numbers(list(group))})"
        for host, group in groupby(ranks, key=lambda one: hosts[one])
    ]
    return " and ".join(parts)


def _numbers(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
