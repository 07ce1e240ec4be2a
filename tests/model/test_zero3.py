"""The model under real ZeRO-3: two gloo ranks, every parameter partitioned."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpt2_ds.evaluation.generation import generate
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from tests.ranks import run_ranks

WORLD_SIZE = 2
MICRO_BATCH_SIZE = 2
SIZES = {"vocab_size": 301, "n_positions": 64, "n_embd": 64, "n_layer": 3, "n_head": 4}
CONFIGS = {
    "plain": GPT2Config(**SIZES),
    "chunked": GPT2Config(**SIZES, loss_chunk_size=50),
    "padded": GPT2Config(**SIZES, loss_chunk_size=50, pad_vocab_to_multiple_of=64),
    "recomputed": GPT2Config(**SIZES, loss_chunk_size=32, activation_checkpointing=True),
    "untied": GPT2Config(**SIZES, tie_word_embeddings=False),
}
PROMPT = [3, 1, 4, 1, 5]


def windows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (WORLD_SIZE * MICRO_BATCH_SIZE, SIZES["n_positions"] + 1)
    return torch.randint(0, SIZES["vocab_size"], shape, generator=generator)


def deepspeed_config(bf16: bool) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": MICRO_BATCH_SIZE,
        "steps_per_print": 10**9,
        "bf16": {"enabled": bf16},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        # Nothing small is kept whole: a parameter read outside its module is then empty.
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }


def first_weights() -> dict[str, dict[str, torch.Tensor]]:
    import deepspeed

    found = {}
    for name, bf16 in (("fp32", False), ("bf16", True)):
        for kind in ("padded", "untied"):
            with deepspeed.zero.Init(config_dict_or_path=deepspeed_config(bf16)):
                model = GPT2LMHeadModel(CONFIGS[kind], seed=5)
            with deepspeed.zero.GatheredParameters(list(model.parameters())):
                found[f"{name} {kind}"] = {n: p.clone() for n, p in model.named_parameters()}
    return found


def gradients() -> dict[str, dict[str, Any]]:
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    mine = windows()[rank() * MICRO_BATCH_SIZE :][:MICRO_BATCH_SIZE]
    found: dict[str, dict[str, Any]] = {}
    for name, config in CONFIGS.items():
        with deepspeed.zero.Init(config_dict_or_path=deepspeed_config(False)):
            model = GPT2LMHeadModel(config, seed=5)
        engine, *_ = deepspeed.initialize(model=model, config=deepspeed_config(False))
        loss = engine(mine[:, :-1], shift_labels=mine[:, 1:], return_logits=False).loss
        engine.backward(loss)
        found[name] = {n: safe_get_full_grad(p).clone() for n, p in model.named_parameters()}
        losses = [torch.zeros(()) for _ in range(WORLD_SIZE)]
        torch.distributed.all_gather(losses, loss.detach())
        found[name]["loss"] = torch.stack(losses).mean()
        if name == "padded":
            columns = generate(
                engine.module, PROMPT, max_new_tokens=70, seed=7, num_samples=2, top_k=20
            )
            found["sampled"] = {"ids": torch.stack(list(columns))}
        engine.destroy()
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_ranks(first_weights, WORLD_SIZE, tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_ranks(gradients, WORLD_SIZE, tmp_path_factory.mktemp("gradients"))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["padded", "untied"])
def test_first_weights_under_zero_init_are_those_of_a_plain_model(
    weights: list[Any], kind: str
) -> None:
    plain = dict(GPT2LMHeadModel(CONFIGS[kind], seed=5).named_parameters())
    for of_rank in weights:
        assert of_rank[f"fp32 {kind}"].keys() == plain.keys()
        for name, parameter in plain.items():
            # Equal, hence with the standard deviations that test_gpt2.py checks.
            assert torch.equal(of_rank[f"fp32 {kind}"][name], parameter), name
            assert torch.equal(of_rank[f"bf16 {kind}"][name], parameter.bfloat16()), name


@pytest.mark.heavy
@pytest.mark.parametrize("kind", CONFIGS)
def test_loss_and_gradients_are_those_of_a_plain_model(trained: list[Any], kind: str) -> None:
    # The reference has neither chunks nor checkpoints: one process, the whole batch, all logits.
    config = CONFIGS["untied" if kind == "untied" else "padded" if kind == "padded" else "plain"]
    model = GPT2LMHeadModel(config, seed=5)
    tokens = windows()
    loss = torch.nn.functional.cross_entropy(
        model(tokens[:, :-1]).logits.flatten(0, 1), tokens[:, 1:].flatten()
    )
    loss.backward()
    for of_rank in trained:
        torch.testing.assert_close(of_rank[kind]["loss"], loss.detach(), rtol=0, atol=1e-6)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(
                of_rank[kind][name], parameter.grad, rtol=1e-5, atol=1e-6, msg=name
            )


@pytest.mark.heavy
def test_sampling_inside_zero3_is_that_of_a_plain_model_on_every_rank(trained: list[Any]) -> None:
    model = GPT2LMHeadModel(CONFIGS["padded"], seed=5)
    columns = generate(model, PROMPT, max_new_tokens=70, seed=7, num_samples=2, top_k=20)
    expected = torch.stack(list(columns))
    for of_rank in trained:
        assert torch.equal(of_rank["sampled"]["ids"], expected)
