"""The reference canonicaliser: one request target, one path, the one that Laravel routes.

Laravel matches `rawurldecode(rtrim(path, "/"))`. Proxies decode, merge and resolve in ways
of their own, so whatever could be read in two ways is refused, never cleaned: what is
accepted here means the same path to every proxy and to Laravel.
"""

import re
from binascii import a2b_qp
from functools import lru_cache
from typing import Final
from unicodedata import category
from urllib.parse import unquote_to_bytes

from authsidecar.decision.model import Deny, Kind, Reason
from authsidecar.decision.routes import FRONT_CONTROLLER, ROUTE_UNKNOWN

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
_PLAIN: Final = re.compile(rb"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*+)++/?")

_LITERAL: Final = bytes(b for b in range(0x21, 0x7F) if b not in b'"#;<>?\\^`{|}')
"""Bytes that a path may hold as it is sent; `%` begins an escape."""

_DECODED: Final = bytes(b for b in range(0x20, 0x100) if b not in b"%;?\\\x7f")
"""Bytes that may be there once it is decoded; `/` only where it was sent so."""

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
    if isinstance(path, Deny) or not query:
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
    # Of a long one, the passes of `_decoded` cost half as much.
    plain = len(raw) <= _MEMOISED and _PLAIN.fullmatch(raw)
    start = raw if plain else unquote_to_bytes(raw[: 3 * len(_FRONT_CONTROLLER)])
    if start[: len(_FRONT_CONTROLLER)].lower() == _FRONT_CONTROLLER:
        return Deny(ROUTE_UNKNOWN, "the front controller is not a route")
    decoded = raw if plain else _decoded(raw)
    if decoded is None:
        return Deny(AMBIGUOUS_TARGET, "a refused byte or escape in the path")
    if decoded == b"/":
        return "/"
    try:
        path = decoded.decode().removesuffix("/")  # strict: no surrogates, no overlong forms
    except UnicodeDecodeError:
        return Deny(AMBIGUOUS_TARGET, "an escape in the path that is no UTF-8")
    if not path.isascii() and not _is_text(path):
        return Deny(AMBIGUOUS_TARGET, "a refused character in the path")
    if not plain and (_DOTS.search(path) or path.endswith("/")):
        return Deny(AMBIGUOUS_TARGET, "an empty or dot segment")
    return path


_DOTS: Final = re.compile(r"/(?=/|\.\.?(?:/|\Z))")
"""What stands before an empty segment or one of dots."""


def _decoded(raw: bytes) -> bytes | None:
    """A path with its escapes decoded once, or None where a byte or an escape is refused.

    A few passes in C: each escape by itself would cost more than the rest of a request.
    """
    if not raw.startswith(b"/") or raw.translate(None, _LITERAL):
        return None
    if b"%" not in raw:
        return raw
    # Quoted-printable is the same with another sign; what is no escape stays as long as it is.
    decoded = a2b_qp(raw.replace(b"=", b"=3D").replace(b"%", b"="))
    if len(decoded) != len(raw) - 2 * raw.count(b"%") or decoded.count(b"/") != raw.count(b"/"):
        return None
    return None if decoded.translate(None, _DECODED) else decoded


_TEXT: Final[set[str]] = set()
"""Characters past ASCII that were found to be text: there are only so many."""


def _is_text(path: str) -> bool:
    """Whether all characters may be part of a name: letters, marks, digits, symbols, blanks.

    Past ASCII; of ASCII, `_DECODED` has let through what is text. Control and format characters,
    line separators and what Unicode has not assigned are none.
    """
    for character in set(path) - _TEXT:
        kind = category(character)
        if not (character.isascii() or kind[0] in "LMNS" or kind == "Zs"):
            return False
        _TEXT.add(character)
    return True


def _letters(text: str) -> str:
    """A pattern of these letters, each literal or escaped."""
    codes = [(letter, f"{ord(letter):x}") for letter in text]
    return "".join(f"(?:{one}|%{hex_[0]}[{hex_[1].upper()}{hex_[1]}])" for one, hex_ in codes)


# `_` is %5F, `.` %2E, a blank `+` or %20, `[` %5B, `]` %5D.
_NAME: Final = rf"(?:\++|%20)*+(?:[_.]method|(?:[_.]|%5[Ff]|%2[Ee]){_letters('method')})"

# A search that begins with one literal byte is quick.
_KEYS: Final = tuple(
    re.compile(rf"{separator}{_NAME}(?:(?=[&;=]|%00|\Z)|(?P<array>\[|%5[Bb]))".encode())
    for separator in "&;"
)

_CLOSED: Final = tuple(
    re.compile(rf"(?:[^{inside}=%\]]++|%(?!00|5[Dd]))*+(?:\]|%5[Dd])".encode())
    for inside in ("&", "&;")
)
"""The rest of an index that ends within its key, by the separator that stands before the key."""

_MOST_ARRAYS: Final = 8
"""How many keys are looked at that begin with `_method[`: nobody sends so many in good faith."""


def overrides_method(query: bytes) -> bool:
    """Whether PHP would find a variable named `_method` in this query, or it tries to hide that.

    `;` separates nothing for PHP, but proxies rewrite it to `&`: both readings count.

    Source: main/php_variables.c: blanks before a name are dropped, a NUL ends it, `.` becomes `_`,
    and `[` begins an index if there is a `]`.
    """
    text = b"&" + query
    for key, closed in zip(_KEYS, _CLOSED, strict=True):
        for number, found in enumerate(key.finditer(text)):
            if found["array"] is None or number >= _MOST_ARRAYS or closed.match(text, found.end()):
                return True
    return False
