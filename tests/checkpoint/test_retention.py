"""Which checkpoints go, against the rules written down once more, one by one."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.checkpoint.retention import best_step, to_delete, validation_losses
from gpt2_ds.config.recipe import CheckpointSection


def rules(keep_last: int = 2, every: int = 0, best: bool = True) -> CheckpointSection:
    return CheckpointSection(
        interval_steps=1, keep_last=keep_last, keep_every_steps=every, keep_best=best
    )


def test_the_newest_are_kept() -> None:
    assert to_delete([40, 30, 20, 10], rules(2), {}) == [10, 20]
    assert to_delete([40, 30, 20, 10], rules(1), {}) == [10, 20, 30]
    assert to_delete([40], rules(1), {}) == []
    assert to_delete([], rules(1), {}) == []


def test_those_of_every_so_many_steps_are_kept() -> None:
    assert to_delete([50, 40, 30, 20, 10], rules(1, every=20), {}) == [10, 30]


def test_the_best_is_kept_of_those_that_are_there() -> None:
    losses = {5: 0.5, 10: 2.0, 20: 1.0, 30: 3.0}
    assert to_delete([40, 30, 20, 10], rules(1), losses) == [10, 30]
    assert to_delete([40, 30, 20, 10], rules(1, best=False), losses) == [10, 20, 30]
    assert best_step([40, 30], losses) == 30
    assert best_step([40], losses) is None
    assert best_step([20, 10], {10: 1.0, 20: 1.0}) == 20


steps = st.sets(st.integers(1, 60), max_size=12).map(lambda found: sorted(found, reverse=True))
losses = st.dictionaries(st.integers(1, 60), st.floats(0, 9), max_size=12)


@given(steps, st.integers(1, 5), st.integers(0, 7), st.booleans(), losses)
def test_each_step_goes_or_stays_by_the_rules(
    complete: list[int], keep_last: int, every: int, best: bool, loss: dict[int, float]
) -> None:
    gone = to_delete(complete, rules(keep_last, every, best), loss)
    for step in complete:
        newer = sum(other > step for other in complete)
        beaten = step not in loss or any(
            loss[other] < loss[step] or (loss[other] == loss[step] and other > step)
            for other in complete
            if other in loss
        )
        stays = newer < keep_last or (every > 0 and step % every == 0) or (best and not beaten)
        assert (step in gone) == (not stays)
    assert gone == sorted(set(gone))
    assert set(gone) <= set(complete)


@given(steps, st.integers(1, 5), st.integers(0, 7), st.booleans(), losses)
def test_the_newest_never_goes_and_a_second_time_nothing_does(
    complete: list[int], keep_last: int, every: int, best: bool, loss: dict[int, float]
) -> None:
    gone = to_delete(complete, rules(keep_last, every, best), loss)
    left = [step for step in complete if step not in gone]
    assert left[:1] == complete[:1]
    assert to_delete(left, rules(keep_last, every, best), loss) == []


def test_the_losses_of_a_run(tmp_path: Path) -> None:
    assert validation_losses(tmp_path) == {}
    lines = [
        {"step": 1, "loss": 5.0},
        {"step": 2, "validation_loss": 4.0},
        {"step": 4, "validation_loss": 3.5},
        {"step": 6, "validation_loss": None},
        {"step": 8, "validation_loss": 2},
        {"step": 2, "validation_loss": 4.5},  # done twice
        {"step": 4, "validation_loss": None},
        {"step": [1], "validation_loss": 1.0},
        {"step": 9, "validation_loss": "low"},
        {"validation_loss": 1.0},
        [1, 2],
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n{"step": 10, "validation_loss": Infinity}\n{"st'
    (tmp_path / "metrics.jsonl").write_bytes(text.encode() + b"\xff")
    assert validation_losses(tmp_path) == {2: 4.5, 8: 2.0}
