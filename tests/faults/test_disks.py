"""Disks that are full or cannot be written to: a clear error, no hang, nothing lost."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.jobs import Job, job, losses_of
from tests.train.saved_files import hashes_of

STEPS = 60
SETTINGS = (
    f"schedule.total_tokens={STEPS * 256}",
    f"schedule.decay_tokens={STEPS * 256}",
    "evaluation.interval_steps=20",
    "checkpoint.keep_last=100",
)
