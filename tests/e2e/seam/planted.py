"""`python planted.py HOLE serve`: the sidecar with one known hole, to see that it is found."""

import sys

from authsidecar.cli import main
from authsidecar.decision import authorize
from authsidecar.decision.model import AccessRequest, Allow, Deny
from authsidecar.decision.policy import Judgement, Policy
from authsidecar.decision.proxies import forward_auth, headers, replies
from authsidecar.decision.routes import ROUTE_UNKNOWN, Route


def match_before_decoding() -> None:
    """What is matched is the path as it was spelled, not as Laravel decodes it."""
    canonicalise = forward_auth.canonicalise  # type: ignore[attr-defined]

    def spelled(target: bytes) -> str | Deny:
        path = canonicalise(target)
        return path if isinstance(path, Deny) else target.partition(b"?")[0].decode("ascii")

    forward_auth.canonicalise = spelled  # type: ignore[attr-defined]


def unknown_post_is_public() -> None:
    """A POST to a path that has no POST route needs no token."""
    find_route = authorize.find_route  # type: ignore[attr-defined]

    def lenient(policy: Policy, request: AccessRequest) -> Route | Judgement:
        match found := find_route(policy, request):
            case Judgement(verdict=Deny(reason=reason)) if reason is ROUTE_UNKNOWN:
                return Judgement(Allow(None), None) if request.method == "POST" else found
        return found

    authorize.find_route = lenient  # type: ignore[attr-defined]


def identity_header_left_out() -> None:
    """One header of the identity is not sent, as if it had no value."""
    identity = replies._identity

    def shorter(*args: object) -> str:
        lines = identity(*args).splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith(headers.TOKEN_ID))

    replies._identity = shorter


HOLES = {
    hole.__name__: hole
    for hole in (match_before_decoding, unknown_post_is_public, identity_header_left_out)
}

if __name__ == "__main__":
    HOLES[sys.argv.pop(1)]()
    main()
