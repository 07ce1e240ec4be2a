"""Which checkpoints a run may resume from, and when there must have been some."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt2_ds.checkpoint import candidates
from gpt2_ds.checkpoint.candidates import find_candidates
from gpt2_ds.checkpoint.manifest import MANIFEST, step_name
from gpt2_ds.checkpoint.remote import remote_of
from gpt2_ds.config.errors import RunError, UserError, user_error
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.files.heartbeat import UNHEARD
from tests.checkpoint.saved_files import flip, save
from tests.small_run import small_plan


def found(plan: RunPlan, until_step: int | None = None) -> list[tuple[int, bool, bool]]:
    """Step, whether it is a copy, whether its manifest is right."""
    return [
        (candidate.step, candidate.is_copy, candidate.manifest is not None)
        for candidate in find_candidates(plan, until_step=until_step, heartbeat=UNHEARD)
    ]


def with_copies(tmp_path: Path, *copies: int) -> RunPlan:
    plan = small_plan("data", tmp_path / "run", f"checkpoint.copy_to={tmp_path / 'away'}")
    for step in copies:
        remote_of(plan).upload(save(tmp_path / "other/run", step))
    return plan


def test_all_of_both_places_newest_first(tmp_path: Path) -> None:
    plan = with_copies(tmp_path, 9, 6, 3)
    assert found(plan) == [(9, True, False), (6, True, False), (3, True, False)]
    save(plan.run_dir, 3)
    flip(save(plan.run_dir, 6) / MANIFEST)
    here = [(6, False, False), (3, False, True)]
    assert found(plan) == [(9, True, False), here[0], (6, True, False), here[1], (3, True, False)]
    assert found(plan, until_step=6) == here
    assert found(plan, until_step=5) == here[1:]


def test_copies_that_cannot_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = with_copies(tmp_path, 9)

    def broken(plan: RunPlan, heartbeat: object) -> None:
        raise RunError("s3://b: no answer.")

    monkeypatch.setattr(candidates, "remote_of", broken)
    with pytest.raises(RunError, match=r"^s3://b: no answer\.$"):
        found(plan)
    save(plan.run_dir, 3)
    assert found(plan) == [(3, False, True)]
    assert capsys.readouterr().err == (
        "warning: s3://b: no answer. Resuming from this disk; whether there are newer copies is "
        "not known.\n"
    )


def test_what_is_missing_here_is_said_though_this_disk_has_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would end the job later, on rank 0 alone."""
    plan = with_copies(tmp_path, 9)
    save(plan.run_dir, 3)

    def missing(plan: RunPlan, heartbeat: object) -> None:
        raise user_error("checkpoint.copy_to: s3://b", "needs s3fs", "pip install s3fs.")

    monkeypatch.setattr(candidates, "remote_of", missing)
    with pytest.raises(UserError, match="needs s3fs"):
        found(plan)


def lines(path: Path, *values: dict[str, object]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in values) + '{"torn')


@pytest.mark.parametrize(
    "event, step", [("start", 0), ("stop", 0), ("loss_spike", 2), ("resume", 3), ("done", 8)]
)
def test_the_ledger_says_that_something_was_saved(tmp_path: Path, event: str, step: int) -> None:
    plan = small_plan("data", tmp_path / "run")
    plan.run_dir.mkdir()
    lines(plan.run_dir / "ledger.jsonl", {"event": event, "step": step})
    if event not in ("resume", "done"):
        assert found(plan) == []
        return
    with pytest.raises(RunError) as refused:
        found(plan)
    assert str(refused.value) == (
        f"{plan.run_dir}/checkpoints: holds no checkpoint, but there were some: ledger.jsonl "
        f"shows that step {step} or a later one was saved. Restore them from a copy; to begin at "
        "step 0, use another --run-dir, or move this one away."
    )
    assert found(plan, until_step=5) == []  # a replay writes nothing


def test_a_saved_stop_says_it(tmp_path: Path) -> None:
    plan = small_plan("data", tmp_path / "run")
    plan.run_dir.mkdir()
    lines(plan.run_dir / "ledger.jsonl", {"event": "stop", "step": 5})
    with pytest.raises(RunError, match="shows that step 5 or a later one was saved"):
        found(plan)


def test_deepspeeds_latest_says_it(tmp_path: Path) -> None:
    plan = small_plan("data", tmp_path / "run")
    (plan.run_dir / "checkpoints").mkdir(parents=True)
    (plan.run_dir / "checkpoints/latest").write_text(step_name(3))
    with pytest.raises(RunError, match=r"there were some: checkpoints/latest names one\. Restore"):
        found(plan)


def test_an_interval_that_was_longer_before_counts(tmp_path: Path) -> None:
    """The first save never came, and now it is to come sooner."""
    plan = small_plan("data", tmp_path / "run")  # saves every 3 steps
    plan.run_dir.mkdir()
    lines(plan.run_dir / "metrics.jsonl", *({"step": step} for step in range(1, 20)))
    start = {"event": "start", "step": 0, "checkpoint_interval_steps": 10}
    lines(plan.run_dir / "ledger.jsonl", start)
    assert found(plan) == []
    lines(plan.run_dir / "ledger.jsonl", start | {"checkpoint_interval_steps": 9})
    with pytest.raises(RunError, match=r"has step 19, and one was saved every 9 steps"):
        found(plan)


def test_the_metrics_say_it_beyond_two_intervals(tmp_path: Path) -> None:
    """Killed before, the first save may not have been complete: nothing is lost then."""
    plan = small_plan("data", tmp_path / "run")  # saves every 3 steps
    plan.run_dir.mkdir()
    lines(plan.run_dir / "metrics.jsonl", *({"step": step} for step in range(1, 7)))
    assert found(plan) == []
    lines(plan.run_dir / "metrics.jsonl", *({"step": step} for step in range(1, 8)))
    with pytest.raises(RunError, match=r"metrics.jsonl has step 7, and one was saved every 3 step"):
        found(plan)
