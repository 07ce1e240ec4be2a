"""What the keys of recipes and templates are made of: numbers in their range, and sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from pydantic.fields import FieldInfo

_LARGEST = 2**63 - 1  # what numpy and torch can hold
Positive = Annotated[int, Field(gt=0, le=_LARGEST)]
NotNegative = Annotated[int, Field(ge=0, le=_LARGEST)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]

STORED = "stored"
"""Context of `model_validate` for what a run wrote down: today's defaults mean nothing there."""
ABSENT = object()
"""Stands for a key that a run always wrote down, and that is not there; valid for no key."""


@dataclass(frozen=True)
class Introduced:
    """Marks a key that came after the first release: `Annotated[bool, Introduced(False)] = False`.

    Args:
        value: what the key means in a stored recipe without it. It stays as it is when the default
            changes: those runs trained with it.
    """

    value: object


class Section(BaseModel):
    """A strict, frozen mapping that refuses keys it does not know."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _as_when_stored(cls, values: object, info: ValidationInfo) -> object:
        if info.context != STORED or not isinstance(values, dict):
            return values
        return {name: _when_absent(field) for name, field in cls.model_fields.items()} | values


def introduced(field: FieldInfo) -> Introduced | None:
    """The mark of a key that came after the first release; None: it was always there."""
    return next((mark for mark in field.metadata if isinstance(mark, Introduced)), None)


def _when_absent(field: FieldInfo) -> object:
    if mark := introduced(field):
        return mark.value
    return {} if isinstance(field.default, Section) else ABSENT
