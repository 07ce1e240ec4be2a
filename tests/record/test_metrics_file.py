"""metrics.jsonl as it should be, and as crashes, disks and editors leave it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.checkpoint.candidates import find_candidates
from gpt2_ds.checkpoint.retention import validation_losses
from gpt2_ds.config.errors import RunError
from gpt2_ds.config.recipe import HealthSection
from gpt2_ds.files.heartbeat import UNHEARD
from gpt2_ds.health.loss_watch import LoggedStep, LossWatch, logged_steps
from gpt2_ds.record.metrics_file import append_metrics, keep_metrics_until, read_metrics
from gpt2_ds.train.replay import logged_then
from tests.conftest import REPOSITORY
from tests.small_run import small_plan

LINES: list[dict[str, Any]] = [
    {"step": 1, "loss": 5.0, "gradient_norm": 0.5, "skipped_updates": 0},
    {"step": 2, "loss": 4.0, "gradient_norm": 0.25, "skipped_updates": 0},
    {"step": 2, "validation_loss": 4.5},
    {"step": 3, "loss": 3.0, "gradient_norm": None, "skipped_updates": 0},
    {"step": 8, "loss": 2.0, "gradient_norm": 0.125, "skipped_updates": 0},
]


def text_of(*lines: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def kept(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    append_metrics(tmp_path, 1, {"loss": 0.1 + 0.2, "mfu": math.nan, "tokens_seen": 2**53 + 1})
    append_metrics(tmp_path, 2, {"validation_loss": -math.inf})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "loss": 0.30000000000000004, "mfu": null, "tokens_seen": 9007199254740993}\n'
        '{"step": 2, "validation_loss": null}\n'
    )
    assert list(read_metrics(tmp_path)) == [
        (1, {"loss": 0.1 + 0.2, "mfu": None, "tokens_seen": 2**53 + 1}),
        (2, {"validation_loss": None}),
    ]
    assert list(read_metrics(tmp_path, "loss")) == list(read_metrics(tmp_path))[:1]
    assert list(read_metrics(tmp_path / "none")) == []


def test_a_line_after_an_unfinished_one_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo')
    append_metrics(tmp_path, 2, {"loss": 4.0})
    assert list(read_metrics(tmp_path)) == [(2, {"loss": 4.0})]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as failed:
        append_metrics(tmp_path, 1, {"loss": 4.0})
    assert failed.value.filename == str(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    "step, n_lines, validated_step", [(0, 0, 0), (1, 1, 0), (2, 3, 2), (3, 4, 2), (9, 5, 2)]
)
def test_lines_of_later_steps_are_taken_off(
    tmp_path: Path, step: int, n_lines: int, validated_step: int
) -> None:
    (tmp_path / "metrics.jsonl").write_text(text_of(*LINES))
    assert keep_metrics_until(tmp_path, step) == validated_step
    assert kept(tmp_path) == LINES[:n_lines]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_without_a_file_there_is_nothing_to_take_off(tmp_path: Path) -> None:
    assert keep_metrics_until(tmp_path, 5) == 0
    assert list(tmp_path.iterdir()) == []


NO_LINES: dict[str, bytes] = {
    "unfinished": b'{"step": 2, "lo',
    "a brace": b"{",
    "a number": b"7",
    "a list": b"[1, 2]",
    "a word": b'"step"',
    "null": b"null",
    "nothing": b"",
    "blanks": b"  ",
    "zeros of a power cut": bytes(5000),
    "no end of a line in sight": bytes(3 << 20),
    "not UTF-8": b'{"step": 9, "\xff": 1, "loss": 1, "validation_loss": 1, "skipped_updates": 9}',
    "UTF-16": json.dumps(LINES[0]).encode("utf-16"),
    "deep": b"[" * 200_000,
    "no step": b'{"loss": 1.0, "validation_loss": 1.0, "skipped_updates": 9}',
    **{
        f"step {step}": (
            f'{{"step": {step}, "loss": 1.0, "validation_loss": 1.0, "skipped_updates": 9}}'
        ).encode()
        for step in (
            '"9"',
            '"x"',
            "true",
            "false",
            "null",
            "9.0",
            "9.5",
            "-1",
            "NaN",
            "Infinity",
            "[9]",
            "{}",
        )
    },
}
"""What is no line of a step, by what is wrong with it."""


def last_step_of(run_dir: Path) -> str:
    """What says that checkpoints were lost, where one was saved every 3 steps."""
    with pytest.raises(RunError) as refused:
        find_candidates(small_plan("data", run_dir), until_step=None, heartbeat=UNHEARD)
    return str(refused.value)


@pytest.mark.parametrize("place", ["first", "amid", "last"])
def test_what_is_no_line_is_skipped_by_all_who_read(place: str, tmp_path: Path) -> None:
    right = [
        LoggedStep(step, loss, True) for step, loss in ((1, 5.0), (2, 4.0), (3, 3.0), (8, 2.0))
    ]
    at = {"first": 0, "amid": 3, "last": 5}[place]
    wrong = {}
    for name, line in NO_LINES.items():
        lines = [text_of(line).encode() for line in LINES]
        lines.insert(at, line + b"\n" * (place != "last"))
        (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
        found = (
            [step for step, _ in read_metrics(tmp_path)] == [1, 2, 2, 3, 8],
            "metrics.jsonl has step 8, " in last_step_of(tmp_path),
            validation_losses(tmp_path) == {2: 4.5},
            logged_steps(tmp_path) == right,
            logged_then(tmp_path, 8) == "loss 2.0  gradient norm 0.125",
            logged_then(tmp_path, 9) == "no line of this step",
            keep_metrics_until(tmp_path, 9) == 2,
            kept(tmp_path) == LINES,
        )
        if not all(found):
            wrong[name] = found
    assert wrong == {}


def test_an_empty_file_holds_no_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert list(read_metrics(tmp_path)) == []
    assert find_candidates(small_plan("data", tmp_path), until_step=None, heartbeat=UNHEARD) == []
    assert validation_losses(tmp_path) == {}
    assert logged_steps(tmp_path) == []
    assert logged_then(tmp_path, 1) == "no line of this step"
    assert keep_metrics_until(tmp_path, 9) == 0


@pytest.mark.parametrize("name", ["loss", "validation_loss", "skipped_updates"])
def test_what_is_no_finite_number_is_no_value(name: str, tmp_path: Path) -> None:
    """The line is one of its step all the same, as null would be."""
    for value in ("NaN", "-Infinity", "1e999", "9" * 400, '"low"', "true", "[1]", "{}", "null"):
        texts = {"loss": "1.5", "validation_loss": "2.5", "skipped_updates": "0"} | {name: value}
        line = ", ".join(f'"{key}": {text}' for key, text in texts.items())
        (tmp_path / "metrics.jsonl").write_text(f'{text_of(*LINES[:2])}{{"step": 7, {line}}}\n')
        *_, (step, values) = read_metrics(tmp_path)
        assert (step, values[name]) == (7, None), value
        assert "metrics.jsonl has step 7, " in last_step_of(tmp_path)
        assert validation_losses(tmp_path) == ({} if name == "validation_loss" else {7: 2.5}), value
        steps = [logged.step for logged in logged_steps(tmp_path)]
        assert steps == ([1, 2, 7] if name == "validation_loss" else [1, 2]), value
        LossWatch(HealthSection(), logged_steps(tmp_path)).observe(8, 1.0, True)
        loss = None if name == "loss" else 1.5
        assert logged_then(tmp_path, 7) == f"loss {loss}  gradient norm None"
        assert keep_metrics_until(tmp_path, 7) == 7


def test_a_step_beyond_all_is_no_endless_loop(tmp_path: Path) -> None:
    far = 10**15
    line = text_of({"step": far, "loss": None, "skipped_updates": far})
    (tmp_path / "metrics.jsonl").write_text(line)
    found = logged_steps(tmp_path)
    assert [logged.step for logged in found] == [*range(far - 199, far + 1)]
    assert not any(logged.applied for logged in found)


def test_the_last_lines_alone(tmp_path: Path) -> None:
    text = text_of(*({"step": step, "loss": 1.0} for step in range(10)))
    (tmp_path / "metrics.jsonl").write_text(text)
    n_bytes = len(text) // 10
    for last_bytes, steps in (
        (0, []),
        (n_bytes - 1, []),
        (n_bytes, [9]),
        (3 * n_bytes, [7, 8, 9]),
        (3 * n_bytes + 1, [7, 8, 9]),
        (10 * n_bytes, [*range(10)]),
        (10**9, [*range(10)]),
    ):
        assert [step for step, _ in read_metrics(tmp_path, last_bytes=last_bytes)] == steps


def test_a_long_file_is_not_held_in_memory(tmp_path: Path) -> None:
    """40 MB of lines, read and written again within a few megabytes more than an empty file."""
    more = {"loss": 5.0, "skipped_updates": 0, "more": "x" * 1000}
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(text_of({"step": step} | more) for step in range(40_000))
    code = f"""
from pathlib import Path
from gpt2_ds.checkpoint.retention import validation_losses
from gpt2_ds.files.heartbeat import UNHEARD
from gpt2_ds.health.loss_watch import logged_steps
from gpt2_ds.record.metrics_file import keep_metrics_until, read_metrics
status = Path("/proc/self/status")
peak = lambda: int(status.read_text().partition("VmHWM:")[2].split()[0])
run_dir = Path({str(tmp_path)!r})
before = peak()
assert sum(1 for _ in read_metrics(run_dir)) == 40_000
assert keep_metrics_until(run_dir, 40_000) == 0 and len(logged_steps(run_dir)) == 200
assert validation_losses(run_dir) == {{}}
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True
    )
    assert float(done.stdout) < 15_000  # kB
