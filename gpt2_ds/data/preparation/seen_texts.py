"""Which texts came before: exactly, and in constant memory."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import numpy.typing as npt

CACHE_KIB = 64 * 1024


class SeenTexts:
    """The sha256 of each text that was taken, in a file.

    Those of a unit are kept by `commit`, which comes before the unit's line in the journal; those
    of units that are not in the journal are forgotten at the beginning.

    Args:
        path: of the file.
        units: how many units are complete.

    Raises:
        sqlite3.Error: the disk is full, or the file is damaged.
    """

    def __init__(self, path: Path, units: int) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        execute = self._connection.execute
        execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        execute(
            "CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY, unit INTEGER NOT NULL) "
            "WITHOUT ROWID"
        )
        execute("DELETE FROM seen WHERE unit >= ?", (units,))
        execute("BEGIN")

    def are_new(self, digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Whether no equal text came before, neither among those added nor here.

        Args:
            digests: (n, 32) uint8.

        Returns:
            (n,) bool.
        """
        here: set[bytes] = set()
        new = np.zeros(len(digests), np.bool_)
        query = "SELECT 1 FROM seen WHERE digest = ?"
        for i, digest in enumerate(map(bytes, digests)):
            if digest not in here:
                here.add(digest)
                new[i] = self._connection.execute(query, (digest,)).fetchone() is None
        return new

    def add(self, digests: npt.NDArray[np.uint8], unit: int) -> None:
        """Remember texts, all of them new, as those of a unit."""
        rows = ((bytes(digest), unit) for digest in digests)
        self._connection.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?)", rows)

    def commit(self) -> None:
        """Bring what was added to the disk."""
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN")

    def close(self) -> None:
        """Close the file; what was not committed is forgotten."""
        self._connection.close()
