"""The reference canonicaliser: one request target, one path, the one that Laravel routes.

Laravel matches `rawurldecode(rtrim(path, "/"))`. Proxies decode, merge and resolve in ways
of their own, so whatever could be read in two ways is refused, never cleaned: what is
accepted here means the same path to every proxy and to Laravel.
"""

import re
from functools import lru_cache
from typing import Final
from unicodedata import category
from urllib.parse import unquote_to_bytes

from authsidecar.model import Deny, Kind, Reason
from authsidecar.routes import FRONT_CONTROLLER, ROUTE_UNKNOWN

AMBIGUOUS_TARGET: Final = Reason(
    "ambiguous_target", Kind.MALFORMED, 400, "The request target can be read in more than one way."
)
"""Another spelling than the one that every proxy and Laravel agree on."""

METHOD_OVERRIDE: Final = Reason(
    "method_override", Kind.MALFORMED, 400, "Overriding the request method is not accepted."
)
"""Laravel would run another method than the one that was judged."""

TARGET_TOO_LONG: Final = Reason(
    "target_too_long", Kind.MALFORMED, 414, "The request target is too long."
)
"""More than LONGEST bytes."""

LONGEST: Final = 16 * 1024
"""Bytes of the longest target that is read; Coolify's own nginx stops at 8 KiB."""

_FRONT_CONTROLLER: Final = FRONT_CONTROLLER.encode()

# Almost every request: unreserved characters only, and no segment that begins with a dot.
_PLAIN: Final = re.compile(rb"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+/?")

# %00-1F do not begin with 2 to F; the others that are refused: / % ; ? \ DEL. Escapes of bytes
# past ASCII must be text, too: see `_is_text`.
_ALLOWED: Final = re.compile(
    rb"/(?:[!$&'()*+,\-./0-9:=@A-Z\[\]_a-z~]"
    rb"|%(?!2[5Ff]|3[BFbf]|5[Cc]|7[Ff])[2-9A-Fa-f][0-9A-Fa-f])*"
)

_MEMOISED: Final = 256
"""Bytes of the longest target that is remembered, so that junk cannot fill the memory."""

_QUERY: Final = re.compile(rb"[!\"$-~]*")

MOST_KEYS: Final = 1000
"""Keys of a query that PHP reads (max_input_vars): what comes after them is not seen by Coolify."""


def canonicalise(target: bytes) -> str | Deny:
    """The path that Laravel will route, decoded once, without its trailing slash.

    Args:
        target: path and query as the proxy passes them to the backend.

    Returns:
        A path of printable segments that are neither empty, "." nor ".."; "/" for the root. It
        may hold any text that Coolify takes as a name. The caller decides which first segments
        it knows.

    Source: proxies.md "Reference canonicaliser", coolify-semantics sections 9 and 10,
    decisions.md "Target".

    >>> canonicalise(b"/api/v1/%74eams/?page=2")
    '/api/v1/teams'
    >>> canonicalise(b"/api/v1/projects/u1/pr%C3%BCfung%231")
    '/api/v1/projects/u1/prüfung#1'
    """
    if len(target) > LONGEST:
        return Deny(TARGET_TOO_LONG, f"{len(target)} bytes")
    return _remembered(target) if len(target) <= _MEMOISED else _canonicalise(target)


def _canonicalise(target: bytes) -> str | Deny:
    raw, _, query = target.partition(b"?")
    path = _path(raw)
    if isinstance(path, Deny):
        return path
    if not _QUERY.fullmatch(query):
        return Deny(AMBIGUOUS_TARGET, "a refused byte in the query")
    if query.count(b"&") + query.count(b";") >= MOST_KEYS:
        return Deny(AMBIGUOUS_TARGET, f"more than {MOST_KEYS} keys in the query")
    if overrides_method(query):
        return Deny(METHOD_OVERRIDE, "a query key that PHP reads as _method")
    return path


_remembered = lru_cache(maxsize=4096)(_canonicalise)


def _path(raw: bytes) -> str | Deny:
    plain = _PLAIN.fullmatch(raw)
    decoded = raw if plain else unquote_to_bytes(raw)
    if decoded[: len(_FRONT_CONTROLLER)].lower() == _FRONT_CONTROLLER:
        return Deny(ROUTE_UNKNOWN, "the front controller is not a route")
    if not plain and not _ALLOWED.fullmatch(raw):
        return Deny(AMBIGUOUS_TARGET, "a refused byte or escape in the path")
    if decoded == b"/":
        return "/"
    try:
        path = decoded.decode().removesuffix("/")  # strict: no surrogates, no overlong forms
    except UnicodeDecodeError:
        return Deny(AMBIGUOUS_TARGET, "an escape in the path that is no UTF-8")
    if not path.isascii() and not all(map(_is_text, set(path))):
        return Deny(AMBIGUOUS_TARGET, "a refused character in the path")
    if not plain and not {"", ".", ".."}.isdisjoint(path[1:].split("/")):
        return Deny(AMBIGUOUS_TARGET, "an empty or dot segment")
    return path


def _is_text(character: str) -> bool:
    """Whether a character may be part of a name: a letter, mark, digit, symbol or blank.

    Past ASCII; what `_ALLOWED` lets through of ASCII is text. Control and format characters,
    line separators and what Unicode has not assigned are none.
    """
    return character.isascii() or category(character)[0] in "LMNS" or category(character) == "Zs"


def _letters(text: str) -> str:
    """A pattern of these letters, each literal or escaped."""
    codes = [(letter, f"{ord(letter):x}") for letter in text]
    return "".join(f"(?:{one}|%{hex_[0]}[{hex_[1].upper()}{hex_[1]}])" for one, hex_ in codes)


def _override(separator: str, inside: str) -> re.Pattern[bytes]:
    """A pattern of a key that PHP reads as `_method`.

    Args:
        separator: what stands before the key.
        inside: what cannot stand in the index of one that is read as an array, as in a class.
    """
    # `_` is %5F, `.` %2E, a blank `+` or %20, `[` %5B, `]` %5D.
    name = rf"(?:\++|%20)*+(?:[_.]|%5[Ff]|%2[Ee]){_letters('method')}"
    index = rf"(?:\[|%5[Bb])(?:[^{inside}=%\]]++|%(?!00|5[Dd]))*+(?:\]|%5[Dd])"
    return re.compile(rf"{separator}{name}(?:(?=[&;=]|%00|\Z)|{index})".encode())


# A search that begins with one literal byte is quick, and no byte is looked at twice.
_OVERRIDE: Final = _override("&", "&")
_OVERRIDE_BY_SEMICOLON: Final = _override(";", "&;")


def overrides_method(query: bytes) -> bool:
    """Whether PHP would find a variable named `_method` in this query.

    `;` separates nothing for PHP, but proxies rewrite it to `&`: both readings count.

    Source: main/php_variables.c: blanks before a name are dropped, a NUL ends it, `.` becomes `_`,
    and `[` begins an index if there is a `]`.
    """
    return (
        _OVERRIDE.search(b"&" + query) is not None
        or _OVERRIDE_BY_SEMICOLON.search(query) is not None
    )
