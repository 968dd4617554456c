"""What each key in Redis is for: whether it is kept when the state is moved, and how it is made.

A key that is none of these is of a newer release, or not ours.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["state", "index", "counter", "passing"]
"""What becomes of a key that is moved: `state` is; an `index` follows from state; a `counter` is if
that is wanted; what is `passing` is of its server, or gone in minutes."""

Type = Literal["hash", "fields", "string", "list", "stream"]
"""How it is read: a `hash` is one record, of `fields` each stands for itself."""

_ID: Final = r"[0-9]{1,19}"


@dataclass(frozen=True, slots=True)
class KeyKind:
    """One kind of key.

    Attributes:
        name: what people call it.
        pattern: its name without the prefix.
        role: what becomes of it.
        type: how it is read; of an index and of what is passing it does not matter.
    """

    name: str
    pattern: "re.Pattern[str]"
    role: Role
    type: Type = "string"


def _kind(name: str, pattern: str, role: Role, type_: Type = "string") -> KeyKind:
    return KeyKind(name, re.compile(pattern), role, type_)


KINDS: Final = (
    _kind("token", rf"token:({_ID})", "state", "hash"),
    _kind("user", rf"user:({_ID})", "state", "hash"),
    _kind("team", rf"team:({_ID})", "state", "hash"),
    _kind("members", rf"team:({_ID}):members", "state", "fields"),
    _kind("instance", "instance", "state", "fields"),
    _kind("owners", r"owners:[0-9]{1,3}", "state", "fields"),
    _kind("last id", r"last-id:[a-z-]+", "state"),
    _kind("budget", rf"rate:\{{u:{_ID}\}}:uses:{_ID}", "state"),
    _kind("warning", r"warning:.+", "state"),
    _kind("sync", r"\{sync\}:status", "state", "fields"),
    _kind("management key", rf"management-key:({_ID})", "state", "hash"),
    _kind("canaries", "canaries", "state", "fields"),
    _kind("audit", r"audit", "state", "stream"),
    _kind("counter", r"rate:\{.+\}:.+", "counter", "list"),
    _kind("index", rf"users|teams|expiring|management-keys|user:{_ID}:(tokens|teams)", "index"),
    _kind("index", rf"team:{_ID}:tokens", "index"),
    _kind("schema", "schema", "passing"),
    _kind("nonce", r"nonce:.+", "passing"),
    _kind("repeat", r"repeat:.+", "passing"),
    _kind("doctor", r"doctor:.+", "passing"),
    _kind("canary alarm", r"canary-alarm:.+", "passing"),
    _kind("sync", r"\{sync(-[0-9]+)?\}:(epoch|fence|lease|room)", "passing"),
    _kind("receipts", r"receipts:[a-z]+:[0-9]+", "passing"),
    _kind("usage", r"usage:\{.+\}|usage-since", "passing"),
    _kind("fleet", r"\{fleet\}:(processes|[0-9]+:[0-9]+)", "passing"),
    _kind("idempotency", r"idempotency:.+", "passing"),
    _kind("console", r"console:(link|session):[0-9a-f]+", "passing"),
    _kind("lock", r".+:(lock|written|full)(:\{.+\})?", "passing"),
)
"""The first that matches a key is its kind."""


def kind_of(name: str) -> KeyKind | None:
    """The kind of a key, by its name without the prefix; None: it is not known."""
    return next((kind for kind in KINDS if kind.pattern.fullmatch(name)), None)
