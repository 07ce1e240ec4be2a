"""From a checkpoint of any stage to text, character by character."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gpt2_ds.evaluation.sampling as sampling
from gpt2_ds.checkpoint.manifest import choose_checkpoint
from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.errors import UserError
from gpt2_ds.data.format.tokenizer import load_tokenizer
from gpt2_ds.evaluation.sampling import load_for_sampling, stream_samples
from gpt2_ds.model import GPT2Config, GPT2LMHeadModel
from tests.conftest import REPOSITORY
from tests.ranks import run_ranks
from tests.small_run import save_checkpoint, small_plan

STAGES = ("zero0", "zero1", "zero2", "zero3")
EOT = 256
ARGUMENTS: dict[str, Any] = {
    "num_samples": 1,
    "max_new_tokens": 20,
    "temperature": 1.0,
    "top_k": None,
    "top_p": None,
    "seed": 1,
}


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=257, n_positions=32, n_embd=32, n_layer=1, n_head=2)
    return GPT2LMHeadModel(config, seed=2).eval()


def pieces(model: Any, prompt: str, **changes: Any) -> list[str]:
    return list(stream_samples(model, load_tokenizer("bytes"), prompt, **(ARGUMENTS | changes)))


def test_the_same_seed_gives_the_same_text(model: GPT2LMHeadModel) -> None:
    text = "".join(pieces(model, "def "))
    assert text.startswith("def ")
    assert text.endswith("\n")
    assert text == "".join(pieces(model, "def "))
    assert text != "".join(pieces(model, "def ", seed=2))


def test_more_samples_do_not_change_the_first(model: GPT2LMHeadModel) -> None:
    one = "".join(pieces(model, "x"))
    three = "".join(pieces(model, "x", num_samples=3))
    second = "".join(pieces(model, "x", seed=2))
    third = "".join(pieces(model, "x", seed=3))
    assert three == f"{one}---\n{second}---\n{third}"


class Given:
    """In place of `generate`: draws these bytes, then perhaps end-of-text."""

    def __init__(self, drawn: list[int]) -> None:
        self.drawn, self.prompts = drawn, []

    def __call__(self, model: object, prompt_ids: list[int], **_: Any) -> Iterator[torch.Tensor]:
        self.prompts.append(prompt_ids)
        return iter([torch.tensor([token]) for token in self.drawn])


def test_a_character_of_several_tokens_is_printed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "naïve 日本 🙂"
    given = Given([*text.encode(), EOT])
    monkeypatch.setattr(sampling, "generate", given)
    prompt, *streamed = pieces(None, "é: ")
    assert prompt == "é: "
    assert "".join(streamed) == text + "\n"
    assert [piece for piece in streamed if piece.strip()] == [c for c in text if c != " "]
    assert given.prompts == [[EOT, *"é: ".encode()]]


def test_bytes_that_are_no_text_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "generate", Given([ord("a"), 0xFF, ord("b"), 0xE6, 0x97]))
    assert "".join(pieces(None, "")) == "a\ufffdb\ufffd\n"  # the last one was cut off


def test_a_wrong_argument_is_refused_before_anything_is_printed(model: GPT2LMHeadModel) -> None:
    with pytest.raises(UserError, match="--temperature"):
        next(stream_samples(model, load_tokenizer("bytes"), "x", **ARGUMENTS | {"temperature": -1}))


def save_fresh(folder: Path) -> None:
    """A run of each stage that has saved its first weights."""
    from gpt2_ds.parallel.engine import build_engine

    for stage in STAGES:
        plan = small_plan(folder / "data", folder / stage, template=stage, world_size=2)
        engine = build_engine(
            GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size)),
            plan.deepspeed(cpu_adam=False) | {"tensorboard": {"enabled": False}},
            seed=3,
        )
        save_checkpoint(plan, engine, 4, folder / "tokenizer")
        engine.destroy()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    load_tokenizer("bytes").save(folder / "tokenizer")
    run_ranks(save_fresh, 2, folder, folder)
    return folder


@pytest.mark.heavy
def test_every_stage_gives_the_same_text(runs: Path) -> None:
    plan = small_plan(runs / "data", runs / "zero0")
    fresh = GPT2LMHeadModel(GPT2Config(**model_fields(plan.recipe, 257)), seed=3).eval()
    expected = pieces(fresh, "def ")
    for stage in STAGES:
        path, _ = choose_checkpoint(runs / stage, None)
        loaded, tokenizer = load_for_sampling(runs / stage, path)
        assert not loaded.training
        assert tokenizer.sha256 == load_tokenizer("bytes").sha256
        assert list(stream_samples(loaded, tokenizer, "def ", **ARGUMENTS)) == expected


def generate(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "launch/generate.py"), *words]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    done = generate("--run", str(tmp_path / "no"), "--prompt", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: --run {tmp_path}/no: holds no complete checkpoint. "
        "Train first: deepspeed launch/train.py --recipe recipes/quickstart.yaml.\n"
    )


@pytest.mark.heavy
def test_the_command(runs: Path) -> None:
    run = str(runs / "zero3")
    done = generate("--run", run, "--step", "5", "--prompt", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --step 5: no checkpoint of this step. There are: 4.\n"

    done = generate("--run", run, "--prompt", "x", "--temperature", "-1", "--top-p", "2")
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: --temperature: -1.0 is not a number from 0 up.")
    assert lines[1].startswith("error: --top-p: 2.0 is not above 0 and at most 1.")
    assert len(lines) == 2

    for word, value, message in (
        ("--num-samples", "0", "0 is below 1. Give a number from 1 up."),
        ("--seed", "-1", "-1 is not from 0 to 2^62 - 1. Give a smaller number."),
    ):
        done = generate("--run", run, "--prompt", "x", word, value)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"error: {word}: {message}\n"

    words = ("--temperature", "1", "--max-new-tokens", "20", "--num-samples", "2")
    done = generate("--run", run, "--prompt", "def ", "--prompt", "class ", *words)
    assert (done.returncode, done.stderr) == (0, "")
    path, _ = choose_checkpoint(runs / "zero3", None)
    loaded = load_for_sampling(runs / "zero3", path)
    expected = [
        "".join(stream_samples(*loaded, prompt, **ARGUMENTS | {"num_samples": 2}))
        for prompt in ("def ", "class ")
    ]
    assert done.stdout == "".join(expected)
