"""What the system refuses of a file or a disk, in one voice."""

from __future__ import annotations

import errno

FILE_TROUBLES = {
    errno.ENOSPC: "Make room on this disk, then give the same command again",
    errno.EDQUOT: "Make room within the quota, then give the same command again",
    errno.EROFS: "Make the folder writable, or name another with --run-dir",
    errno.EACCES: "Make the folder writable, or name another with --run-dir",
    errno.EPERM: "Make the folder writable, or name another with --run-dir",
    errno.EFBIG: "Raise the limit on the size of a file, then give the same command again",
    errno.EIO: "See what the system says of this disk, then give the same command again",
    errno.ESTALE: "See whether the network disk is there, then give the same command again",
}
"""What a file or a disk can refuse, and what a person does about it."""


def file_trouble(error: OSError) -> str:
    """A sentence for what the system says of a file, with the fix.

    >>> file_trouble(OSError(errno.ENOSPC, "No space left on device", "runs/x"))
    'runs/x: No space left on device. Make room on this disk, then give the same command again.'
    """
    name = error.filename2 or error.filename  # of a copy, the second is what is written
    where = f"{name}: " if name else ""
    fix = FILE_TROUBLES.get(error.errno or 0, "Mend it, then give the same command again")
    return f"{where}{error.strerror or error}. {fix}."
