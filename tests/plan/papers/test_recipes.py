"""Each shipped recipe against one table of the papers' numbers, typed by hand."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import pytest

from gpt2_ds.config.errors import Fault, UserError
from gpt2_ds.config.model_shape import ModelShape
from gpt2_ds.config.recipe_file import flatten, load_recipe
from gpt2_ds.config.run_plan import RunPlan, resolve_run
from tests.conftest import REPOSITORY

RECIPES = REPOSITORY / "recipes"
TEMPLATES = sorted((REPOSITORY / "ds_configs").glob("*.json"))


class Row(NamedTuple):
    """Of a table: the model's shape, the batch in tokens, the peak learning rate and its tenth."""

    n_layer: int
    n_embd: int
    n_head: int
    batch_tokens: int
    lr: float
    min_lr: float
    n_parameters: int  # without padded rows


# Brown et al. 2020, https://arxiv.org/abs/2005.14165, table 2.1, but for 16 heads at 1.3B (there
# 24) and width 5120 at 13B (there 5140). Parameters: n_layer (12 C^2 + 13 C) + (50257 + 2048) C +
# 2 C, by hand.
GPT3 = {
    "gpt3_125m": Row(12, 768, 12, 524_288, 6.0e-4, 6.0e-5, 125_226_240),
    "gpt3_350m": Row(24, 1024, 16, 524_288, 3.0e-4, 3.0e-5, 355_871_744),
    "gpt3_760m": Row(24, 1536, 16, 524_288, 2.5e-4, 2.5e-5, 760_300_032),
    "gpt3_1.3b": Row(24, 2048, 16, 1_048_576, 2.0e-4, 2.0e-5, 1_315_723_264),
    "gpt3_2.7b": Row(32, 2560, 32, 1_048_576, 1.6e-4, 1.6e-5, 2_651_553_280),
    "gpt3_6.7b": Row(32, 4096, 32, 2_097_152, 1.2e-4, 1.2e-5, 6_658_404_352),
    "gpt3_13b": Row(40, 5120, 40, 2_097_152, 1.0e-4, 1.0e-5, 12_853_386_240),
    "gpt3_175b": Row(96, 12288, 96, 3_145_728, 0.6e-4, 0.6e-5, 174_604_259_328),
}
# The same paper, table D.1: millions of parameters, FLOPs of 300B tokens.
TABLE_D1 = {
    "gpt3_125m": (125, 2.25e20),
    "gpt3_350m": (356, 6.41e20),
    "gpt3_760m": (760, 1.37e21),
    "gpt3_1.3b": (1320, 2.38e21),
    "gpt3_2.7b": (2650, 4.77e21),
    "gpt3_6.7b": (6660, 1.20e22),
    "gpt3_13b": (12850, 2.31e22),
    "gpt3_175b": (174600, 3.14e23),
}
# Ours: 4B at 0.5M tokens, 12B at 3.1M, on a line between them.
RAMP_LENGTH = {
    524_288: 4_000_000_000,
    1_048_576: 5_600_000_000,
    2_097_152: 8_800_000_000,
    3_145_728: 12_000_000_000,
}
# Radford et al. 2019, table 2, with the heads of the released models; learning rates of GPT-3's
# nearest size. Parameters: of the released models.
GPT2 = {
    "gpt2_124m": Row(12, 768, 12, 524_288, 6.0e-4, 6.0e-5, 124_439_808),
    "gpt2_355m": Row(24, 1024, 16, 524_288, 3.0e-4, 3.0e-5, 354_823_168),
    "gpt2_774m": Row(36, 1280, 20, 524_288, 2.5e-4, 2.5e-5, 774_030_080),
    "gpt2_1.5b": Row(48, 1600, 25, 524_288, 2.0e-4, 2.0e-5, 1_557_611_200),
}


def recipe_values(name: str) -> dict[str, object]:
    return dict(flatten(load_recipe(RECIPES / f"{name}.yaml").recipe.model_dump()))


def both_papers(row: Row) -> dict[str, object]:
    """What the recipes of both have in common."""
    return {
        "seed": 1337,
        "model.n_layer": row.n_layer,
        "model.n_head": row.n_head,
        "model.n_embd": row.n_embd,
        "model.embd_pdrop": 0.0,
        "model.attn_pdrop": 0.0,
        "model.resid_pdrop": 0.0,
        "model.layer_norm_epsilon": 1e-5,
        "model.tie_word_embeddings": True,
        "tokenizer.name": "gpt2",
        "data.document_mask": False,
        "batch.global_batch_tokens": row.batch_tokens,
        "optimizer.name": "adamw",
        "optimizer.lr": row.lr,
        "optimizer.betas": [0.9, 0.95],
        "optimizer.eps": 1e-8,
        "optimizer.weight_decay": 0.1,
        "optimizer.gradient_clipping": 1.0,
        "schedule.name": "cosine",
        "schedule.min_lr": row.min_lr,
        "precision.dtype": "bf16",
        "precision.grad_accum_dtype": "fp32",
    }


