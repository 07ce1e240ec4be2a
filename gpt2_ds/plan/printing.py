"""Tables and sizes as a person reads them, printed or in a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt2_ds.config.errors import user_error

GIB = 1 << 30
_MIB = 1 << 20


def table(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> str:
    """Columns as wide as their widest cell, two spaces apart.

    Args:
        rows: of equally many cells; the first is the heading, if there is one.
        numbers: all columns but the first are flush right.

    >>> print(table([("name", "size"), ("x", "1,000"), ("longer", "9")], numbers=True))
    name     size
    x       1,000
    longer      9
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<", *((">" if numbers else "<") for _ in widths[1:])]
    forms = [f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True)]
    return "\n".join("  ".join(forms).format(*row).rstrip() for row in rows)


def in_gib(n_bytes: float) -> str:
    """A number of GiB, for a column of them.

    >>> in_gib(1234.56 * GIB)
    '1,234.6'
    """
    return f"{n_bytes / GIB:,.1f}"


def size(n_bytes: float) -> str:
    """Bytes with their unit, for a sentence.

    >>> size(3 << 30), size(12_345_678), size(900)
    ('3.0 GiB', '11.8 MiB', '900 bytes')
    """
    if n_bytes >= GIB:
        return f"{in_gib(n_bytes)} GiB"
    return f"{n_bytes / _MIB:.1f} MiB" if n_bytes >= _MIB else f"{n_bytes} bytes"


def write_file(flag: str, path: Path, text: str) -> None:
    """Write the file that a flag names: `--csv FILE`, `--html FILE`.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise user_error(f"{flag} {path}", what, "Name a file in a folder that exists.") from None
