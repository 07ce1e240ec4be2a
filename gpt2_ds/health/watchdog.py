"""Says which rank died or hangs, and ends a job that cannot continue."""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from gpt2_ds.config.errors import EXIT_RUN_FAILED
from gpt2_ds.files.heartbeat import Heartbeat
from gpt2_ds.health.peers import LivenessSocket, Peers
from gpt2_ds.health.rank_status import (
    DUMPED,
    FAILED,
    LEFT,
    Diagnosis,
    RankProcess,
    Status,
    find_end,
    find_hang,
    open_store,
)
from gpt2_ds.health.stacks import Stacks, end_with_stacks
from gpt2_ds.parallel.process_group import host_group

_PERIOD_SECONDS = 0.5
_NO_TIMEOUT = timedelta(days=365)  # a stopped rank 0 must not make the store print; see _look
_OVERSLEPT_SECONDS = 5.0
_DEAD_GRACE_SECONDS = 3.0
_FAILED_GRACE_SECONDS = 6.0
_WHAT_HAPPENED_SECONDS = 4.0
_HEARD_SECONDS = 3.0
_PRINT_SECONDS = 2.0
_DIAGNOSIS = "diagnosis"


class Watchdog:
    """Watches all ranks from a thread of each; collective to make, before anything can hang.

    Every half second a rank publishes where its main thread is, and looks whether the processes of
    its host's other ranks still live. Rank 0 reads them all. What it finds ends the job:

    - A rank is dead, its machine no longer answers (see `Peers`), or it left by an error. The main
      threads get a few seconds to notice it themselves (gloo raises; see `what_happened`).
    - Nothing is heard of a rank, or a main thread marks nothing, for `timeout_seconds`. All ranks
      write the stacks of all threads into logs/ and end; a stopped one of the same host is woken.

    When the whole machine or job was suspended, the count begins anew.

    Args:
        run_dir: of the run.
        timeout_seconds: longer than any two marks are apart in a sound run; shorter than the
            timeout of torch's collectives, or those end first.
    """

    def __init__(self, run_dir: Path, timeout_seconds: float) -> None:
        self._published = 0
        self._rank, world_size = dist.get_rank(), dist.get_world_size()
        self._timeout_seconds = timeout_seconds
        self._overslept_seconds = min(_OVERSLEPT_SECONDS, timeout_seconds / 2)
        self._stacks = Stacks(run_dir / "logs" / f"stacks_rank_{self._rank:05d}.txt")
        port = 0
        if self._rank == 0:
            self._store = open_store(port)
            port = self._store.port
            self._store.set(_DIAGNOSIS, "")
            for i in range(world_size):
                self._store.set(f"status/{i}", Status().to_json())
        self._liveness_socket = LivenessSocket()
        mine = (RankProcess.of_this_process(self._rank), port, self._liveness_socket.peer)
        everyone = [mine] * world_size
        # Not NCCL: its first use, where a wrong network hangs, is to be watched.
        dist.all_gather_object(everyone, mine, group=host_group())
        self._ranks = [process for process, _, _ in everyone]
        self._peers = Peers(self._ranks, [peer for _, _, peer in everyone], self._rank)
        if self._rank != 0:
            self._store = open_store(everyone[0][1])
        self._store.set_timeout(_NO_TIMEOUT)
        here = [member for member in self._ranks if member.place == mine[0].place]
        self._neighbours = [member for member in here if member.rank != self._rank]
        self._mark = (0, 0, "starting", time.monotonic())
        self._statuses = [Status()] * world_size
        self._count_anew(time.monotonic())
        self._gone: list[int] = []
        self._end: str | None = None
        self._end_published, self._wake, self._left = (threading.Event() for _ in range(3))
        self._diagnosis: Diagnosis | None = None
        self._explained = self._store_lost = self._broken = False

    def __enter__(self) -> Watchdog:
        """Begin to watch."""
        self._stacks.open()
        self._count_anew(time.monotonic())
        for work in (self._exchange, self._watch):
            threading.Thread(target=work, name=f"watchdog {work.__name__}", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the watch: what this process does after it is neither a death nor a hang."""
        self._end = LEFT if kind is None else FAILED
        self._wake.set()
        self._end_published.wait(_HEARD_SECONDS)
        if self._rank == 0:
            self._wait_until_heard()
        self._left.set()
        self._wake.set()
        self._liveness_socket.close()
        self._stacks.close()

    def mark(self, step: int, doing: str) -> None:
        """Say that the main thread has come to another point. Costs less than a microsecond.

        Every rank marks the same points in the same order: of two ranks, the one with fewer marks
        in a step is held to be behind.

        Args:
            step: being taken, from 1.
            doing: what comes now, to read behind "while": "waiting for data".
        """
        last = self._mark
        self._mark = (step, last[1] + 1 if last[0] == step else 1, doing, time.monotonic())

    @property
    def heartbeat(self) -> Heartbeat:
        """Of long work, in which the main thread comes to no point that it could mark."""
        return Heartbeat(self._mark_work)

    def _mark_work(self, doing: str, alone: bool) -> None:
        """Like `mark`. The same words again are the same point; work alone is one point back."""
        step, marks, before, _ = self._mark
        passed = 0 if doing == before else -1 if alone else 1
        self._mark = (step, marks + passed, doing, time.monotonic())

    def what_happened(self, error: BaseException) -> str | None:
        """Which rank's end explains an error out of a collective; for the main thread.

        Takes up to four seconds. After a sentence, this thread has to end the process.

        Args:
            error: what was raised.

        Returns:
            A sentence that names the rank; None when all live, or the error came from elsewhere.
        """
        self._broken = True
        elsewhere = isinstance(error, torch.OutOfMemoryError) or not isinstance(error, RuntimeError)
        end = time.monotonic() + (0.0 if elsewhere else _WHAT_HAPPENED_SECONDS)
        while True:
            if self._diagnosis is not None and self._diagnosis.kind != "hang":
                self._explained = True
                return self._diagnosis.sentence
            if time.monotonic() >= end:
                return None
            self._wake.set()
            time.sleep(0.05)

    def _count_anew(self, now: float) -> None:
        self._counting_from = self._heard_at = self._awake_at = now
        self._changed = [now] * len(self._ranks)  # when each status came

    def _now(self) -> float:
        """The time; whichever thread first wakes from a long sleep counts anew."""
        if (now := time.monotonic()) - self._awake_at > self._overslept_seconds:
            self._count_anew(now)
        self._awake_at = now
        return now

    # The thread that talks to the store. A call there takes as long as rank 0 is stopped.

    def _exchange(self) -> None:
        while not self._left.is_set():
            rank_0 = self._ranks[0]
            if rank_0 in self._neighbours and not rank_0.process.lives():
                self._store_lost = True  # asking it would only make torch print
                return
            try:
                self._exchange_once()
            except RuntimeError:
                self._store_lost = True
                return
            self._wake.wait(_PERIOD_SECONDS)
            self._wake.clear()

    def _exchange_once(self) -> None:
        end = self._end
        if self._diagnosis is not None:
            self._store.set(_DIAGNOSIS, self._diagnosis.to_json())
        self._store.set(f"status/{self._rank}", self._status(end).to_json())
        read = range(len(self._ranks)) if self._rank == 0 else range(1)
        found, *texts = self._store.multi_get([_DIAGNOSIS, *(f"status/{i}" for i in read)])
        now = time.monotonic()
        for i, text in zip(read, texts, strict=True):
            status = Status.from_json(text)
            if status.number != self._statuses[i].number:
                self._changed[i] = now
            self._statuses[i] = status
        self._heard_at = now
        if end is not None:
            self._end_published.set()
        if self._diagnosis is None:
            if found:
                self._diagnosis = Diagnosis.from_json(found)
            elif self._rank == 0:
                self._diagnosis = find_end(self._ranks, self._statuses)
                self._diagnosis = self._diagnosis or self._peers.find(
                    self._silent(now), self._statuses
                )

    def _status(self, end: str | None) -> Status:
        self._published += 1
        step, marks, doing, marked = self._mark
        return Status(
            number=self._published,
            step=step,
            marks=marks,
            doing=doing,
            idle_seconds=self._now() - max(marked, self._counting_from),
            end=end,
            gone=self._gone,
            heard=self._statuses[0].end is not None or self._diagnosis is not None,
            broken=self._broken,
        )

    def _wait_until_heard(self) -> None:
        """On rank 0, which holds the store: until no other rank waits for it, or some seconds."""
        end = time.monotonic() + _HEARD_SECONDS
        while time.monotonic() < end:
            others = (
                status.heard or status.end is not None or member.rank in self._gone
                for member, status in zip(self._ranks[1:], self._statuses[1:], strict=True)
            )
            if all(others):
                return
            self._wake.set()
            time.sleep(0.05)

    # The thread that judges; it waits for no other process, but when it probes rank 0.

    def _watch(self) -> None:
        while not self._left.wait(_PERIOD_SECONDS):
            now = self._now()
            self._liveness_socket.answer()
            gone = [member.rank for member in self._neighbours if not member.process.lives()]
            if gone != self._gone:
                self._gone = gone
                self._wake.set()
            self._diagnosis = self._diagnosis or self._look(now)
            if self._diagnosis is not None:
                self._wake.set()
                return self._end_job(self._diagnosis)

    def _look(self, now: float) -> Diagnosis | None:
        """What can be found without asking: by rank 0 about all, by the others about rank 0."""
        status, silent = self._statuses[0], self._silent(now)
        if self._rank == 0 or (not self._store_lost and silent[0] > self._timeout_seconds):
            return find_hang(self._ranks, self._statuses, silent, self._timeout_seconds)
        if self._store_lost and status.end is None:
            return find_end(self._ranks, [status, Status(gone=[0]), *self._statuses[2:]])
        found = self._peers.find(silent, self._statuses)
        self._awake_at = time.monotonic()  # probing is not a sleep
        return found

    def _silent(self, now: float) -> list[float]:
        """Seconds since each rank was heard of; those that this one does not listen to count 0."""
        if self._rank == 0:
            return [0.0, *(now - changed for changed in self._changed[1:])]
        return [now - self._heard_at] + [0.0] * (len(self._ranks) - 1)

    def _end_job(self, diagnosis: Diagnosis) -> None:
        if diagnosis.kind == "hang":
            return self._end_hang(diagnosis)
        grace = _FAILED_GRACE_SECONDS
        if diagnosis.kind == "dead":  # NCCL raises nothing: its own thread may abort this process
            grace = _DEAD_GRACE_SECONDS if dist.get_backend() == "gloo" else 0.0
        if (
            not self._left.wait(grace) and not self._explained
        ):  # else the main thread ends, and says why
            self._print(diagnosis, diagnosis.sentence)
            os._exit(EXIT_RUN_FAILED)

    def _end_hang(self, diagnosis: Diagnosis) -> None:
        self._stacks.dump(str(self._ranks[self._rank]))
        self._end = DUMPED
        where = f"The stacks of all ranks are in {self._stacks.path.parent}."
        limit = f"health.timeout_seconds is {self._timeout_seconds:g}."
        self._print(diagnosis, f"{diagnosis.sentence}. {where} {limit}")
        self._wake.set()
        here = [self._rank, *(member.rank for member in self._neighbours)]
        if self._rank == min((i for i in here if i not in diagnosis.ranks), default=-1):
            end_with_stacks(
                [member.process for member in self._neighbours if member.rank in diagnosis.ranks]
            )
        self._end_published.wait(_HEARD_SECONDS)
        if self._rank == 0:
            self._wait_until_heard()
        os._exit(EXIT_RUN_FAILED)

    def _print(self, diagnosis: Diagnosis, text: str) -> None:
        """Once: on the lowest rank that is not the culprit."""
        others = [member.rank for member in self._ranks if member.rank not in diagnosis.ranks]
        if self._rank == min(others, default=0):
            # From a thread: the main one may wait for a disk, and hold what printing needs.
            words, where = [f"error: {text}"], {"file": sys.stderr, "flush": True}
            printing = threading.Thread(target=print, args=words, kwargs=where, daemon=True)
            printing.start()
            printing.join(_PRINT_SECONDS)
