"""A flipped bit in one rank's weights is found, and the rank named."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpt2_ds.config.derive import model_fields
from gpt2_ds.hosts.launcher import rank, world_size
from gpt2_ds.model import GPT2Config
from gpt2_ds.parallel.replicas import _checksum, differences
from tests.ranks import run_ranks
from tests.small_run import small_plan

HOST = platform.node()
WEIGHT, VECTOR = "transformer.h.0.attn.c_attn.weight", "transformer.ln_f.bias"


@settings(max_examples=60)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    offset=st.integers(0, 4),
    n=st.integers(1, 40),
    data=st.data(),
)
def test_any_flipped_bit_changes_the_checksum(
    dtype: torch.dtype, offset: int, n: int, data: st.DataObject
) -> None:
    """Of tensors that begin anywhere in a larger one, as ZeRO's do."""
    n_bytes = (n + offset) * dtype.itemsize
    raw = data.draw(st.binary(min_size=n_bytes, max_size=n_bytes))
    whole = torch.frombuffer(bytearray(raw), dtype=torch.uint8).clone()
    tensor = whole.view(dtype)[offset:]
    before = int(_checksum(tensor))
    bit = data.draw(st.integers(0, n * dtype.itemsize * 8 - 1))
    whole[offset * dtype.itemsize + bit // 8] ^= 1 << bit % 8
    assert int(_checksum(tensor)) != before
    whole[offset * dtype.itemsize + bit // 8] ^= 1 << bit % 8
    assert int(_checksum(tensor)) == before


def test_the_checksum_is_the_sum_of_the_bytes_as_integers() -> None:
    tensor = torch.randn(10, 8, generator=torch.Generator().manual_seed(1))
    raw = tensor.numpy().tobytes()
    words = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)]
    assert int(_checksum(tensor)) % 2**64 == sum(words) % 2**64
    assert int(_checksum(tensor.t())) % 2**64 != 0  # not contiguous


WHO = [f"rank {r} on h{r}" for r in range(4)]


def test_the_odd_rank_of_three_is_named() -> None:
    now = [[1, 7], [1, 7], [-1, 7]]
    assert differences(["a", "b"], now, now, WHO[:3]) == [
        "rank 2 on h2 differs from the other ranks in a (checksum ffffffffffffffff, theirs "
        "0000000000000001)"
    ]


def test_two_odd_ranks_of_five_are_named_each_with_a_few_weights() -> None:
    who = [*WHO, "rank 4 on h4"]
    now = [[1] * 5, [1] * 5, [1] * 5, [2] * 5, [1, 1, 3, 1, 1]]
    first, second = differences(list("abcde"), now, now, who)
    assert first.startswith("rank 3 on h3 differs from the other ranks in a (checksum 00000000")
    assert first.count("checksum") == 3
    assert first.endswith(" and 2 more")
    assert second.startswith("rank 4 on h4 differs from the other ranks in c (checksum 000000000")


@pytest.mark.parametrize("now", [[[1], [1], [2], [2]], [[1], [2], [3]]])
def test_without_a_majority_none_is_named(now: list[list[int]]) -> None:
    (sentence,) = differences(["a"], now, now, WHO[: len(now)])
    assert sentence.startswith(
        "the ranks differ, and which is right is not known: a (checksums 0000000000000001, "
    )


def test_two_that_differ_are_both_named() -> None:
    assert differences(["a"], [[1], [2]], [[1], [2]], WHO[:2]) == [
        "rank 0 on h0 and rank 1 on h1 differ, and which is right is not known: a (checksums "
        "0000000000000001, 0000000000000002)"
    ]


def test_the_one_that_changed_is_named_of_two() -> None:
    assert differences(["a", "b"], [[1, 5], [2, 5]], [[1, 5], [1, 5]], WHO[:2]) == [
        "rank 1 on h1: changed without an update: a (checksum 0000000000000001, now "
        "0000000000000002)"
    ]


