"""What the ranks tell each other in a few numbers, besides DeepSpeed's own traffic."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
import torch.distributed

from gpt2_ds.config.errors import Fault, RunError, UserError, on_all_ranks
from gpt2_ds.files.trouble import file_trouble
from gpt2_ds.hosts.launcher import rank, world_size
from gpt2_ds.parallel.process_group import host_group

Value = TypeVar("Value")

_FIRST_POLL_SECONDS, _POLL_SECONDS = 0.001, 0.1

GoesOn = Callable[[str], None]
"""Hears from a main thread that it gets on, and with what, to read behind "while"."""


class Pulse:
    """Tells a long work that gets on from one that hangs, to the thread that waits for it.

    Args:
        goes_on: hears a few times a second that the work gets on, or is done here and waits for
            that of other ranks; nothing as long as it does not.
        doing: what is done, on which file.
    """

    def __init__(self, goes_on: GoesOn = lambda doing: None, doing: str = "") -> None:
        self._goes_on, self._doing = goes_on, doing
        self._beats, self._told = 0, -1  # the first time, what is waited for is said

    def beat(self) -> None:
        """The work has come further. Called by the thread that does it."""
        self._beats += 1

    def tell(self, done: bool) -> None:
        """Pass on what is to be told. Called by the thread that waits."""
        if done or self._beats != self._told:
            self._told = self._beats
            self._goes_on(self._doing)


def totals(values: list[float]) -> list[float]:
    """The sums over all ranks of a few numbers, the same on every rank. Collective.

    Args:
        values: of this rank; as many on every rank.
    """
    sums = torch.tensor(values, dtype=torch.float64)
    if world_size() > 1:
        torch.distributed.all_reduce(sums, group=host_group())
    return sums.tolist()


def gathered(value: Value) -> list[Value]:
    """What every rank has, by rank. Collective."""
    found: list[Any] = [value] * world_size()
    if world_size() > 1:
        torch.distributed.all_gather_object(found, value, group=host_group())
    return found


def by_rank_0(work: Callable[[], Value], pulse: Pulse | None = None) -> Value:
    """What `work` gives on rank 0; its failure there ends every rank alike. Collective.

    Args:
        work: reads or writes what all ranks share; runs on rank 0 only.
        pulse: set where it may take long, or wait for a disk.

    Raises:
        UserError: rank 0 found a mistake of the user's.
        RunError: rank 0 could not do it, or met a file that it could not read or write.
    """
    box: list[Any] = [None, None, None]
    doing: Future[Value] | None = None
    if pulse is not None:
        if rank() == 0:
            doing = _in_a_thread(work)
        until_all(lambda: doing is None or doing.done(), pulse)
    if rank() == 0:
        try:
            box[0] = work() if doing is None else doing.result()
        except UserError as error:
            box[1] = error.faults
        except RunError as error:
            box[2] = str(error)
        except OSError as error:
            box[2] = file_trouble(error)
        except Exception as error:  # a fault of this project: the others must not wait for it
            traceback.print_exc()
            box[2] = f"rank 0: {type(error).__name__}: {error}"
    if world_size() > 1:
        torch.distributed.broadcast_object_list(box, src=0, group=host_group())
    result, faults, failure = box
    if faults is not None:
        raise on_all_ranks(UserError(*(fault for fault in faults if isinstance(fault, Fault))))
    if failure is not None:
        raise on_all_ranks(RunError(failure))
    return result  # type: ignore[no-any-return]


def by_all(work: Callable[[], Value], pulse: Pulse) -> Value:
    """What `work` gives on this rank, once it is done on all. Collective.

    Args:
        work: may take long; must not fail on some ranks alone.
        pulse: beaten by `work`.
    """
    doing = _in_a_thread(work)
    until_all(doing.done, pulse)
    return doing.result()


def _in_a_thread(work: Callable[[], Value]) -> Future[Value]:
    pool = ThreadPoolExecutor(1, "long-work")
    doing = pool.submit(work)
    pool.shutdown(wait=False)
    return doing


def until_all(ready: Callable[[], bool], pulse: Pulse) -> None:
    """Wait until every rank is ready. Collective.

    Args:
        ready: whether this rank is.
        pulse: of what this rank waits for.
    """
    delay = _FIRST_POLL_SECONDS
    while totals([ready()])[0] < world_size():
        pulse.tell(ready())
        time.sleep(delay)
        delay = min(2 * delay, _POLL_SECONDS)


def all_agree(failure: str | None) -> None:
    """End every rank when one has failed. Collective.

    Args:
        failure: of this rank, as a sentence; None: all is well here.

    Raises:
        RunError: some rank failed.
    """
    if failures := [f"rank {i}: {each}" for i, each in enumerate(gathered(failure)) if each]:
        raise on_all_ranks(RunError("\n".join(failures)))
