"""The login to a Redis, which may be rotated while connections are open.

Each new connection logs in. Once that is refused, the files that the login came from are read
again, and the connection is tried once more with what they hold: whoever rotates a password changes
it in Redis and in its file, in any order, and restarts nothing.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError

READ_AGAIN_S: Final = 0.2
"""The least time between two readings of the files, in seconds: every request may be refused."""

Words = tuple[()] | tuple[str] | tuple[str, str]
"""What AUTH is told: a user's name and password, a password, or nothing."""


def words(username: str, password: str) -> Words:
    """What AUTH is told of these; either may be empty."""
    if username:
        return username, password
    return (password,) if password else ()


class Login(CredentialProvider):
    """What a connection logs in with; one for all connections to the same servers."""

    def __init__(self, now: Words, again: Callable[[], Words] | None) -> None:
        """Nothing is read yet.

        Args:
            now: the login.
            again: reads it anew, which may block; None if it never changes.
        """
        self.words = now
        self._again = again
        self._read_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    def get_credentials(self) -> Any:
        """The login, for redis-py."""
        return self.words

    async def get_credentials_async(self) -> Any:
        """The login, for redis-py's asyncio connections."""
        return self.words

    async def renewed(self, refused: Words) -> bool:
        """Whether there is another login than the one that was refused."""
        if self.words == refused and self._again is not None:
            if self._reading is None and time.monotonic() - self._read_at > READ_AGAIN_S:
                self._reading = asyncio.get_running_loop().create_task(self._read(self._again))
            if self._reading is not None:
                await asyncio.shield(self._reading)
        return self.words != refused

    async def _read(self, again: Callable[[], Words]) -> None:
        """Read it beside the event loop: a disk may hang."""
        try:
            self.words = await asyncio.to_thread(again)
        finally:
            self._reading = None
            self._read_at = time.monotonic()


def renewing(connection: type[Any]) -> type[Any]:
    """The same kind of connection; with a Login, one that is refused is tried with a new one."""

    class Renewing(connection):  # type: ignore[misc]  # a class that is only known at run time
        async def connect_check_health(self, *args: Any, **options: Any) -> None:
            login = self.credential_provider
            used = login.words if isinstance(login, Login) else ()
            try:
                await super().connect_check_health(*args, **options)
            except AuthenticationError:
                if not isinstance(login, Login) or not await login.renewed(used):
                    raise
                await super().connect_check_health(*args, **options)

    return Renewing
