"""The twin of a recipe: small, and like it in all that a rehearsal is for."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from gpt2_ds.config.batches import stretches
from gpt2_ds.config.derive import derive
from gpt2_ds.config.recipe import ConstantSchedule, CosineSchedule, Recipe
from gpt2_ds.config.recipe_file import flatten, load_recipe
from gpt2_ds.config.run_plan import resolve_run
from gpt2_ds.config.same_run import fingerprint
from tests.config.small_recipe import SMALL, load_small, small_file
from tests.conftest import REPOSITORY

RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
MAY_DIFFER = {
    *("model.n_layer", "model.n_head", "model.n_embd", "model.n_positions"),
    *("model.loss_chunk_size", "model.compile", "tokenizer.name"),
    *("data.path", "data.prepare", "data.prepare.inputs", "data.prepare.validation_fraction"),
    *("data.seq_length", "batch.global_batch_tokens", "batch.micro_batch_size"),
    *("batch.ramp.start_tokens", "batch.ramp.increment_tokens", "batch.ramp.length_tokens"),
    *("schedule.total_tokens", "schedule.warmup_tokens", "schedule.decay_tokens"),
    *("evaluation.interval_steps", "evaluation.tokens", "evaluation.sample_tokens"),
    *("checkpoint.interval_steps", "checkpoint.keep_every_steps", "checkpoint.copy_to"),
    "logging.interval_steps",
}


def both(path: Path) -> tuple[Recipe, Recipe]:
    return load_recipe(path).recipe, load_recipe(path, twin_ranks=1).recipe


def test_every_recipe_has_one(subtests: pytest.Subtests) -> None:
    for path, world_size in product(RECIPES, (1, 2, 3, 4, 8, 48, 1024)):
        with subtests.test(f"{path.stem} on {world_size} ranks"):
            check_twin(path, world_size)


def check_twin(path: Path, world_size: int) -> None:
    large, small = both(path)
    derived = derive(load_recipe(path, twin_ranks=world_size), world_size)
    assert 0.9e6 < derived.n_parameters < 1.1e6
    assert 45 <= derived.steps <= 55
    assert derived.gradient_accumulation_steps >= 2
    ours, theirs = dict(flatten(small.model_dump())), dict(flatten(large.model_dump()))
    assert {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)} <= (
        MAY_DIFFER
    )
    assert bool(small.model.loss_chunk_size) == bool(large.model.loss_chunk_size)
    assert bool(small.evaluation.sample_tokens) == bool(large.evaluation.sample_tokens)


def test_up_to_four_ranks_have_the_same_twin() -> None:
    path = REPOSITORY / "recipes/gpt3_1.3b.yaml"
    twins = [load_recipe(path, twin_ranks=ranks).recipe for ranks in (1, 2, 4, 8)]
    one, two, four, eight = (fingerprint(twin, 0) for twin in twins)
    assert one == two == four != eight
    assert twins[3].batch.global_batch_tokens == 2 * 8 * 32


def test_the_schedule_has_the_same_shape(subtests: pytest.Subtests) -> None:
    for path in RECIPES:
        with subtests.test(path.stem):
            check_schedule(*both(path))


def check_schedule(large: Recipe, small: Recipe) -> None:
    assert (small.batch.ramp is None) == (large.batch.ramp is None)
    share = small.schedule.total_tokens / large.schedule.total_tokens
    one_step = small.batch.global_batch_tokens
    assert abs(small.schedule.warmup_tokens - large.schedule.warmup_tokens * share) <= one_step
    if isinstance(small.schedule, CosineSchedule):
        assert isinstance(large.schedule, CosineSchedule)
        assert abs(small.schedule.decay_tokens - large.schedule.decay_tokens * share) <= 1
    if small.batch.ramp is not None:
        sizes = [stretch.batch_tokens for stretch in stretches(small.batch)]
        assert len(sizes) > 1
        assert sizes[-1] == one_step


def test_what_it_would_cost_is_left_out(tmp_path: Path) -> None:
    costly = SMALL.replace("  interval_steps: 5\n", "  interval_steps: 5\n  copy_to: s3://x\n")
    costly = costly.replace("n_positions: 64", "n_positions: 64\n  compile: true")
    costly = costly.replace("copy_to: s3://x\n  tokens", "tokens")
    file = small_file(tmp_path, costly)
    large, small = both(file)
    assert (large.model.compile, small.model.compile) == (True, False)
    assert (large.checkpoint.copy_to, small.checkpoint.copy_to) == ("s3://x", None)


def test_several_sources_become_one(tmp_path: Path) -> None:
    mixed = """\
data:
  sources:
    web: {path: web, weight: 1.0}
    books: {path: books, weight: 1.0}
  phases:
    - {from_tokens: 2048, weights: {web: 2.0, books: 1.0}}
  document_mask: true
"""
    file = small_file(tmp_path, SMALL.replace("data:\n  path: data/small\n", mixed))
    _, small = both(file)
    assert (small.data.path, small.data.sources, small.data.phases) == (
        "data/python_stdlib",
        None,
        [],
    )
    assert small.data.document_mask


@pytest.mark.parametrize("name", ["constant", "wsd"])
def test_other_schedules_keep_their_order(name: str, tmp_path: Path) -> None:
    text = SMALL.replace("name: cosine", f"name: {name}")
    if name == "constant":
        text = text.replace("  decay_tokens: 10_240\n  min_lr: 1e-4\n", "")
    else:
        text = text.replace("decay_tokens: 10_240", "stable_tokens: 8_192\n  decay_tokens: 9_216")
    _, small = both(small_file(tmp_path, text))
    schedule = small.schedule
    assert schedule.total_tokens == 50 * 256
    assert schedule.warmup_tokens == 1280
    if not isinstance(schedule, ConstantSchedule | CosineSchedule):
        assert (schedule.stable_tokens, schedule.decay_tokens) == (10_240, 11_520)


def test_its_values_say_where_they_are_from_and_set_changes_the_twin(tmp_path: Path) -> None:
    file = small_file(tmp_path)
    loaded = load_recipe(file, ["model.n_layer=3"], twin_ranks=1)
    assert loaded.name == "small_twin"
    assert (loaded.recipe.model.n_layer, loaded.origin("model.n_layer")) == (3, "--set")
    assert loaded.origin("model.n_embd") == "--twin"
    assert loaded.origin("model.attn_pdrop") == "default"
    assert loaded.origin("optimizer.lr") == f"{file}:17"
    assert resolve_run(file, world_size=1, twin=True).run_dir == Path("runs/small_twin")
    assert load_small(tmp_path).name == "small"
