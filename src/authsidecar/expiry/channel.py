"""What a warning goes out through, and the two ways in which that fails."""

from typing import Final, Protocol

from authsidecar.expiry.notice import Message

SEND_S: Final = 30.0
"""How long one try may take, in seconds; shorter than a claim lives."""


class UnreachableError(Exception):
    """The channel does not work now, for anybody; says why, without any secret."""


class NotTakenError(Exception):
    """This one warning is not taken, others may be; says why, without any secret."""


class Channel(Protocol):
    """Somewhere that warnings are sent to."""

    @property
    def name(self) -> str:
        """Part of the key that a warning is marked by."""

    async def send(self, notice: Message) -> None:
        """Hand a warning over; returns once it was taken.

        Raises:
            UnreachableError: nothing can be sent now.
            NotTakenError: this one can't.
        """
