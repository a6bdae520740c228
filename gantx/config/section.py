"""Base class and field types of the sections of a configuration. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1, le=1_000_000_000)]
Classes = Annotated[int, Field(ge=0, le=100_000)]
Depth = Annotated[int, Field(ge=1, le=1024)]
"""Layers or blocks one after the other."""
STAGES = Field(min_length=1, max_length=16)
"""A tuple with an element for each stage: every stage but the first doubles or halves the resolution."""
Kimg = Annotated[float, Field(ge=1e-6, le=1e9)]
"""A length or an interval in thousand images."""
KimgOrZero = Annotated[float, Field(ge=0, le=1e9)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )
