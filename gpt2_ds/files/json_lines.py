"""Files of one JSON object a line, to which a run adds while it may be killed at any time."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_LONGEST_LINE_BYTES = 1 << 20  # a power failure may leave gigabytes of zeros without a newline


def read_json_lines(
    path: Path, *, holding: str = "", last_bytes: int | None = None
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each whole line and its object, in order; nothing where there is no file.

    Lines that are not a JSON object in UTF-8 are skipped: a killed process left one unfinished, or
    a disk damaged it. No more than a line is in memory at a time.

    Args:
        path: of the file; may grow meanwhile.
        holding: skip lines without this key; much faster than to parse them.
        last_bytes: begin at the first line of the last so many bytes; None: at the first.
    """
    key = json.dumps(holding).encode() if holding else b""
    if not path.is_file():  # a device has no end
        return
    with path.open("rb") as stream:
        if last_bytes is not None and (start := os.fstat(stream.fileno()).st_size - last_bytes) > 0:
            stream.seek(start - 1)  # a line that begins right there is one of them
            stream.readline(_LONGEST_LINE_BYTES)
        while line := stream.readline(_LONGEST_LINE_BYTES):
            if key not in line:
                continue
            try:
                values = json.loads(line.decode())
            except (ValueError, RecursionError):
                continue
            if isinstance(values, dict) and (not holding or holding in values):
                yield line.rstrip(b"\r\n") + b"\n", values


def append_json_line(path: Path, values: Mapping[str, Any], *, durable: bool = False) -> None:
    """Append a line in one write, on a new line where a killed process left one unfinished.

    Args:
        path: of the file; made if need be.
        values: of the line.
        durable: force it to the disk before this returns.

    Raises:
        ValueError: a number is not finite, which JSON cannot say.
        OSError: the disk is full, or cannot be written.
    """
    line = json.dumps(values, allow_nan=False).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        whole = b"\n" + line if torn else line
        if os.write(descriptor, whole) < len(whole):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