@pytest.mark.parametrize("name", GPT3)
def test_gpt3(name: str) -> None:
    row = GPT3[name]
    values = recipe_values(name)
    wanted = both_papers(row) | {
        "model.n_positions": 2048,
        "data.seq_length": 2048,
        "batch.ramp.start_tokens": 32_768,
        "batch.ramp.increment_tokens": 32_768,
        "batch.ramp.length_tokens": RAMP_LENGTH[row.batch_tokens],
        "schedule.warmup_tokens": 375_000_000,
        "schedule.decay_tokens": 260_000_000_000,
    }
    assert {key: values[key] for key in wanted} == wanted
    assert_near_300_billion(resolved(name, 16))


@pytest.mark.parametrize("name", GPT2)
def test_gpt2(name: str) -> None:
    values = recipe_values(name)
    wanted = both_papers(GPT2[name]) | {
        "model.n_positions": 1024,
        "data.seq_length": 1024,
        "batch.ramp": None,
        "schedule.warmup_tokens": 375_390_208,  # 716 steps
        "schedule.total_tokens": 9_999_745_024,  # 19,073 steps
        "schedule.decay_tokens": 9_999_745_024,
    }
    assert {key: values[key] for key in wanted} == wanted
    assert resolved(name, 8).derived.steps == 19_073


# https://github.com/KellerJordan/Muon, README: rate, momentum and decay; DeepSpeed #8439: no clip.
MUON = {
    "optimizer.name": "muon",
    "optimizer.muon_lr": 0.02,
    "optimizer.muon_momentum": 0.95,
    "optimizer.weight_decay": 0.01,
    "optimizer.gradient_clipping": 0.0,
}


def test_gpt2_with_muon() -> None:
    """As gpt2_124m in all else."""
    assert recipe_values("gpt2_124m_muon") == recipe_values("gpt2_124m") | MUON
    assert resolved("gpt2_124m_muon", 8).derived == resolved("gpt2_124m", 8).derived


def test_every_recipe_of_a_paper_is_in_the_table() -> None:
    shipped = {path.stem for path in RECIPES.glob("gpt*.yaml")}
    assert shipped == {*GPT2, *GPT3, "gpt2_124m_muon"}


def resolved(name: str, world_size: int, *overrides: str) -> RunPlan:
    return resolve_run(
        RECIPES / f"{name}.yaml",
        world_size=world_size,
        template_file=REPOSITORY / "ds_configs/zero3.json",
        overrides=overrides,
    )


def assert_near_300_billion(plan: RunPlan) -> None:
    """No other step ends nearer, and the steps taken one by one have just so many tokens."""
    total, full = plan.recipe.schedule.total_tokens, plan.recipe.batch.global_batch_tokens
    assert abs(total - 300_000_000_000) <= full // 2
    levels = plan.derived.batches.levels
    firsts = [level.first_step for level in levels] + [plan.derived.steps + 1]
    sequences = sum(
        (until - level.first_step) * level.global_batch_size
        for level, until in zip(levels, firsts[1:], strict=True)
    )
    assert sequences * plan.recipe.data.seq_length == total
    ramp = plan.recipe.batch.ramp
    assert ramp
    assert 0 <= levels[-1].samples_before * plan.recipe.data.seq_length - ramp.length_tokens < full


def test_the_number_of_parameters(subtests: pytest.Subtests) -> None:
    for name, row in (GPT2 | GPT3).items():
        with subtests.test(name):
            derived = resolved(name, 1).derived
            assert derived.n_parameters == row.n_parameters + 47 * row.n_embd  # 50257 rows to 50304
            positions = 1024 if name in GPT2 else 2048
            unpadded = ModelShape(row.n_layer, row.n_embd, positions, 50257, tied=True).n_parameters
            assert unpadded == row.n_parameters


def test_the_paper_counts_the_same(subtests: pytest.Subtests) -> None:
    """It does so for 13B at width 5120, and not at the printed 5140."""
    for name, (millions, flops) in TABLE_D1.items():
        with subtests.test(name):
            n_parameters = GPT3[name].n_parameters
            assert n_parameters / 1e6 == pytest.approx(millions, rel=0.004)
            assert 6 * n_parameters * 300e9 == pytest.approx(flops, rel=0.005)
    printed = ModelShape(40, 5140, 2048, 50257, tied=True).n_parameters
    assert abs(printed / 1e6 - 12850) > 90


