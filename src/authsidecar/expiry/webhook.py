"""Warnings by webhook: JSON that is posted, signed with HMAC-SHA256."""

import hmac
from dataclasses import dataclass, field
from typing import Final, Self

import aiohttp

from authsidecar import __version__
from authsidecar.config.sections import Mail as Settings
from authsidecar.expiry.channel import SEND_S, NotTakenError, UnreachableError
from authsidecar.expiry.notice import Message

SIGNATURE: Final = "X-Authsidecar-Signature"

_TRY_AGAIN: Final = frozenset({408, 425, 429})


def signature(secret: str, body: bytes) -> str:
    """The value of the signature's header.

    The time of sending is in the body and signed with it, so a receiver can refuse a replay.
    """
    return "sha256=" + hmac.digest(secret.encode(), body, "sha256").hex()


@dataclass(frozen=True, slots=True)
class Webhook:
    """One URL.

    Attributes:
        url: where to; it may hold a secret.
        secret: what signs, or None: nothing does.
        name: the channel's.
    """

    url: str = field(repr=False)
    secret: str | None = field(repr=False)
    name: str = "webhook"

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The URL that the settings name, if they do."""
        if settings.webhook_url is None:
            return None
        secret = settings.webhook_secret
        return cls(settings.webhook_url, secret.get_secret_value() if secret else None)

    async def send(self, notice: Message) -> None:
        """Post a warning; any 2xx takes it.

        Raises:
            UnreachableError: no answer, or one that asks to try again later (5xx, 408, 425, 429).
            NotTakenError: any other answer; redirects are not followed.
        """
        body = notice.json()
        headers = {"Content-Type": "application/json", "User-Agent": f"authsidecar/{__version__}"}
        if self.secret is not None:
            headers[SIGNATURE] = signature(self.secret, body)
        patience = aiohttp.ClientTimeout(total=SEND_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=patience) as session,
                session.post(self.url, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                status = answer.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UnreachableError(type(error).__name__) from None
        if status >= 500 or status in _TRY_AGAIN:
            raise UnreachableError(f"status {status}")
        if not 200 <= status < 300:
            raise NotTakenError(f"status {status}")
