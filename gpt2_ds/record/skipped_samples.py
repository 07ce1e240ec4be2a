"""`--skip-samples a:b`: skip samples of training from now on, and write it down."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from gpt2_ds.config.errors import Fault, UserError
from gpt2_ds.data.order.skipped import SKIPPED_FILE, Ranges, Skipped, merged, read_skipped
from gpt2_ds.files.durable_file import write_durably

_RANGE = re.compile(r"([0-9]{1,18}):([0-9]{1,18})")


def parse_ranges(words: Iterable[str]) -> Ranges:
    """The ranges that a user typed.

    Args:
        words: each `a:b`, samples a to b - 1 of the training order.

    Raises:
        UserError: a word is not such a range, or its range holds no sample.

    >>> parse_ranges(["16:24", "100:101"])
    ((16, 24), (100, 101))
    """
    ranges: list[tuple[int, int]] = []
    faults: list[Fault] = []
    for word in words:
        found = _RANGE.fullmatch(word)
        first, end = (int(found[1]), int(found[2])) if found else (0, 0)
        if found is None:
            what, fix = "is not a range of samples", "Write a:b, two whole numbers, 0 or larger."
        elif first >= end:
            what = "holds no sample: the second number is one past the last skipped sample"
            fix = f"{first}:{first + 1} is sample {first} alone."
        else:
            ranges.append((first, end))
            continue
        faults.append(Fault(f"--skip-samples {word}", what, fix))
    if faults:
        raise UserError(*faults)
    return tuple(ranges)


def add_skipped(
    run_dir: Path, wanted: Iterable[tuple[int, int]], samples_seen: int
) -> tuple[Ranges, Ranges]:
    """Skip more samples of a run from now on, and write it down; on one rank.

    Args:
        run_dir: the run's folder.
        wanted: ranges [first, end); the run may skip some of them already.
        samples_seen: how many the run has been trained on.

    Returns:
        All ranges that the run skips now, merged; and those of `wanted` that are new.

    Raises:
        UserError: a range begins before the sample at which the run now stands.
    """
    known = read_skipped(run_dir)
    fresh = tuple(samples for samples in wanted if merged([*known, samples]) != known)
    now = Skipped(known).sample(samples_seen)
    faults = [
        Fault(
            f"--skip-samples {first}:{end}",
            f"the run stands at sample {now}, and was trained on those before it",
            f"Use {now}:{end}." if end > now else f"Begin at {now} or later.",
        )
        for first, end in fresh
        if first < now
    ]
    if faults:
        raise UserError(*faults)
    ranges = merged([*known, *fresh])
    if fresh:
        write_durably(run_dir / SKIPPED_FILE, [json.dumps(ranges).encode() + b"\n"])
    return ranges, fresh
