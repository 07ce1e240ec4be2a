"""The section `optimizer` of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from gpt2_ds.config.section import Fraction, NotNegativeFloat, PositiveFloat, Section


class OptimizerSection(Section):
    """The update rule. Weight decay acts on matrices only: not on biases and LayerNorm."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw (https://arxiv.org/abs/1711.05101), or muon (https://kellerjordan.github.io/posts/muon):
    Muon for the matrices of the blocks, AdamW for all else."""
    lr: PositiveFloat
    """Peak learning rate of AdamW, reached after the warm-up."""
    muon_lr: Annotated[PositiveFloat | None, Field(validate_default=True)] = None
    """Peak learning rate of Muon, for example 0.02; it rises and falls as lr does."""
    muon_momentum: Annotated[Fraction | None, Field(validate_default=True)] = None
    """Decay rate of Muon's momentum, for example 0.95."""
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    """Decay rates of Adam's first and second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    weight_decay: NotNegativeFloat
    """Share of each matrix taken off per step, times the learning rate."""
    gradient_clipping: NotNegativeFloat
    """Largest global L2 norm of the gradient; 0 switches clipping off."""

    @field_validator("muon_lr", "muon_momentum")
    @classmethod
    def _goes_with_the_name(cls, value: float | None, info: ValidationInfo) -> float | None:
        name = info.data.get("name")  # None: it is no known one, which is said of it
        if name is not None and (value is None) == (name == "muon"):
            wanted = "be given" if value is None else "be left out"
            said = f"It should {wanted} where optimizer.name is {name}"
            raise PydanticCustomError("optimizer_name", "{said}", {"said": said})
        return value
