"""The reference canonicaliser: one request target, one path, the one that Laravel routes.

Laravel matches `rawurldecode(rtrim(path, "/"))`. Proxies decode, merge and resolve in ways
of their own, so whatever could be read in two ways is refused, never cleaned: what is
accepted here means the same path to every proxy and to Laravel.
"""

import re
from functools import lru_cache
from typing import Final
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

# %00-1F and %80-FF do not begin with 2 to 7; the others that are refused: / # % ; ? \ DEL.
_ALLOWED: Final = re.compile(
    rb"/(?:[!$&'()*+,\-./0-9:=@A-Z\[\]_a-z~]"
    rb"|%(?!2[35Ff]|3[BFbf]|5[Cc]|7[Ff])[2-7][0-9A-Fa-f])*"
)

_MEMOISED: Final = 256
"""Bytes of the longest target that is remembered, so that junk cannot fill the memory."""

_QUERY: Final = re.compile(rb"[!\"$-~]*")


def canonicalise(target: bytes) -> str | Deny:
    """The path that Laravel will route, decoded once, without its trailing slash.

    Args:
        target: path and query as the proxy passes them to the backend.

    Returns:
        A path of ASCII segments that are neither empty, "." nor ".."; "/" for the root. The
        caller decides which first segments it knows.

    Source: proxies.md "Reference canonicaliser", coolify-semantics sections 9 and 10.

    >>> canonicalise(b"/api/v1/%74eams/?page=2")
    '/api/v1/teams'
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
    path = decoded.decode("ascii").removesuffix("/")
    if not plain and not {"", ".", ".."}.isdisjoint(path[1:].split("/")):
        return Deny(AMBIGUOUS_TARGET, "an empty or dot segment")
    return path


def overrides_method(query: bytes) -> bool:
    """Whether PHP would find a variable named `_method` in this query.

    `;` separates nothing for PHP, but proxies rewrite it to `&`: both readings count.
    """
    if b"method" not in unquote_to_bytes(query):
        return False
    pairs = query.split(b"&") + query.replace(b";", b"&").split(b"&")
    return any(_php_name(pair.partition(b"=")[0]) == b"_method" for pair in pairs)


def _php_name(key: bytes) -> bytes:
    """The variable that PHP makes of a query key (main/php_variables.c)."""
    name, _, _ = unquote_to_bytes(key.replace(b"+", b" ")).partition(b"\0")
    name, bracket, index = name.lstrip(b" ").partition(b"[")
    if name and bracket and b"]" not in index:
        name += b"_" + index  # an array that is never closed is a plain name after all
    return name.replace(b" ", b"_").replace(b".", b"_")
