"""What the sections of `params.yaml` have in common."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
BucketName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]
NonNegativeFloat = Annotated[float, Field(ge=0)]

BitDepth = Literal["auto", 8, 10, 12, 14, 16]
Views = Literal["plain", "mirrored", "turned"]


class Section(BaseModel):
    """A section of `params.yaml`: frozen, finite numbers only, no unknown keys, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)
