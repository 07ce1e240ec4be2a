"""One job at a time in a run directory."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from gpt2_ds.config.errors import UserError, user_error, warn
from gpt2_ds.files.trouble import write_fault

LOCK = "run.lock"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class RunLock:
    """Holds a run directory for rank 0 of this job; two jobs would write over each other.

    The lock is the kernel's, on the file run.lock, and ends with the process however that ends.
    The file says who holds it, and stays: deleting it would let two jobs hold two files of one
    name. Where the disk does not support locks, a warning is printed.

    Args:
        run_dir: made where it is missing.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._path = run_dir / LOCK
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises:
            UserError: another job holds it; or the run directory cannot be written.
        """
        try:
            self._take()
        except OSError as error:
            self._release()
            raise UserError(write_fault(self._run_dir, error, other="--run-dir")) from None
        except UserError:
            self._release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def _take(self) -> None:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT  # Python keeps it from processes that are started
        self._descriptor = os.open(self._path, flags, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(self._descriptor) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warn(
                f"{self._path}: this disk does not support locks ({error.strerror}); make sure "
                "that no second job uses this run directory."
            )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        text = f"{platform.node()} {os.getpid()} {now}\n".encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))

    def _release(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # a network disk may be gone
                os.close(self._descriptor)
            self._descriptor = None

    def _in_use(self, descriptor: int) -> UserError:
        words = os.pread(descriptor, 1000, 0).decode(errors="replace").split()
        who = "process {1} on {0}, since {2}".format(*words) if len(words) == 3 else "another job"
        return user_error(
            str(self._run_dir),
            f"is in use by {who}",
            "Wait until that job ends, stop it, or name another folder with --run-dir.",
        )