def test_a_memory_of_other_weights_is_odd_too() -> None:
    """It changed before it was remembered; and another rank since."""
    found = differences(["a"], [[1], [9], [2]], [[1], [1], [2]], WHO[:3])
    assert [sentence[:12] for sentence in found] == ["rank 1 on h1", "rank 2 on h2"]


def flip(tensor: Tensor, bit: int) -> None:
    tensor.view(-1).view(torch.uint8)[bit // 8] ^= 1 << bit % 8


def found_on(template: str, dtype: str, folder: Path) -> dict[str, Any]:
    """Train a little, flip bits on the last rank in several ways, and check each time."""
    from gpt2_ds.evaluation.loss import window_loss
    from gpt2_ds.parallel.engine import build_engine, set_learning_rate
    from gpt2_ds.parallel.process_group import host_group
    from gpt2_ds.parallel.replicas import Replicas, replicated
    from gpt2_ds.parallel.update import apply_update

    ranks = world_size()
    plan = small_plan(
        folder / "data",
        folder / "run",
        f"precision.dtype={dtype}",
        "batch.micro_batch_size=1",
        "batch.global_batch_tokens=96",
        "schedule.total_tokens=960",
        "schedule.warmup_tokens=0",
        "schedule.decay_tokens=960",
        template=template,
        world_size=ranks,
    )
    config = plan.deepspeed(cpu_adam=False) | {"tensorboard": {"enabled": False}}
    if template == "zero3":  # wte and the MLP's four matrices are partitioned
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 3500
    fields = model_fields(plan.recipe, plan.derived.vocab_size)
    engine = build_engine(GPT2Config(**fields), config, seed=1)
    replicas = Replicas(engine, host_group())
    set_learning_rate(engine, 1e-2)
    generator = torch.Generator().manual_seed(rank())
    found: dict[str, Any] = {"well": []}

    def backward() -> None:
        for i in range(3 // ranks):
            tokens = torch.randint(0, 257, (1, 33), generator=generator)
            engine.backward(window_loss(engine, tokens))
            if i < 3 // ranks - 1:
                engine.step()

    def strike(name: str) -> None:
        if rank() == ranks - 1:
            flip(dict(replicated(engine))[name], 133)

    for step in range(4):
        backward()
        found["well"].append(replicas.check())
        apply_update(engine, skip=step == 2)
        replicas.remember()
    found["names"] = [name for name, _ in replicated(engine)]
    backward()
    name = VECTOR if template == "zero3" else WEIGHT
    strike(name)
    found["remembered"] = replicas.check()
    found["not remembered"] = replicas.check()
    strike(name)  # the same bit: as it was
    found["as it was"] = replicas.check()
    if template == "zero0":
        strike(f"{VECTOR} (exp_avg_sq)")
        found["moment"] = replicas.check()
    engine.destroy()
    return found


CASES = [("zero0", "fp32"), ("zero1", "bf16"), ("zero2", "fp32"), ("zero3", "bf16")]


def all_cases(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {case: found_on(*case, folder) for case in CASES}


@pytest.mark.heavy
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_flipped_bit_is_found_and_its_rank_named(ranks: int, tmp_path: Path) -> None:
    results = run_ranks(all_cases, ranks, tmp_path, tmp_path)
    last = f"rank {ranks - 1} on {HOST}"
    for (template, dtype), found in results[0].items():
        case = (template, dtype)
        assert all(of_rank[case] == found for of_rank in results)
        assert found["well"] == [[]] * 4, case
        assert found["as it was"] == []
        name = VECTOR if template == "zero3" else WEIGHT
        (sentence,) = found["remembered"]
        assert sentence.startswith(f"{last}: changed without an update: {name} (checksum ")
        if ranks == 1:
            assert found["not remembered"] == []  # nobody to compare with
            continue
        (sentence,) = found["not remembered"]
        assert sentence.startswith(f"{last} differs from the other ranks in {name} (checksum ")
        if template == "zero0":
            (sentence,) = found["moment"]
            assert f"in {VECTOR} (exp_avg_sq) (checksum" in sentence
            assert len(found["names"]) == 3 * 28
        else:
            assert len(found["names"]) == (23 if template == "zero3" else 28), case
