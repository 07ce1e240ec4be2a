from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.skipped import SKIPPED_FILE, read_skipped
from gpt2_ds.train.skipped_samples import add_skipped, parse_ranges


@pytest.mark.parametrize(
    "word", ["", "5", "5:", ":5", "-1:5", "a:b", "1:2:3", "1.5:2", " 1:2", "1_0:20", f"0:{10**18}"]
)
def test_what_is_no_range_is_refused(word: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_ranges(["1:2", word])
    assert str(refused.value) == (
        f"--skip-samples {word}: is no range of samples. Write a:b, two whole numbers from 0 on."
    )


def test_every_empty_range_is_named() -> None:
    with pytest.raises(UserError) as refused:
        parse_ranges(["5:5", "7:8", "9:3"])
    assert str(refused.value) == (
        "--skip-samples 5:5: holds no sample: the second number is one behind the last one left "
        "out. 5:6 is sample 5 alone.\n"
        "--skip-samples 9:3: holds no sample: the second number is one behind the last one left "
        "out. 9:10 is sample 9 alone."
    )


def test_ranges_add_up_and_are_written_down(tmp_path: Path) -> None:
    assert add_skipped(tmp_path, (), 0) == ((), ())
    assert not (tmp_path / SKIPPED_FILE).exists()
    assert add_skipped(tmp_path, parse_ranges(["16:24", "4:8"]), 0) == (
        ((4, 8), (16, 24)),
        ((16, 24), (4, 8)),
    )
    assert add_skipped(tmp_path, ((20, 30),), 0) == (((4, 8), (16, 30)), ((20, 30),))
    assert json.loads((tmp_path / SKIPPED_FILE).read_text()) == [[4, 8], [16, 30]]
    assert read_skipped(tmp_path) == ((4, 8), (16, 30))


def test_the_same_command_again_is_fine_however_far_the_run_has_come(tmp_path: Path) -> None:
    add_skipped(tmp_path, ((16, 24), (24, 30)), 0)
    for wanted in ((16, 24), (24, 30), (16, 30), (17, 20)):
        assert add_skipped(tmp_path, (wanted,), 500) == (((16, 30),), ())


@pytest.mark.parametrize(
    "samples_seen, wanted, now, fix",
    [
        (8, (7, 9), 8, "Use 8:9."),
        (8, (2, 8), 8, "Begin at 8 or later."),
        (16, (16, 40), 30, "Use 30:40."),  # 16 to 29 are left out: the run stands behind them
        (20, (33, 40), 34, "Use 34:40."),
    ],
)
def test_samples_that_were_trained_on_cannot_be_left_out(
    samples_seen: int, wanted: tuple[int, int], now: int, fix: str, tmp_path: Path
) -> None:
    add_skipped(tmp_path, ((16, 30),), 0)
    with pytest.raises(UserError) as refused:
        add_skipped(tmp_path, (wanted, (100, 101)), samples_seen)
    assert str(refused.value) == (
        f"--skip-samples {wanted[0]}:{wanted[1]}: the run stands at sample {now}, and was trained "
        f"on those before it. {fix}"
    )
    assert read_skipped(tmp_path) == ((16, 30),)


def test_the_next_sample_can_be_left_out(tmp_path: Path) -> None:
    assert add_skipped(tmp_path, ((8, 9),), 8)[0] == ((8, 9),)
    assert add_skipped(tmp_path, ((9, 10),), 8)[0] == ((8, 10),)
