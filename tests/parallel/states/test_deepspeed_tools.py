"""DeepSpeed's own zero_to_fp32 and ds_to_universal on what we save, against the engine."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import REPOSITORY
from tests.parallel.states.trained_checkpoints import build, held, train
from tests.ranks import run_ranks

NAMES = ("zero0", "zero1", "zero1_bf16", "zero2_bf16", "zero2_offload", "zero3", "zero3_bf16")
NONE_AT_STAGE_0 = ("zero0",)


def save_each(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Train and save at every stage, as a run does; the weights that the engine then held."""
    from gpt2_ds.parallel.states.captured_state import catch_state

    weights = {}
    for name in NAMES:
        engine = build(name)
        train(engine, 0)
        catch_state(engine, folder / name / "step_00000003", _write)
        weights[name] = {key: values["weight"] for key, values in held(engine).items()}
        engine.destroy()
    return weights


def _write(state: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)


def zero_to_fp32(folder: Path) -> dict[str, Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder), tag="step_00000003"))


def ds_to_universal(folder: Path) -> dict[str, Tensor]:
    from deepspeed.checkpoint import ds_to_universal

    words = ["--input_folder", str(folder / "step_00000003"), "--output_folder", str(folder / "u")]
    sys.argv = ["x", *words, "--num_extract_workers", "1", "--num_merge_workers", "1"]
    ds_to_universal.main(ds_to_universal.parse_arguments())
    found = {
        path.parent.name: torch.load(path, weights_only=False)
        for path in (folder / "u/zero").glob("*/fp32.pt")
    }
    # Of stage 3 a tensor alone.
    return {name: x["param"] if isinstance(x, dict) else x for name, x in found.items()}


def read_each(folder: Path) -> None:
    """What both tools give, into a file; by itself, as a user runs them."""
    found: dict[tuple[str, str], dict[str, Tensor] | str] = {}
    for name in NAMES:
        for tool in (zero_to_fp32, ds_to_universal):
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                try:
                    found[name, tool.__name__] = tool(folder / name)
                except Exception as error:
                    found[name, tool.__name__] = f"{type(error).__name__}: {error}"
    torch.save(found, folder / "found.pt")


@pytest.mark.heavy
@pytest.mark.parametrize("ranks", [1, 2])
def test_they_give_the_weights_of_the_engine(ranks: int, tmp_path: Path) -> None:
    weights = run_ranks(save_each, ranks, tmp_path, tmp_path)[0]
    words = [sys.executable, "-m", "tests.parallel.states.test_deepspeed_tools", str(tmp_path)]
    subprocess.run(words, cwd=REPOSITORY, env={**os.environ, "DS_ACCELERATOR": "cpu"}, check=True)
    found = torch.load(tmp_path / "found.pt", weights_only=False)
    for (name, tool), read in found.items():
        if name in NONE_AT_STAGE_0:
            assert isinstance(read, str), (name, tool)
            continue
        assert not isinstance(read, str), (name, tool, read)
        for key, weight in weights[name].items():
            flat = read[key].detach().reshape(-1)  # ds_to_universal leaves stage 3 flat and padded
            assert torch.equal(flat[: weight.numel()], weight.reshape(-1)), (name, tool, key)
            if tool == "zero_to_fp32":
                assert read[key].shape == weight.shape, (name, key)


if __name__ == "__main__":
    read_each(Path(sys.argv[1]))
