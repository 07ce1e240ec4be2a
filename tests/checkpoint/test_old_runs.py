"""Runs of an older version resume with this one, or are refused by name.

`recorded_runs` holds the recipe and the manifest of checkpoints that the first release wrote.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from gpt2_ds.checkpoint.manifest import (
    MANIFEST,
    RECIPE,
    CheckpointManifest,
    check_resumable,
    parse_manifest,
    saved_recipe,
)
from gpt2_ds.checkpoint.remote import Damaged, RemoteCheckpoints
from gpt2_ds.config import recipe_file
from gpt2_ds.config.recipe import (
    DataSection,
    Fraction,
    ModelSection,
    PhaseSection,
    Recipe,
    Section,
    SourceSection,
)
from gpt2_ds.config.recipe_file import (
    LoadedRecipe,
    flatten,
    item_of,
    load_recipe,
    load_stored,
    sections_of,
)
from gpt2_ds.config.same_run import MAY_CHANGE, check_same_run, fingerprint
from gpt2_ds.config.section import Introduced, introduced
from gpt2_ds.config.yaml_document import parse_yaml
from tests.checkpoint.saved_files import refusal
from tests.config.small_recipe import load_small

RECORDED = Path(__file__).parent / "recorded_runs"
RUNS = ("cosine", "mixture")
SET_BACK = "Set it back, or start a new run with --run-dir runs/NAME."

WHAT_TO_DO = """the manifests of existing runs hold this hash, and would be refused now.
A new key of the recipe: mark it Introduced(what it means in a run that began before it came).
A key that may change from now on: add it to MAY_CHANGE, and leave _NOT_HASHED as it is.
Anything else that changes the hash ends every run: find another way."""


def manifest_of(run: str) -> CheckpointManifest:
    manifest = parse_manifest((RECORDED / run / MANIFEST).read_bytes())
    assert manifest is not None
    return manifest


def resume(run: str, *overrides: str) -> None:
    """Refused or not: by the recipe in the run directory, in the checkpoint, and by the hash."""
    path, manifest = RECORDED / run, manifest_of(run)
    loaded = load_recipe(path / "given.yaml", overrides)
    stored = saved_recipe(path, manifest)
    assert stored is not None
    check_same_run(path, loaded)
    for recipe in (stored, None):
        check_resumable(
            path,
            manifest,
            stored=recipe,
            loaded=loaded,
            data_fingerprint=manifest.data_fingerprint,
        )


def refused(call: Callable[[], object]) -> str:
    return refusal(call).replace(f"{RECORDED}/", "")


@pytest.mark.parametrize("run", RUNS)
def test_a_recorded_run_resumes(run: str) -> None:
    resume(run)


@pytest.mark.parametrize("run", RUNS)
def test_a_recorded_hash_is_that_of_today(run: str) -> None:
    manifest, loaded = manifest_of(run), load_recipe(RECORDED / run / "given.yaml")
    now = fingerprint(loaded.recipe, manifest.tokens_seen)
    assert now == manifest.recipe_fingerprint, WHAT_TO_DO


def test_a_run_begun_before_there_were_sources_and_lanes_resumes(tmp_path: Path) -> None:
    recipe = load_small(tmp_path).recipe
    hashed = fingerprint(recipe, 10**12)
    # What the release before gave for it.
    expected = "99d4340cb57d5a58443fb43b68627578715a8402a51be585923c81fc2c6eb4c0"
    assert hashed == expected, WHAT_TO_DO


def test_a_recorded_run_with_another_recipe_is_refused() -> None:
    assert refused(lambda: resume("mixture", "data.sources.code.weight=2", "seed=1")) == (
        "mixture/recipe.yaml: seed: this run began with 1337, and mixture/given.yaml now gives 1. "
        f"{SET_BACK}\n"
        "mixture/recipe.yaml: data.sources.code.weight: this run began with 3.0, and "
        f"mixture/given.yaml now gives 2.0. {SET_BACK}"
    )


def with_phases(*phases: str) -> str:
    return f"data.phases=[{', '.join(phases)}]"


def test_phases_that_have_begun_are_compared() -> None:
    begun, later = (
        "{from_tokens: 768, weights: {code: 0, tests: 1}}",
        "{from_tokens: 1792, weights: {code: 5, tests: 1}}",
    )
    resume("mixture", with_phases(begun))
    resume("mixture", with_phases(begun, later))
    changed = with_phases(begun.replace("768", "1024"), later)
    assert refused(lambda: resume("mixture", changed)) == (
        "mixture/recipe.yaml: data.phases.0.from_tokens: this run began with 768, and "
        f"mixture/given.yaml now gives 1024. {SET_BACK}"
    )
    assert refused(lambda: resume("mixture", with_phases(later))).splitlines()[-1] == (
        "mixture/recipe.yaml: data.phases.0.weights.tests: this run began with 1.0, and "
        f"mixture/given.yaml now gives None. {SET_BACK}"
    )


def schema_with(
    monkeypatch: pytest.MonkeyPatch, section: str, annotation: object, default: object = ...
) -> None:
    """As if a version had come whose recipes have `section.new`, or `new`."""

    def extended(model: type[BaseModel], fields: dict[str, tuple[object, object]]) -> object:
        namespace = {"__annotations__": {name: kind for name, (kind, _) in fields.items()}}
        values = {name: value for name, (_, value) in fields.items() if value is not ...}
        return type(model)(f"New{model.__name__}", (model,), {**namespace, **values})

    new = {"new": (annotation, default)}
    if section:
        inner = extended(SECTIONS[section], new)
        new = {section: (inner, ...)}
    monkeypatch.setattr(recipe_file, "Recipe", extended(Recipe, new))


SECTIONS: dict[str, type[BaseModel]] = {"model": ModelSection, "data": DataSection}
WITHOUT = Annotated[bool, Introduced(False)]


@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_resumes_although_a_key_has_come(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema_with(monkeypatch, "model", WITHOUT, False)
    resume(run)
    resume(run, "model.new=false")
    assert refused(lambda: resume(run, "model.new=true")) == (
        f"{run}/recipe.yaml: model.new: this run began with False (the key came later), and "
        f"{run}/given.yaml now gives True. {SET_BACK}"
    )


def test_an_old_run_is_not_resumed_with_a_default_that_has_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema_with(monkeypatch, "model", WITHOUT, True)
    assert refused(lambda: resume("cosine")) == (
        "cosine/recipe.yaml: model.new: this run began with False (the key came later), and "
        f"cosine/given.yaml now gives True. {SET_BACK}"
    )
    resume("cosine", "model.new=false")


def test_the_default_of_an_old_key_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(ModelSection):
        attn_pdrop: Fraction = 0.1

    class Now(Recipe):
        model: Model

    monkeypatch.setattr(recipe_file, "Recipe", Now)
    assert refused(lambda: resume("cosine")) == (
        "cosine/recipe.yaml: model.attn_pdrop: this run began with 0.0, and cosine/given.yaml now "
        f"gives 0.1. {SET_BACK}"
    )


def test_a_key_without_a_default_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    schema_with(monkeypatch, "model", Annotated[Literal["none", "rotary"], Introduced("none")])
    assert refused(lambda: resume("cosine")) == "cosine/given.yaml: model.new: missing. Add it."
    resume("cosine", "model.new=none")
    assert "began with 'none' (the key came" in refused(
        lambda: resume("cosine", "model.new=rotary")
    )


def test_a_section_has_come_with_another_default_than_it_began_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class New(Section):
        rank: Annotated[int, Introduced(0)] = 0

    for default in (New(), New(rank=8)):
        schema_with(monkeypatch, "", New, default)
        resume("cosine", "new.rank=0")
        assert "recipe.yaml: new.rank: this run began with 0 (the key came later), and" in (
            refused(lambda: resume("cosine", "new.rank=3"))
        )
    assert "given.yaml now gives 8. " in refused(lambda: resume("cosine"))


def test_a_key_has_come_inside_sources_and_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    class Source(SourceSection):
        repeat: Annotated[int, Introduced(1)] = 2

    class Phase(PhaseSection):
        fade: Annotated[bool, Introduced(False)] = False

    class Data(DataSection):
        sources: dict[str, Source] | None = None  # type: ignore[assignment]
        phases: list[Phase] = Field(default_factory=list)  # type: ignore[assignment]

    class Now(Recipe):
        data: Data

    monkeypatch.setattr(recipe_file, "Recipe", Now)
    sources = [f"data.sources.{name}.repeat=1" for name in ("code", "tests")]
    assert [
        line.partition(": this")[0] for line in refused(lambda: resume("mixture")).splitlines()
    ] == [f"mixture/recipe.yaml: data.sources.{name}.repeat" for name in ("code", "tests")]
    stored = load_stored(RECORDED / "mixture" / RECIPE)
    check_same_run(RECORDED / "mixture", load_recipe(RECORDED / "mixture/given.yaml", sources))
    assert [getattr(phase, "fade") for phase in stored.recipe.data.phases] == [False, False]  # noqa: B009


def changed_recipe(folder: Path, old: str, new: str) -> LoadedRecipe:
    """The recorded recipe.yaml, read with something in it replaced."""
    text = (RECORDED / "cosine" / RECIPE).read_text()
    assert old in text
    (folder / RECIPE).write_text(text.replace(old, new))
    return load_stored(folder / RECIPE)


def test_a_key_that_this_version_does_not_know_is_named(tmp_path: Path) -> None:
    for old, new, key, value in (
        ("compile: false}", "compile: false, qk_norm: true}", "model.qk_norm", "true"),
        ("name: cosine", "name: cosine, stable_tokens: 5", "schedule.stable_tokens", "5"),
    ):
        message = refusal(lambda old=old, new=new: changed_recipe(tmp_path, old, new))
        assert message == (
            f"{tmp_path}/recipe.yaml: {key}: is {value}, and this version knows no such key. Use "
            "the version that wrote it: environment.json beside it has the commit."
        )


def test_a_default_does_not_stand_for_what_a_run_has_always_written(tmp_path: Path) -> None:
    assert refusal(lambda: changed_recipe(tmp_path, "  eps: 1.0e-08\n", "")) == (
        f"{tmp_path}/recipe.yaml: optimizer.eps: missing. Add it. It is: Added to the root of the "
        "second moment."
    )
    message = refusal(lambda: changed_recipe(tmp_path, "logging: {interval_steps: 1}\n", ""))
    assert message.startswith(f"{tmp_path}/recipe.yaml: logging.interval_steps: missing. Add it. ")


def test_without_the_keys_of_before_the_first_release(tmp_path: Path) -> None:
    text = (RECORDED / "cosine" / RECIPE).read_text()
    for words in (", ramp: null", "  sources: null\n", "  lanes: 0\n", "  muon_lr: null\n"):
        assert words in text
        text = text.replace(words, "")
    (tmp_path / RECIPE).write_text(text.replace("  muon_momentum: null\n", ""))
    check_same_run(tmp_path, load_recipe(RECORDED / "cosine/given.yaml"))
    given = load_recipe(RECORDED / "cosine/given.yaml", ["data.lanes=2"])
    assert "data.lanes: this run began with 0 (the key came later), and " in (
        refusal(lambda: check_same_run(tmp_path, given))
    )


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section of a recipe with its path; `*` stands for a name in a mapping or list."""
    yield path, model
    for name, field in model.model_fields.items():
        for inner in sections_of(field.annotation):
            yield from sections(inner, f"{path}{name}.")
        for inner in sections_of(item_of(field.annotation)):
            yield from sections(inner, f"{path}{name}.*.")


