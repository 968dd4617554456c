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


class LeftoverError(Exception):
    """Something may be there whose secret nobody was shown.

    Attributes:
        number: its id.
    """

    def __init__(self, noun: str, number: int, error: BaseException) -> None:
        """Say so in one line.

        Args:
            noun: "token" or "key".
            number: its id.
            error: what went wrong.
        """
        why = str(error) or type(error).__name__
        super().__init__(
            f"Redis failed under way ({why}); {noun} {number} may have been made, and nobody knows "
            f"it: `authsidecar {noun} revoke {number}` once Redis is back"
        )
        self.number = number
