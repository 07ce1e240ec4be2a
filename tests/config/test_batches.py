"""The batch ramp: exact at every step, or refused with what would be."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.config.batches import (
    Batches,
    Level,
    ramp_is_sound,
    step_ends_near,
    steps_until,
    stretches,
)
from gpt2_ds.config.derive import derive
from gpt2_ds.config.errors import UserError
from gpt2_ds.config.recipe import BatchSection, RampSection
from gpt2_ds.config.recipe_file import LoadedRecipe, load_recipe
from gpt2_ds.config.run_plan import resolve_run
from gpt2_ds.config.same_run import fingerprint
from gpt2_ds.plan.show import describe
from tests.config.small_recipe import SMALL, load_small, small_file

RAMP = (  # 256, 512 and 768 tokens, a third of 3,000 each; then 1024
    "batch.ramp.start_tokens=256",
    "batch.ramp.increment_tokens=256",
    "batch.ramp.length_tokens=3000",
    "schedule.total_tokens=10_752",
    "schedule.decay_tokens=10_240",
)


def ramped(full: int, start: int, increment: int, length: int) -> BatchSection:
    ramp = RampSection(start_tokens=start, increment_tokens=increment, length_tokens=length)
    return BatchSection(global_batch_tokens=full, micro_batch_size=1, ramp=ramp)


def sizes_step_by_step(batch: BatchSection, tokens: int) -> list[int]:
    """The sizes of the first steps, from the sentence in the recipe's docstring alone."""
    assert batch.ramp is not None
    ramp, seen, sizes = batch.ramp, 0, list[int]()
    stairs = (batch.global_batch_tokens - ramp.start_tokens) // ramp.increment_tokens
    size, stair, steps_here = ramp.start_tokens, 1, 0
    while seen < tokens:
        while stair <= stairs and steps_here and seen >= stair * ramp.length_tokens // stairs:
            size, stair, steps_here = size + ramp.increment_tokens, stair + 1, 0
        sizes.append(size)
        seen, steps_here = seen + size, steps_here + 1
    return sizes


def test_a_small_ramp(tmp_path: Path) -> None:
    derived = derive(load_small(tmp_path, *RAMP), 2)
    assert derived.batches == Batches(
        (
            Level(1, 0, 4, 2, 1),  # 4 steps to 1,024 tokens
            Level(5, 16, 8, 2, 2),  # 2 to 2,048
            Level(7, 32, 12, 2, 3),  # 2 to 3,584
            Level(9, 56, 16, 2, 4),
        )
    )
    assert (derived.steps, derived.global_batch_size) == (8 + 7, 16)
    assert derived.batches.samples_after(derived.steps) * 64 == 10_752
    assert derived.gradient_accumulation_steps == 4


def test_a_stair_with_few_sequences_takes_smaller_micro_batches(tmp_path: Path) -> None:
    levels = derive(load_small(tmp_path, *RAMP, "batch.micro_batch_size=8"), 2).batches.levels
    shape = [(level.micro_batch_size, level.gradient_accumulation_steps) for level in levels]
    assert shape == [(2, 1), (4, 1), (2, 3), (8, 1)]


@given(
    start=st.integers(1, 12),
    increment=st.integers(1, 6),
    stairs=st.integers(1, 8),
    length=st.integers(1, 900),
    tokens=st.integers(1, 2000),
)
def test_every_step_has_the_size_that_the_words_say(
    start: int, increment: int, stairs: int, length: int, tokens: int
) -> None:
    batch = ramped(start + stairs * increment, start, increment, length)
    sizes = sizes_step_by_step(batch, 2 * tokens + 100)
    shared = Batches.share(batch, 1, 1)
    assert [shared.of_step(step).global_batch_size for step in range(1, len(sizes) + 1)] == sizes
    ends = [sum(sizes[:step]) for step in range(len(sizes) + 1)]
    assert [shared.samples_after(step) for step in range(len(ends))] == ends
    assert [steps_until(batch, end) for end in ends[1:]] == list(range(1, len(ends)))
    assert steps_until(batch, tokens) == (ends.index(tokens) if tokens in ends else None)
    before = [end for end in ends if 0 < end <= tokens]
    after = next(end for end in ends if end > tokens)
    assert step_ends_near(batch, tokens) == [*before[-1:], after]
    far = tokens + 40
    later = next(end for end in ends if end >= far)
    assert step_ends_near(batch, tokens, least=far) == [later]