def recorded_keys() -> Iterator[str]:
    """Keys and sections that the recorded recipes hold, as they were written."""
    for run in RUNS:
        values, _ = parse_yaml((RECORDED / run / RECIPE).read_text(), run)
        values["data"]["phases"] = dict(enumerate(values["data"]["phases"]))
        for key, _ in flatten(values):
            parts = re.sub(r"data\.(sources|phases)\.\w+", r"data.\1.*", key).split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def test_every_key_is_in_the_recorded_recipes_or_says_what_it_was_introduced_with() -> None:
    recorded = set(recorded_keys())
    lacking = [
        f"{path}{name}"
        for path, model in sections(Recipe)
        for name, field in model.model_fields.items()
        if f"{path}{name}" not in recorded
        and introduced(field) is None
        and not isinstance(field.default, Section)  # then its keys say it
    ]
    assert lacking == [], "mark these Introduced(what they mean in a run that began before them)"


def test_a_damaged_recipe_in_a_checkpoint_is_not_believed(tmp_path: Path) -> None:
    manifest = manifest_of("cosine")
    shutil.copy(RECORDED / "cosine" / RECIPE, tmp_path)
    assert saved_recipe(tmp_path, manifest) is not None
    (tmp_path / RECIPE).write_text((tmp_path / RECIPE).read_text().replace("1337", "1338"))
    assert saved_recipe(tmp_path, manifest) is None
    (tmp_path / RECIPE).unlink()
    assert saved_recipe(tmp_path, manifest) is None
    assert saved_recipe(tmp_path, manifest.model_copy(update={"files": {}})) is None


def test_the_recipe_of_a_copy_is_read_where_it_lies(tmp_path: Path) -> None:
    shutil.copytree(RECORDED / "cosine", tmp_path / "away/step_00000004")
    remote = RemoteCheckpoints(str(tmp_path / "away"), attempts=1)
    manifest, where = remote.manifest(4), f"{tmp_path}/away/step_00000004/recipe.yaml"
    found = remote.recipe(manifest)
    assert found is not None
    assert (found.file, found.recipe) == (where, load_stored(RECORDED / "cosine" / RECIPE).recipe)
    assert remote.recipe(manifest.model_copy(update={"files": {}})) is None
    Path(where).write_text(Path(where).read_text().replace("1337", "1338"))
    assert refusal(lambda: remote.recipe(manifest), Damaged) == f"{where}: damaged"
    Path(where).unlink()
    assert refusal(lambda: remote.recipe(manifest), Damaged) == f"{where}: not there"


def test_what_may_change_is_known() -> None:
    """Each name is that of a key or a section, so that none is a slip."""
    known = {f"{path}{name}" for path, model in sections(Recipe) for name in model.model_fields}
    assert set(MAY_CHANGE) <= known
