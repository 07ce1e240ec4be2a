"""Whether the ranks of other machines still answer, when nothing is heard of them."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from gpt2_ds.config.errors import warn
from gpt2_ds.config.numbers import ranks_named
from gpt2_ds.health.rank_status import Diagnosis, RankProcess, Status, find_end
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.hosts.network_device import address_towards

_SILENT_SECONDS = 10.0
_SILENT_AFTER_AN_ERROR_SECONDS = 1.0
_PROBE_SECONDS = 3.0
_PROBES = 2
_AT_ONCE = 64
_BACKLOG = 4096  # the kernel may hold it lower; probes at a stopped process wait there

Liveness = Literal["alive", "ended", "unreachable"]


@dataclass(frozen=True)
class Peer:
    """Another rank's process, as it is reached from here.

    Args:
        host: its machine's name or address, as the ranks of other machines reach it.
        port: of its `LivenessSocket`.
    """

    host: str
    port: int

    def liveness(self) -> Liveness:
        """Connect, and see who answers: the kernel does, so a stopped or busy process is "alive".

        "ended" is a process that ended on a machine that lives; "unreachable" a machine that is
        dead or cut off. Takes up to three seconds.
        """
        try:
            socket.create_connection((self.host, self.port), timeout=_PROBE_SECONDS).close()
        except ConnectionRefusedError:
            return "ended"
        except OSError:
            return "unreachable"
        return "alive"


class LivenessSocket:
    """A socket of this process that listens as long as the process lives."""

    def __init__(self) -> None:
        master = os.environ["MASTER_ADDR"]
        host = address_towards(master)
        # A name may lead to IPv6 here and to IPv4 from another machine.
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
        self._socket = socket.create_server(
            ("", 0), family=family, backlog=_BACKLOG, dualstack_ipv6=both
        )
        self._socket.setblocking(False)
        # On its own machine the master's name may be a loopback address, which others cannot use.
        reached = master if rank() == 0 else host
        self.peer = Peer(reached, int(self._socket.getsockname()[1]))

    def answer(self) -> None:
        """Close what has connected: it has learned what it wanted. Call it often."""
        with suppress(OSError):
            while True:
                self._socket.accept()[0].close()

    def close(self) -> None:
        """This process may end now: no rank probes it any more."""
        self._socket.close()


class Peers:
    """Asks for the liveness of ranks on other machines of which nothing is heard.

    Rank 0 probes all of them; of another machine only the first rank probes rank 0, and its others
    look whether that first one has ended.

    Args:
        ranks: all of the job.
        peers: where each is reached, by rank.
        mine: this rank.
    """

    def __init__(self, ranks: list[RankProcess], peers: list[Peer], mine: int) -> None:
        self._ranks, self._peers = ranks, peers
        here = [member for member in ranks if member.place == ranks[mine].place]
        watched = ranks[1:] if mine == 0 else ranks[:1]
        self._watched = [member.rank for member in watched if member.place != ranks[mine].place]
        self._prober = here[0] if here[0].rank != mine else None
        self._next_probe: dict[str, float] = {}
        self._wait_seconds: dict[str, float] = {}
        self._misses: dict[str, int] = {}
        self._usable: bool | None = None

    def find(self, silent_seconds: list[float], statuses: list[Status]) -> Diagnosis | None:
        """The ranks that died, or whose machine no longer answers.

        Args:
            silent_seconds: since each rank was heard of.
            statuses: the last of each.
        """
        if not self._watched:
            return None
        if self._usable is None and self._prober is None:
            self._usable = self._all_reachable(statuses)
        broken = any(status.broken for status in statuses)
        limit = _SILENT_AFTER_AN_ERROR_SECONDS if broken else _SILENT_SECONDS
        silent: dict[str, list[int]] = {}
        for i in self._watched:
            if statuses[i].end is None and silent_seconds[i] > limit:
                silent.setdefault(self._ranks[i].place, []).append(i)
        for place in [*self._misses, *self._wait_seconds]:
            if place not in silent:  # heard of again
                self._misses.pop(place, None)
                self._wait_seconds.pop(place, None)
        if self._prober is not None:
            lost = {place for place in silent if not self._prober.process.lives()}
        elif self._usable:
            if ended := self._ended(silent):
                seen = replace(statuses[0], gone=ended)
                return find_end(self._ranks, [seen, *statuses[1:]])
            lost = {place for place in silent if self._misses.get(place, 0) >= _PROBES}
        else:
            return None
        gone = [member for member in self._ranks if member.place in lost]
        return _cut_off(gone, statuses, max(silent_seconds)) if gone else None

    def _all_reachable(self, statuses: list[Status]) -> bool:
        """A firewall may be in the way; then silence proves nothing. One socket of each machine."""
        alive = {self._ranks[i].place: i for i in self._watched if not statuses[i].end}
        answers = self._probe(list(alive.values()))
        shut = [self._ranks[i] for i, answer in answers.items() if answer != "alive"]
        if shut:
            port = self._peers[shut[0].rank].port
            warn(
                f"{shut[0]} cannot be reached at its port {port}: a machine that dies will be "
                "noticed only after health.timeout_seconds. Let the machines reach each other at "
                "all ports."
            )
        return not shut

    def _ended(self, silent: dict[str, list[int]]) -> list[int]:
        """Ranks that ended; notes the machines that gave no answer."""
        now = time.monotonic()
        due = [place for place in silent if now >= self._next_probe.get(place, 0.0)]
        firsts = self._probe([silent[place][0] for place in due])
        alive = []
        for place, answer in zip(due, firsts.values(), strict=True):
            if answer == "unreachable":
                self._misses[place] = self._misses.get(place, 0) + 1
                self._wait_seconds[place] = _PROBE_SECONDS
            else:
                self._misses[place] = 0
                alive += silent[place][1:]
                # The longer it is silent, the less often: a stopped process may be so for hours.
                self._wait_seconds[place] = 2 * self._wait_seconds.get(place, _PROBE_SECONDS / 2)
            self._next_probe[place] = time.monotonic() + self._wait_seconds[place]
        answers = firsts | self._probe(alive)
        return sorted(i for i, answer in answers.items() if answer == "ended")

    def _probe(self, ranks: list[int]) -> dict[int, Liveness]:
        if not ranks:
            return {}
        with ThreadPoolExecutor(min(_AT_ONCE, len(ranks))) as pool:
            answers = pool.map(Peer.liveness, [self._peers[i] for i in ranks])
            return dict(zip(ranks, answers, strict=True))


def _cut_off(gone: list[RankProcess], statuses: list[Status], seconds: float) -> Diagnosis:
    """The machines that no longer answer, with their ranks."""
    hosts: dict[str, list[int]] = {}
    for member in gone:
        hosts.setdefault(member.host, []).append(member.rank)
    said = "; ".join(
        f"host {host} ({ranks_named(here)}) does not answer any more, "
        f"since {statuses[here[0]].where}"
        for host, here in hosts.items()
    )
    return Diagnosis(
        "dead",
        [member.rank for member in gone],
        f"{said}. Nothing was heard for {seconds:.0f} s: the machine died, or the network to it is "
        "cut. The same command resumes from the last complete checkpoint, if need be with a "
        "hostfile of the machines that are left.",
    )
