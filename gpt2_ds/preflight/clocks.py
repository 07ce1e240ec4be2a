"""Whether the machines' clocks agree."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from gpt2_ds.hosts.launcher import world_size
from gpt2_ds.parallel.agreement import gathered, totals
from gpt2_ds.preflight.comparisons import one_per_node
from gpt2_ds.preflight.rank_facts import RankFacts
from gpt2_ds.preflight.verdicts import Check, failed, ok, warning

_ROUNDS = 5
_WARNING_SECONDS = 1.0
_FAILED_SECONDS = (
    60.0  # stores refuse requests that are minutes off, and ages of files mean nothing
)
_FIX = "Set the clocks of all machines by one server: chrony, ntpd or systemd-timesyncd."


def clocks(facts: Sequence[RankFacts], clock: Callable[[], float] = time.time) -> Check:
    """How far each machine's clock is from rank 0's, for certain. Collective.

    Args:
        facts: of all ranks.
        clock: seconds since 1970 on this machine.
    """
    moments = []
    for _ in range(_ROUNDS if world_size() > 1 else 0):
        before = clock()
        totals([0.0])  # no rank comes out before all went in
        moments.append((before, clock()))
    skews = certain_skews(gathered(moments))
    off = [(node, skews[node.rank]) for node in one_per_node(facts)]
    wrong = [(node, skew) for node, skew in off if abs(skew) > _WARNING_SECONDS]
    worst = max(abs(skew) for _, skew in off)
    if wrong:
        text = ", ".join(
            f"{node.host} is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} rank 0's host"
            for node, skew in wrong
        )
        return (failed if worst > _FAILED_SECONDS else warning)("clocks", text, _FIX)
    return ok("clocks", f"at most {_WARNING_SECONDS:g} s apart")


def certain_skews(moments: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
    """By how many seconds each rank's clock is ahead of rank 0's, at least; 0: perhaps not at all.

    In each round there is an instant at which all ranks have gone in and none has come out. It
    lies between a rank's two readings by its own clock, which bounds how far two clocks can be
    apart, however slow the machines are.

    Args:
        moments: by rank, for each round the readings before and after.

    >>> certain_skews([[(0.0, 1.0)], [(10.0, 10.5)], [(0.5, 2.0)]])
    [0.0, 9.0, 0.0]
    """
    skews = []
    for own in moments:
        pairs = list(zip(own, moments[0], strict=True))
        least = max((mine[0] - first[1] for mine, first in pairs), default=0.0)
        most = min((mine[1] - first[0] for mine, first in pairs), default=0.0)
        skews.append(least if least > 0 else min(most, 0.0))
    return skews
