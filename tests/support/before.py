"""The canonicaliser's reading of a path as it was while it accepted nothing but ASCII."""

import re
from urllib.parse import unquote_to_bytes

from authsidecar.decision.model import Deny
from authsidecar.decision.proxies.target import AMBIGUOUS_TARGET
from authsidecar.decision.routes import FRONT_CONTROLLER, ROUTE_UNKNOWN

_ALLOWED = re.compile(
    rb"/(?:[!$&'()*+,\-./0-9:=@A-Z\[\]_a-z~]"
    rb"|%(?!2[35Ff]|3[BFbf]|5[Cc]|7[Ff])[2-7][0-9A-Fa-f])*"
)


def path(raw: bytes) -> str | Deny:
    """What was made of a target without its query."""
    decoded = unquote_to_bytes(raw)
    if decoded.lower().startswith(FRONT_CONTROLLER.encode()):
        return Deny(ROUTE_UNKNOWN, "the front controller is not a route")
    if not _ALLOWED.fullmatch(raw):
        return Deny(AMBIGUOUS_TARGET, "a refused byte or escape in the path")
    if decoded == b"/":
        return "/"
    path = decoded.decode("ascii").removesuffix("/")
    if not {"", ".", ".."}.isdisjoint(path[1:].split("/")):
        return Deny(AMBIGUOUS_TARGET, "an empty or dot segment")
    return path
