"""A device that is too small is an error with its fix, no traceback."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2_ds.train.start.out_of_memory import out_of_memory
from tests.conftest import REPOSITORY
from tests.small_run import small_dataset, small_plan

# As torch 2.13 words it.
WORDS = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 1.50 GiB is free. Including non-PyTorch memory, this process has 77.60 GiB in use."
)

_RUN = """
import sys
from pathlib import Path
import torch
import gpt2_ds.train.loop as loop
from gpt2_ds.train.job import leaving
from gpt2_ds.train.run import train
from tests.small_run import small_corpus, small_plan

def too_much(*args, **named):
    raise torch.OutOfMemoryError(sys.argv[3])

loop.window_loss = too_much
data, run = map(Path, sys.argv[1:3])
plan = small_plan(data, run)
with leaving(plan) as outcome:
    outcome.exit_code = train(plan, small_corpus(data))
"""


@pytest.mark.parametrize(
    "size, settings, fix",
    [
        (2, (), "Set it to 1 (the global batch stays), or set activation_checkpointing.enabled to"),
        (1, (), "Set activation_checkpointing.enabled to true, or take a template of a higher"),
        (1, ("activation_checkpointing.enabled=true",), "Take a template of a higher ZeRO stage"),
    ],
)
def test_the_fix_is_what_is_still_possible(
    size: int, settings: tuple[str, ...], fix: str, tmp_path: Path
) -> None:
    plan = small_plan("data", tmp_path, f"batch.micro_batch_size={size}", *settings)
    said = str(out_of_memory(plan, torch.OutOfMemoryError(WORDS)))
    what = f"--set: batch.micro_batch_size: {size} sequences do not fit into cpu of rank 0 on "
    assert said.startswith(f"{what}{platform.node()} with {plan.template_file}: ")
    assert f": CUDA out of memory: tried to allocate 2.00 GiB. {fix}" in said
    assert said.endswith("; `python launch/plan.py fit` says what fits.")


def test_other_words_are_kept(tmp_path: Path) -> None:
    said = str(out_of_memory(small_plan("data", tmp_path), torch.OutOfMemoryError("no room")))
    assert ": no room. Set it to 1 (" in said


def test_a_run_ends_with_it(tmp_path: Path) -> None:
    data, run = small_dataset(tmp_path), tmp_path / "run"
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _RUN, data, run, WORDS],
        cwd=REPOSITORY,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert (
        "error: --set: batch.micro_batch_size: 2 sequences do not fit into cpu of" in ended.stderr
    )
    assert "Traceback" not in ended.stderr
