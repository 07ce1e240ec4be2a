"""What is derived from a recipe, and what is said where it cannot be."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.config.batches import Batches, Level
from gpt2_ds.config.derive import (
    Derived,
    derive,
    divisors,
    model_fields,
    round_up,
    vocabulary_size,
)
from gpt2_ds.config.recipe import Recipe
from gpt2_ds.config.recipe_file import LoadedRecipe
from tests.config.small_recipe import faults_of, load_small, only_fault, small_values


@given(st.integers(1, 20_000))
def test_divisors(number: int) -> None:
    assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]


def test_divisors_of_a_huge_number_come_at_once() -> None:
    found = divisors(2**62)
    assert found == sorted(found)
    assert {1, 2, 2**19, 2**62} <= set(found)
    assert all(2**62 % divisor == 0 for divisor in found)


@given(st.integers(1, 10**6), st.integers(1, 1000))
def test_round_up(number: int, multiple: int) -> None:
    assert 0 <= round_up(number, multiple) - number < multiple
    assert round_up(number, multiple) % multiple == 0


def test_the_small_recipe(tmp_path: Path) -> None:
    assert derive(load_small(tmp_path), 4) == Derived(
        world_size=4,
        dp_world_size=4,
        global_batch_size=16,
        gradient_accumulation_steps=2,
        steps=10,
        batches=Batches((Level(1, 0, 16, 2, 2),)),
        vocab_size=257,
        padded_vocab_size=320,
        n_parameters=320 * 64 + 64 * 64 + 2 * (12 * 64**2 + 13 * 64) + 2 * 64,
        evaluation_windows=4,
    )


@pytest.mark.parametrize(
    "override, world_size, message",
    [
        (
            "model.n_head=5",
            1,
            "model.n_head: 5 heads do not divide n_embd 64. "
            "Values that work: 1, 2, 4, 8, 16, 32, 64.",
        ),
        (
            "data.seq_length=128",
            1,
            "data.seq_length: 128 tokens, but model.n_positions is 64. "
            "Set data.seq_length to at most 64.",
        ),
        (
            "precision.grad_accum_dtype=same",
            1,
            "precision.grad_accum_dtype: `same` says nothing where precision.dtype is fp32. "
            "Remove it, or write fp32.",
        ),
        (
            "evaluation.tokens=100",
            1,
            "evaluation.tokens: 100 is not a multiple of data.seq_length 64. Nearest: 64 or 128.",
        ),
        (
            "evaluation.tokens=10",
            1,
            "evaluation.tokens: 10 is not a multiple of data.seq_length 64. Nearest: 64.",
        ),
        (
            "batch.micro_batch_size=3",
            2,
            "batch.micro_batch_size: 3 does not divide the 8 sequences of each of 2 ranks "
            "(1024 tokens / 64 / 2). Values that work: 1, 2, 4, 8.",
        ),
        (
            "schedule.total_tokens=10_250",
            1,
            "schedule.total_tokens: 10250 is not a multiple of batch.global_batch_tokens 1024. "
            "Nearest: 10240 or 11264.",
        ),
        (
            "schedule.total_tokens=11_000",
            1,
            "schedule.total_tokens: 11000 is not a multiple of batch.global_batch_tokens 1024. "
            "Nearest: 10240 or 11264.",
        ),
        (
            "schedule.decay_tokens=20_000",
            1,
            "schedule.decay_tokens: 20000 lies after schedule.total_tokens 10240. "
            "Order them: warmup_tokens <= decay_tokens <= total_tokens.",
        ),
        (
            "schedule.warmup_tokens=10_241",
            1,
            "schedule.warmup_tokens: 10241 lies after schedule.decay_tokens 10240. "
            "Order them: warmup_tokens <= decay_tokens <= total_tokens.",
        ),
        (
            "schedule.min_lr=1",
            1,
            "schedule.min_lr: 1.0 is above optimizer.lr 0.001. Set it to at most 0.001.",
        ),
        (
            "tokenizer.name=gtp2",
            1,
            "tokenizer.name: 'gtp2' is not a known tokenizer, and not a file that can be read "
            "(No such file or directory). Write gpt2, bytes, or the path of a tiktoken ranks file.",
        ),
        (
            'tokenizer.name="a\\0b"',
            1,
            "tokenizer.name: 'a\\x00b' is not a ranks file: embedded null byte. "
            "Write gpt2, bytes, or the path of a tiktoken ranks file.",
        ),
    ],
)
def test_messages(tmp_path: Path, override: str, world_size: int, message: str) -> None:
    loaded = load_small(tmp_path, override)
    assert only_fault(lambda: derive(loaded, world_size)) == f"--set: {message}"


def test_world_sizes_that_work(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    assert only_fault(lambda: derive(load_small(tmp_path), 3)) == (
        f"{file}: batch.global_batch_tokens: 1024 tokens are 16 sequences of 64, which 3 ranks "
        "do not divide. World sizes that work: 1, 2, 4, 8."
    )
    loaded = load_small(tmp_path, "batch.micro_batch_size=3")
    assert only_fault(lambda: derive(loaded, 5)) == (
        f"{file}: batch.global_batch_tokens: 1024 tokens are 16 sequences of 64, which 5 ranks "
        "do not divide. Nearest for 5 ranks of 3 sequences: 960 or 1920."
    )


def test_tokens_that_are_no_whole_sequences(tmp_path: Path) -> None:
    loaded = load_small(tmp_path, "batch.global_batch_tokens=1000")
    faults = [str(fault) for fault in faults_of(lambda: derive(loaded, 2))]
    assert faults[0] == (
        "--set: batch.global_batch_tokens: 1000 is not a multiple of data.seq_length 64. "
        "Nearest for 2 ranks of 2 sequences: 768 or 1024."
    )
    assert len(faults) == 2  # and total_tokens is not a multiple of 1000


def test_many_values_are_cut_short(tmp_path: Path) -> None:
    loaded = load_small(tmp_path, "model.n_embd=5040", "model.n_head=11")
    assert only_fault(lambda: derive(loaded, 1)).endswith(
        "21, 24, 28, 30, 35, 36, 40, 42, ... 5040."
    )


def test_a_wsd_schedule_is_ordered() -> None:
    values = small_values()
    values["schedule"] |= {"name": "wsd", "stable_tokens": 10_239, "decay_tokens": 10_238}
    assert only_fault(lambda: derive(LoadedRecipe(Recipe.model_validate(values), "r", {}), 1)) == (
        "r: schedule.stable_tokens: 10239 lies after schedule.decay_tokens 10238. Order them: "
        "warmup_tokens <= stable_tokens <= decay_tokens <= total_tokens."
    )


def test_all_misfits_at_once(tmp_path: Path) -> None:
    words = ("model.n_head=5", "batch.micro_batch_size=3", "schedule.min_lr=1", "tokenizer.name=x")
    faults = faults_of(lambda: derive(load_small(tmp_path, *words), 1))
    assert [fault.where for fault in faults] == [f"--set: {word.split('=')[0]}" for word in words]


def test_the_vocabulary_of_a_ranks_file(tmp_path: Path) -> None:
    ranks = tmp_path / "x.tiktoken"
    ranks.write_bytes(b"IQ== 0\nIg== 1\n\nIw== 2\n")
    assert vocabulary_size(load_small(tmp_path, f"tokenizer.name={ranks}")) == 4
    assert vocabulary_size(load_small(tmp_path, "tokenizer.name=gpt2")) == 50257
    assert vocabulary_size(load_small(tmp_path)) == 257
    folder = load_small(tmp_path, f"tokenizer.name={tmp_path}")
    assert "(Is a directory)" in only_fault(lambda: vocabulary_size(folder))
    specials = {"special_tokens": {"<|endoftext|>": 3, "<|pad|>": 7}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(specials))
    assert vocabulary_size(load_small(tmp_path, f"tokenizer.name={ranks}")) == 8
    ranks.write_bytes(b"no ranks here")
    text = load_small(tmp_path, f"tokenizer.name={ranks}")
    assert f"'{ranks}' is not a ranks file: " in only_fault(lambda: vocabulary_size(text))


def test_the_fields_of_the_model(tmp_path: Path) -> None:
    recipe = load_small(tmp_path, "activation_checkpointing.enabled=true").recipe
    fields = model_fields(recipe, 257)
    assert fields["vocab_size"] == 257
    assert fields["activation_checkpointing"] is True
    assert fields["n_layer"] == 2
    assert "compile" not in fields


def test_the_small_recipe_is_what_its_text_says() -> None:
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_small(Path(folder)).recipe
    assert recipe == Recipe.model_validate(small_values())
    assert yaml.safe_load("lr: 1e-3") == {"lr": "1e-3"}  # why this project reads YAML itself
