"""The webhook: JSON that its receiver can trust, tried again until it is taken."""

import hmac
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from authsidecar.config import load
from authsidecar.expiry.channel import NotTakenError, UnreachableError
from authsidecar.expiry.webhook import SIGNATURE, Webhook
from tests.support import seed
from tests.support.redis import free_port
from tests.unit.expiry.test_notice import EXPIRY, NOW, notice

SECRET = "the webhook's secret"


class Receiver:
    """A real HTTP server that keeps what it is posted, and answers with `status`."""

    def __init__(self) -> None:
        self.status = 204
        self.posts: list[tuple[dict, bytes]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.posts.append((dict(request.headers), await request.read()))
        return web.Response(status=self.status, headers={"Location": "/elsewhere"})


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    one = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", one.answer)
    async with TestServer(app) as server:
        one.url = str(server.make_url("/hook?key=private"))
        yield one


async def test_what_is_posted_is_signed_and_complete(receiver):
    """The signature is the HMAC of the very bytes, and the time of sending is among them."""
    await Webhook(receiver.url, SECRET).send(notice())
    ((headers, body),) = receiver.posts
    expected = hmac.new(SECRET.encode(), body, "sha256").hexdigest()
    assert headers[SIGNATURE] == f"sha256={expected}"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "event": "token_expiring",
        "id": f"67:{EXPIRY}:24",
        "sent_at": "2027-01-15T03:00:00Z",
        "lead_hours": 24,
        "token": {
            "id": 67,
            "name": "deploys",
            "team": 3,
            "permissions": ["deploy", "read"],
            "expires_at": "2027-01-15T08:00:00Z",
            "last_used_at": "2027-01-15T02:00:00Z",
            "last_used_address": "192.0.2.9",
            "last_used_route": "/api/v1/deploy",
        },
        "user": {"id": 7, "name": "Ada"},
    }


async def test_every_try_has_its_own_time_and_the_same_id(receiver):
    """A receiver refuses a replay by the one, and drops a duplicate by the other."""
    hook = Webhook(receiver.url, SECRET)
    for now in (NOW, EXPIRY):
        await hook.send(notice(now=now))
    first, second = (json.loads(body) for _, body in receiver.posts)
    assert first["id"] == second["id"]
    assert first["sent_at"] != second["sent_at"]
    assert receiver.posts[0][0][SIGNATURE] != receiver.posts[1][0][SIGNATURE]


async def test_without_a_secret_nothing_claims_to_be_signed(receiver):
    """No header at all."""
    await Webhook(receiver.url, None).send(notice())
    assert SIGNATURE not in receiver.posts[0][0]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (500, UnreachableError),
        (503, UnreachableError),
        (429, UnreachableError),
        (400, NotTakenError),
        (404, NotTakenError),
        (302, NotTakenError),
    ],
)
async def test_only_a_2xx_takes_it(receiver, status, error):
    """A redirect is not followed: what is signed for one place is not for another."""
    receiver.status = status
    with pytest.raises(error, match=str(status)):
        await Webhook(receiver.url, SECRET).send(notice())
    assert len(receiver.posts) == 1


async def test_a_receiver_that_is_away_is_tried_again_and_its_url_is_not_said():
    """The URL may hold a key."""
    with pytest.raises(UnreachableError) as caught:
        await Webhook(f"http://127.0.0.1:{free_port()}/private", SECRET).send(notice())
    assert "private" not in str(caught.value)
    assert "private" not in repr(Webhook("http://127.0.0.1/private", SECRET))
    assert SECRET not in repr(Webhook("http://127.0.0.1/private", SECRET))


async def test_mail_and_webhook_fail_and_succeed_apart(receiver, redis_client):
    """The mail server is down, the webhook is not: it gets its warning, the mail waits."""
    from authsidecar.expiry.rounds import Rounds, WarningOptions, WarningResult
    from authsidecar.store.keys import Keys
    from tests.integration.test_warnings import QUIET, expiring

    await expiring(seed.registry(redis_client), 1)
    environ = {
        "AUTHSIDECAR_MAIL__HOST": "127.0.0.1",
        "AUTHSIDECAR_MAIL__PORT": str(free_port()),
        "AUTHSIDECAR_MAIL__SENDER": "sidecar@example.test",
        "AUTHSIDECAR_MAIL__WEBHOOK_URL": receiver.url,
        "AUTHSIDECAR_MAIL__WEBHOOK_SECRET": SECRET,
    }
    options = WarningOptions.of(load(None, environ))
    for _ in range(2):
        results = {
            channel.name: await Rounds(
                channel, options, redis_client, Keys(), log=QUIET, count=lambda _: None
            ).once()
            for channel in options.channels
        }
        assert results["mail"] == {WarningResult.FAILED: 1}
    assert len(receiver.posts) == 1
