"""The time that a rank takes by itself, without what it waits for the others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist


class ComputeTime:
    """Counts the seconds of a step that are this rank's own.

    Ranks that train together take the same time for a step: the slow one works while the others
    wait for it, in whatever collective comes next. On a CPU all this waiting is done in
    `torch.distributed.Work.wait`, by DeepSpeed's collectives too (torch 2.13 with gloo, DeepSpeed
    0.19.8), and is taken off. On a GPU a collective waits on the device, beside other work: there
    only blocks without any count, by the device's own clock. At ZeRO-3 none is.

    Args:
        device: of this rank.
        stage: of ZeRO.
    """

    def __init__(self, device: torch.device, stage: int) -> None:
        self._waited = _waited() if device.type == "cpu" else None
        self._by_events = device.type == "cuda" and stage < 3
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Count what is done in this block, in which no other rank is waited for below ZeRO-3."""
        if not self._by_events:
            with self.together():
                yield
            return
        begin, end = _timing_event(), _timing_event()
        begin.record()  # reached when what was begun before is done: a device that starves counts
        yield
        end.record()
        self._events.append((begin, end))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Count what is done in this block less the waiting for others, where that is known."""
        if self._waited is None:
            yield
            return
        began, before = time.perf_counter(), self._waited.seconds
        yield
        self._seconds += time.perf_counter() - began - (self._waited.seconds - before)

    def take(self) -> float:
        """Seconds counted since the last call; 0 where they are not known.

        On a GPU it waits for the last block: call it once the device has passed that.
        """
        seconds, self._seconds = self._seconds, 0.0
        for begin, end in self._events:
            end.synchronize()
            seconds += begin.elapsed_time(end) / 1000
        self._events = []
        return seconds


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@dataclass
class _Waited:
    """Seconds that this process has spent in `Work.wait`."""

    seconds: float = 0.0


@cache
def _waited() -> _Waited:
    """The one counter of this process; every `Work.wait` adds to it from the first call on."""
    waited, plain = _Waited(), dist.Work.wait

    def wait(work: dist.Work, *args: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(work, *args, **named)
        finally:
            waited.seconds += time.perf_counter() - began

    dist.Work.wait = wait  # type: ignore[assignment]
    return waited
