"""The weights that are read out of a checkpoint are those the engine had, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_ds.model import GPT2LMHeadModel
from gpt2_ds.parallel.states.weights import load_fp32_weights
from tests.parallel.states.trained_checkpoints import SEED, model_config


@pytest.mark.heavy
def test_every_stage_precision_and_number_of_ranks(
    trained: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, known = trained
    model = GPT2LMHeadModel(model_config(), seed=SEED)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    capsys.readouterr()
    for tag, before in known.items():
        weights = load_fp32_weights(folder / tag)
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", ""), tag
        assert weights.keys() == {*start, "lm_head.weight"}, tag
        assert torch.equal(weights["lm_head.weight"], weights["transformer.wte.weight"])
        for name, values in before["held"].items():
            assert weights[name].dtype == torch.float32
            assert weights[name].device.type == "cpu"
            assert torch.equal(weights[name], values["weight"]), (tag, name)
            assert not torch.equal(weights[name], start[name]), (tag, name)
        model.load_state_dict(weights)  # whole: nothing missing, nothing more
