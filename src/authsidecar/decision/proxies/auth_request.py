"""nginx's auth_request: it knows 2xx, 401 and 403 and turns every other status into 500.

So a refusal is a 401 or 403 that carries the real status and body in headers; the shipped
configuration (deploy/nginx) turns them back into the answer that the client should see.
"""

from typing import Final

from authsidecar.decision.proxies.headers import AUTHZ_BODY, AUTHZ_STATUS
from authsidecar.decision.proxies.replies import Reply, lines

_UNDERSTOOD: Final = frozenset({200, 401, 403})


def write(reply: Reply) -> Reply:
    """The native answer as auth_request understands it."""
    if reply.status == 200:
        return reply
    status = reply.status if reply.status in _UNDERSTOOD else 403
    extra = lines((AUTHZ_STATUS, str(reply.status)), (AUTHZ_BODY, reply.body.decode("ascii")))
    return Reply(status, reply.fields + extra, reply.body)
