"""The schedule on paper is the one that a run takes: totals exact, marks where they belong."""

from __future__ import annotations

import csv
import re
from argparse import ArgumentParser
from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.config.run_plan import resolve_run
from gpt2_ds.plan import schedule
from tests.config.small_recipe import small_file
from tests.config.test_batches import RAMP


def done(file: Path, *words: str) -> int:
    parser = ArgumentParser()
    schedule.add_arguments(parser)
    return schedule.schedule(parser.parse_args(["--recipe", str(file), *words]))


def test_each_step_by_hand(tmp_path: Path) -> None:
    sizes = [256] * 4 + [512] * 2 + [768] * 2 + [1024] * 7
    file = small_file(tmp_path)
    assert done(file, "--csv", str(tmp_path / "s.csv"), *_sets(*RAMP)) == 0
    with (tmp_path / "s.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == list(range(1, 16))
    assert [int(row["global_batch_tokens"]) for row in rows] == sizes
    seen = [sum(sizes[: step + 1]) for step in range(15)]
    assert [int(row["tokens_seen"]) for row in rows] == seen
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates[:4] == pytest.approx([1e-3 * tokens / 1024 for tokens in seen[:4]])
    assert rates[-1] == 1e-4 < rates[-2]  # decayed at 10,240 tokens


def _sets(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def test_the_curves(tmp_path: Path) -> None:
    assert done(small_file(tmp_path), "--html", str(tmp_path / "s.html"), *_sets(*RAMP)) == 0
    html = (tmp_path / "s.html").read_text()
    rate, batch = re.findall(r'polyline points="([^"]*)"', html)
    assert len(rate.split()) == 15
    assert len(batch.split()) == 30
    heights = [float(pair.split(",")[1]) for pair in batch.split()]
    assert heights == sorted(heights, reverse=True)  # a ramp: y runs downwards in a picture
    assert len(set(heights)) == 4


def test_the_marks(tmp_path: Path) -> None:
    plan = resolve_run(small_file(tmp_path), world_size=1, overrides=RAMP)
    assert schedule.marks(plan) == {
        1: ["first step"],
        4: ["warm-up ends"],
        5: ["larger batch"],
        7: ["larger batch"],
        9: ["full batch"],
        15: ["decay ends", "last step"],
    }


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert done(small_file(tmp_path), "--every", "4", *_sets(*RAMP)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["1", "4", "5", "7", "8", "9", "12", "15"]
    assert lines[-1].split(maxsplit=4) == [
        "15",
        "10,752",
        "1,024",
        "0.0001",
        "decay ends, last step",
    ]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--every", "0"], "--every 0: is below 1. Give at least 1."),
        (
            ["--csv", "/proc/none/s.csv"],
            "--csv /proc/none/s.csv: cannot be written (No such file or directory). Name a file in "
            "a folder that exists.",
        ),
    ],
)
def test_wrong_words(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        done(small_file(tmp_path), *words)
    assert str(caught.value) == message
