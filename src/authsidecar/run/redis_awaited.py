"""Redis at the start: tried until it is there, while the sidecar answers that it is not."""

import time
from typing import Final

import redis.exceptions
from redis.asyncio import Redis

from authsidecar.config import Settings
from authsidecar.observe.log import Log
from authsidecar.run.errors import AwayError, StartError
from authsidecar.run.life import Life, StoppedError
from authsidecar.run.redis_at_start import (
    bring_forward,
    check_eviction,
    see_answer,
    without_secret,
)
from authsidecar.store.keys import Keys
from authsidecar.store.registry import Registry
from authsidecar.store.trips import kind_of

WAITING_S: Final = 0.5
"""The time between two tries while Redis is away at start, in seconds."""

WAITING_LOGGED_S: Final = 30.0
"""The time between two lines about it, in seconds."""


class RedisAwaited:
    """What Redis is needed for before anything is decided; tried until it is there."""

    def __init__(self, settings: Settings, log: Log, life: Life, client: "Redis") -> None:
        self._settings = settings
        self._log = log
        self._life = life
        self._client = client
        self._away: AwayError | None = None

    async def tried(self) -> bool:
        """Whether it is there and was made ready.

        Raises:
            StartError: it can't be used, and waiting would not help.
        """
        settings, client = self._settings, self._client
        try:
            await see_answer(client, settings)
            await bring_forward(client, settings)
            await check_eviction(client, settings, self._log)
            await Registry(client, Keys(settings.redis.prefix)).first_start(
                api_enabled=settings.api.enabled_at_first_start
            )
        except AwayError as error:
            self._away = error
        except redis.exceptions.NoPermissionError as error:
            name = without_secret(settings.redis.url)
            raise StartError(f"redis.username: has too few rights on {name} ({error})") from None
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            problem = f"redis.url: {without_secret(settings.redis.url)} can't be used ({error})"
            self._away = AwayError(problem, kind_of(error))
        else:
            return True
        if settings.redis.wait_at_start_seconds == 0:
            raise self._away
        self._life.missing = {"redis": self._away.kind}
        return False

    async def waited(self) -> None:
        """Try until it is there; say so now and then.

        Raises:
            StartError: it can't be used, or it was away for too long.
            StoppedError: the process is to end.
        """
        patience = self._settings.redis.wait_at_start_seconds
        since = time.monotonic()
        logged_at = float("-inf")
        while self._away is not None:
            now = time.monotonic()
            if patience is not None and now - since >= patience:
                raise self._away
            if now - logged_at >= WAITING_LOGGED_S:
                self._log.event("warning", "waiting_for_redis", problem=str(self._away))
                logged_at = now
            if await self._life.until_end(WAITING_S):
                raise StoppedError
            if await self.tried():
                self._log.event("info", "redis_is_there", seconds=round(now - since, 1))
                return
