"""One warning: which are due, and what is said in each. Pure.

Names of tokens, users and teams are other people's text: here they become one line without
control characters, and what HTML would read is escaped.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Final, Protocol

from authsidecar.decision.model import TokenId
from authsidecar.store.entities import Token, User
from authsidecar.store.last_used import Use
from authsidecar.times import UnixMs, for_people, rfc3339

HOUR_MS: Final = 3_600_000

LATE_MS: Final = 24 * HOUR_MS
"""For how long after its expiry a token is still warned about: longer than a mail server's worst
night, in which nothing could be sent."""

_NAME: Final = 80
"""Characters of a name that a subject shows."""


_ADVICE: Final = (
    "If it is still needed, create a new one and put it in the old one's place. "
    "If it is not, there is nothing to do."
)


@dataclass(frozen=True, slots=True)
class Due:
    """A warning that is to go out once: a new expiry of the same token is another one.

    Attributes:
        token: which token.
        expires_at: its last millisecond.
        lead_hours: which of the lead times has come.
    """

    token: TokenId
    expires_at: UnixMs
    lead_hours: int

    @property
    def id(self) -> str:
        """The same name in every try and every process."""
        return f"{self.token}:{self.expires_at}:{self.lead_hours}"


def due(token: TokenId, expires_at: UnixMs, leads: Iterable[int], now: UnixMs) -> list[Due]:
    """The warnings whose time has come, the longest lead time first.

    Args:
        token: which token.
        expires_at: its last millisecond.
        leads: lead times in hours.
        now: Redis's clock.
    """
    if now > expires_at + LATE_MS:
        return []
    return [
        Due(token, expires_at, lead)
        for lead in sorted(leads, reverse=True)
        if expires_at - lead * HOUR_MS <= now
    ]


class Message(Protocol):
    """What a channel sends."""

    @property
    def id(self) -> str:
        """The same name in every try and every process: digits, letters, `:` and `-`."""

    @property
    def user(self) -> User | None:
        """Whom a mail is for."""

    @property
    def now(self) -> UnixMs:
        """When it is said."""

    @property
    def subject(self) -> str:
        """One line, safe in a header."""

    def text(self) -> str:
        """The mail as plain text."""

    def html(self) -> str:
        """The mail as HTML; the same words."""

    def json(self) -> bytes:
        """What is posted."""


@dataclass(frozen=True, slots=True)
class Notice:
    """All that a warning tells.

    Attributes:
        due: which warning it is.
        token: the token as it is stored.
        user: its owner, or None if that is gone.
        team: the name of its team, or "".
        use: its last use, or None: none is known.
        now: Redis's clock.
    """

    due: Due
    token: Token
    user: User | None
    team: str
    use: Use | None
    now: UnixMs

    @property
    def id(self) -> str:
        """The same name in every try and every process."""
        return self.due.id

    @property
    def subject(self) -> str:
        """One line, safe in a header."""
        name = one_line(self.token.name)
        short = name if len(name) <= _NAME else name[: _NAME - 1] + "…"
        return f'API token "{short}" {self._when()}'

    def text(self) -> str:
        """The mail as plain text."""
        return "\n\n".join(self._paragraphs()) + "\n"

    def html(self) -> str:
        """The mail as HTML; the same words."""
        return page(self.subject, self._paragraphs())

    def json(self) -> bytes:
        """What is posted: `id` stays the same in every try, `sent_at` does not."""
        token, use, user = self.token, self.use, self.user
        told = {
            "event": "token_expired" if self._expired else "token_expiring",
            "id": self.due.id,
            "sent_at": rfc3339(self.now),
            "lead_hours": self.due.lead_hours,
            "token": {
                "id": token.id,
                "name": token.name,
                "team": token.team,
                "permissions": sorted(token.permissions),
                "expires_at": rfc3339(self.due.expires_at),
                "last_used_at": None if use is None else rfc3339(use.at),
                "last_used_address": None if use is None else use.client,
                "last_used_route": None if use is None else use.route,
            },
            "user": None if user is None else {"id": user.id, "name": user.name},
        }
        return json.dumps(told).encode("ascii")

    @property
    def _expired(self) -> bool:
        return self.now > self.due.expires_at

    def _when(self) -> str:
        return "has expired" if self._expired else f"expires in {left(self.due, self.now)}"

    def _paragraphs(self) -> tuple[str, ...]:
        token, use = self.token, self.use
        team = "no team" if token.team is None else f"team {token.team} {one_line(self.team)}"
        name = one_line(self.user.name) if self.user else ""
        tense = "Since then" if self._expired else "From then on"
        what = (
            f'the API token "{one_line(token.name)}" ({token.id}) of {team.rstrip()} '
            f"{self._when()}: {for_people(self.due.expires_at)}.\n"
            f"{tense} every request with it is refused (401, token_expired)."
        )
        last = (
            "No use of it is known."
            if use is None
            else f"It was last used {for_people(use.at)} from {one_line(use.client)} "
            f"for {one_line(use.route)}: that {'has stopped' if self._expired else 'will stop'} "
            "working."
        )
        return (
            f"Hello {name},".replace(" ,", ","),
            what,
            f"{last}\nIt holds: {' '.join(sorted(token.permissions)) or 'no permission'}.",
            _ADVICE,
        )


def page(title: str, paragraphs: Iterable[str]) -> str:
    """A page of HTML with these paragraphs; a line's end in one stays."""
    body = "\n".join(
        f"<p>{escape(one).replace(chr(10), '<br>' + chr(10))}</p>" for one in paragraphs
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f"<title>{escape(title)}</title></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def left(what: Due, now: UnixMs) -> str:
    """How long it is until then, rounded down to what a reader cares for.

    >>> left(Due(TokenId(1), UnixMs(90 * 60_000), 24), UnixMs(0))
    '90 minutes'
    """
    minutes = max(0, what.expires_at - now) // 60_000
    if minutes < 120:
        return f"{minutes} minute{'' if minutes == 1 else 's'}"
    hours = minutes // 60
    return f"{hours} hours" if hours < 72 else f"{hours // 24} days"


def one_line(text: str) -> str:
    """The text with a blank for whatever could break a line or turn its direction."""
    return "".join(c if c.isprintable() else " " for c in text)
