"""A small valid recipe, as text and as a file, and what is said of a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from gpt2_ds.config.errors import Fault, UserError
from gpt2_ds.config.recipe_file import LoadedRecipe, load_recipe

SMALL = """\
template: ds_configs/zero0.json
seed: 1
model:
  n_layer: 2
  n_head: 4
  n_embd: 64
  n_positions: 64
tokenizer:
  name: bytes
data:
  path: data/small
  seq_length: 64
batch:
  global_batch_tokens: 1024 # 16 sequences
  micro_batch_size: 2
optimizer:
  lr: 1e-3
  betas: [0.9, 0.95]
  weight_decay: 0.1
  gradient_clipping: 1.0
schedule:
  name: cosine
  total_tokens: 10_240
  warmup_tokens: 1024
  decay_tokens: 10_240
  min_lr: 1e-4
precision:
  dtype: fp32
evaluation:
  interval_steps: 5
  tokens: 256
checkpoint:
  interval_steps: 5
"""


def small_file(folder: Path, text: str = SMALL) -> Path:
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def load_small(folder: Path, *overrides: str, text: str = SMALL) -> LoadedRecipe:
    return load_recipe(small_file(folder, text), overrides)


def small_values() -> dict[str, dict[str, object]]:
    """The same recipe as PyYAML reads it; it leaves 1e-3 a string, which load_recipe reads."""
    values: dict[str, dict[str, object]] = yaml.safe_load(SMALL)
    values["optimizer"]["lr"] = 1e-3
    values["schedule"]["min_lr"] = 1e-4
    return values


def faults_of(call: Callable[[], object]) -> tuple[Fault, ...]:
    """The faults that a call is refused with; each is complete and on one line."""
    with pytest.raises(UserError) as caught:
        call()
    for fault in caught.value.faults:
        assert fault.where
        assert fault.what
        assert fault.fix.endswith((".", "?"))
        assert "\n" not in str(fault)
        assert len(str(fault)) < 600
    return caught.value.faults


def only_fault(call: Callable[[], object]) -> str:
    faults = faults_of(call)
    assert len(faults) == 1, faults
    return str(faults[0])
