"""The types of settings, which carry their ranges, and the dataclass that checks them."""

from typing import TYPE_CHECKING, Annotated

from pydantic import ConfigDict, Field

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:
    import functools

    import pydantic.dataclasses

    # The same, and what is put in is checked.
    dataclass = functools.partial(
        pydantic.dataclasses.dataclass, config=ConfigDict(extra="forbid", allow_inf_nan=False)
    )

Whole = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True)]
Positive = Annotated[float, Field(strict=True, gt=0)]
NotNegative = Annotated[float, Field(strict=True, ge=0)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
BelowOne = Annotated[float, Field(strict=True, ge=0, lt=1)]
YesNo = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]
