"""A probe of `authsidecar doctor`: its path, its credential, and what the sidecar records of it.

The doctor and the sidecar that it asks agree here. A record never holds an Authorization value.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Final

from authsidecar.decision.model import Proxy

PATH: Final = "/api/v1/authsidecar-doctor"
"""The one path that an armed doctor is let through to: no release line has a route there."""

CODE: Final = "doctor_probe"
"""The code in the body of a refusal that the doctor asked for."""

RETRY_AFTER_S: Final = 7
"""Retry-After of a 429 that the doctor asked for, in seconds."""

ALLOW: Final = "allow"
REFUSALS: Final = (400, 401, 403, 404, 429, 503)

_SCHEME: Final = b"Bearer doctor."
_OFFER: Final = re.compile(
    rb"Bearer doctor\.([A-Za-z0-9_-]{43})\.([a-z0-9-]{1,40})\.(allow|400|401|403|404|429|503)"
)
_SHOWN: Final = ("x-forwarded-", "x-authz-request-id", "origin")
_LONGEST_VALUE: Final = 512
_MOST_HEADERS: Final = 200

Headers = tuple[tuple[str, str], ...]
"""Names in lower case with their values, in the order they came."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A credential that has the shape of the doctor's; whether one is armed is yet to be asked.

    Attributes:
        key: the hexadecimal SHA-256 of the one-time key.
        probe: which probe it is.
        answer: what the probe asks for: ALLOW or one of REFUSALS.
        alone: the request carries this credential and no other.
    """

    key: str
    probe: str
    answer: str
    alone: bool


def credential(key: str, probe: str, answer: str) -> str:
    """The Authorization of one probe: to anybody but an armed doctor a token without its id.

    >>> credential("k" * 43, "asked", "allow")[:16]
    'Bearer doctor.kk'
    """
    return f"Bearer doctor.{key}.{probe}.{answer}"


def digest(key: str) -> str:
    """What Redis knows a one-time key by."""
    return sha256(key.encode("ascii")).hexdigest()


def offered(authorization: Sequence[bytes]) -> Offer | None:
    """The doctor's credential among the Authorization values, also where a proxy joined them."""
    joined = b",".join(authorization)
    found = _OFFER.search(joined) if _SCHEME in joined else None
    if found is None:
        return None
    key, probe, answer = (part.decode("ascii") for part in found.groups())
    return Offer(digest(key), probe, answer, alone=found.group() == joined)


def identity(name: str) -> str:
    """The value that an allowed probe carries to the backend under this name; nobody's id.

    >>> identity("X-Auth-User-Id")
    'doctor-user-id'
    """
    return f"doctor-{name.lower().removeprefix('x-auth-')}"


@dataclass(frozen=True, slots=True)
class Sighting:
    """One subrequest of a probe, as the sidecar saw it.

    Attributes:
        probe: which probe it belongs to.
        proxy: the endpoint that was asked.
        method: what was to be judged, as it came.
        target: what was to be judged, as it came.
        client: the address that would be judged, or None where the request is unreadable.
        refused: the code that the sidecar refuses the request with whoever sends it, or None.
        names: every header's name in lower case, as often as it came.
        shown: the values of those that describe the request.
        body: whether a body was announced.
        report_only: whether what is refused passes all the same (`enforcement: report`).
        forwarded: whether the operator says that this proxy shows bodies.
    """

    probe: str
    proxy: Proxy
    method: str
    target: str
    client: str | None
    refused: str | None
    names: tuple[str, ...]
    shown: Headers
    body: bool
    report_only: bool = False
    forwarded: bool = False

    def values(self, name: str) -> list[str]:
        """All values of a shown header."""
        return [value for found, value in self.shown if found == name]

    def encoded(self) -> str:
        """The record as it lies in Redis."""
        return json.dumps(asdict(self))


def headers_seen(raw: Sequence[tuple[bytes, bytes]]) -> tuple[tuple[str, ...], Headers]:
    """Names, and the values that may be kept: none that could be a secret."""
    named = [(name.decode("latin-1").lower(), value) for name, value in raw[:_MOST_HEADERS]]
    shown = tuple(
        (name, value[:_LONGEST_VALUE].decode("latin-1"))
        for name, value in named
        if name.startswith(_SHOWN)
    )
    return tuple(name for name, _ in named), shown


def sighting(text: str | bytes) -> Sighting:
    """A record as `Sighting.encoded` wrote it."""
    fields: dict[str, Any] = json.loads(text)
    fields["proxy"] = Proxy(fields["proxy"])
    fields["names"] = tuple(fields["names"])
    fields["shown"] = tuple((name, value) for name, value in fields["shown"])
    return Sighting(**fields)
