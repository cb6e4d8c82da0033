"""What every model of a report is: frozen, and null only where a reason stands beside it."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(min_length=1)]
Milliseconds = Annotated[float, Field(ge=0)]


class Row(BaseModel):
    """Frozen, finite, complete: null where and only where `<field>_reason` says why."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_serialization_defaults_required=True,
    )

    @model_validator(mode="after")
    def _check_reasons(self) -> "Row":
        for field in type(self).model_fields:
            reason_field = f"{field}_reason"
            if reason_field not in type(self).model_fields:
                continue
            value, reason = getattr(self, field), getattr(self, reason_field)
            if isinstance(value, Mapping):
                _check_mapping(field, value, reason)
            elif value is None and not reason:
                raise ValueError(f"{field} is null, so {reason_field} must say why")
            elif value is not None and reason is not None:
                raise ValueError(f"{field} has a value, so {reason_field} must be null")
        return self


def _check_mapping(field: str, values: Mapping[str, Any], reasons: Mapping[str, str]) -> None:
    empty = {key for key, value in values.items() if value is None}
    explained = {key for key, reason in reasons.items() if reason}
    if empty != explained or len(reasons) != len(explained):
        raise ValueError(
            f"{field}_reason must say why for exactly the keys of {field} that are null: "
            f"{sorted(empty)}, not {sorted(reasons)}"
        )
