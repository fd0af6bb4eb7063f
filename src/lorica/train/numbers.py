"""Numbers of a recipe: those that YAML reads as text (`2e-4`) are numbers, true and false are none."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lorica.budget import memory_in_bytes
from lorica.errors import RequestError


def _number(value: Any) -> Any:
    """YAML reads `2e-4` and `1e3` as text; true and false are no numbers."""
    if isinstance(value, bool):
        raise ValueError("a number is needed, not true or false")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{value!r} is not a number") from None
    return value


def _size(value: Any) -> Any:
    """A number is of bytes; words have a unit, `500MB`."""
    if not isinstance(value, str) or value.strip()[-1:].isdigit():
        return _number(value)
    try:
        return memory_in_bytes(value)
    except RequestError:
        raise ValueError(f"{value!r} is no size; write it as 500MB, 2GB or 1GiB") from None


def _number_or_epoch(value: Any) -> Any:
    return value if value == "epoch" else _number(value)


def _number_or_layers(value: Any) -> Any:
    return value if value == "auto" or isinstance(value, bool) else _number(value)


Share = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1, allow_inf_nan=False)]
Part = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
AtLeastOne = Annotated[float, BeforeValidator(_number), Field(ge=1, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Size = Annotated[int, BeforeValidator(_size), Field(ge=1)]
Seed = Annotated[int, BeforeValidator(_number), Field(ge=0)]
Every = Annotated[Literal["epoch"] | Annotated[int, Field(ge=1)], BeforeValidator(_number_or_epoch)]
Layers = Annotated[Literal["auto"] | bool | Annotated[int, Field(ge=1)], BeforeValidator(_number_or_layers)]
