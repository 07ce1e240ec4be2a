"""NaN, Inf, jumping losses and flipped bits in a run, at every ZeRO stage."""

from __future__ import annotations

import io
import math
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

import gpt2_ds.checkpoint.file as checkpoint_file
import gpt2_ds.train.loop as loop
from gpt2_ds.config.errors import RunError
from gpt2_ds.record.ledger import read_ledger
from tests.faults.jobs import events_of
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_corpus, small_plan

STAGES = ("zero0", "zero1", "zero2", "zero3")


class Disturbed:
    """The loss of some steps is something else on one rank."""

    def __init__(self, micro_steps: int, losses: dict[int, float], rank: int) -> None:
        from gpt2_ds.hosts.launcher import rank as own_rank

        self.plain, self.losses = loop.window_loss, losses if own_rank() == rank else {}
        self.calls, self.micro_steps = 0, micro_steps

    def __call__(self, *args: Any, **named: Any) -> torch.Tensor:
        step = self.calls // self.micro_steps + 1
        self.calls += 1
        loss = self.plain(*args, **named)
        return loss * self.losses[step] if step in self.losses else loss


def train_disturbed(
    data: Path,
    run: Path,
    template: str,
    losses: dict[int, float],
    overrides: tuple[str, ...] = (),
    replayed_step: int | None = None,
) -> str:
    """What the run said, or the error that ended it."""
    from gpt2_ds.train.run import replay_step, train

    plan = small_plan(data, run, *overrides, template=template, world_size=2)
    plain = loop.window_loss
    loop.window_loss = Disturbed(plan.derived.gradient_accumulation_steps, losses, rank=1)
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            if replayed_step is None:
                train(plan, small_corpus(data))
            else:
                replay_step(plan, small_corpus(data), replayed_step)
    except RunError as error:
        return f"RunError: {error}"
    finally:
        loop.window_loss = plain
    return said.getvalue()


def each_stage(data: Path, folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for stage in STAGES:
        bad = {3: math.nan, 5: math.inf}
        found[stage] = [
            train_disturbed(data, folder / stage, stage, bad),
            train_disturbed(
                data,
                folder / f"{stage}_end",
                stage,
                dict.fromkeys((4, 5, 6), math.nan),
                ("health.max_skipped_updates=3", "evaluation.interval_steps=100"),
            ),
        ]
    return found


@pytest.mark.heavy
def test_an_update_that_is_not_finite_is_skipped_and_many_end_the_run(
    data: Path, tmp_path: Path
) -> None:
    found, _ = run_ranks(each_stage, 2, tmp_path, data, tmp_path)
    for stage in STAGES:
        run = tmp_path / stage
        losses = dict(metrics_of(run, "step", "loss"))
        assert losses[3] is losses[5] is None, stage
        assert all(isinstance(losses[step], float) for step in (1, 2, 4, 6, 7, 8)), stage
        assert dict(metrics_of(run, "step", "skipped_updates"))[8] == 2
        events = read_ledger(run / "ledger.jsonl")
        skips = [(e["step"], e["reason"]) for e in events if e["event"] == "skip_update"]
        assert [step for step, _ in skips] == [3, 5]
        assert "samples 16:24" in skips[0][1]
        assert "samples 32:40" in skips[1][1]
        assert "warning: step 3: loss nan" in found[stage][0]
        ended = found[stage][1]
        assert ended.startswith("RunError: steps 4 to 6: 3 updates in a row were skipped"), ended
        checkpoints = tmp_path / f"{stage}_end/checkpoints"
        assert {path.name for path in checkpoints.glob("step_*")} == {"step_00000003"}


def contents(run: Path) -> dict[Path, bytes]:
    """All files and what is in them; of TensorBoard's only that they are there (written late)."""
    from gpt2_ds.parallel.agreement import gathered

    gathered(None)  # every rank has come here
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    found = {path: b"" if "tfevents" in path.name else path.read_bytes() for path in files}
    gathered(None)
    return found


def spike_skip_and_replay(data: Path, folder: Path) -> list[str]:
    long = (
        "schedule.total_tokens=10240",  # 40 steps
        "schedule.decay_tokens=10240",
        "evaluation.interval_steps=100",
        "checkpoint.keep_every_steps=3",
    )
    run = folder / "run"
    said = [train_disturbed(data, run, "zero1", {30: 30.0}, (*long, "schedule.warmup_tokens=256"))]
    before = contents(run)
    said.append(
        train_disturbed(
            data,
            run,
            "zero1",
            {},
            (*long, "schedule.warmup_tokens=256"),
            replayed_step=17,
        )
    )
    assert before == contents(run)
    return said


@pytest.mark.heavy
def test_a_spike_is_written_down_and_a_step_replayed(data: Path, tmp_path: Path) -> None:
    (spiked, replayed), _ = run_ranks(spike_skip_and_replay, 2, tmp_path, data, tmp_path)
    run = tmp_path / "run"
    (spike,) = events_of(run, "loss_spike")
    assert spike["step"] == 30
    assert "samples 232:240" in spike["reason"]
    assert "step 30: the loss" in spiked
    values = dict(metrics_of(run, "step", "loss"))
    norms = dict(metrics_of(run, "step", "gradient_norm"))
    assert f"step 17 again, from step 15: loss {values[17]:.17g}" in replayed
    assert f"gradient norm {norms[17]:.17g}" in replayed
    assert len(values) == 40  # the replay added nothing


def flipped_weight(data: Path, folder: Path) -> str:
    """A bit of one rank's weights flips in step 3, while step 2 is being written."""
    from gpt2_ds.hosts.launcher import rank
    from gpt2_ds.train.run import train

    plan = small_plan(
        data,
        folder / "run",
        "health.replica_check_interval_steps=2",
        "checkpoint.interval_steps=2",
        template="zero0",
        world_size=2,
    )
    plain, calls = loop.window_loss, 0

    def flipping(engine: Any, tokens: torch.Tensor, **named: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if rank() == 1 and calls == 2 * plan.derived.gradient_accumulation_steps + 1:  # step 3
            weight = engine.module.get_parameter("transformer.h.1.mlp.c_fc.weight")
            with torch.no_grad():
                weight.view(torch.int32)[3, 5] ^= 1 << 3
        return plain(engine, tokens, **named)

    loop.window_loss, hash_file = flipping, checkpoint_file.hash_file
    checkpoint_file.hash_file = lambda *words: (time.sleep(0.5), hash_file(*words))[1]  # slow disk
    try:
        train(plan, small_corpus(data))
    except RunError as error:
        return str(error)
    finally:
        loop.window_loss, checkpoint_file.hash_file = plain, hash_file
    return "no error"


@pytest.mark.heavy
def test_a_flipped_bit_names_its_rank(data: Path, tmp_path: Path) -> None:
    messages = run_ranks(flipped_weight, 2, tmp_path, data, tmp_path)
    assert messages[0] == messages[1]
    assert "rank 1 on " in messages[0]
    assert "transformer.h.1.mlp.c_fc.weight" in messages[0]
    assert "run without that host" in messages[0]
    events = [line["event"] for line in read_ledger(tmp_path / "run/ledger.jsonl")]
    assert "replica" in events
    # What was being written is complete: its weights were compared before.
    assert (tmp_path / "run/checkpoints/step_00000002/manifest.json").exists()
