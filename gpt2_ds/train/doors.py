"""Whether the ranks of other machines still answer, when nothing is heard of them."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import Literal

from gpt2_ds.config.launcher import rank
from gpt2_ds.parallel.network_device import address_towards
from gpt2_ds.train.rank_status import Finding, RankProcess, Status, find_end

_SILENT_SECONDS = 10.0
_SILENT_AFTER_AN_ERROR_SECONDS = 1.0
_KNOCK_SECONDS = 3.0
_KNOCKS = 2

Answer = Literal["open", "closed", "none"]


@dataclass(frozen=True)
class Address:
    """Where a rank's door is.

    Args:
        host: its name or address, as the ranks of other machines reach it.
        port: of the listening socket.
    """

    host: str
    port: int

    def knock(self) -> Answer:
        """The kernel answers, not the process: a stopped or busy one is "open".

        "closed" is a process that ended on a machine that lives; "none" a machine that is dead or
        cut off. Takes up to three seconds.
        """
        try:
            socket.create_connection((self.host, self.port), timeout=_KNOCK_SECONDS).close()
        except ConnectionRefusedError:
            return "closed"
        except OSError:
            return "none"
        return "open"


class Door:
    """A socket of this process that listens as long as the process lives; nobody is let in."""

    def __init__(self) -> None:
        master = os.environ["MASTER_ADDR"]
        host = address_towards(master)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server(("", 0), family=family, backlog=1024)
        # On its own machine the master's name may be a loopback address, which others cannot use.
        reached = master if rank() == 0 else host
        self.address = Address(reached, int(self._socket.getsockname()[1]))

    def close(self) -> None:
        """This process may end now without being missed."""
        self._socket.close()


class Doors:
    """Knocks at the doors of ranks on other machines of which nothing is heard.

    Args:
        ranks: all of the job.
        addresses: of their doors, by rank.
        mine: this rank.
        watched: the ranks to knock at.
    """

    def __init__(
        self, ranks: list[RankProcess], addresses: list[Address], mine: int, watched: range
    ) -> None:
        self._ranks, self._addresses = ranks, addresses
        place = ranks[mine].place
        self._watched = [one for one in watched if ranks[one].place != place]
        self._knocked: dict[int, float] = {}
        self._misses: dict[int, int] = {}
        self._usable: bool | None = None

    def find(self, silent_seconds: list[float], statuses: list[Status]) -> Finding | None:
        """The ranks that died, or whose machine no longer answers.

        Args:
            silent_seconds: since each rank was heard of.
            statuses: the last of each.
        """
        if not self._watched:
            return None
        if self._usable is None:
            self._usable = self._all_open(statuses)
        broken = any(status.broken for status in statuses)
        limit = _SILENT_AFTER_AN_ERROR_SECONDS if broken else _SILENT_SECONDS
        silent = [
            one
            for one in self._watched
            if self._usable and statuses[one].end is None and silent_seconds[one] > limit
        ]
        closed = [one for one in silent if self._answer(one) == "closed"]
        if closed:
            return find_end(self._ranks, [Status(gone=closed), *statuses[1:]])
        places = {self._ranks[one].place for one in silent if self._misses.get(one, 0) >= _KNOCKS}
        gone = [one for one in self._ranks if one.place in places]
        return _cut_off(gone, statuses, max(silent_seconds)) if gone else None

    def _all_open(self, statuses: list[Status]) -> bool:
        """A firewall may be in the way; then silence proves nothing. One door of each machine."""
        alive = {self._ranks[one].place: one for one in self._watched if not statuses[one].end}
        return all(self._addresses[one].knock() == "open" for one in alive.values())

    def _answer(self, one: int) -> Answer:
        """One knock every few seconds; one that gets none counts for its whole machine."""
        now = time.monotonic()
        if now - self._knocked.get(one, -_KNOCK_SECONDS) < _KNOCK_SECONDS:
            return "open"
        answer = self._addresses[one].knock()
        place = self._ranks[one].place
        for other in self._watched if answer == "none" else [one]:
            if self._ranks[other].place == place:
                self._knocked[other] = time.monotonic()
                self._misses[other] = self._misses.get(other, 0) + 1 if answer == "none" else 0
        return answer


def _cut_off(gone: list[RankProcess], statuses: list[Status], seconds: float) -> Finding:
    """The machines that no longer answer, with their ranks."""
    hosts: dict[str, list[int]] = {}
    for one in gone:
        hosts.setdefault(one.host, []).append(one.rank)
    said = "; ".join(
        f"host {host} ({'ranks' if len(here) > 1 else 'rank'} {', '.join(map(str, here))}) does "
        f"not answer any more, since {statuses[here[0]].where}"
        for host, here in hosts.items()
    )
    return Finding(
        "dead",
        [one.rank for one in gone],
        f"{said}. Nothing was heard for {seconds:.0f} s: the machine died, or the network to it is "
        "cut. The same command goes on from the last complete checkpoint, if need be with a "
        "hostfile of the machines that are left.",
    )