def test_gpt3s_ramp_is_exact_to_the_token() -> None:
    batch = ramped(2**20, 2**15, 2**15, 4_000_000_000)
    found = stretches(batch)
    assert [stretch.batch_tokens for stretch in found] == [2**15 * k for k in range(1, 33)]
    for here, there in pairwise(found):
        steps = there.first_step - here.first_step
        assert there.tokens_before - here.tokens_before == steps * here.batch_tokens
    assert 0 <= found[-1].tokens_before - 4_000_000_000 < 2**20


@pytest.mark.parametrize(
    "overrides, world_size, message",
    [
        (
            ("batch.ramp.start_tokens=320", "batch.ramp.increment_tokens=704"),
            2,
            "batch.ramp.start_tokens: 320 tokens are 5 sequences of 64, which 2 ranks do not "
            "divide. Nearest: 256 or 384. Or world sizes that work: 1.",
        ),
        (
            (),
            8,
            "batch.ramp.start_tokens: 256 tokens are 4 sequences of 64, which 8 ranks do not "
            "divide. Nearest: 512. Or world sizes that work: 1, 2, 4.",
        ),
        (
            ("batch.ramp.start_tokens=100",),
            1,
            "batch.ramp.start_tokens: 100 is not a multiple of data.seq_length 64. Nearest: 64 or "
            "128.",
        ),
        (
            ("batch.ramp.increment_tokens=512",),
            1,
            "batch.ramp.increment_tokens: no whole number of 512 leads from 256 to "
            "batch.global_batch_tokens 1024. Values that work: 64, 128, 192, 256, 384, 768.",
        ),
        (
            ("batch.ramp.start_tokens=1024",),
            1,
            "batch.ramp.start_tokens: 1024 is not below batch.global_batch_tokens 1024. Set it "
            "lower, or remove batch.ramp.",
        ),
        (
            ("batch.ramp.length_tokens=20_000",),
            1,
            "batch.ramp.length_tokens: 20000 is above schedule.total_tokens. Set it to at most "
            "10752.",
        ),
        (
            ("schedule.total_tokens=10_240",),
            1,
            "schedule.total_tokens: 10240 is, after the ramp, not a multiple of "
            "batch.global_batch_tokens 1024. Nearest: 10752.",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(
    tmp_path: Path, overrides: tuple[str, ...], world_size: int, message: str
) -> None:
    loaded = load_small(tmp_path, *RAMP, *overrides)
    with pytest.raises(UserError) as caught:
        derive(loaded, world_size)
    assert message in [str(fault).removeprefix("--set: ") for fault in caught.value.faults]


def test_phases_begin_at_the_end_of_a_step(tmp_path: Path) -> None:
    def with_phase(tokens: int) -> LoadedRecipe:
        mixed = f"""\
data:
  sources:
    web: {{path: web, weight: 1.0}}
  phases:
    - {{from_tokens: {tokens}, weights: {{web: 2.0}}}}
"""
        return load_small(tmp_path, *RAMP, text=SMALL.replace("data:\n  path: data/small\n", mixed))

    assert derive(with_phase(2048), 1).steps == 15
    loaded = with_phase(2600)
    with pytest.raises(UserError) as caught:
        derive(loaded, 1)
    assert str(caught.value) == (
        f"{loaded.file}: data.phases.0: from_tokens 2600 is, after the ramp, not a multiple of "
        "batch.global_batch_tokens 1024. Nearest: 2048 or 2816."
    )


def test_the_description_names_the_ramp(tmp_path: Path) -> None:
    plan = resolve_run(small_file(tmp_path), world_size=2, overrides=RAMP)
    words = "batches 3 smaller ones, the full one from step 9 derived"
    assert words in [" ".join(row.split()) for row in describe(plan).splitlines()]


def test_a_ramp_changes_the_result_and_none_is_as_before(tmp_path: Path) -> None:
    plain, with_ramp = load_small(tmp_path), load_small(tmp_path, *RAMP)
    assert fingerprint(plain.recipe, 0) != fingerprint(with_ramp.recipe, 0)
    assert plain.recipe.batch.ramp is None
    assert load_recipe(small_file(tmp_path), ["batch.ramp=null"]).recipe == plain.recipe


def test_sound_is_what_leads_to_the_full_batch() -> None:
    assert ramp_is_sound(ramped(8, 2, 3, 1))
    assert not ramp_is_sound(ramped(8, 2, 4, 1))
    assert not ramp_is_sound(ramped(8, 8, 1, 1))
    assert not ramp_is_sound(ramped(8, 9, 1, 1))
