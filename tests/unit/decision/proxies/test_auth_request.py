"""nginx's dialect: three statuses, and the truth beside them."""

import json

import pytest

from authsidecar.decision.model import Deny, Kind, Reason
from authsidecar.decision.proxies.auth_request import write
from authsidecar.decision.proxies.replies import Reply, lines, refuse


def native(status: int) -> Reply:
    return refuse(Deny(Reason("some_code", Kind.MALFORMED, status, "Some words.")), "d1")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 414, 429, 431, 503])
def test_only_what_nginx_knows_is_its_status(status: int) -> None:
    """Pitfall 14: 401 and 403 as they are, all others as 403 with the real one in a header."""
    reply = write(native(status))
    said = dict(reply.headers)
    assert reply.status == (status if status in {401, 403} else 403)
    assert said["X-Authz-Status"] == str(status)
    assert json.loads(said["X-Authz-Body"])["code"] == "some_code"


@pytest.mark.parametrize("status", [401, 429, 503])
def test_the_native_headers_and_body_stay(status: int) -> None:
    """Retry-After, RateLimit fields and the challenge travel beside; nothing is lost."""
    given = native(status)
    limited = given.fields + lines(("RateLimit", '"user";r=0;t=1'))
    reply = write(Reply(given.status, limited, given.body))
    assert reply.headers[: len(given.headers)] == given.headers
    assert ("RateLimit", '"user";r=0;t=1') in reply.headers
    assert reply.body == given.body
    assert len({name for name, _ in reply.headers}) == len(reply.headers)


def test_an_admission_is_the_native_one() -> None:
    """Nothing is added to a 200."""
    reply = Reply(200, lines(("X-Auth-User-Id", "1")))
    assert write(reply) is reply
