"""What is told of a request with a canary token."""

from hashlib import sha256
from typing import NamedTuple

from authsidecar.decision.model import Address, TokenId


class CanaryUse(NamedTuple):
    """One use.

    Attributes:
        token: the canary's id.
        client: who used it.
        method: of the client's request.
        route: the template that it matched, or "".
        agent: the first 16 hexadecimal digits of the SHA-256 of its User-Agent; None: the proxy
            does not show that, or the client has none.
        decision_id: names the decision in the log.
    """

    token: TokenId
    client: Address
    method: str
    route: str
    agent: str | None
    decision_id: str


def agent_digest(agent: bytes) -> str | None:
    """A User-Agent as it is told of: a digest, since it is the client's own text."""
    return sha256(agent).hexdigest()[:16] if agent else None
