"""The answer of a use case that will not do what it was asked."""

from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing was changed; `why` is one line that says what to do instead."""

    why: str

    def __bool__(self) -> NoReturn:
        """Refuse to be a condition, as Deny does."""
        raise TypeError("ask isinstance(answer, Refusal) instead")