class Line(NamedTuple):
    """A command in a recipe's comment."""

    name: str
    ranks: int
    overrides: tuple[str, ...]
    run_dir: str


def lines_of(name: str) -> list[Line]:
    text = (RECIPES / f"{name}.yaml").read_text()
    found = []
    for words in map(shlex.split, re.findall(r"^#   (deepspeed .*)$", text, re.MULTILINE)):
        given: dict[str, list[str]] = {}
        for flag, word in pairwise(words):
            given.setdefault(flag, []).append(word)
        assert given["--recipe"] == [f"recipes/{name}.yaml"]
        assert "launch/train.py" in words
        ranks = int(given.get("--expect-ranks", ["8"])[0])
        run_dir = given.get("--run-dir", [""])[0]
        found.append(Line(name, ranks, tuple(given["--set"]), run_dir))
    return found


LINES = [line for name in (*GPT2, *GPT3) for line in lines_of(name)]


def test_the_lines_that_are_there() -> None:
    wanted = {(name, 8) for name in GPT2} | {(name, 64) for name in GPT3}
    wanted |= {("gpt3_175b", 768), ("gpt3_175b", 1024)}
    assert sorted(wanted) == sorted((line.name, line.ranks) for line in LINES)


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.name}-{line.ranks}")
def test_the_lines_of_the_comments_work(line: Line) -> None:
    plan = resolved(line.name, line.ranks, *line.overrides)
    recipe = plan.recipe
    if line.name in GPT2:
        assert abs(recipe.schedule.total_tokens - 100_000_000_000) <= 524_288 // 2
        assert recipe.schedule == recipe.schedule.model_copy(
            update={"decay_tokens": recipe.schedule.total_tokens}
        )
        assert line.run_dir == f"runs/{line.name}_100b"  # not where the 10B tokens' run is
        return
    assert recipe.batch.ramp
    assert recipe.batch.ramp.start_tokens == line.ranks * 2048
    assert recipe.batch.ramp.increment_tokens == line.ranks * 2048
    assert len(plan.derived.batches.levels) > 1
    if line.ranks != 1024:
        assert recipe.batch.global_batch_tokens == GPT3[line.name].batch_tokens
    assert_near_300_billion(plan)
    changed = {word.partition("=")[0] for word in line.overrides}
    needed = {"batch.ramp.start_tokens", "batch.ramp.increment_tokens"}
    assert changed >= needed


@pytest.mark.parametrize("name", GPT3)
def test_the_papers_ramp_is_refused_on_64_ranks_with_what_works(name: str) -> None:
    overrides = [] if GPT3[name].batch_tokens > 524_288 else ["batch.micro_batch_size=4"]
    with pytest.raises(UserError) as caught:
        resolved(name, 64, *overrides)
    said = str(caught.value)
    assert "batch.ramp.start_tokens: 32768 tokens are 16 sequences of 2048, which 64 ranks" in said
    assert "Nearest: 131072. Or world sizes that work: 1, 2, 4, 8, 16." in said


def test_with_every_template(subtests: pytest.Subtests) -> None:
    for name, template in product([*GPT2, *GPT3, "gpt2_124m_muon"], TEMPLATES):
        with subtests.test(f"{name} with {template.stem}"):
            check_with_template(name, template)


def check_with_template(name: str, template: Path) -> None:
    """What refuses is the template (16-bit training at stage 0), and never the recipe."""
    for line in [Line(name, 16, (), ""), *lines_of(name)]:
        faults: tuple[Fault, ...] = ()
        try:
            plan = resolve_run(
                RECIPES / f"{name}.yaml",
                world_size=line.ranks,
                template_file=template,
                overrides=line.overrides,
            )
        except UserError as error:
            faults = error.faults
        assert {fault.where.partition(": ")[0] for fault in faults} <= {str(template)}
        if not faults:
            sequences = plan.deepspeed(cpu_adam=False)["train_batch_size"]
            full = plan.recipe.batch.global_batch_tokens
            assert sequences * plan.recipe.data.seq_length == full


def test_every_number_has_a_source() -> None:
    """On its line; those at the end are ours, and a line above says so."""
    without = []
    for name in [*GPT2, *GPT3, "gpt2_124m_muon"]:
        text, _, _ = (RECIPES / f"{name}.yaml").read_text().partition("ours, with all that follows")
        for line in text.splitlines():
            key, _, comment = line.partition("# ")
            if not comment and re.search(r": \[?[\d.]", key):
                without.append(f"{name}: {line}")
    assert without == []
