"""What becomes of a checkpoint that is being written when the run ends with an error."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gpt2_ds.checkpoint.checkpoint import Progress
from gpt2_ds.config.errors import RunError, on_all_ranks
from gpt2_ds.train import loop


class Checkpoints:
    """Finishing is counted, and fails with `error`."""

    def __init__(self, error: str | None) -> None:
        self.error, self.finished = error, 0

    def finish(self) -> None:
        self.finished += 1
        if self.error is not None:
            raise on_all_ranks(RunError(self.error))


@pytest.mark.parametrize(
    "failure, in_saving, said, finished",
    [
        (on_all_ranks(RunError("a bit flipped.")), None, "a bit flipped.", 1),
        (on_all_ranks(RunError("a bit flipped.")), "disk full.", "a bit flipped.\ndisk full.", 1),
        (RunError("this rank's ledger is full."), None, "this rank's ledger is full.", 0),
    ],
)
def test_what_is_being_saved_becomes_complete_where_all_ranks_fail(
    failure: RunError,
    in_saving: str | None,
    said: str,
    finished: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(run: object, done: Progress) -> None:
        raise failure

    monkeypatch.setattr(loop, "take_step", failing)
    checkpoints = Checkpoints(in_saving)
    plan = SimpleNamespace(recipe=None, last_step=1)
    run = SimpleNamespace(plan=plan, metrics=None, checkpoints=checkpoints)
    with pytest.raises(RunError) as ended:
        loop.train_steps(run, Progress(0, 0))  # type: ignore[arg-type]
    assert str(ended.value) == said
    assert checkpoints.finished == finished
    assert ended.value.said_by_rank_0 == (finished == 1)
