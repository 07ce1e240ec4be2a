from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format.tokenizer import load_tokenizer
from gpt2_ds.data.inspection.provenance import step_samples
from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.preparation.request import Request
from tests.conftest import REPOSITORY
from tests.small_run import SETTINGS, small_plan

T = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 10 to 59 bytes, each of one letter, in several shards."""
    folder = tmp_path_factory.mktemp("data")
    rows = [f'{{"text": "{chr(97 + i % 26) * (10 + i % 50)}"}}' for i in range(400)]
    (folder / "a.jsonl").write_text("\n".join(rows))
    (folder / "b.jsonl").write_text("\n".join(rows[:40]))
    prepare(
        Request(
            inputs=[folder / "a.jsonl"],
            out=folder / "out",
            tokenizer="bytes",
            validation=[folder / "b.jsonl"],
            shard_tokens=3000,
        )
    )
    return folder / "out"


def test_every_sample_of_a_step_is_where_it_says(data: Path, tmp_path: Path) -> None:
    plan = small_plan(data, tmp_path / "run")
    tokenizer = load_tokenizer("bytes")
    seen = []
    for step in (1, 2):
        lines = list(step_samples(plan, step, 0))
        heads = [line for line in lines if line.startswith("sample ")]
        assert len(heads) == 8
        for head, text in zip(heads, "\n".join(lines).split("sample ")[1:], strict=True):
            found = re.fullmatch(
                r"sample (\d+): (train/shard-\d{5}.bin), tokens (\d+) to (\d+) "
                r"\(from byte (\d+)\), documents? (\d+)(?: to (\d+))?",
                head,
            )
            assert found
            first, last, byte = (int(found[i]) for i in (3, 4, 5))
            assert (last, byte) == (first + T, 1024 + 2 * first)
            raw = (data / found[2]).read_bytes()
            tokens = np.frombuffer(raw[byte : byte + 2 * (T + 1)], "<u2")
            shown = text.partition("\n")[2]
            assert shown.rstrip("\n") == f"  | {tokenizer.decode(tokens)}"
            starts = np.flatnonzero(np.frombuffer(raw[1024:], "<u2") == 256)
            of_tokens = np.searchsorted(starts, [first, last], side="right")
            assert (int(found[6]), int(found[7] or found[6])) == tuple(of_tokens)
            seen.append((int(found[1]), found[2], first))
    assert [sample for sample, _, _ in seen] == list(range(16))
    assert len({(shard, first) for _, shard, first in seen}) == 16


def test_it_is_what_training_reads(data: Path, tmp_path: Path) -> None:
    from gpt2_ds.data.reading.corpus import Corpus
    from gpt2_ds.data.reading.loader import TokenLoader

    plan = small_plan(data, tmp_path / "run")
    samples = Corpus.open(plan.recipe.data).samples(plan.recipe.seed)
    with TokenLoader(
        samples, global_batch_size=8, micro_batch_size=8, rank=0, world_size=1, samples_seen=16
    ) as loader:
        batch = next(loader)
    texts = [load_tokenizer("bytes").decode(row.tolist()) for row in batch]
    lines = list(step_samples(plan, 3, 0))
    assert [line[4:] for line in lines if not line.startswith("sample ")] == texts


def test_samples_that_the_run_skips_are_skipped(data: Path, tmp_path: Path) -> None:
    plan = small_plan(data, tmp_path / "run")
    plain = "\n".join(line for step in (1, 2, 3) for line in step_samples(plan, step, 0))
    plan.run_dir.mkdir()
    (plan.run_dir / "skipped_samples.json").write_text("[[6, 10]]")
    found = "\n".join(line for step in (1, 2) for line in step_samples(plan, step, 0))
    by_number = {text.partition(":")[0]: text.strip() for text in plain.split("sample ")[1:]}
    shown = {text.partition(":")[0]: text.strip() for text in found.split("sample ")[1:]}
    assert list(shown) == [str(number) for number in [*range(6), *range(10, 20)]]
    assert shown == {number: by_number[number] for number in shown}


def test_long_texts_are_cut(data: Path, tmp_path: Path) -> None:
    lines = list(step_samples(small_plan(data, tmp_path / "run"), 1, 5))
    assert re.fullmatch(r"  \| .{5}\.\.\.", lines[1])


@pytest.mark.parametrize("step", [0, 9])
def test_no_such_step(data: Path, tmp_path: Path, step: int) -> None:
    with pytest.raises(UserError) as refused:
        list(step_samples(small_plan(data, tmp_path / "run"), step, 0))
    assert str(refused.value) == (f"--step {step}: no step of this run. It has steps 1 to 8.")


def test_the_command(data: Path) -> None:
    words = [f"--set={setting}" for setting in [*SETTINGS, f"data.path={data}"]]
    program, recipe = REPOSITORY / "launch/inspect_data.py", REPOSITORY / "recipes/quickstart.yaml"
    words += ["--recipe", str(recipe), "--step", "2", "--characters", "3"]
    shown = subprocess.run(
        [sys.executable, program, "where", *words], capture_output=True, text=True
    )
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("sample 8: train/shard-")
    assert all(len(line) <= 10 for line in lines if line.startswith("  | "))
