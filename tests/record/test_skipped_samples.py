from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.order.skipped import SKIPPED_FILE, read_skipped
from gpt2_ds.record.skipped_samples import add_skipped, parse_ranges
from gpt2_ds.train.start.arguments import StartOptions
from tests.ranks import run_ranks
from tests.small_run import small_corpus, small_dataset, small_plan


@pytest.mark.parametrize(
    "word", ["", "5", "5:", ":5", "-1:5", "a:b", "1:2:3", "1.5:2", " 1:2", "1_0:20", f"0:{10**18}"]
)
def test_what_is_no_range_is_refused(word: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_ranges(["1:2", word])
    assert str(refused.value) == (
        f"--skip-samples {word}: is not a range of samples. Write a:b, two whole numbers, 0 or "
        "larger."
    )


def test_every_empty_range_is_named() -> None:
    with pytest.raises(UserError) as refused:
        parse_ranges(["5:5", "7:8", "9:3"])
    assert str(refused.value) == (
        "--skip-samples 5:5: holds no sample: the second number is one past the last skipped "
        "sample. 5:6 is sample 5 alone.\n"
        "--skip-samples 9:3: holds no sample: the second number is one past the last skipped "
        "sample. 9:10 is sample 9 alone."
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
        (16, (16, 40), 30, "Use 30:40."),  # 16 to 29 are skipped: the run stands after them
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


def tokens_by_step(data: Path, folder: Path) -> list[dict[int, torch.Tensor]]:
    """What two runs trained on: one whole, and one that skips the samples of step 5."""
    import gpt2_ds.train.loop as loop
    from gpt2_ds.train.run import train

    seen: dict[int, torch.Tensor] = {}
    take_step, window_loss = loop.take_step, loop.window_loss
    step = 0

    def watched_step(run: Any, done: Any) -> Any:
        nonlocal step
        step = done.step + 1
        return take_step(run, done)

    def watched_loss(engine: Any, tokens: torch.Tensor, **more: Any) -> Any:
        seen[step] = torch.cat([seen.get(step, tokens[:0]), tokens])
        return window_loss(engine, tokens, **more)

    loop.take_step, loop.window_loss = watched_step, watched_loss
    found = []
    for name, skipping in (("whole", StartOptions()), ("left_out", SKIPPING)):
        for until, options in ((3, StartOptions()), (7, skipping)):
            with redirect_stdout(io.StringIO()):
                train(small_plan(data, folder / name, max_steps=until), small_corpus(data), options)
        found.append(dict(seen))
        seen.clear()
    return found


SKIPPING = StartOptions(skip_samples=((32, 40),))  # 8 a step


@pytest.mark.heavy
def test_a_run_trains_on_the_others(tmp_path: Path) -> None:
    whole, left_out = run_ranks(tokens_by_step, 1, tmp_path, small_dataset(tmp_path), tmp_path)[0]
    assert [len(tokens) for tokens in left_out.values()] == [8] * 7
    for step, same in ((1, 1), (3, 3), (4, 4), (5, 6), (6, 7)):
        assert torch.equal(left_out[step], whole[same]), step
    for step in (5, 6, 7):
        assert not torch.equal(left_out[step], whole[5]), step
