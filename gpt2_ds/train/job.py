"""One start of a run: how its ranks join, and how they leave."""

from __future__ import annotations

import platform
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2_ds.config.errors import EXIT_RUN_FAILED, RunError, UserError, print_error
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.data.reading.corpus import Corpus
from gpt2_ds.files.trouble import FILE_TROUBLES, file_trouble
from gpt2_ds.health.stop_request import StopRequest
from gpt2_ds.health.watchdog import Watchdog
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.parallel.agreement import by_rank_0, gathered
from gpt2_ds.parallel.process_group import join, leave
from gpt2_ds.record.rank_log import keep_log, log_end, log_path
from gpt2_ds.record.run_lock import RunLock
from gpt2_ds.record.terminal import say_file_trouble
from gpt2_ds.train.start.first_checks import check_together
from gpt2_ds.train.start.job_record import note_fault
from gpt2_ds.train.start.out_of_memory import out_of_memory

_RENDEZVOUS_SECONDS = 600.0


@dataclass(frozen=True)
class Job:
    """One start of a run: its ranks have joined and were checked.

    Args:
        plan: the run.
        corpus: what it reads, opened and checked.
        device: of this rank.
        stop: signals that this rank gets.
        watchdog: over all ranks.
        hosts: name of each rank's host, by rank.
    """

    plan: RunPlan
    corpus: Corpus
    device: torch.device
    stop: StopRequest
    watchdog: Watchdog
    hosts: list[str]

    @property
    def document_eot(self) -> int | None:
        """The token that begins a document, when attention stays inside documents."""
        return self.corpus.tokenizer.eot_token if self.plan.recipe.data.document_mask else None


@contextmanager
def joined(plan: RunPlan, corpus: Corpus, *, writes: bool) -> Iterator[Job | None]:
    """Join the other ranks, and check with them that the run can begin. Collective.

    From here on each signal is handled, and a rank or machine that dies is named.

    Args:
        plan: the run.
        corpus: what it reads, opened and checked.
        writes: the job writes into the run directory; a replay does not.

    Yields:
        The job; None: some rank was asked to stop meanwhile.

    Raises:
        UserError: the device, a shard of the data, or a machine does not fit.
        RunError: a rank did not come to the rendezvous.
    """
    timeout = plan.recipe.health.timeout_seconds
    # Collectives wait longer than the watchdog, which says which rank it is.
    wait_seconds = max(60.0, min(timeout, _RENDEZVOUS_SECONDS))
    device = join(1 + 2 * timeout / 60, rendezvous_seconds=wait_seconds)
    with StopRequest() as stop, Watchdog(plan.run_dir, timeout) as watchdog, explained(watchdog):
        if check_together(plan, corpus, watchdog, stop, writes=writes):
            yield None
        else:
            watchdog.mark(0, "starting")
            yield Job(plan, corpus, device, stop, watchdog, gathered(platform.node()))


class Outcome:
    """The exit code of a job, once it has one."""

    exit_code = EXIT_RUN_FAILED


@contextmanager
def leaving(plan: RunPlan, *, log: bool = True) -> Iterator[Outcome]:
    """Ends this process after the block, with the exit code of what happened in it.

    Args:
        plan: the run that is trained, or replayed, in the block.
        log: keep this rank's log in the run directory.

    Yields:
        Takes the exit code of the block, where it ends without an error.
    """
    if log:
        keep_log(plan.run_dir, rank())
    threading.excepthook = say_file_trouble
    outcome = Outcome()
    try:
        with _understood(plan):
            yield outcome
    except (UserError, RunError) as error:
        outcome.exit_code = print_error(error)
    except Exception as error:  # a fault of this project: the others must not wait for this rank
        traceback.print_exc()
        if rank() != 0:
            where = f"all of it is in {log_path(plan.run_dir, rank())}"
            print(f"error (rank {rank()}): {error!r}; {where}", file=sys.stderr)
        outcome.exit_code = EXIT_RUN_FAILED
    log_end(outcome.exit_code)
    leave(outcome.exit_code)


@contextmanager
def _understood(plan: RunPlan) -> Iterator[None]:
    """Replace what torch and the system raise: say which setting or file it is, and the fix."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(plan, error) from error
    except OSError as error:
        if error.errno not in FILE_TROUBLES:
            raise
        if not error.filename:  # TensorBoard's writer does not say which
            error = OSError(error.errno, error.strerror, str(plan.run_dir))
        raise RunError(file_trouble(error)) from error


@contextmanager
def explained(watchdog: Watchdog) -> Iterator[None]:
    """Replace what torch raises where a peer is gone: say which one, and how it ended."""
    try:
        yield
    except RuntimeError as error:
        if sentence := watchdog.what_happened(error):
            raise RunError(sentence) from error
        raise


@contextmanager
def noted(run_dir: Path) -> Iterator[None]:
    """Write a fault that ends the job into the ledger."""
    try:
        yield
    except (RunError, RuntimeError) as error:
        note_fault(run_dir, str(error))
        raise


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Only one job at a time writes a run directory. Collective."""
    lock = RunLock(run_dir)

    def take() -> None:
        lock.__enter__()

    by_rank_0(take)
    try:
        yield
    finally:
        if rank() == 0:
            lock.__exit__(None, None, None)
