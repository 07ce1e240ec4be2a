"""Weights, parameter groups, rates and silence of the engine, at every ZeRO stage."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.model_shape import ModelShape
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.hosts.launcher import rank
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from gpt2_ds.parallel.engine import parameter_groups
from tests.ranks import run_ranks
from tests.small_run import small_plan

STAGES = ("zero0", "zero1", "zero2", "zero3")
SEED = 1337
L, C, T, V = 2, 32, 32, 320  # of small_plan: 257 tokens in rows by 64


def groups_of(config: GPT2Config) -> dict[str, tuple[set[str], int]]:
    """Group -> names of its parameters, and its numbers; on the meta device."""
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model)
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed)) == len(names)
    return {
        group["name"]: (
            {names[id(p)] for p in group["params"]},
            sum(p.numel() for p in group["params"]),
        )
        for group in groups
    }


def test_matrices_of_gpt2_decay_and_nothing_else() -> None:
    groups = groups_of(GPT2Config())
    matrices = {"transformer.wte.weight", "transformer.wpe.weight"}
    vectors = {"transformer.ln_f.weight", "transformer.ln_f.bias"}
    for layer in range(12):
        block = f"transformer.h.{layer}."
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            matrices.add(f"{block}{name}.weight")
            vectors.add(f"{block}{name}.bias")
        for name in ("ln_1", "ln_2"):
            vectors |= {f"{block}{name}.weight", f"{block}{name}.bias"}
    # V C + T C + 12 L C^2 and 13 L C + 2 C
    assert groups == {
        "decay": (matrices, 50257 * 768 + 1024 * 768 + 12 * 12 * 768**2),
        "no_decay": (vectors, 12 * 13 * 768 + 2 * 768),
    }
    assert sum(count for _, count in groups.values()) == 124_439_808


def test_a_head_of_its_own_decays_too() -> None:
    tied, untied = groups_of(GPT2Config()), groups_of(GPT2Config(tie_word_embeddings=False))
    assert untied["decay"][0] - tied["decay"][0] == {"lm_head.weight"}
    assert untied["decay"][1] - tied["decay"][1] == 50257 * 768
    assert untied["no_decay"] == tied["no_decay"]


def plan_of(template: str, folder: Path, world_size: int) -> RunPlan:
    return small_plan(folder / "data", folder / template, template=template, world_size=world_size)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights, gathered where ZeRO-3 partitioned them. Collective."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        return {name: p.detach().clone() for name, p in model.named_parameters()}


def digest(weights: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode() + weights[name].float().numpy().tobytes())
    return found.hexdigest()


def one_update(engine: Any, tokens: Tensor, learning_rate: float, *, scale: float = 1.0) -> None:
    from gpt2_ds.evaluation.loss import window_loss
    from gpt2_ds.parallel.engine import set_learning_rate

    set_learning_rate(engine, learning_rate)
    for micro_batch in tokens.split(2):
        engine.backward(window_loss(engine, micro_batch) * scale)
        engine.step()


def facts_of_stage(plan: RunPlan, world_size: int) -> dict[str, Any]:
    from gpt2_ds.parallel.engine import (
        build_engine,
        build_model,
        gradient_norm,
        loss_scale,
        reduced_gradient_norm,
        whole_shape,
    )

    config = GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size))
    deepspeed_config = plan.deepspeed(cpu_adam=False)
    model = build_model(config, deepspeed_config, SEED)
    facts: dict[str, Any] = {
        "digest": digest(whole_weights(model)),
        "partitioned": any(p.numel() == 0 for p in model.parameters()),
        "counts": [
            (
                group["name"],
                len(group["params"]),
                sum(whole_shape(p).numel() for p in group["params"]),
            )
            for group in parameter_groups(model)
        ],
    }
    engine = build_engine(config, deepspeed_config, seed=SEED)
    facts["decay"] = [(g["name"], g["weight_decay"]) for g in engine.optimizer.param_groups]
    first = whole_weights(engine.module)

    generator = torch.Generator().manual_seed(rank())
    tokens = torch.randint(0, 257, (8 // world_size, T + 1), generator=generator)
    one_update(engine, tokens, 0.5, scale=0.0)  # no gradient: what changes is decay
    decayed = whole_weights(engine.module)
    facts["shrunk"] = {
        name: (first[name].dim(), torch.allclose(decayed[name], w * (1 - 0.5 * 0.1), rtol=1e-6))
        for name, w in first.items()
        if not torch.equal(decayed[name], w)
    }
    facts["not shrunk"] = {name for name, w in first.items() if torch.equal(decayed[name], w)}

    one_update(engine, tokens, 0.0)
    still = whole_weights(engine.module)
    facts["moved at rate 0"] = [n for n in still if not torch.equal(still[n], decayed[n])]
    one_update(engine, tokens, 1e-2)
    moved = whole_weights(engine.module)
    facts["still at rate 0.01"] = [n for n in still if torch.equal(still[n], moved[n])]
    facts["norms"] = (gradient_norm(engine), reduced_gradient_norm(engine))
    facts["loss_scale"] = loss_scale(engine)
    facts["monitor"] = engine.monitor.enabled
    engine.destroy()
    return facts


def all_facts(folder: Path, world_size: int) -> dict[str, dict[str, Any]]:
    return {
        stage: facts_of_stage(plan_of(stage, folder, world_size), world_size) for stage in STAGES
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def facts(folder: Path) -> list[dict[str, Any]]:
    """Facts of every stage at one rank, then at each of two."""
    found: list[dict[str, Any]] = []
    for world_size in (1, 2):
        place = folder / str(world_size)
        place.mkdir()
        for of_rank in run_ranks(all_facts, world_size, place, place, world_size):
            found += of_rank.values()
    return found


@pytest.mark.heavy
def test_the_first_weights_hang_on_the_seed_alone(facts: list[dict[str, Any]]) -> None:
    plan = small_plan(Path("data"), Path("run"))
    config = GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size))
    expected, other = (
        digest({name: p.detach() for name, p in GPT2LMHeadModel(config, seed).named_parameters()})
        for seed in (SEED, SEED + 1)
    )
    assert expected != other
    assert [fact["digest"] for fact in facts] == [expected] * 12


@pytest.mark.heavy
def test_partitioned_parameters_are_counted_whole(facts: list[dict[str, Any]]) -> None:
    assert [fact["partitioned"] for fact in facts] == [False, False, False, True] * 3
    matrices, vectors = V * C + T * C + 12 * L * C**2, 13 * L * C + 2 * C
    for fact in facts:
        assert fact["counts"] == [
            ("decay", 2 + 4 * L, matrices),
            ("no_decay", 8 * L + 2, vectors),
        ]
    assert matrices + vectors == ModelShape(L, C, T, V, tied=True).n_parameters


@pytest.mark.heavy
def test_matrices_alone_shrink_without_a_gradient(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert fact["decay"] == [("decay", 0.1), ("no_decay", 0.0)]
        assert len(fact["shrunk"]) == 2 + 4 * L
        assert set(fact["shrunk"].values()) == {(2, True)}
        assert len(fact["not shrunk"]) == 8 * L + 2


@pytest.mark.heavy
def test_the_rate_that_is_set_is_the_rate_of_the_update(facts: list[dict[str, Any]]) -> None:
    for fact in facts:
        assert fact["moved at rate 0"] == []
        assert fact["still at rate 0.01"] == []


@pytest.mark.heavy
def test_what_the_engine_tells(facts: list[dict[str, Any]]) -> None:
    for i, fact in enumerate(facts):
        own, ours = fact["norms"]
        assert (own is None, ours is None) == ((True, False) if i % 4 == 0 else (False, True))
        assert fact["loss_scale"] is None  # fp32


@pytest.mark.heavy
def test_the_engine_writes_no_events_by_itself(facts: list[dict[str, Any]], folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(facts) == 12
    for world_size in ("1", "2"):
        for stage in STAGES:
            events = EventAccumulator(str(folder / world_size / stage))
            events.Reload()
            assert events.Tags()["scalars"] == []
