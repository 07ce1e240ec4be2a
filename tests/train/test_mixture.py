"""Training on several sources: their shares, their validation, and weights that change."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.preparation.request import Request
from gpt2_ds.preflight.inputs import open_inputs
from tests.conftest import REPOSITORY
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_plan


def two_sources(folder: Path, *, tokenizer: str = "bytes") -> str:
    for name, files in (("code", "gpt2_ds/**/*.py"), ("tests", "tests/**/test_*.py")):
        paths = sorted(REPOSITORY.glob(files))
        prepare(
            Request(inputs=paths, out=folder / name, tokenizer=tokenizer, validation_fraction=0.1)
        )
    sources = [
        f"{name}: {{path: {folder / name}, weight: {weight}}}"
        for name, weight in (("code", 3), ("tests", 1))
    ]
    return f"data.sources={{{', '.join(sources)}}}"


def stopped_and_resumed(folder: Path, sources: str) -> list[str]:
    """Four steps, then four more with a phase that began before them, or after."""
    from gpt2_ds.train.run import train

    said = []
    for max_steps, from_tokens in ((4, None), (None, 768), (None, 1024)):
        phase = f"[{{from_tokens: {from_tokens}, weights: {{code: 0, tests: 1}}}}]"
        overrides = ["data.path=null", sources]
        if from_tokens:
            overrides.append(f"data.phases={phase}")
        plan = small_plan(Path(), folder / "run", *overrides, max_steps=max_steps)
        try:
            train(plan, open_inputs(plan))
            said.append("")
        except UserError as error:
            said.append(str(error))
    return said


@pytest.mark.heavy
def test_a_mixture_is_trained_on_logged_and_resumed(tmp_path: Path) -> None:
    sources = two_sources(tmp_path)
    ((first, early, late),) = run_ranks(stopped_and_resumed, 1, tmp_path, tmp_path, sources)
    assert (first, late) == ("", "")
    assert f"{tmp_path}/run/checkpoints/step_00000004/recipe.yaml: data.phases.0." in early
    assert "data.phases.0.from_tokens: this run began with None, and " in early
    tokens = metrics_of(
        tmp_path / "run", "step", "tokens_seen", "tokens_seen_code", "tokens_seen_tests"
    )
    assert [row[0] for row in tokens] == list(range(1, 9))
    assert all(code + tests == seen for _, seen, code, tests in tokens)
    # 8 samples of 32 tokens a step: three of four are code until the phase, none after it.
    assert tokens[3][2:] == (768, 256)
    assert tokens[7][2:] == (768, 256 + 4 * 256)
    names = ("step", "validation_loss", "validation_loss_code", "validation_loss_tests")
    (four, eight) = metrics_of(tmp_path / "run", *names)
    assert four[1] == pytest.approx(0.75 * four[2] + 0.25 * four[3])
    assert eight[1] == pytest.approx(eight[3])  # the weights that hold now
    assert four[2] != four[3]


def test_sources_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    sources = two_sources(tmp_path)
    ranks = tmp_path / "other.tiktoken"
    ranks.write_bytes((tmp_path / "code/tokenizer/ranks.tiktoken").read_bytes())
    text = tmp_path / "text.txt"
    text.write_text("words " * 1000)
    # The same bytes, split as GPT-2 does.
    prepare(
        Request(
            inputs=[text],
            out=tmp_path / "third",
            tokenizer=str(ranks),
            validation=[REPOSITORY / "LICENSE"],
        )
    )
    third = sources.replace(str(tmp_path / "tests"), str(tmp_path / "third"))
    plan = small_plan(Path(), tmp_path / "run", "data.path=null", third)
    with pytest.raises(UserError) as refused:
        open_inputs(plan)
    message = str(refused.value)
    assert message.startswith("--set: data.sources.tests: made with tokenizer 'other.tiktoken' (")
    assert message.endswith("Prepare both with one tokenizer.")
