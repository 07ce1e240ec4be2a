"""Small collectives of this project's own, besides DeepSpeed's traffic."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
import torch.distributed

from gpt2_ds.config.errors import Fault, RunError, UserError, on_all_ranks
from gpt2_ds.files.heartbeat import Heartbeat
from gpt2_ds.files.trouble import file_trouble
from gpt2_ds.hosts.launcher import rank, world_size
from gpt2_ds.parallel.process_group import host_group

Value = TypeVar("Value")

_FIRST_POLL_SECONDS, _POLL_SECONDS = 0.001, 0.1


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


def by_rank_0(work: Callable[[], Value], heartbeat: Heartbeat | None = None) -> Value:
    """What `work` gives on rank 0; its failure there ends every rank alike. Collective.

    Args:
        work: reads or writes what all ranks share; runs on rank 0 only.
        heartbeat: of `work`, where it may take long, or wait for a disk; it then runs in a thread.

    Raises:
        UserError: rank 0 found a mistake of the user's.
        RunError: rank 0 could not do it, or could not read or write a file.
    """
    box: list[Any] = [None, None, None]
    doing: Future[Value] | None = None
    if heartbeat is not None:
        if rank() == 0:
            doing = _in_a_thread(work)
        until_all(lambda: doing is None or doing.done(), heartbeat)
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


def by_all(work: Callable[[], Value], heartbeat: Heartbeat) -> Value:
    """What `work` gives on this rank, once it is done on all. Collective.

    Args:
        work: may take long; must not fail on some ranks alone.
        heartbeat: of `work`, which runs in a thread.
    """
    doing = _in_a_thread(work)
    until_all(doing.done, heartbeat)
    return doing.result()


def _in_a_thread(work: Callable[[], Value]) -> Future[Value]:
    pool = ThreadPoolExecutor(1, "long-work")
    doing = pool.submit(work)
    pool.shutdown(wait=False)
    return doing


def until_all(ready: Callable[[], bool], heartbeat: Heartbeat) -> None:
    """Wait until every rank is ready. Collective.

    Args:
        ready: whether this rank is.
        heartbeat: of what this rank waits for.
    """
    delay = _FIRST_POLL_SECONDS
    while totals([ready()])[0] < world_size():
        heartbeat.report(ready())
        time.sleep(delay)
        delay = min(2 * delay, _POLL_SECONDS)


def all_agree(failure: str | None) -> None:
    """End every rank when one has failed. Collective.

    Args:
        failure: of this rank, as a sentence; None: all is well here.

    Raises:
        RunError: some rank failed.
    """
    if failures := [f"rank {i}: {text}" for i, text in enumerate(gathered(failure)) if text]:
        raise on_all_ranks(RunError("\n".join(failures)))
