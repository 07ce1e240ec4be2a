"""What the keys of recipes and templates are made of: numbers in their range, and sections."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_LARGEST = 2**63 - 1  # what numpy and torch can hold
Positive = Annotated[int, Field(gt=0, le=_LARGEST)]
NotNegative = Annotated[int, Field(ge=0, le=_LARGEST)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """A strict, frozen mapping that refuses keys it does not know."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )
