"""What a rule of the linter says, and what it may look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt2_ds.config.errors import Fault
from gpt2_ds.config.recipe import Recipe
from gpt2_ds.config.recipe_file import LoadedRecipe
from gpt2_ds.config.template import Template, ZeroOptimization

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """What one rule says.

    Args:
        severity: an error is wrong, and refused at the start; a warning is of no use, or inexact.
        where: as in `Fault`, with the next two.
        what: what it is, with the values.
        fix: what to do; a full sentence.
        source: who found it: "DeepSpeed #6926".
    """

    severity: Severity
    where: str
    what: str
    fix: str
    source: str

    @property
    def fault(self) -> Fault:
        """The same, to be raised."""
        return Fault(self.where, f"{self.what} ({self.source})", self.fix)

    def __str__(self) -> str:
        return f"{self.severity}: {self.fault}"


@dataclass(frozen=True)
class Job:
    """All that the rules may look at.

    Args:
        loaded: the recipe.
        template: how it is partitioned.
        file: the template's, as the user named it.
        world_size: processes of the job.
    """

    loaded: LoadedRecipe
    template: Template
    file: str
    world_size: int

    @property
    def recipe(self) -> Recipe:
        """The recipe's values."""
        return self.loaded.recipe

    @property
    def zero(self) -> ZeroOptimization:
        """The template's main section."""
        return self.template.zero_optimization

    @property
    def accumulation(self) -> int:
        """Micro-steps of an optimizer step, about: what does not divide is refused elsewhere."""
        batch = self.recipe.batch
        sequences = batch.global_batch_tokens // self.recipe.data.seq_length
        return sequences // (batch.micro_batch_size * self.world_size)

    def error(self, key: str, what: str, fix: str, source: str) -> Finding:
        """A finding on a key of zero_optimization; `warning` makes the other kind."""
        return Finding("error", f"{self.file}: zero_optimization.{key}", what, fix, source)

    def warning(self, key: str, what: str, fix: str, source: str) -> Finding:
        """A finding on a key of zero_optimization."""
        return Finding("warning", f"{self.file}: zero_optimization.{key}", what, fix, source)
