"""Where a recipe leaves its paper: each deviation is printed, and nothing else."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import pytest

from gpt2_ds.config.recipe_file import load_recipe
from gpt2_ds.plan.papers.diff import add_arguments, deviations, diff, paper_of, recipe_file
from gpt2_ds.plan.papers.paper import PAPERS, Published
from tests.config.small_recipe import only_fault
from tests.conftest import REPOSITORY

# What no power of two, no whole step and no GPU of today can be as printed.
GPT3_ALL = [
    "batch.global_batch_tokens",
    "batch.ramp.start_tokens",
    "batch.ramp.increment_tokens",
    "schedule.total_tokens",
    "precision.dtype",
    "attention",
    "what decays",
    "vocabulary",
    "data",
]
GPT2_ALL = [
    "optimizer.name",
    "optimizer.lr",
    "optimizer.betas",
    "optimizer.eps",
    "optimizer.weight_decay",
    "optimizer.gradient_clipping",
    "schedule.name",
    "schedule.total_tokens",
    "schedule.warmup_tokens",
    "schedule.decay_tokens",
    "schedule.min_lr",
    "precision.dtype",
    "vocabulary",
    "data",
]
MORE = {"gpt3_1.3b": ["model.n_head"], "gpt3_13b": ["model.n_embd"]}


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What the command prints, one blank between words."""
    parser = ArgumentParser()
    add_arguments(parser)
    assert diff(parser.parse_args(words)) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", PAPERS)
def test_the_deviations_of_what_is_shipped(name: str) -> None:
    rows = list(deviations(load_recipe(recipe_file(name)), PAPERS[name]))
    wanted = [*MORE.get(name, []), *(GPT2_ALL if "gpt2" in name else GPT3_ALL)]
    assert [key for key, *_ in rows] == wanted
    for key, _, _, _, why in rows:
        assert why, key
        assert not why.startswith("("), f"{name}: {key}: its line has no comment"


def test_every_recipe_named_after_a_paper_has_one() -> None:
    shipped = {path.stem for path in (REPOSITORY / "recipes").glob("gpt*.yaml")}
    assert shipped == {*PAPERS, "gpt2_124m_muon"}


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "gpt3_1.3b", "paper")
    assert lines[0] == (
        "gpt3_1.3b and Brown et al. 2020, Language Models are Few-Shot Learners, "
        "https://arxiv.org/abs/2005.14165"
    )
    assert lines[2] == "key paper source here why (the comment beside it)"
    assert lines[3] == (
        "model.n_head 24 table 2.1 16 table 2.1 has 24, and 2048 / 24 is not whole; 16 are of its "
        "d_head, 128"
    )
    assert (
        "batch.global_batch_tokens 1M table 2.1 1,048,576 table 2.1: 1M, as a power of two" in lines
    )
    assert len(lines) == 3 + 10 + 2
    assert lines[-1] == "As in the paper: 17 more values."


def test_another_value_is_one_more(capsys: pytest.CaptureFixture[str]) -> None:
    before = printed(capsys, "gpt3_1.3b", "paper")
    words = ("--set", "optimizer.betas=[0.9, 0.99]", "--set", "data.document_mask=true")
    after = printed(capsys, "gpt3_1.3b", "paper", *words)
    assert [line for line in after if line not in before] == [
        "data.document_mask no mask appendix B true (--set)",
        "optimizer.betas 0.9, 0.95 appendix B 0.9, 0.99 (--set)",
        "As in the paper: 15 more values.",
    ]


def test_no_ramp_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "gpt3_125m", "paper", "--set", "batch.ramp=null")
    assert "batch.ramp.length_tokens 4-12 billion appendix B not set (--set)" in lines


def test_a_copy_is_held_to_the_same_paper(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (REPOSITORY / "recipes/gpt3_350m.yaml").read_text()
    copy = tmp_path / "gpt3_350m_mine.yaml"
    assert "  eps: 1e-8 # appendix B\n" in text
    copy.write_text(text.replace("  eps: 1e-8 # appendix B\n", "  eps: 1e-6\n"))
    line = 1 + copy.read_text().splitlines().index("  eps: 1e-6")
    lines = printed(capsys, str(copy), "paper")
    assert f"optimizer.eps 1e-08 appendix B 1e-06 ({copy}:{line})" in lines


def test_a_name_that_is_none() -> None:
    assert only_fault(lambda: recipe_file("gpt3_1.3")) == (
        "diff gpt3_1.3: no recipe of this name in recipes/. Did you mean gpt3_1.3b?"
    )


@pytest.mark.parametrize("name", ["quickstart", "gpt3_1.3bx", "mine"])
def test_a_recipe_without_a_paper(name: str) -> None:
    said = only_fault(lambda: paper_of(name))
    assert said.startswith(
        f"diff {name}: no paper is known for it. Its name must be one of these, or begin with it "
        "and _: gpt3_125m, "
    )


def test_only_the_paper_can_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        printed(capsys, "gpt3_1.3b", "llama")
    assert caught.value.code == 2
    assert "llama" in capsys.readouterr().err


def test_what_agrees() -> None:
    assert Published(range(4, 13), "4-12", "").agrees(12)
    assert not Published(range(4, 13), "4-12", "").agrees(13)
    assert not Published(range(4, 13), "4-12", "").agrees(None)
    assert Published(6e-4 / 10, "10 %", "").agrees(6e-5)
    assert not Published(6e-5, "", "").agrees(6.001e-5)
    assert Published([0.9, 0.95], "", "").agrees([0.9, 0.95])
    assert not Published(None, "not published", "").agrees(None)
