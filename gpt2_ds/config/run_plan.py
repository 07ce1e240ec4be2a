"""One run, resolved: recipe, template, derivations and where it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2_ds.config.deepspeed import deepspeed_config
from gpt2_ds.config.derive import Derived, derive
from gpt2_ds.config.errors import Fault, UserError, user_error
from gpt2_ds.config.lint.findings import Finding
from gpt2_ds.config.lint.rules import lint
from gpt2_ds.config.model_shape import ModelShape
from gpt2_ds.config.optimizers import optimizer_named
from gpt2_ds.config.recipe import Recipe
from gpt2_ds.config.recipe_file import LoadedRecipe, load_recipe
from gpt2_ds.config.template import Template
from gpt2_ds.config.template_file import load_template


@dataclass(frozen=True)
class RunPlan:
    """Everything a run is, before any device is touched.

    Args:
        loaded: the recipe and the origin of its values.
        template: how it is sharded.
        template_file: as the user named it.
        derived: the numbers that follow.
        run_dir: holds all of the run.
        last_step: the run stops after this optimizer step (derived.steps or --max-steps).
        warnings: what the linter found that is of no use, or inexact.
    """

    loaded: LoadedRecipe
    template: Template
    template_file: str
    derived: Derived
    run_dir: Path
    last_step: int
    warnings: tuple[Finding, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """The recipe's values."""
        return self.loaded.recipe

    @property
    def shape(self) -> ModelShape:
        """The tensors of its model."""
        return ModelShape.of(self.recipe.model, self.derived.padded_vocab_size)

    def deepspeed(self, *, cpu_adam: bool) -> dict[str, Any]:
        """The dict for `deepspeed.initialize`; see `deepspeed_config`."""
        return deepspeed_config(
            self.recipe, self.template, self.derived, self.run_dir, cpu_adam=cpu_adam
        )


@dataclass(frozen=True)
class Examination:
    """All that is found of a recipe with a template, right or wrong.

    Args:
        loaded: the recipe and the origin of its values.
        template_file: as the user named it, or the recipe's own.
        template: how it is sharded; None: it is wrong.
        derived: the numbers that follow; None: they do not fit each other.
        findings: the linter's.
        faults: all else that is wrong.
    """

    loaded: LoadedRecipe
    template_file: str
    template: Template | None
    derived: Derived | None
    findings: list[Finding]
    faults: list[Fault]


def examine(
    recipe_file: Path,
    *,
    world_size: int,
    template_file: Path | None = None,
    overrides: Sequence[str] = (),
    twin: bool = False,
) -> Examination:
    """Read, check and derive everything; for the arguments see `resolve_run`.

    Raises:
        UserError: the recipe cannot be read.
    """
    loaded = load_recipe(recipe_file, overrides, twin_ranks=max(world_size, 1) if twin else None)
    chosen = template_file or Path(loaded.recipe.template)
    faults: list[Fault] = []
    findings: list[Finding] = []
    template: Template | None = None
    derived: Derived | None = None
    try:
        template = load_template(chosen)
        optimizer_named(loaded.recipe.optimizer.name)
        findings = lint(loaded, template, str(chosen), max(world_size, 1))
    except UserError as error:
        faults.extend(error.faults)
    try:
        if world_size < 1:
            raise user_error(f"--expect-ranks {world_size}", "is below 1", "Give at least 1.")
        derived = derive(loaded, world_size)
    except UserError as error:
        faults.extend(error.faults)
    return Examination(loaded, str(chosen), template, derived, findings, faults)


def resolve_run(
    recipe_file: Path,
    *,
    world_size: int,
    template_file: Path | None = None,
    overrides: Sequence[str] = (),
    run_dir: Path | None = None,
    max_steps: int | None = None,
    twin: bool = False,
) -> RunPlan:
    """Everything that a run is, or all that is wrong.

    Args:
        recipe_file: a file of recipes/.
        world_size: processes of the job.
        template_file: a file of ds_configs/; the recipe's own when None.
        overrides: `section.key=value` words.
        run_dir: runs/<recipe name> when None.
        max_steps: stop after this optimizer step; the schedule stays as it is.
        twin: the recipe's small twin, in runs/<recipe name>_twin.

    Raises:
        UserError: all that is wrong.
    """
    found = examine(
        recipe_file,
        world_size=world_size,
        template_file=template_file,
        overrides=overrides,
        twin=twin,
    )
    faults = [finding.fault for finding in found.findings if finding.severity == "error"]
    faults += found.faults
    if max_steps is not None and max_steps < 1:
        faults.append(Fault(f"--max-steps {max_steps}", "is below 1", "Give at least 1."))
    if faults or found.template is None or found.derived is None:
        raise UserError(*faults)
    return RunPlan(
        loaded=found.loaded,
        template=found.template,
        template_file=found.template_file,
        derived=found.derived,
        run_dir=run_dir or default_run_dir(found.loaded),
        last_step=min(max_steps or found.derived.steps, found.derived.steps),
        warnings=tuple(found.findings),
    )


def default_run_dir(loaded: LoadedRecipe) -> Path:
    """Where a recipe's run is written without --run-dir."""
    return Path("runs") / loaded.name
