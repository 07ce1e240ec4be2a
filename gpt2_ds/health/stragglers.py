"""Which ranks make the others wait."""

from __future__ import annotations

import statistics

import torch
import torch.distributed as dist

from gpt2_ds.hosts.launcher import rank
from gpt2_ds.parallel.process_group import host_group

_SHARE = 0.25
_LEAST_SECONDS, _MOST_SECONDS = 0.05, 0.15
_SHARE_OF_LONG = 0.03


class Stragglers:
    """Compares the ranks' compute times: see `ComputeTime`.

    A rank is slow when its time in a step is above the median rank's by more than 25 % of it, but
    at least by 0.05 s, and 0.15 s is always enough; in steps above 5 s it is 3 %, as sound GPUs
    differ by that much. A rank's longest step does not count: a file that is opened or one pause
    of the machine does not make a rank slow. Ten steps that take 0.2 s too long do; so do two
    seconds in every fourth step.

    Args:
        hosts: name of each rank's host, by rank.
    """

    def __init__(self, hosts: list[str]) -> None:
        self._hosts = hosts
        self._known: set[int] = set()
        self._clear()

    def _clear(self) -> None:
        self._n_steps, self._sum, self._longest = 0, 0.0, 0.0

    def add(self, seconds: float) -> None:
        """Count a step.

        Args:
            seconds: that this rank took by itself in it.
        """
        self._n_steps += 1
        self._sum += seconds
        self._longest = max(self._longest, seconds)

    def names(self) -> list[str]:
        """A sentence for each rank that has become slow in the steps since the last call.

        Collective; the same on every rank. A rank that stays slow is named once, until a call finds
        that it is no longer slow.
        """
        others = self._n_steps - 1
        mine = (self._sum - self._longest) / others if others > 0 else self._sum
        self._clear()
        everyone = torch.zeros(len(self._hosts), dtype=torch.float64)
        everyone[rank()] = mine
        dist.all_reduce(everyone, group=host_group())
        return self._compare(everyone.tolist())

    def _compare(self, seconds: list[float]) -> list[str]:
        """The sentences, from the seconds of a step of each rank."""
        slow = stragglers(seconds)
        new = [i for i in slow if i not in self._known]
        self._known = set(slow)
        median = statistics.median_low(seconds)
        return [
            f"rank {i} on {self._hosts[i]} takes {seconds[i] - median:.2f} s a step longer "
            f"than the median rank ({median:.2f} s)"
            for i in new
        ]


def stragglers(seconds: list[float]) -> list[int]:
    """The ranks that are above the median by too much; of two ranks, the median is the faster.

    Args:
        seconds: of a step, by rank.

    >>> stragglers([0.05, 0.06, 0.25, 0.05])
    [2]
    >>> stragglers([0.05, 0.25])
    [1]
    >>> stragglers([2.0, 2.2])
    [1]
    """
    median = statistics.median_low(seconds)
    above = max(_LEAST_SECONDS, min(_SHARE * median, _MOST_SECONDS), _SHARE_OF_LONG * median)
    limit = median + above
    return [i for i, compute_seconds in enumerate(seconds) if compute_seconds > limit]
