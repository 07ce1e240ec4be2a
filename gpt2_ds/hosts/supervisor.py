"""`launch/train.py --restarts N`: start this rank again when it ends in a failure."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

from gpt2_ds.config.errors import (
    EXIT_DONE,
    EXIT_PREEMPTED,
    EXIT_WRONG_INPUT,
    user_error,
)
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.hosts.process import Process, launchers

_ATTEMPT = "GPT2_DS_SUPERVISED"
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_FINAL = (EXIT_DONE, EXIT_WRONG_INPUT, EXIT_PREEMPTED)
_LONGEST_WAIT_SECONDS = 30.0
_OLD_RANK_0_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


def stop_signals() -> tuple[signal.Signals, ...]:
    """What asks a rank to save and end; SIGHUP (a closed terminal) too, unless nohup ignores it."""
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        return _STOP_SIGNALS
    return (*_STOP_SIGNALS, signal.SIGHUP)


def is_supervised() -> bool:
    """This process is the child of a supervisor, which stands between it and the launcher."""
    return _ATTEMPT in os.environ


def supervise(restarts: int) -> None:
    """Become this rank's supervisor; returns only in the process that is to train.

    The launcher sees nothing of a restart: the supervisor, which it started, keeps running. When
    one rank dies the watchdog ends the others, so that all their supervisors start them again, with
    a rendezvous at the same address. Call it before torch is imported: a supervisor is small.

    Args:
        restarts: how often at most; 0: this process trains itself.

    Raises:
        UserError: restarts is below 0.
        SystemExit: in the supervisor, with the exit code of the last attempt.
    """
    if restarts < 0:
        raise user_error(f"--restarts {restarts}", "is below 0", "Give a number from 0 up.")
    if restarts > 0 and not is_supervised():
        sys.exit(_Supervisor(restarts).run())


class _Supervisor:
    """One rank's attempts, one after another."""

    def __init__(self, restarts: int) -> None:
        self._restarts = restarts
        self._child: subprocess.Popen[bytes] | None = None
        self._signal: int | None = None
        self._libc = ctypes.CDLL(None)
        self._launchers = launchers(Process.find(os.getppid()))

    def run(self) -> int:
        """Start attempts until one is final; its exit code."""
        for number in stop_signals():
            signal.signal(number, self._forward)
        attempt = 1
        while True:
            code = self._attempt(attempt)
            if code in _FINAL or self._signal is not None or attempt > self._restarts:
                return exit_code(code)
            if rank() == 0:
                line = f"restart {attempt} of {self._restarts}: the last attempt {_end(code)}."
                print(line, file=sys.stderr, flush=True)
            if not self._pause(attempt):
                return EXIT_PREEMPTED
            attempt += 1

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if self._child is not None:
            self._child.send_signal(number)

    def _attempt(self, attempt: int) -> int:
        """The return code of one child, as subprocess gives it."""
        supervisor = os.getpid()

        def die_with_supervisor() -> None:
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != supervisor:  # it died before the line above
                os._exit(1)

        environment = os.environ | {_ATTEMPT: str(attempt)}
        if "TORCHELASTIC_RESTART_COUNT" in environment:  # torchrun's store keeps the old rendezvous
            environment["TORCHELASTIC_RESTART_COUNT"] = str(attempt - 1)
        self._child = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env=environment,
            preexec_fn=die_with_supervisor,  # runs in a process of one thread
        )
        if self._signal is not None:  # it came while the child was being started
            self._child.send_signal(self._signal)
        code = self._child.wait()
        self._child = None
        return code

    def _pause(self, attempt: int) -> bool:
        """Wait before the next attempt: 1 s, 2 s, ... 30 s. False: the run is to stop."""
        began = time.monotonic()
        seconds = min(_LONGEST_WAIT_SECONDS, 2.0 ** (attempt - 1))
        while self._signal is None and all(process.lives() for process in self._launchers):
            waited = time.monotonic() - began
            if waited >= seconds and (waited >= _OLD_RANK_0_SECONDS or not _old_rank_0_listens()):
                return True
            time.sleep(0.1)
        return False


def _old_rank_0_listens() -> bool:
    """Rank 0 of the last attempt still waits at the master's port; a new rank would join it."""
    if rank() == 0 or "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun itself listens there
        return False
    try:
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        socket.create_connection(address, timeout=1.0).close()
    except (KeyError, ValueError, OSError):
        return False
    return True


def exit_code(code: int) -> int:
    """A shell's exit code for what subprocess returns: 128 + N for one that signal N killed.

    >>> [exit_code(code) for code in (0, 75, -9)]
    [0, 75, 137]
    """
    return 128 - code if code < 0 else code


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}"


def attempt() -> int:
    """How often the supervisor has started this rank again; 0 for the first time, or without."""
    return max(0, int(os.environ.get(_ATTEMPT, "0")) - 1)
