"""Whether all ranks see one run directory, and may write there; and room on its disk."""

from __future__ import annotations

import errno
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.files.trouble import advice, is_full
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.parallel.agreement import by_rank_0, gathered
from gpt2_ds.plan.printing import size
from gpt2_ds.plan.states import disk_bytes
from gpt2_ds.preflight.verdicts import Check, failed, ok, warning

_SEEN_WITHIN_SECONDS = 3.0  # a network disk shows a new file a little later


def run_folder(run_dir: Path) -> Check:
    """One file written by rank 0 is seen by all, and each can write one. Collective.

    What is written is deleted again. A full disk does not fail this check: see `room`.

    Args:
        run_dir: made on rank 0 if need be.
    """
    name = "run directory"
    word = by_rank_0(lambda: f".preflight_{secrets.token_hex(8)}")
    token = run_dir / word
    made = gathered(_try(lambda: _make(token)) if rank() == 0 else None)[0]
    try:
        if made is not None and is_full(made[0]):
            return ok(name, f"{run_dir}: its disk is full")
        if made is not None:
            found_there = f"{run_dir}: rank 0 cannot write there ({made[1]})"
            return failed(name, found_there, advice(made[0], "--run-dir"))
        mine = _why_unseen(token)
        if mine is None:
            own = token.with_name(f"{word}_{rank()}")
            refused = _try(lambda: _touch_and_delete(own))
            if refused is not None and not is_full(refused[0]):
                mine = f"cannot write there ({refused[1]})"
        where = f"rank {rank()} on {platform.node()}"
        found = [(who, wrong) for who, wrong in gathered((where, mine)) if wrong is not None]
    finally:
        if rank() == 0:
            with suppress(OSError):
                token.unlink(missing_ok=True)
    if found:
        text = ", ".join(f"{who} {wrong}" for who, wrong in found)
        fix = "Put it on a disk that all nodes share: --run-dir."
        return failed(name, f"{run_dir}: {text}", fix)
    return ok(name, f"{run_dir}: all ranks see it and can write")


@contextmanager
def left_as_found(run_dir: Path) -> Iterator[None]:
    """Delete a run directory again that was not there before, when it is empty."""
    new: list[Path] = []
    if rank() == 0:
        with suppress(OSError):
            new = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    try:
        yield
    finally:
        with suppress(OSError):
            for folder in new:
                folder.rmdir()


def _try(work: Callable[[], object]) -> tuple[int, str] | None:
    """The number and words of what the system refused; None: nothing."""
    try:
        work()
    except OSError as error:
        return error.errno or 0, error.strerror or str(error)
    return None


def _make(token: Path) -> None:
    token.parent.mkdir(parents=True, exist_ok=True)
    token.touch()


def _touch_and_delete(path: Path) -> None:
    path.touch()
    path.unlink()


def _why_unseen(path: Path) -> str | None:
    """Why rank 0's file is not seen here, after waiting a little; None: it is there."""
    end = time.monotonic() + _SEEN_WITHIN_SECONDS
    while (refused := _try(path.stat)) is not None:
        if time.monotonic() > end:
            number, words = refused
            missing = number in (errno.ENOENT, errno.ENOTDIR)
            return "does not see what rank 0 writes there" if missing else f"cannot look ({words})"
        for folder in (path.parent.parent, path.parent):
            with suppress(OSError):
                list(folder.iterdir())  # NFS asks its server again
        time.sleep(0.05)
    return None


def room(plan: RunPlan) -> Check:
    """Free space against the checkpoints that will be kept; looked at from rank 0. Collective.

    Less than they need is a warning, for others may make room; nothing at all is a failure.
    """
    return by_rank_0(lambda: _room(plan))


def _room(plan: RunPlan) -> Check:
    name, run_dir = "free disk", plan.run_dir
    try:
        there = next(folder for folder in (run_dir, *run_dir.resolve().parents) if folder.exists())
        usage = shutil.disk_usage(there)
    except OSError as error:
        fix = "Name a folder that you may write to with --run-dir."
        return failed(name, f"{run_dir}: cannot look ({error.strerror})", fix)
    free = usage.free
    held = 0
    for path in (plan.run_dir / "checkpoints").rglob("*"):
        with suppress(OSError):  # another job may delete it now
            held += path.stat().st_size if path.is_file() else 0
    still = max(0, disk_bytes(plan) - held)
    found = f"{size(free)} for {size(still)} of checkpoints, on the disk of {plan.run_dir}"
    if usage.total > 0 == free:  # in front of a bucket, some say 0 of 0
        return failed(name, found, "Make room, or name another disk with --run-dir.")
    if still > free:
        fix = "Make room, name another disk with --run-dir, or lower checkpoint.keep_last."
        return warning(name, found, fix)
    return ok(name, found)
