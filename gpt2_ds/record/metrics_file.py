"""metrics.jsonl: the numbers of a run's steps, one JSON object a line. Needs no torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt2_ds.files.durable_file import naming, write_durably
from gpt2_ds.files.json_lines import append_json_line, read_json_lines

Values = dict[str, float | None]
"""By name; None: not finite, or not a number."""

_LARGEST = sys.float_info.max


def metrics_path(run_dir: Path) -> Path:
    """The file of a run."""
    return run_dir / "metrics.jsonl"


def read_metrics(
    run_dir: Path, holding: str = "", *, last_bytes: int | None = None
) -> Iterator[tuple[int, Values]]:
    """The step and the values of each line, in order; any other line is skipped.

    A line is of a training step ("loss" and more) or of a validation ("validation_loss" and more).

    Args:
        run_dir: the run's folder; the file may be missing.
        holding: only lines that have this value, even if it is None.
        last_bytes: read only the lines in so many bytes at the end; None: all lines.
    """
    path = metrics_path(run_dir)
    for _, line in read_json_lines(path, holding=holding, last_bytes=last_bytes):
        if (step := _step(line)) is not None:
            yield step, {name: _number(line[name]) for name in line if name != "step"}


def append_metrics(run_dir: Path, step: int, values: Mapping[str, float]) -> None:
    """Add a line; what is not finite is null there.

    Args:
        run_dir: the run's folder.
        step: optimizer steps done.
        values: by name.

    Raises:
        OSError: the file cannot be written; it is named.
    """
    path = metrics_path(run_dir)
    numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
    with naming(path):
        append_json_line(path, {"step": step} | numbers)


def keep_metrics_until(run_dir: Path, step: int) -> int:
    """Remove the lines of steps that will be done again, so that the file holds one curve.

    Args:
        run_dir: the run's folder; the file may be missing.
        step: the last step that counts.

    Returns:
        The last step whose validation loss is kept; 0 where there is none.

    Raises:
        OSError: the file cannot be written; it is named.
    """
    path, validated_step = metrics_path(run_dir), 0

    def kept() -> Iterator[bytes]:
        nonlocal validated_step
        for raw, line in read_json_lines(path):
            found = _step(line)
            if found is not None and found <= step:
                validated_step = found if "validation_loss" in line else validated_step
                yield raw

    if path.exists():
        write_durably(path, kept())
    return validated_step


def _step(line: dict[str, Any]) -> int | None:
    step = line.get("step")
    return step if type(step) is int and step >= 0 else None  # True is an int, too


def _number(value: Any) -> float | None:
    """The value, where it is a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and abs(value) <= _LARGEST else None
