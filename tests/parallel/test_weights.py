"""The weights that are read out of a checkpoint are those the engine had, bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.launcher import rank
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from gpt2_ds.parallel.weights import load_fp32_weights
from tests.ranks import run_ranks
from tests.small_run import small_plan

CASES = [("zero0", "fp32", "fp32"), ("zero1", "bf16", "same")]  # sums: two optimizers in bf16
CASES += [(f"zero{stage}", dtype, "fp32") for stage in (1, 2, 3) for dtype in ("fp32", "bf16")]
T = 32


def train_and_save(folder: Path) -> dict[str, dict[str, Tensor]]:
    """Two updates in every case; the engine's own fp32 weights by case and name."""
    from deepspeed.utils import safe_get_full_fp32_param

    from gpt2_ds.evaluation.loss import window_loss
    from gpt2_ds.parallel.engine import build_engine, set_learning_rate

    had = {}
    for template, dtype, sums in CASES:
        name = f"{template}_{dtype}_{sums}"
        plan = small_plan(
            folder / "data",
            folder / name,
            f"precision.dtype={dtype}",
            f"precision.grad_accum_dtype={sums}",
            template=template,
            world_size=2,
        )
        config = GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size))
        deepspeed_config = plan.deepspeed(cpu_adam=False) | {"tensorboard": {"enabled": False}}
        engine = build_engine(config, deepspeed_config, seed=3)
        generator = torch.Generator().manual_seed(rank())
        for _ in range(2):
            set_learning_rate(engine, 1e-3)
            for _ in range(2):
                tokens = torch.randint(0, 257, (2, T + 1), generator=generator)
                engine.backward(window_loss(engine, tokens))
                engine.step()
        engine.save_checkpoint(str(folder / "checkpoints"), tag=name, save_latest=False)
        had[name] = {
            key: (p if template == "zero0" else safe_get_full_fp32_param(p)).detach().clone()
            for key, p in engine.module.named_parameters()
        }
        engine.destroy()
    return had


@pytest.mark.heavy
def test_every_stage_and_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run_ranks(train_and_save, 2, tmp_path, tmp_path)
    capsys.readouterr()
    plan = small_plan(tmp_path / "data", tmp_path / "run")
    model = GPT2LMHeadModel(GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size)), 3)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for template, dtype, sums in CASES:
        name = f"{template}_{dtype}_{sums}"
        weights = load_fp32_weights(tmp_path / "checkpoints" / name, int(template[4]))
        said = capsys.readouterr()
        assert (said.out, said.err) == ("", ""), name
        assert weights.keys() == {*start, "lm_head.weight"}, name
        assert torch.equal(weights["lm_head.weight"], weights["transformer.wte.weight"])
        for key, had in first[name].items():
            assert torch.equal(had, second[name][key]), (name, key)
            assert weights[key].dtype == torch.float32
            assert weights[key].device.type == "cpu"
            assert torch.equal(weights[key], had), (name, key)
            assert not torch.equal(had, start[key]), (name, key)
        model.load_state_dict(weights)  # whole: nothing missing, nothing more
