"""What each rank publishes of itself, and what follows from it: who died, who hangs."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from gpt2_ds.hosts.process import Process

_CONNECT_TIMEOUT = timedelta(seconds=60)

LEFT, FAILED, DUMPED = "left", "failed", "dumped"


@dataclass(frozen=True)
class RankProcess:
    """The process of a rank.

    Args:
        rank: its number.
        host: the machine's name.
        place: equal for two ranks that see each other's processes by number.
        process: on that host.
    """

    rank: int
    host: str
    place: str
    process: Process

    @classmethod
    def of_this_process(cls, rank: int) -> RankProcess:
        """This one; a container of the same machine is another place."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        process = Process.find(os.getpid())
        assert process is not None
        place = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
        return cls(rank, platform.node(), place, process)

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} (pid {self.process.pid})"


@dataclass(frozen=True)
class Status:
    """What a rank publishes.

    Args:
        number: grows each time.
        step: where its main thread is.
        marks: how many points of that step it has passed.
        doing: what it does there.
        idle_seconds: since it passed the last one.
        end: how it left the watch: LEFT, FAILED (by an error), DUMPED (its stacks); None: it has
            not.
        gone: ranks of its host whose process has ended.
        heard: it knows that rank 0 has left, or what was found.
        broken: something it did together with the others failed.
    """

    number: int = 0
    step: int = 0
    marks: int = 0
    doing: str = "starting"
    idle_seconds: float = 0.0
    end: str | None = None
    gone: list[int] = field(default_factory=list)
    heard: bool = False
    broken: bool = False

    @property
    def where(self) -> str:
        """Step and activity, for a message."""
        return f"step {self.step} while {self.doing}"

    def to_json(self) -> str:
        """As it is published."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Status:
        """As it was published."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Diagnosis:
    """Which ranks ended or hang, and how; the end of the job.

    Args:
        kind: a process is dead, a rank left by an error of its own, or something hangs.
        ranks: the culprits.
        sentence: for the user.
    """

    kind: Literal["dead", "failed", "hang"]
    ranks: list[int]
    sentence: str

    def to_json(self) -> str:
        """As it is published."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Diagnosis:
        """As it was published."""
        return cls(**json.loads(text))


def _advice(ranks: list[RankProcess]) -> str:
    """What the user may do when ranks died."""
    hosts = " and ".join(sorted({member.host for member in ranks}))
    return (
        f"`dmesg` on {hosts} shows whether the memory ran out. The same command resumes from the "
        "last complete checkpoint."
    )


def find_end(ranks: list[RankProcess], statuses: list[Status]) -> Diagnosis | None:
    """A rank that ended before its time: it died, or left by an error.

    Args:
        ranks: all of the job.
        statuses: theirs, all read at one time; each holds what its rank knew of others before.
    """
    gone = {dead for status in statuses for dead in status.gone}
    victims = [
        member for member in ranks if member.rank in gone and statuses[member.rank].end is None
    ]
    if victims:
        said = "; ".join(
            f"{member} was killed or died in {statuses[member.rank].where}" for member in victims
        )
        return Diagnosis("dead", [member.rank for member in victims], f"{said}. {_advice(victims)}")
    failed = [member for member in ranks if statuses[member.rank].end == FAILED]
    if failed:
        said = "; ".join(f"{member} failed in {statuses[member.rank].where}" for member in failed)
        return Diagnosis(
            "failed", [member.rank for member in failed], f"{said}; its own message says why."
        )
    return None


def find_hang(
    ranks: list[RankProcess],
    statuses: list[Status],
    silent_seconds: list[float],
    timeout_seconds: float,
) -> Diagnosis | None:
    """A rank that keeps the others waiting.

    A main thread has passed no point for too long. The culprits are those of whom nothing was heard
    for as long, or those that have come least far; of these, if there are, the ones that were not
    heard of for a quarter of the time.

    Args:
        ranks: all of the job.
        statuses: the last of each.
        silent_seconds: since each was published.
        timeout_seconds: how long is too long.
    """
    here = [member for member in ranks if statuses[member.rank].end is None]
    idle = {
        member.rank: statuses[member.rank].idle_seconds + silent_seconds[member.rank]
        for member in here
    }
    if max(idle.values(), default=0.0) <= timeout_seconds:
        return None
    places = {
        member.rank: (statuses[member.rank].step, statuses[member.rank].marks) for member in here
    }
    last = [member for member in here if places[member.rank] == min(places.values())]
    unheard = [member for member in here if silent_seconds[member.rank] > timeout_seconds]
    # Of those that wait for one another at one point, some may still make progress.
    last = [member for member in last if idle[member.rank] > timeout_seconds / 2]
    if not last and not unheard:
        return None  # the others wait for a rank that makes progress
    unheard = unheard or [
        member for member in last if silent_seconds[member.rank] > timeout_seconds / 4
    ]
    if unheard:
        said = "; ".join(
            f"{member} is stopped or stuck: nothing was heard of it for "
            f"{silent_seconds[member.rank]:.0f} s, since {statuses[member.rank].where}"
            for member in unheard
        )
        in_place = Counter(member.place for member in ranks)
        if alone := [member for member in unheard if in_place[member.place] == 1]:
            ends = " and ".join(
                f"`kill -9 {member.process.pid}` on {member.host}" for member in alone
            )
            said += f"; no other rank is there to end it: {ends}, if it outlives the launcher"
        return Diagnosis("hang", [member.rank for member in unheard], said)
    if len(last) == len(here) > 1:
        said = (
            f"all ranks hang in {statuses[last[0].rank].where}: nothing was done for "
            f"{min(idle.values()):.0f} s"
        )
    else:
        said = "; ".join(
            f"{member} hangs in {statuses[member.rank].where}: nothing was done for "
            f"{idle[member.rank]:.0f} s"
            for member in last
        )
    return Diagnosis("hang", [member.rank for member in last], said)


def open_store(port: int) -> TCPStore:
    """Rank 0's store; port 0: be rank 0, and take a free one."""
    return TCPStore(
        os.environ["MASTER_ADDR"],
        port,
        is_master=port == 0,
        timeout=_CONNECT_TIMEOUT,
        wait_for_workers=False,
    )
