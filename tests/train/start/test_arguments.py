"""What can be typed after launch/train.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.train.start.arguments import StartOptions, parse, start_options


def test_only_the_recipe_is_needed() -> None:
    args = parse(["--recipe", "r.yaml"])
    assert args.recipe == Path("r.yaml")
    assert start_options(args, 8) == StartOptions(strict=False, skip_samples=())
    assert args.replay is None
    assert args.restarts == 0


def test_every_word_arrives() -> None:
    words = "--recipe r --strict --skip-samples 1:2 --skip-samples 5:9 --replay 7 --restarts 3"
    args = parse([*words.split(), "--local_rank=1"])
    assert start_options(args, 8) == StartOptions(strict=True, skip_samples=((1, 2), (5, 9)))
    assert args.replay == 7
    assert args.restarts == 3


@pytest.mark.parametrize("step", [0, -1, 9])
def test_a_step_that_the_run_has_not(step: int) -> None:
    for known in (1, 8):
        start_options(parse(["--recipe", "r.yaml", f"--replay={known}"]), 8)
    with pytest.raises(UserError) as error:
        start_options(parse(["--recipe", "r.yaml", f"--replay={step}"]), 8)
    assert str(error.value) == f"--replay {step}: is not a step of this run. It has steps 1 to 8."
