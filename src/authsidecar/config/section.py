"""What all sections of the configuration share."""

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


def contradiction(key: str, problem: str, allowed: str) -> PydanticCustomError:
    """Build the refusal of a value that is fine alone but not beside another."""
    return PydanticCustomError(
        "contradiction",
        "{key}: {problem}; allowed: {allowed}",
        {"key": key, "problem": problem, "allowed": allowed},
    )


class Section(BaseModel):
    """A group of settings; frozen, closed to unknown keys, silent about what it was given."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )
