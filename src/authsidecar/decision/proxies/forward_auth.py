"""Reading a forward-auth subrequest: X-Forwarded-* from a trusted proxy, and nothing else.

Traefik, Caddy, HAProxy and nginx say everything in headers; Envoy says method and target in the
request line. A header that is missing, empty or repeated is an error, never a default.
"""

from typing import Final

from authsidecar.decision.addresses import Networks
from authsidecar.decision.credentials import find
from authsidecar.decision.model import METHODS, AccessRequest, Deny, Kind, Proxy, Reason
from authsidecar.decision.policy import METHOD_NOT_ALLOWED
from authsidecar.decision.proxies.client_ip import client_address
from authsidecar.decision.proxies.endpoints import ENDPOINTS, RequestLine
from authsidecar.decision.proxies.headers import Fields
from authsidecar.decision.proxies.target import METHOD_OVERRIDE, canonicalise
from authsidecar.decision.routes import FRONT_CONTROLLER, ROUTE_UNKNOWN

UNTRUSTED_PEER: Final = Reason(
    "untrusted_peer", Kind.FORBIDDEN, 403, "This address may not ask for authorization."
)
FORWARDED_INVALID: Final = Reason(
    "forwarded_header_invalid",
    Kind.MALFORMED,
    400,
    "The proxy must send X-Forwarded-Method, X-Forwarded-Uri and X-Forwarded-For, once each.",
)
RESERVED_HEADER: Final = Reason(
    "reserved_header",
    Kind.MALFORMED,
    400,
    "A header is another spelling of one that the proxy sets.",
)

_METHODS: Final = {method.encode(): method for method in METHODS}
_LONGEST_REQUEST_ID: Final = 128

_WITH_REQUEST_ID: Final = frozenset(one.proxy for one in ENDPOINTS if one.request_id)


def read(
    fields: Fields, proxy: Proxy, trusted_hops: Networks, line: RequestLine | None = None
) -> AccessRequest | Deny:
    """The client's request, or why it cannot be read: row 0 of the order of checks.

    Args:
        fields: the subrequest's headers.
        proxy: which endpoint was asked.
        trusted_hops: networks that are skipped in X-Forwarded-For.
        line: the client's own request line, where the proxy passes it on (Envoy); it stands for
            X-Forwarded-Method and X-Forwarded-Uri.
    """
    if fields.reserved:
        return Deny(RESERVED_HEADER, "a name with _ or . that folds to a reserved one")
    if line is None:
        if len(fields.method) != 1 or len(fields.uri) != 1:
            return Deny(FORWARDED_INVALID, "X-Forwarded-Method and X-Forwarded-Uri, once each")
        line = fields.method[0], fields.uri[0]
    method_text, target = line
    if not method_text or not target or not fields.forwarded_for:
        return Deny(FORWARDED_INVALID, "a forwarded header is missing or empty")
    method = _METHODS.get(method_text)
    if method is None:
        return Deny(METHOD_NOT_ALLOWED, "not one of the seven methods, in upper case")
    if fields.override:
        return Deny(METHOD_OVERRIDE, "an X-HTTP-Method-Override header")
    path = canonicalise(target)
    if isinstance(path, Deny):
        if path.reason is not ROUTE_UNKNOWN:
            return path
        path = FRONT_CONTROLLER  # the policy has no route for it, and counts the attempt
    client = client_address(fields.forwarded_for, trusted_hops)
    if isinstance(client, Deny):
        return client
    preflight = (
        method == "OPTIONS"
        and bool(fields.origin and fields.preflight_method)
        and not fields.authorization
    )
    request_id = _request_id(fields.request_id) if proxy in _WITH_REQUEST_ID else None
    credential = find(fields.authorization)
    agent = fields.user_agent[0] if len(fields.user_agent) == 1 else b""
    return AccessRequest(
        *(proxy, method, path, target, client, credential, preflight, request_id),
        body=bool(fields.content_type) and makes_input(fields.content_type),
        user_agent=agent,
    )


def makes_input(content_types: list[bytes]) -> bool:
    """Whether PHP or Laravel would read a body of one of these types as the request's input.

    Source: laravel-input.md: JSON by `/json` and `+json` anywhere in it, forms by their names.

    >>> makes_input([b"application/json"]), makes_input([b"text/plain"]), makes_input([])
    (True, False, False)
    """
    return any(word in one.lower() for one in content_types for word in _INPUT)


_INPUT: Final = (b"/json", b"+json", b"application/x-www-form-urlencoded", b"multipart/form-data")


def _request_id(values: list[bytes]) -> str | None:
    """The proxy's id of the client request; an odd one is no id, and the request is counted."""
    if len(values) != 1 or not 0 < len(values[0]) <= _LONGEST_REQUEST_ID:
        return None
    return values[0].decode("latin-1")
