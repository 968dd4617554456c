"""The endpoints of the authz listener: one row for each, with all that differs between them.

Most proxies put the client's request line into headers. Envoy appends the client's path to the
endpoint's own, and the API switch is the client's own request: both have it in the request line.
nginx alone needs its answers in another form.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from authsidecar.decision.model import Proxy
from authsidecar.decision.proxies import auth_request
from authsidecar.decision.proxies.headers import Fields
from authsidecar.decision.proxies.replies import Reply

RequestLine = tuple[bytes, bytes]
"""Method and target as the client sent them."""


class Target(Enum):
    """Where the client's request target is."""

    FORWARDED = auto()
    """In X-Forwarded-Uri, and its method in X-Forwarded-Method."""
    APPENDED = auto()
    """In the request line, behind the endpoint's path."""
    WHOLE = auto()
    """In the request line, which is the client's own."""


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """What one proxy asks, and how it is answered.

    Attributes:
        proxy: who asks; None: nobody that the sidecar has an endpoint for.
        path: where it asks.
        target: where the client's request target is.
        request_id: whether the proxy sets X-Authz-Request-Id; else it is the client's invention.
        write: puts a native answer into the proxy's dialect; None: it takes the native one.
        native_admissions: whether the proxy takes a native admission as it is. Only then are its
            requests remembered (ADR 13): the short way writes no other.
        fields: reads the headers, where the proxy sends others than those of headers.py.
        enables: what an admitted request sets the API switch to; None: it sets nothing.
    """

    proxy: Proxy | None
    path: str
    target: Target = Target.FORWARDED
    request_id: bool = True
    write: Callable[[Reply], Reply] | None = None
    native_admissions: bool = True
    fields: type[Fields] = Fields
    enables: bool | None = None

    def line(self, method: str, target: str) -> RequestLine | None:
        """The client's own request line, where it is the subrequest's too."""
        if self.target is Target.FORWARDED:
            return None
        if self.target is Target.APPENDED:
            target = target[len(self.path) :] or "/"
        return method.encode(), target.encode("utf-8", "surrogateescape")


WHOAMI: Final = Endpoint(Proxy.DIRECT, "/authz/whoami", Target.WHOLE, request_id=False)
"""Not a question of a proxy's: the client's own request, about its token."""

WHOAMI_SHOWN: Final = "/api/v1/whoami"
"""Where the files of deploy/ show it to clients."""

ENDPOINTS: Final = (
    Endpoint(Proxy.TRAEFIK, "/authz/traefik", request_id=False),
    Endpoint(Proxy.NGINX, "/authz/nginx", write=auth_request.write),
    Endpoint(Proxy.CADDY, "/authz/caddy"),
    Endpoint(Proxy.HAPROXY, "/authz/haproxy"),
    Endpoint(Proxy.ENVOY, "/authz/envoy", Target.APPENDED),
    Endpoint(Proxy.DIRECT, "/api/v1/enable", Target.WHOLE, request_id=False, enables=True),
    Endpoint(Proxy.DIRECT, "/api/v1/disable", Target.WHOLE, request_id=False, enables=False),
    WHOAMI,
)
NOWHERE: Final = Endpoint(None, "")

_BY_PATH: Final = {one.path: one for one in ENDPOINTS}
_SUBREQUESTS: Final = {one.path: one for one in ENDPOINTS if one.enables is None}
_ABOVE: Final = {one.path + "/": one for one in ENDPOINTS if one.target is Target.APPENDED}


def find(target: str) -> Endpoint:
    """The endpoint that a subrequest's target asks, or NOWHERE."""
    return _BY_PATH.get(target) or _find(target)


def _find(target: str) -> Endpoint:
    """The endpoint of a target that is not the path of one to the letter."""
    found = _SUBREQUESTS.get(target.partition("?")[0])  # a query for the switch is not ours
    return found or next((one for path, one in _ABOVE.items() if target.startswith(path)), NOWHERE)


def guess(start: bytes) -> Endpoint:
    """The endpoint that a request asks which is not parsed, by the bytes that it begins with."""
    words = start.split(None, 2)
    target = words[1].decode("latin-1") if len(words) > 1 else ""
    found = find(target)
    if found is NOWHERE:
        begun = (one for path, one in _SUBREQUESTS.items() if target.startswith(path))
        return next(begun, NOWHERE)
    return found
