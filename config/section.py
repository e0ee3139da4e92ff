"""What a section of the settings is made of: a frozen record and described fields."""

from collections.abc import Callable
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from config import tree

Reload = Literal["hot", "restart"]


class Section(BaseModel):
    """One frozen group of settings; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `batch_size: true`, which pydantic would read as 1."""
        field = cls.model_fields.get(info.field_name or "")
        if isinstance(value, bool) and field is not None and tree.is_number(field.annotation):
            raise PydanticCustomError("number_type", "expected a number")
        return value


def setting(
    default: Any = ...,
    *,
    description: str,
    unit: str | None = None,
    reload: Reload = "restart",
    secret: bool = False,
    form: str | None = None,
    default_factory: Callable[[], Any] | None = None,
    **bounds: Any,
) -> Any:
    """One documented key of a section.

    `unit` is the unit of the number ("ms", "s", "bytes", "records", …), None for text and switches.
    `reload` "hot" means that a change of the file applies to the running process, "restart" that it
    waits for the next start. `secret` hides the value wherever settings are shown, besides fields
    typed `SecretStr`, which are always hidden. `form` says in words what `pattern` asks for. `bounds`
    are passed to `pydantic.Field` (`ge`, `le`, `gt`, `lt`, `min_length`, `pattern`, …).
    """
    extra: dict[str, Any] = {"reload": reload}
    if unit is not None:
        extra["unit"] = unit
    if secret:
        extra["secret"] = True
    if form is not None:
        extra["form"] = form
    if default_factory is not None:
        return cast(Any, Field)(
            default_factory=default_factory, description=description, json_schema_extra=extra, **bounds
        )
    return cast(Any, Field)(default, description=description, json_schema_extra=extra, **bounds)
