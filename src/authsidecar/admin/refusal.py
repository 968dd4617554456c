"""The answer of a use case that will not do what it was asked."""

from dataclasses import dataclass
from typing import Final, NoReturn


@dataclass(frozen=True, slots=True)
class Refusal:
    """Nothing was changed; `why` is one line that says what to do instead."""

    why: str

    def __bool__(self) -> NoReturn:
        """Refuse to be a condition, as Deny does."""
        raise TypeError("ask isinstance(answer, Refusal) instead")


OWNED: Final = (
    "Coolify owns users, teams, tokens and settings here: change them in Coolify, or take them "
    "back with `authsidecar sync coolify release`"
)
"""Why what a sync follows can't be changed here."""


def absent(noun: str, number: int) -> str:
    """Say that something is not there, and where to look.

    Args:
        noun: "user", "team", "token" or "key".
        number: its id.
    """
    return f"there is no {noun} {number}; `authsidecar {noun} list` shows them"
