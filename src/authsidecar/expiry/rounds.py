"""Rounds of warnings: look what is due, send what nobody has sent, and again."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Final, Self

from redis import exceptions

from authsidecar import extras
from authsidecar.config import Settings, reread
from authsidecar.coolify.status import read_owner
from authsidecar.expiry.channel import SEND_S, Channel, NotTakenError, UnreachableError
from authsidecar.expiry.claims import LEASE_MS, Claims
from authsidecar.expiry.notice import HOUR_MS, LATE_MS, Due, Notice, due
from authsidecar.observe.background import Background, describe_error
from authsidecar.observe.log import Log
from authsidecar.store.keys import Keys
from authsidecar.store.last_used import last_use
from authsidecar.store.registry import EXPIRED_KEPT_MS, Registry
from authsidecar.tasks import end
from authsidecar.times import UnixMs

EVERY_S: Final = 10.0
"""The time between two looks at what is due, in seconds."""

BACKOFF_S: Final = (1.0, 2.0, 5.0, 15.0, 60.0, 300.0)
"""The time before a channel that failed is tried again, in seconds; the last one for ever."""

GRACE_S: Final = 8.0
"""How long a stop waits for the warning that is being sent, in seconds."""

_MARK_S: Final = 0.5
"""The time between two tries to say that a warning was sent, in seconds."""


class WarningResult(StrEnum):
    """What became of one try; closed, since it labels a metric."""

    SENT = "sent"
    FAILED = "failed"
    REFUSED = "refused"


Count = Callable[[WarningResult], None]


class NoDriverError(Exception):
    """mail.host is set and the library that sends mail is missing."""


@dataclass(frozen=True, slots=True)
class WarningOptions:
    """What is warned about, and through what.

    Attributes:
        channels: where warnings go; may be empty.
        leads: lead times in hours.
        synced: whether tokens that come from Coolify are warned about too.
    """

    channels: tuple[Channel, ...]
    leads: tuple[int, ...]
    synced: bool

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What the settings say.

        Raises:
            NoDriverError: aiosmtplib is missing.
        """
        from authsidecar.expiry.webhook import Webhook  # noqa: PLC0415  # aiohttp's client is slow

        section = settings.mail
        webhook = Webhook.of(section)
        channels: list[Channel] = [] if webhook is None else [webhook]
        if section.host is not None:
            try:
                from authsidecar.expiry.mail import SmtpServer  # noqa: PLC0415  # an extra
            except ImportError:
                raise NoDriverError(
                    f"mail.host: needs aiosmtplib: {extras.command('mail')}"
                ) from None
            again = (lambda: reread(settings).mail) if settings.files else None
            if (mail := SmtpServer.of(section, again)) is not None:
                channels.append(mail)
        return cls(tuple(channels), section.lead_times_hours, section.synced_tokens)


