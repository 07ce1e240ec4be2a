"""Every key of a recipe is read somewhere and says what it is; every shipped file resolves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gpt2_ds.config import recipe, template
from gpt2_ds.config.errors import UserError
from gpt2_ds.config.recipe import Recipe
from gpt2_ds.config.recipe_file import _models_of, load_recipe
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
        inner = _models_of(field.annotation)
        for each in inner:
            yield from leaves(each, name)
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
SECTION_LEAVES = sorted(set(leaves(Recipe)))


@pytest.mark.parametrize("section, name", SECTION_LEAVES, ids=[".".join(k) for k in SECTION_LEAVES])
def test_every_key_is_read(section: str, name: str) -> None:
    if section == "model" and name in {field.name for field in fields(GPT2Config)}:
        return  # model_fields() hands the whole section over
    if (section, name) == ("schedule", "name"):
        return  # it chooses the section's class, which is what the code asks for
    owners = attributes().get(name, set())
    assert owners & ({section} | OTHER_NAMES.get(section, set())), f"{section}.{name}: not read"


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


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_field_says_what_it_is(section: Any) -> None:
    assert section.__doc__
    for name, field in section.model_fields.items():
        assert field.description or _models_of(field.annotation), f"{section.__name__}.{name}"
    assert section.model_config["extra"] == "forbid"
    assert section.model_config["strict"]
    assert section.model_config["frozen"]


def test_every_field_of_a_template_says_what_it_is() -> None:
    for name, field in Template.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_template_loads(path: Path) -> None:
    load_template(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads(path: Path) -> None:
    assert load_recipe(path).recipe.template in {f"ds_configs/{file.name}" for file in TEMPLATES}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_resolves_with_every_template(path: Path, template: Path) -> None:
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
                assert any(each in said for each in words)
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
