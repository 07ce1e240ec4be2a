"""Write a checkpoint in DeepSpeed's universal form, for other programs that train with DeepSpeed.

This project does not need it to resume (see `elastic.py`). What DeepSpeed 0.19.8's own converter
writes of stages 0 and 3 does not load at stages 1 and 2; and it mistakes the order of parameters
with `round_robin_gradients`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from gpt2_ds.config.errors import user_error
from gpt2_ds.parallel.states.parameter_layouts import MOMENTS
from gpt2_ds.parallel.states.parameter_states import ParameterStates


def write_universal(checkpoint: Path, out: Path) -> None:
    """Write a checkpoint of any stage and number of ranks as one that stages 1 and 2 load.

    A DeepSpeed program with `"checkpoint": {"load_universal": true}` loads it with
    `engine.load_checkpoint(out.parent)`: `latest_universal` there names it. It is written under
    another name and renamed when it is complete. Not for stage 3: DeepSpeed 0.19.8 gives all its
    groups the weight decay of the first there, and counts Adam's steps once for each group.

    Args:
        checkpoint: a step's folder, whose files were checked.
        out: the folder to make.

    Raises:
        UserError: `out` is there already.
        RunError: the checkpoint is of a kind that cannot be read.
    """
    if out.exists():
        raise user_error(str(out), "there already", "Name another folder, or remove this one.")
    states = ParameterStates(checkpoint)
    states.step(states.names()[0])  # raises before anything is written
    partial = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    for name in states.names():
        _write_parameter(states, name, partial / "zero" / name)
    shared = {
        "ds_version": states.engine_state["ds_version"],
        "param_groups": states.group_settings,
        **states.optimizer_state,
    }
    torch.save(shared, partial / "zero" / "optimizer_state.pt")
    torch.save(states.engine_state, partial / "mp_rank_00_model_states.pt")
    partial.rename(out)
    (out.parent / "latest_universal").write_text(out.name)


def _write_parameter(states: ParameterStates, name: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    torch.save({"param": states.weight(name)}, folder / "fp32.pt")
    for key in MOMENTS:
        torch.save({"param": states.moment(name, key)}, folder / f"{key}.pt")
    torch.save(torch.tensor(states.step(name)), folder / "step.pt")
