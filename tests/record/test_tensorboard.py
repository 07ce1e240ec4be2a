"""What TensorBoard itself reads after restarts."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt2_ds.record.tensorboard import end_curves_at


def write_points(folder: Path, steps: range, value: float, after: int | None) -> Any:
    """A process's events: what an earlier one left beyond `after` is dropped first."""
    from torch.utils.tensorboard import SummaryWriter

    monitor = SimpleNamespace(summary_writer=SummaryWriter(str(folder)))
    if after is not None:
        end_curves_at(SimpleNamespace(tb_monitor=monitor), after)
    writer = monitor.summary_writer
    for step in steps:
        writer.add_scalar("train/loss", value, step)
        writer.add_scalar("validation/loss", value, step)
    writer.flush()
    return writer


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


@pytest.mark.parametrize("torn_bytes", [0, 1, 7])
def test_tensorboard_shows_one_curve_after_restarts(tmp_path: Path, torn_bytes: int) -> None:
    """Two killed processes that came further than their checkpoints, and one that resumed."""
    for steps, value, after in ((range(1, 9), 1.0, None), (range(5, 8), 2.0, 4)):
        write_points(tmp_path, steps, value, after)
        (file,) = set(tmp_path.iterdir()) - {p for p in tmp_path.iterdir() if "old" in p.name}
        content = file.read_bytes()
        file.write_bytes(content[: len(content) - torn_bytes])
        file.rename(tmp_path / f"events.out.tfevents.000000000{int(value)}.old")  # read by name
    assert len(points(tmp_path, "train/loss")) > 0
    write_points(tmp_path, range(6, 7), 3.0, 5).close()
    expected = [(step, 1.0) for step in range(1, 5)] + [(5, 2.0), (6, 3.0)]
    assert points(tmp_path, "train/loss") == expected
    assert points(tmp_path, "validation/loss") == expected


def test_a_clock_that_was_set_back_between_jobs_loses_no_points(tmp_path: Path) -> None:
    """TensorBoard reads files in the order of the times in their names."""
    write_points(tmp_path, range(1, 9), 1.0, None).close()
    (file,) = tmp_path.iterdir()
    ahead = int(time.time()) + 7200
    file.rename(tmp_path / f"events.out.tfevents.{ahead}.host.1.0")
    write_points(tmp_path, range(5, 8), 2.0, 4).close()
    write_points(tmp_path, range(7, 9), 3.0, 6).close()
    expected = [*((step, 1.0) for step in range(1, 5)), (5, 2.0), (6, 2.0), (7, 3.0), (8, 3.0)]
    assert points(tmp_path, "train/loss") == expected
    names = sorted(path.name for path in tmp_path.iterdir())
    assert f"events.out.tfevents.{ahead + 2}." in names[-1]


def test_without_tensorboard_there_are_no_points_to_drop() -> None:
    for monitor in (None, SimpleNamespace(), SimpleNamespace(tb_monitor=None)):
        end_curves_at(monitor, 3)
    end_curves_at(SimpleNamespace(tb_monitor=SimpleNamespace(summary_writer=None)), 3)
