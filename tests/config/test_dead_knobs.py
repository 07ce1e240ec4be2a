"""Every key of a recipe is read somewhere and says what it is; every shipped file resolves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gpt2_ds.config import recipe, template
from gpt2_ds.config.errors import UserError
from gpt2_ds.config.recipe import Recipe
from gpt2_ds.config.recipe_file import load_recipe, sections_of
from gpt2_ds.config.run_plan import resolve_run
from gpt2_ds.config.template import Template
from gpt2_ds.config.template_file import load_template
from gpt2_ds.model.config import GPT2Config

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
TEMPLATES = sorted((ROOT / "ds_configs").glob("*.json"))


def leaves(model: type[BaseModel], section: str = "") -> Iterator[tuple[str, str]]:
    """Section and name of every value in a schema."""
    for name, field in model.model_fields.items():
        inner = sections_of(field.annotation)
        for inside in inner:
            yield from leaves(inside, name)
        if not inner:
            yield section, name


@cache
def attributes() -> dict[str, set[str]]:
    """Attribute names read in gpt2_ds, each with the words it is read from."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "gpt2_ds").rglob("*.py"):
        if file == ROOT / "gpt2_ds/config/recipe.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                name = getattr(owner, "attr", getattr(owner, "id", ""))
                found.setdefault(node.attr, set()).add(name)
    return found


# What a section is called where its values are read.
OTHER_NAMES = {"prepare": {"wanted"}, "health": {"_health"}, "": {"recipe"}}


def is_read(section: str, name: str) -> bool:
    if section == "model" and name in {field.name for field in fields(GPT2Config)}:
        return True  # model_fields() hands the whole section over
    if (section, name) == ("schedule", "name"):
        return True  # it chooses the section's class, which is what the code asks for
    owners = attributes().get(name, set())
    return bool(owners & ({section} | OTHER_NAMES.get(section, set())))


def test_every_key_is_read() -> None:
    dead = [
        f"{section}.{name}" for section, name in set(leaves(Recipe)) if not is_read(section, name)
    ]
    assert dead == [], "read each somewhere, or remove it from the schema"


def test_a_key_that_nothing_reads_is_found() -> None:
    assert not is_read("optimizer", "no_such_key")
    assert not is_read("tokenizer", "lr")


def test_the_model_reads_its_section() -> None:
    source = (ROOT / "gpt2_ds/config/derive.py").read_text()
    assert "recipe.model.model_dump(" in source
    known = {field.name for field in fields(GPT2Config)}
    assert set(recipe.ModelSection.model_fields) - known == {"compile"}


def sections() -> list[Any]:
    return [
        value
        for module in (recipe, template)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, recipe.Section)
    ]


def test_every_field_says_what_it_is(subtests: pytest.Subtests) -> None:
    for section in sections():
        with subtests.test(section.__name__):
            assert section.__doc__
            for name, field in section.model_fields.items():
                assert field.description or sections_of(field.annotation), name
            assert section.model_config["extra"] == "forbid"
            assert section.model_config["strict"]
            assert section.model_config["frozen"]


def test_every_field_of_a_template_says_what_it_is() -> None:
    assert [name for name, field in Template.model_fields.items() if not field.description] == []


def test_every_template_loads(subtests: pytest.Subtests) -> None:
    for path in TEMPLATES:
        with subtests.test(path.name):
            load_template(path)


def test_every_recipe_loads(subtests: pytest.Subtests) -> None:
    templates = {f"ds_configs/{file.name}" for file in TEMPLATES}
    for path in RECIPES:
        with subtests.test(path.name):
            assert load_recipe(path).recipe.template in templates


def test_every_recipe_resolves_with_every_template(subtests: pytest.Subtests) -> None:
    for path, file in product(RECIPES, TEMPLATES):
        with subtests.test(f"{path.stem} with {file.stem}"):
            check_resolves(path, file)


def check_resolves(path: Path, template: Path) -> None:
    """At each world size where the batch divides; elsewhere with values that would work."""
    resolved, too_small = 0, False
    for world_size in (1, 2, 4):
        try:
            plan = resolve_run(path, world_size=world_size, template_file=template)
        except UserError as error:
            for fault in error.faults:
                said = str(fault)
                words = (
                    "Values that work",
                    "World sizes",
                    "stage: is 0",
                    "Set it to at least",
                    "Muon",
                )
                assert any(word in said for word in words)
                too_small |= "buffer_size" in said
            continue
        resolved += 1
        sequences = plan.recipe.batch.micro_batch_size * plan.derived.gradient_accumulation_steps
        assert sequences * world_size == plan.derived.global_batch_size
        assert plan.deepspeed(cpu_adam=False)["train_batch_size"] == plan.derived.global_batch_size
    stage = load_template(template).zero_optimization.stage
    sixteen_bits = load_recipe(path).recipe.precision.dtype != "fp32"
    muon = load_recipe(path).recipe.optimizer.name == "muon"  # not on NVMe, nor quantized
    assert resolved or (stage == 0 and sixteen_bits) or too_small or muon
