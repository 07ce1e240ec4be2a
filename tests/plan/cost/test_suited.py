"""The ramp and the end of a run, made to suit a number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_ds.config.derive import derive
from gpt2_ds.config.errors import UserError
from gpt2_ds.plan.cost.suited import suited_overrides
from tests.config.small_recipe import SMALL, load_small

RAMP = SMALL.replace(
    "  micro_batch_size: 2\n",
    "  micro_batch_size: 1\n"
    "  ramp: {start_tokens: 64, increment_tokens: 64, length_tokens: 4000}\n",
).replace("total_tokens: 10_240", "total_tokens: 10_560")


def suited(folder: Path, ranks: int, *overrides: str, text: str = RAMP) -> list[str]:
    return suited_overrides(load_small(folder, *overrides, text=text), ranks)


def test_nothing_is_said_where_all_is_well(tmp_path: Path) -> None:
    assert suited(tmp_path, 1) == []
    assert suited(tmp_path, 4, text=SMALL) == []
    assert suited(tmp_path, 3) == []  # 16 sequences: derive says which ranks work


def test_the_next_stair_that_all_can_share(tmp_path: Path) -> None:
    words = suited(tmp_path, 4)
    assert words[:2] == ["batch.ramp.start_tokens=256", "batch.ramp.increment_tokens=256"]
    words = suited(tmp_path, 2, text=RAMP.replace("start_tokens: 64", "start_tokens: 192"))
    assert words[:2] == ["batch.ramp.start_tokens=256", "batch.ramp.increment_tokens=128"]


def test_no_stair_is_left(tmp_path: Path) -> None:
    assert suited(tmp_path, 16)[0] == "batch.ramp=null"


@pytest.mark.parametrize(
    "given",
    ["batch.ramp.start_tokens=64", "batch.ramp.increment_tokens=64", "schedule.total_tokens=10560"],
)
def test_what_the_user_gave_is_left_alone(given: str, tmp_path: Path) -> None:
    assert suited(tmp_path, 4)[-1] == "schedule.total_tokens=10752"
    assert suited(tmp_path, 4, given) == []
    with pytest.raises(UserError, match="4 ranks"):  # which says what works
        derive(load_small(tmp_path, given, text=RAMP), 4)


def test_a_ramp_is_not_dropped_with_what_the_user_gave_of_it(tmp_path: Path) -> None:
    assert suited(tmp_path, 16)[0] == "batch.ramp=null"
    assert suited(tmp_path, 16, "batch.ramp.length_tokens=500") == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suited")


@settings(max_examples=50)
@given(
    ranks=st.sampled_from([1, 2, 4, 8, 16]),
    start=st.integers(1, 15),
    increment=st.integers(1, 15),
    length=st.integers(64, 9000),
)
def test_what_is_suited_is_taken(
    folder: Path, ranks: int, start: int, increment: int, length: int
) -> None:
    ramp = f"start_tokens: {64 * start}, increment_tokens: {64 * increment}"
    text = RAMP.replace(
        "start_tokens: 64, increment_tokens: 64, length_tokens: 4000",
        f"{ramp}, length_tokens: {length}",
    )
    words = suited(folder, ranks, text=text)
    unit = 64 * ranks
    if not words and (start % ranks or increment % ranks):
        raise AssertionError("something had to be said")
    if words:
        derived = derive(load_small(folder, *words, text=text), ranks)
        assert all(level.global_batch_size * 64 % unit == 0 for level in derived.batches.levels)
        assert derived.batches.samples_after(derived.steps) * 64 >= 10_240