class Rounds:
    """One channel's warnings."""

    def __init__(
        self,
        channel: Channel,
        options: WarningOptions,
        client: Any,
        keys: Keys,
        *,
        log: Log,
        count: Count,
        report: Callable[[str | None], None] = lambda _: None,
    ) -> None:
        """Nothing is sent yet.

        Args:
            channel: where warnings go.
            options: what is warned about.
            client: redis-py's asyncio client.
            keys: the key names.
            log: told of every warning.
            count: told what became of every try.
            report: told of a failure that nobody foresaw, or None.
        """
        self._channel = channel
        self._options = options
        self._client = client
        self._keys = keys
        self._log = log
        self._count = count
        self._report = report
        self._registry = Registry(client, keys)
        self._claims = Claims(client, keys, channel.name)
        self.stopping = asyncio.Event()

    async def once(self) -> Counter[WarningResult]:
        """Send what is due and not sent; ends early if the channel does not work.

        Raises:
            RedisError, OSError: Redis is away.
        """
        results: Counter[WarningResult] = Counter()
        if not self._options.synced and await read_owner(self._client, self._keys) is not None:
            return results
        now = await self._registry.now()
        await self._registry.forget_expired(UnixMs(now - EXPIRED_KEPT_MS))
        longest = max(self._options.leads, default=0) * HOUR_MS
        soon = self._registry.expiring(UnixMs(now - LATE_MS), UnixMs(now + longest))
        async for page in soon:
            warnings = [one for t, at in page for one in due(t, at, self._options.leads, now)]
            for warning in await self._claims.open(warnings):
                if self.stopping.is_set() or results[WarningResult.FAILED]:
                    return results
                result = await self._one(warning)
                if result is not None:
                    results[result] += 1
                    self._count(result)
        return results

    async def run(self) -> None:
        """Rounds until it is stopping; a channel or a Redis that fails is tried again later."""
        failures = 0
        while not self.stopping.is_set():
            try:
                failed = bool((await self.once())[WarningResult.FAILED])
                self._report(None)
            except (exceptions.RedisError, OSError) as error:
                self._log.event("warning", "warnings_wait", redis=type(error).__name__)
                failed = True
            except Exception as error:  # noqa: BLE001  # one odd token must not end all warnings
                self._report(describe_error(error))
                failed = True
            pause = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)] if failed else EVERY_S
            failures = failures + 1 if failed else 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.stopping.wait()

    async def _one(self, warning: Due) -> WarningResult | None:
        """Try one warning; None if another does, or there is nothing to warn about any more."""
        asked = time.monotonic()
        if not await self._claims.claim(warning):
            return None
        notice = await self._notice(warning)
        late = time.monotonic() - asked > LEASE_MS / 1000 - SEND_S
        if notice is None or late:
            await self._claims.release(warning)
            return None
        fields = {
            "channel": self._channel.name,
            "token": warning.token,
            "lead_hours": warning.lead_hours,
        }
        try:
            await self._channel.send(notice)
        except UnreachableError as error:
            self._log.event("warning", "warning_failed", **fields, why=str(error))
            await self._claims.release(warning)
            return WarningResult.FAILED
        except NotTakenError as error:
            self._log.event("warning", "warning_refused", **fields, why=str(error))
            await self._claims.hold(warning)
            return WarningResult.REFUSED
        await self._mark(warning)
        self._log.event("info", "warning_sent", **fields)
        return WarningResult.SENT

    async def _mark(self, warning: Due) -> None:
        """Say that it was sent, however long that takes: else it would be sent again."""
        while True:
            try:
                await self._claims.sent(warning)
            except (exceptions.RedisError, OSError):
                await asyncio.sleep(_MARK_S)
            else:
                return

    async def _notice(self, warning: Due) -> Notice | None:
        """What there is to say; None if the token is gone or expires at another time."""
        token = await self._registry.token(warning.token)
        if token is None or token.expires_at != warning.expires_at:
            return None
        user = await self._registry.user(token.user)
        team = None if token.team is None else await self._registry.team(token.team)
        uses = await last_use(self._client, self._keys, [token.id])
        now = await self._registry.now()
        return Notice(warning, token, user, team.name if team else "", uses.get(token.id), now)


@contextlib.asynccontextmanager
async def warning(
    options: WarningOptions,
    client: Any,
    keys: Keys,
    log: Log,
    count: Count,
    *,
    background: Background,
) -> AsyncIterator[None]:
    """Warn beside other work; at the end, what is being sent may still be taken."""
    failing: dict[str, str] = {}

    def report(channel: str, what: str | None) -> None:
        if what is None:
            failing.pop(channel, None)
        else:
            failing[channel] = f"{channel}: {what}"
        if failing:
            background.failed("warnings", ", ".join(sorted(failing.values())))
        else:
            background.well("warnings")

    rounds = [
        Rounds(
            one,
            options,
            client,
            keys,
            log=log,
            count=count,
            report=partial(report, one.name),
        )
        for one in options.channels
    ]
    tasks = [asyncio.create_task(background.keep("warnings", one.run)) for one in rounds]
    try:
        yield
    finally:
        await _ended(rounds, tasks)


async def _ended(rounds: Sequence[Rounds], tasks: Sequence["asyncio.Task[None]"]) -> None:
    for one in rounds:
        one.stopping.set()
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=GRACE_S)
        await end(late)
        await asyncio.gather(*tasks, return_exceptions=True)
