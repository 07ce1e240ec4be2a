"""What is wrong with the datasets that a recipe names, before any is opened."""

from __future__ import annotations

from collections.abc import Mapping

from gpt2_ds.config.batch_faults import between_steps
from gpt2_ds.config.errors import Fault, nearest
from gpt2_ds.config.recipe_file import LoadedRecipe

SMALLEST_SHARE = 1e-4


def source_faults(loaded: LoadedRecipe) -> list[Fault]:
    """What is wrong with data.path, data.sources and data.phases."""
    data = loaded.recipe.data
    faults = []
    if (data.path is None) == (data.sources is None):
        what = "neither path nor sources" if data.path is None else "both path and sources"
        fix = "Give data.path for one dataset, or data.sources for several."
        faults.append(Fault(loaded.where("data"), what, fix))
    if data.prepare is not None and data.path is None:
        what = "makes the dataset of data.path, and there is none"
        fix = "Prepare each source with launch/prepare_data.py."
        faults.append(Fault(loaded.where("data.prepare"), what, fix))
    if data.prepare is not None and data.path is not None and "://" in data.path:
        what = f"makes a local dataset, and data.path is {data.path}"
        fix = "Remove it, or name a folder."
        faults.append(Fault(loaded.where("data.prepare"), what, fix))
    if data.sources is not None:
        weights = {name: source.weight for name, source in data.sources.items()}
        faults += _weight_faults(loaded.where("data.sources"), weights)
    return faults + _phase_faults(loaded)


def _weight_faults(where: str, weights: Mapping[str, float]) -> list[Fault]:
    if (total := sum(weights.values())) == 0:
        return [Fault(where, "no source has a weight above 0", "Give one of them a weight.")]
    return [
        Fault(
            f"{where}: {name}",
            f"weight {weight} is less than 1 in 10,000 of all weights, {total}",
            f"Set it to 0, or to at least {total * SMALLEST_SHARE:g}.",
        )
        for name, weight in weights.items()
        if 0 < weight < total * SMALLEST_SHARE
    ]


def _phase_faults(loaded: LoadedRecipe) -> list[Fault]:
    data, batch = loaded.recipe.data, loaded.recipe.batch
    names = list(data.sources or {})
    faults = []
    before = 0
    for number, phase in enumerate(data.phases):
        where = loaded.where(f"data.phases.{number}")
        if data.sources is None:
            what, fix = "there are no data.sources to weigh", "Remove it, or give data.sources."
            faults.append(Fault(where, what, fix))
            continue
        if phase.from_tokens <= before:
            what = f"from_tokens {phase.from_tokens} is not above {before}, of the one before"
            faults.append(Fault(where, what, "Put the phases in order."))
        if wrong := between_steps(batch, phase.from_tokens):
            what, fix = wrong
            faults.append(Fault(where, f"from_tokens {what}", fix))
        before = phase.from_tokens
        for name in sorted(phase.weights.keys() - set(names)):
            what = f"{name!r} is not one of data.sources"
            faults.append(Fault(where, what, nearest(name, names)))
        if missing := [name for name in names if name not in phase.weights]:
            what = f"no weight for {', '.join(missing)}"
            faults.append(Fault(where, what, "Give every source a weight; 0 leaves one out."))
        elif not phase.weights.keys() - set(names):
            faults += _weight_faults(where, phase.weights)
    return faults
