"""Is it the same run? Its stored recipe and the one it is resumed with, compared key by key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gpt2_ds.config.errors import Fault, UserError, user_error
from gpt2_ds.config.recipe import Recipe
from gpt2_ds.config.recipe_file import LoadedRecipe, flatten, load_stored
from gpt2_ds.config.section import Section, introduced

_NOT_HASHED = (
    "template",  # memory and speed
    "batch.micro_batch_size",  # memory and speed
    "data.path",  # the data's own fingerprint is compared instead
    "data.sources.*.path",
    "data.prepare",
    "data.phases",  # those that have begun are compared: see `_that_count`
    "data.cache_path",  # memory and speed
    "data.cache_gigabytes",
    "evaluation",  # looks at the weights, and changes none
    "checkpoint",  # cadence of saving and printing
    "logging",
    "health",
)

MAY_CHANGE = _NOT_HASHED
"""Keys and sections that may change while a run lasts: no step already taken would have been
another. What may change from now on is added here, and not to `_NOT_HASHED`: manifests hold the
hash over all but those."""


def check_same_run(run_dir: Path, loaded: LoadedRecipe) -> None:
    """Refuse a run directory that holds a run of another recipe.

    Raises:
        UserError: names each key that changes the result and differs.
    """
    for folder in (run_dir, *run_dir.parents):
        if folder.exists() and not folder.is_dir():
            raise user_error(f"--run-dir {run_dir}", f"{folder} is a file", "Name a folder.")
    written = run_dir / "recipe.yaml"
    if written.exists():
        refuse_other(load_stored(written), loaded)


def refuse_other(stored: LoadedRecipe, loaded: LoadedRecipe, tokens_seen: int = 0) -> None:
    """Refuse to resume with another recipe than that of the run.

    Args:
        stored: the recipe that the run wrote down.
        loaded: the recipe to resume with.
        tokens_seen: by the run; phases that have begun by then are compared too.

    Raises:
        UserError: names each key that differs and may not.
    """
    before = dict(_that_count(stored.recipe, tokens_seen))
    now = dict(_that_count(loaded.recipe, tokens_seen))
    later = dict(_introduced(stored.recipe)).keys() - stored.origins.keys()
    faults = [
        Fault(
            f"{stored.file}: {key}",
            f"this run began with {before.get(key)!r}{' (the key came later)' * (key in later)}, "
            f"and {loaded.file} now gives {now.get(key)!r}",
            "Set it back, or start a new run with --run-dir runs/NAME.",
        )
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]
    if faults:
        raise UserError(*faults)


def _that_count(recipe: Recipe, tokens_seen: int) -> Iterator[tuple[str, object]]:
    """Key paths and values of what may not change; a phase is `data.phases.0`, once it began."""
    values = recipe.model_dump()
    values["data"]["phases"] = dict(enumerate(_begun_phases(recipe, tokens_seen)))
    for key, value in flatten(values):
        if key.startswith("data.phases.") or not _is_one_of(key, MAY_CHANGE):
            yield key, value


def _begun_phases(recipe: Recipe, tokens_seen: int) -> list[dict[str, Any]]:
    phases = recipe.data.phases
    return [phase.model_dump() for phase in phases if phase.from_tokens < tokens_seen]


def _is_one_of(key: str, names: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, name) or fnmatchcase(key, f"{name}.*") for name in names)


def fingerprint(recipe: Recipe, tokens_seen: int) -> str:
    """sha256 over everything in the recipe that changed a run's result up to `tokens_seen`.

    A key with the value that it was introduced with adds nothing, so hashes of before stay right.
    """
    first = dict(_introduced(recipe))
    keys: dict[str, object] = {
        key: value
        for key, value in flatten(recipe.model_dump())
        if not _is_one_of(key, _NOT_HASHED) and not (key in first and value == first[key])
    }
    if begun := _begun_phases(recipe, tokens_seen):
        keys["data.phases"] = begun
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()


def _introduced(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Key paths that came after the first release, with the values they were introduced with."""
    if isinstance(value, Section):
        for name, field in type(value).model_fields.items():
            inner = f"{key}.{name}".removeprefix(".")
            if mark := introduced(field):
                yield inner, mark.value
            yield from _introduced(getattr(value, name), inner)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _introduced(item, f"{key}.{name}")
