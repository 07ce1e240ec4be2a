"""Which keys of a recipe change the result of a run, and the hash over them."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase

from gpt2_ds.config.recipe import Recipe
from gpt2_ds.config.recipe_file import flatten

NOT_IN_FINGERPRINT = (
    "template",  # memory and speed
    "batch.micro_batch_size",  # memory and speed
    "data.path",  # the data's own fingerprint is compared instead
    "data.sources.*.path",
    "data.prepare",
    "data.phases",  # those that have begun are compared: see `fingerprint`
    "data.cache_path",  # memory and speed
    "data.cache_gigabytes",
    "evaluation",  # looks at the weights, and changes none
    "checkpoint",  # cadence of saving and printing
    "logging",
    "health",
)
"""Keys and sections in which two recipes of one run may differ: they do not change its result."""

NEUTRAL = {
    "batch.ramp": None,
    "data.sources": None,
    "data.lanes": 0,
    "optimizer.muon_lr": None,
    "optimizer.muon_momentum": None,
}
"""Keys that came after the first release, with the value that means what no key meant before: so
that runs begun before go on."""


def result_keys(recipe: Recipe) -> dict[str, object]:
    """The values that change a run's result, by key path; but for `data.phases`."""
    patterns = [pattern for key in NOT_IN_FINGERPRINT for pattern in (key, f"{key}.*")]
    return {
        key: value
        for key, value in flatten(recipe.model_dump())
        if not any(fnmatchcase(key, pattern) for pattern in patterns)
        and not (key in NEUTRAL and value == NEUTRAL[key])
    }


def fingerprint(recipe: Recipe, tokens_seen: int) -> str:
    """sha256 over everything in the recipe that changed a run's result up to `tokens_seen`."""
    keys = result_keys(recipe)
    if begun := [each for each in recipe.data.phases if each.from_tokens < tokens_seen]:
        keys["data.phases"] = [phase.model_dump() for phase in begun]
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()
