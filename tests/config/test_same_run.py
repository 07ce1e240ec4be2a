"""A run is resumed only by the recipe it began with, in all that changes the result."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from gpt2_ds.config.recipe import (
    PhaseSection,
    PrepareSection,
    RampSection,
    Recipe,
    SourceSection,
)
from gpt2_ds.config.recipe_file import LoadedRecipe, dump_recipe, flatten
from gpt2_ds.config.same_run import MAY_CHANGE, check_same_run, fingerprint, refuse_other
from tests.config.small_recipe import SMALL, faults_of, load_small, only_fault, small_values

CHANGED: dict[str, object] = {
    "batch.ramp": RampSection(start_tokens=64, increment_tokens=64, length_tokens=640),
    "tokenizer.name": "gpt2",
    "optimizer.name": "other",
    "optimizer.muon_lr": 0.02,
    "optimizer.muon_momentum": 0.95,
    "optimizer.betas": [0.5, 0.5],
    "precision.dtype": "bf16",
    "precision.grad_accum_dtype": "same",
    "data.prepare": PrepareSection(inputs=["x"]),
    "template": "x.json",
    "data.path": "x",
    "data.cache_path": "x",
    "data.sources": {"web": SourceSection(path="x", weight=1.0)},
    "data.phases": [PhaseSection(from_tokens=64, weights={"web": 1.0})],
    "evaluation.sample_prompt": "x",
    "checkpoint.copy_to": "x",
}


def another(key: str, value: object) -> object:
    if key in CHANGED:
        return CHANGED[key]
    if isinstance(value, bool):
        return not value
    assert isinstance(value, int | float), f"say in CHANGED what else {key} may be"
    return value + 1 if isinstance(value, int) else value / 2 + 0.1


def keys_of_a_recipe() -> list[str]:
    return [key for key, _ in flatten(Recipe.model_validate(small_values()).model_dump())]


def inside(key: str) -> list[str]:
    """A key and the mappings that it is in."""
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def differing(before: Recipe, now: Recipe, tokens_seen: int = 0) -> set[str]:
    """The keys for which a run that began with one recipe is not resumed with the other."""
    stored, loaded = LoadedRecipe(before, "stored", {}), LoadedRecipe(now, "given", {})
    try:
        refuse_other(stored, loaded, tokens_seen)
    except UserError as error:
        return {fault.where.removeprefix("stored: ") for fault in error.faults}
    return set()


def replaced(recipe: Recipe, key: str, value: object) -> Recipe:
    """The recipe with one value changed, past the schema: model_copy does not check."""
    section, _, leaf = key.rpartition(".")
    if not section:
        return recipe.model_copy(update={leaf: value})
    inner = getattr(recipe, section).model_copy(update={leaf: value})
    return recipe.model_copy(update={section: inner})


@pytest.mark.parametrize("key", [key for key in keys_of_a_recipe() if key != "schedule.name"])
def test_the_fingerprint_changes_with_what_changes_the_result(key: str) -> None:
    recipe = Recipe.model_validate(small_values())
    value = dict(flatten(recipe.model_dump()))[key]
    other = replaced(recipe, key, another(key, value))
    left_out = any(key == name or key.startswith(f"{name}.") for name in MAY_CHANGE)
    assert (fingerprint(other, 0) == fingerprint(recipe, 0)) == left_out
    for before, now in ((recipe, other), (other, recipe)):
        named = {name for different in differing(before, now) for name in inside(different)}
        assert (key in named) == (not left_out)  # a mapping is seen by what is in it


def test_the_fingerprint_changes_with_the_schedule() -> None:
    values = small_values()
    recipe = Recipe.model_validate(values)
    for key in ("decay_tokens", "min_lr"):
        del values["schedule"][key]
    values["schedule"]["name"] = "constant"
    assert fingerprint(Recipe.model_validate(values), 0) != fingerprint(recipe, 0)


def test_what_may_change_while_a_run_lasts() -> None:
    assert set(MAY_CHANGE) == {
        "template",
        "batch.micro_batch_size",
        "data.path",
        "data.sources.*.path",
        "data.prepare",
        "data.phases",
        "data.cache_path",
        "data.cache_gigabytes",
        "evaluation",
        "checkpoint",
        "health",
        "logging",
    }
    known = {name for key in keys_of_a_recipe() for name in (key, key.partition(".")[0])}
    assert set(MAY_CHANGE) <= known | {"data.sources.*.path"}


def mixed(weight: float, path: str, *phases: PhaseSection) -> Recipe:
    sources = {
        "web": SourceSection(path=path, weight=weight),
        "books": SourceSection(path="data/books", weight=1.0),
    }
    recipe = replaced(Recipe.model_validate(small_values()), "data.sources", sources)
    return replaced(replaced(recipe, "data.path", None), "data.phases", list(phases))


def test_weights_and_names_of_sources_are_part_of_the_result_and_paths_are_not() -> None:
    one = mixed(2.0, "data/web")
    assert fingerprint(one, 0) == fingerprint(mixed(2.0, "s3://bucket/web"), 0)
    assert fingerprint(one, 0) != fingerprint(mixed(3.0, "data/web"), 0)
    assert differing(one, mixed(2.0, "s3://bucket/web")) == set()
    assert differing(one, mixed(3.0, "data/web")) == {"data.sources.web.weight"}


def test_a_phase_counts_once_it_has_begun() -> None:
    phase = PhaseSection(from_tokens=1000, weights={"web": 1.0, "books": 5.0})
    without, with_it = mixed(2.0, "data/web"), mixed(2.0, "data/web", phase)
    assert fingerprint(without, 1000) == fingerprint(with_it, 1000)
    assert fingerprint(without, 1001) != fingerprint(with_it, 1001)
    assert differing(without, with_it, 1000) == set()
    keys = ("from_tokens", "weights.web", "weights.books")
    assert differing(without, with_it, 1001) == {f"data.phases.0.{key}" for key in keys}
    later = PhaseSection(from_tokens=2000, weights={"web": 1.0, "books": 0.0})
    assert fingerprint(with_it, 2000) == fingerprint(mixed(2.0, "data/web", phase, later), 2000)


def test_the_fingerprint_is_of_values_not_of_their_writing(tmp_path: Path) -> None:
    one = load_small(tmp_path).recipe
    other = load_small(tmp_path, text=SMALL.replace("1e-3", "0.001").replace("1024", "1_024"))
    assert fingerprint(one, 0) == fingerprint(other.recipe, 0)


def begun(folder: Path, *overrides: str) -> Path:
    """A run directory that began with these overrides; its recipe.yaml."""
    written = folder / "run/recipe.yaml"
    written.parent.mkdir()
    written.write_text(dump_recipe(load_small(folder, *overrides).recipe))
    return written


def test_a_new_run_and_the_same_run_go_on(tmp_path: Path) -> None:
    check_same_run(tmp_path / "run", load_small(tmp_path))
    begun(tmp_path)
    check_same_run(tmp_path / "run", load_small(tmp_path))


def test_each_key_that_differs_is_named(tmp_path: Path) -> None:
    written = begun(tmp_path, "optimizer.lr=1e-2", "model.n_layer=3")
    faults = faults_of(lambda: check_same_run(tmp_path / "run", load_small(tmp_path, "seed=5")))
    assert [fault.where for fault in faults] == [
        f"{written}: {key}" for key in ("seed", "model.n_layer", "optimizer.lr")
    ]
    assert str(faults[2]) == (
        f"{written}: optimizer.lr: this run began with 0.01, and {tmp_path / 'small.yaml'} now "
        "gives 0.001. Set it back, or start a new run with --run-dir runs/NAME."
    )


def test_a_key_that_is_new_or_gone_is_named(tmp_path: Path) -> None:
    constant = "schedule={name: constant, total_tokens: 10240, warmup_tokens: 1024}"
    written = begun(tmp_path, constant)
    faults = faults_of(lambda: check_same_run(tmp_path / "run", load_small(tmp_path)))
    assert {fault.where.removeprefix(f"{written}: schedule.") for fault in faults} == {
        "name",
        "decay_tokens",
        "min_lr",
    }


@pytest.mark.parametrize(
    "override",
    [
        "template=ds_configs/zero3.json",
        "batch.micro_batch_size=1",
        "data.path=elsewhere",
        "data.prepare={inputs: [x]}",
        "checkpoint.interval_steps=1",
        "checkpoint.keep_last=9",
        "logging.interval_steps=1",
    ],
)
def test_what_changes_no_result_may_differ(tmp_path: Path, override: str) -> None:
    begun(tmp_path)
    check_same_run(tmp_path / "run", load_small(tmp_path, override))


def test_a_run_directory_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.touch()
    loaded = load_small(tmp_path)
    assert only_fault(lambda: check_same_run(file, loaded)) == (
        f"--run-dir {file}: {file} is a file. Name a folder."
    )
    assert only_fault(lambda: check_same_run(file / "below", loaded)) == (
        f"--run-dir {file / 'below'}: {file} is a file. Name a folder."
    )


@pytest.mark.parametrize(
    "content, what",
    [(b"\xff", "not UTF-8 text at byte 0"), (b"a: [", "not YAML"), (b"[1]", "not a mapping")],
)
def test_a_damaged_recipe_in_the_run_directory(tmp_path: Path, content: bytes, what: str) -> None:
    written = begun(tmp_path)
    written.write_bytes(content)
    message = only_fault(lambda: check_same_run(tmp_path / "run", load_small(tmp_path)))
    assert message.startswith(str(written))
    assert what in message


def test_a_cut_recipe_in_the_run_directory(tmp_path: Path) -> None:
    written = begun(tmp_path)
    written.write_text(written.read_text()[:100])
    faults = faults_of(lambda: check_same_run(tmp_path / "run", load_small(tmp_path)))
    assert all(fault.where.startswith(str(written)) for fault in faults)
